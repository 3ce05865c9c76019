#!/usr/bin/env bash
# tonic 0.14.9 (h2 0.4.20) and etcdctl 3.4.23 from Debian: a server of Rust's gRPC stack cannot be asked by
# this client for what it dials itself, if the endpoint has a scheme, and has no part in saying so.
#
# `etcdctl endpoint status`, `endpoint hashkv` and `defrag` connect to "http://HOST:PORT" by a resolver that
# passes the text on as it is, and gRPC for Go then sends it as the `:authority` of each request. Servers in Go
# take it. h2 refuses the head as malformed and resets the stream with PROTOCOL_ERROR before any service,
# interceptor or layer sees a request, and no option changes that. The same command without the scheme
# reaches the server; so does `etcdctl get` with it, whose connection is made in another way.
#
# Seen: with scheme PROTOCOL_ERROR, without Unimplemented, get with scheme Unimplemented
set -euo pipefail
dir="$(mktemp -d)"
server=
end() {
    [[ -z "$server" ]] || kill "$server" 2>/dev/null || true
    rm -rf "$dir"
}
trap end EXIT
(cd "$dir" && apt-get download --quiet "etcd-client=3.4.23-4+b4" >/dev/null && dpkg-deb -x etcd-client_*.deb .)
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2024"

[dependencies]
h2 = "=0.4.20"
tokio = { version = "1", features = ["macros", "net", "rt"] }
tokio-stream = { version = "0.1", features = ["net"] }
tonic = { version = "=0.14.9", default-features = false, features = ["router", "server"] }
tonic-health = "=0.14.9"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// A server that has none of the services that the client asks for, and so says Unimplemented.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = TcpListenerStream::new(listener);
    tonic::transport::Server::builder()
        .add_service(health)
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}
RUST
(cd "$dir" && CARGO_TARGET_DIR="$dir/target" cargo build --quiet)
"$dir/target/debug/probe" >"$dir/address" &
server=$!
for _ in $(seq 100); do
    [[ -s "$dir/address" ]] && break
    sleep 0.1
done
address="$(cat "$dir/address")"
ask() {
    ETCDCTL_API=3 timeout 20 "$dir/usr/bin/etcdctl" --command-timeout 3s "$@" 2>&1 || true
}
word() {
    grep -o -m1 -E 'PROTOCOL_ERROR|Unimplemented' || echo "something else"
}
said="with scheme $(ask --endpoints "http://$address" endpoint status | word)"
said+=", without $(ask --endpoints "$address" endpoint status | word)"
said+=", get with scheme $(ask --endpoints "http://$address" get k | word)"
echo "$said"
[[ "$said" == "with scheme PROTOCOL_ERROR, without Unimplemented, get with scheme Unimplemented" ]] || {
    echo "this has changed"
    exit 1
}
echo "as it was seen"
