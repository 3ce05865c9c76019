//! Passwords, as bcrypt hashes. Each takes tens of milliseconds of a processor on purpose, so they
//! are made and checked on threads that may block, and no more than a few at a time.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::Error;

/// The cost of a hash, as a power of two: etcd's.
const COST: u32 = 10;
/// How many are worked on at a time.
const AT_A_TIME: usize = 2;
/// How many more wait.
const WAITING_MAX: usize = 256;
/// How long one waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes of a password that bcrypt takes; a longer one is refused rather than cut.
const PASSWORD_MAX: usize = 72;

/// What a password is checked against where there is no such user, so that it takes as long.
static NOBODY: LazyLock<String> =
    LazyLock::new(|| bcrypt::hash("nobody", COST).unwrap_or_default());

/// Makes and checks hashes.
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
    places: Semaphore,
}

impl Passwords {
    pub(crate) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
            places: Semaphore::new(AT_A_TIME + WAITING_MAX),
        }
    }

    /// The hash of a password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Error> {
        if password.len() > PASSWORD_MAX {
            return Err(Error::InvalidAuthManagement);
        }
        let hash = self.work(move || bcrypt::hash(password, COST).ok()).await?;
        hash.ok_or(Error::InvalidAuthManagement)
    }

    /// Whether this is the password; without a hash it is not.
    pub(crate) async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, Error> {
        if password.len() > PASSWORD_MAX {
            return Ok(false);
        }
        self.work(move || {
            let known = hash.is_some();
            let hash = hash.as_ref().unwrap_or(&NOBODY);
            bcrypt::verify(password, hash).unwrap_or(false) && known
        })
        .await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let place = self.places.try_acquire();
        let _place = place.map_err(|_| Error::TooManyRequests)?;
        let turn = timeout(WAIT_MAX, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| Error::TooManyRequests)?;
        let turn = turn.map_err(|_| Error::Stopped)?;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| Error::Stopped)
    }
}
