//! Who may ask for a number: everybody together, or one alone, for a moment.
//!
//! A transaction that has had too many conflicts runs with all others held off, so that it meets
//! none. It runs a user's closure, which may be slow, or even wait for a write that is held off. So
//! the others wait for [`HOLD_OFF_MAX`] and no longer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast_net::{lock, process};
use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::task::AbortHandle;

/// How long a closure that runs alone holds the others off.
pub(super) const HOLD_OFF_MAX: Duration = Duration::from_secs(1);

/// Longest time, in milliseconds, that a transaction backs off after a conflict: several commits.
/// It doubles from 1 ms with each conflict.
const STEP_BACK_MS_MAX: u64 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    gate: Arc<RwLock<()>>,
    chance: Mutex<StdRng>,
    /// Where the others are let in again, even if the caller's thread blocks.
    runtime: Handle,
}

impl Turns {
    /// On the current runtime. `seed` seeds the random back-off times.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            gate: Arc::default(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            runtime: Handle::current(),
        }
    }

    /// Waits for a turn shared with everybody.
    pub(super) async fn together(&self) -> Turn {
        Turn::Together {
            _gate: Arc::clone(&self.gate).read_owned().await,
        }
    }

    /// Waits until nobody is asking for a number, and holds the others off.
    pub(super) async fn alone(&self) -> Alone {
        let gate = Arc::clone(&self.gate).write_owned().await;
        let gate = Arc::new(Mutex::new(Some(gate)));
        let over = Arc::clone(&gate);
        let timer = self.runtime.spawn(process::in_current(async move {
            tokio::time::sleep(HOLD_OFF_MAX).await;
            drop(take(&over));
        }));
        Alone {
            gate,
            timer: timer.abort_handle(),
        }
    }

    /// Backs off after a conflict, so that the same transactions do not collide again.
    pub(super) async fn step_back(&self, conflicts: u32) {
        let most = 1_u64.checked_shl(conflicts - 1).unwrap_or(u64::MAX);
        let most = most.min(STEP_BACK_MS_MAX);
        let ms = self.draw(most);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    fn draw(&self, most: u64) -> u64 {
        let chance = self.chance.lock();
        let mut chance = chance.unwrap_or_else(PoisonError::into_inner);
        chance.random_range(0..=most)
    }
}

/// Permission to ask for a number, as long as it is held.
#[derive(Debug)]
pub(super) enum Turn {
    Together { _gate: OwnedRwLockReadGuard<()> },
    Alone { _gate: OwnedRwLockWriteGuard<()> },
}

/// Holds all others off, until dropped or [`HOLD_OFF_MAX`] has passed.
#[derive(Debug)]
pub(super) struct Alone {
    gate: Arc<Mutex<Option<OwnedRwLockWriteGuard<()>>>>,
    timer: AbortHandle,
}

impl Alone {
    /// The turn, if nobody has been let in meanwhile.
    pub(super) fn turn(&self) -> Option<Turn> {
        self.timer.abort();
        take(&self.gate).map(|gate| Turn::Alone { _gate: gate })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

fn take<T>(from: &Mutex<Option<T>>) -> Option<T> {
    lock(from).take()
}
