#!/usr/bin/env bash
# rcgen 0.14.10 with rustls-webpki 0.103.17: two authorities that were made with default parameters have
# the same name, so a certificate of a foreign authority is refused as one with a bad signature, and not as
# one of an unknown issuer.
#
# `CertificateParams::new` puts "rcgen self signed cert" into the subject of each authority that does not
# set a name. A verifier looks for the issuer by its name, finds the one that it knows, and then the
# signature does not fit: the log speaks of tampering where somebody has merely used the wrong authority,
# and what counts refusals by reason counts the wrong one. With a name of its own for each authority the
# reason is UnknownIssuer.
#
# Seen: same name InvalidSignatureForPublicKey, own names UnknownIssuer
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2024"

[dependencies]
rcgen = { version = "=0.14.10", default-features = false, features = ["ring"] }
rustls-pki-types = "=1.16.0"
rustls-webpki = { version = "=0.103.17", default-features = false, features = ["std", "ring"] }
TOML
cat >"$dir/src/main.rs" <<'RUST'
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

fn authority(name: Option<&str>) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if let Some(name) = name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (certificate, Issuer::new(params, key))
}

/// Why a certificate of the second authority is refused by whom believes the first.
fn refused(names: [Option<&str>; 2]) -> String {
    let [(believed, _), (_, foreign)] = names.map(authority);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &foreign).unwrap().der().clone();
    let anchors = [anchor_from_trusted_cert(&believed).unwrap()];
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let leaf = EndEntityCert::try_from(&leaf).unwrap();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let usage = KeyUsage::client_auth();
    let verified = leaf.verify_for_usage(algorithms, &anchors, &[], now, usage, None, None);
    let error = format!("{:?}", verified.err().unwrap());
    error.split(['(', ' ']).next().unwrap().to_owned()
}

fn main() {
    println!(
        "same name {}, own names {}",
        refused([None, None]),
        refused([Some("one"), Some("two")])
    );
}
RUST
said="$(cd "$dir" && CARGO_TARGET_DIR="$dir/target" cargo run --quiet)"
echo "$said"
[[ "$said" == "same name InvalidSignatureForPublicKey, own names UnknownIssuer" ]] || {
    echo "this has changed"
    exit 1
}
echo "as it was seen"
