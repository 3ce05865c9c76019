//! The end of a server, as its parts hear of it.

use tokio::sync::watch;

/// Returns when the server closes.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Who closes it may also just be gone.
    drop(stop.wait_for(|stop| *stop).await);
}
