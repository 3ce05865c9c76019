//! What a running node does with its credentials: reads them again when they change, and has its
//! certificate renewed long before it ends.

use std::convert::Infallible;
use std::future::pending;
use std::path::Path;
use std::time::{Duration, SystemTime};

use steadfast::ReplicatedEnvironment;
use steadfast::credentials::{
    AUTHORITY_FILE, AUTHORITY_KEY_FILE, CERTIFICATE_FILE, CertificateRequest, KEY_FILE, date, read,
    read_authority, valid_ms,
};
use tokio::time::Instant;

use crate::failure::{Failure, with_sources};
use crate::network::now_ms;

/// How often a node looks whether its credentials have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often a node looks whether its certificate has to be renewed.
const RETRY_INTERVAL: Duration = Duration::from_mins(1);

/// How often a node that depends on others for its certificate asks for a new one, also when it
/// starts: so it learns of a new authority.
const ASK_INTERVAL: Duration = Duration::from_hours(24);

/// From when on a node says that its certificate is not renewed: 30 days before it ends.
const SOON_MS: u64 = 30 * 24 * 60 * 60 * 1_000;

/// Keeps the credentials of a node in use, and valid.
pub(crate) async fn keep(env: &ReplicatedEnvironment, dir: Option<&Path>) -> Infallible {
    let Some(dir) = dir else {
        return pending().await;
    };
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    let mut seen = Seen::of(dir);
    use_authority(env, dir);
    let (mut next_try, mut next_ask) = (Instant::now(), Instant::now());
    loop {
        interval.tick().await;
        let now = Seen::of(dir);
        if now != seen {
            seen = now;
            take_over(env, dir);
        }
        let now = Instant::now();
        // Before it belongs to a group, a node has no id that a certificate could name.
        if now < next_try || env.status().group.is_none() {
            continue;
        }
        next_try = now + RETRY_INTERVAL;
        let depends = !dir.join(AUTHORITY_KEY_FILE).exists();
        let asks = depends && now >= next_ask;
        if (asks || is_due(dir)) && renew(env, dir).await {
            next_ask = now + ASK_INTERVAL;
        }
    }
}

fn use_authority(env: &ReplicatedEnvironment, dir: &Path) {
    let read = read_authority(dir).map_err(Failure::from);
    let used = read.and_then(|authority| Ok(env.certify_with(authority)?));
    if let Err(failure) = used {
        println!("this node certifies no others: {}", failure.what());
    }
}

/// Uses what is in the directory now.
fn take_over(env: &ReplicatedEnvironment, dir: &Path) {
    let new = read(dir, now_ms()).map_err(Failure::from);
    match new.and_then(|new| Ok(env.replace_credentials(&new)?)) {
        Ok(()) => println!("the credentials in {} are in use", dir.display()),
        // They may be half there: what is in use stays.
        Err(failure) => println!("the credentials in use stay: {}", failure.what()),
    }
    use_authority(env, dir);
}

/// Whether the certificate is to be renewed: after two thirds of its time.
fn is_due(dir: &Path) -> bool {
    let now_ms = now_ms();
    let valid = read(dir, now_ms).ok().and_then(|of| valid_ms(&of));
    valid.is_some_and(|(begin_ms, end_ms)| end_ms.saturating_sub(now_ms) < (end_ms - begin_ms) / 3)
}

/// Has the certificate renewed, and returns whether it was; it is taken over when the files have
/// changed.
async fn renew(env: &ReplicatedEnvironment, dir: &Path) -> bool {
    let asked = async {
        let request = CertificateRequest::read(dir).map_err(|error| with_sources(&error))?;
        let certified = env.renew_certificate_async(&request).await;
        let certified = certified.map_err(|error| with_sources(&error))?;
        certified.install(dir).map_err(|error| with_sources(&error))
    };
    match asked.await {
        Ok(()) => println!("the certificate in {} was renewed", dir.display()),
        Err(why) => {
            tell_why_not(dir, &why);
            return false;
        }
    }
    true
}

/// Says why a certificate is not renewed, once that is urgent: it may not be meant to be.
fn tell_why_not(dir: &Path, why: &str) {
    let now_ms = now_ms();
    let valid = read(dir, now_ms).ok().and_then(|of| valid_ms(&of));
    let Some((_, end_ms)) = valid else { return };
    if end_ms.saturating_sub(now_ms) < SOON_MS {
        println!(
            "the certificate in {} ends on {} and is not renewed: {why}",
            dir.display(),
            date(end_ms)
        );
    }
}

/// When each file of a directory of credentials was written.
#[derive(PartialEq, Eq)]
struct Seen(Vec<Option<SystemTime>>);

impl Seen {
    fn of(dir: &Path) -> Self {
        let files = [
            CERTIFICATE_FILE,
            KEY_FILE,
            AUTHORITY_FILE,
            AUTHORITY_KEY_FILE,
        ];
        let written = |file| dir.join(file).metadata().and_then(|of| of.modified()).ok();
        Self(files.map(written).to_vec())
    }
}
