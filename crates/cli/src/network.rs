//! How verbs reach nodes: over TLS with the user's credentials, or in plaintext where there are none.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use steadfast::credentials::CERTIFICATE_FILE;
use steadfast::{TcpTransport, TlsTransport, Transport, credentials};

use crate::data_dir::CREDENTIALS;
use crate::failure::Failure;

/// The environment variable that names a directory of credentials.
const VARIABLE: &str = "STEADFAST_CREDENTIALS";

/// The environment variable that names a node's data directory, where a join token has put its
/// credentials.
const OF_NODE: &str = "STEADFAST_DATA_DIR";

/// Where a user's credentials lie, below the directory for configuration.
const OF_USER: &str = "steadfast/credentials";

/// The directory of credentials that somebody has named, by a flag or in the environment. A variable
/// that is empty counts as not set, as in most programs: clap would refuse it.
fn named(flag: Option<&Path>) -> Option<PathBuf> {
    flag.map(Path::to_owned)
        .or_else(|| variable(VARIABLE).map(PathBuf::from))
}

/// The network for verbs: with the credentials in this directory, else in the one that the
/// environment names, else with those of the user.
///
/// # Errors
/// When credentials cannot be used.
pub(crate) fn network(flag: Option<&Path>) -> Result<Arc<dyn Transport>, Failure> {
    match chosen(flag) {
        Some(dir) => with_credentials(&dir),
        None => Ok(Arc::new(TcpTransport)),
    }
}

/// The directory of the credentials that verbs use, if any: the one that is named, else that of the
/// node whose data directory the environment names, else that of the user.
pub(crate) fn chosen(flag: Option<&Path>) -> Option<PathBuf> {
    let of_node = variable(OF_NODE).map(|dir| PathBuf::from(dir).join(CREDENTIALS));
    let mut there = [of_node, of_user()].into_iter().flatten();
    named(flag).or_else(|| there.find(|dir| dir.join(CERTIFICATE_FILE).exists()))
}

/// The network with the credentials in a directory.
///
/// # Errors
/// When they cannot be used.
pub(crate) fn with_credentials(dir: &Path) -> Result<Arc<dyn Transport>, Failure> {
    let credentials = credentials::read(dir, now_ms())?;
    let tls = TlsTransport::new(Arc::new(TcpTransport), &credentials).map_err(|error| {
        Failure::usage(
            format!("{}: {error}", dir.display()),
            "give --credentials a directory that `steadfast init` or `steadfast certs issue` has made",
        )
    })?;
    Ok(Arc::new(tls))
}

fn of_user() -> Option<PathBuf> {
    let base = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")));
    base.map(|base| base.join(OF_USER))
}

/// The value of an environment variable, unless it is empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "a program reads the clock itself"
)]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
