//! The load that a demo node runs while it is master: each worker appends records to its own stream
//! and moves money between accounts that all workers share, one transaction at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steadfast::{CommitToken, Committed, ReplicatedEnvironment, Transaction, WriteError};

use super::protocol::{ACCOUNT_COUNT, ACCOUNT_START, ACCOUNTS, COUNTERS, JOURNAL, Report};

/// How long a worker whose write was refused waits for a change of role before it retries.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// Whether the workers should work, and how many do.
#[derive(Default)]
pub(super) struct Switch {
    state: Mutex<SwitchState>,
    changed: Condvar,
}

#[derive(Default)]
struct SwitchState {
    is_wanted: bool,
    is_master: bool,
    busy: usize,
}

impl Switch {
    /// Whether the workload is wanted at all.
    pub(super) fn want(&self, is_wanted: bool) {
        self.change(|state| state.is_wanted = is_wanted);
    }

    /// Whether this node is master.
    pub(super) fn lead(&self, is_master: bool) {
        self.change(|state| state.is_master = is_master);
    }

    /// Waits until no worker works.
    pub(super) fn wait_idle(&self) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| state.busy > 0));
    }

    /// Waits until there is something to do, and counts the caller as busy.
    fn begin(&self) {
        let state = self.lock();
        let waited = self
            .changed
            .wait_while(state, |state| !(state.is_wanted && state.is_master));
        waited.unwrap_or_else(PoisonError::into_inner).busy += 1;
    }

    fn end(&self) {
        self.change(|state| state.busy -= 1);
    }

    /// Waits for a moment, or until the workload is to begin or end: other workers that begin and
    /// end are no reason to retry.
    pub(super) fn pause(&self) {
        let state = self.lock();
        let was = (state.is_wanted, state.is_master);
        let is_same = |state: &mut SwitchState| (state.is_wanted, state.is_master) == was;
        let waited = self
            .changed
            .wait_timeout_while(state, REFUSED_PAUSE, is_same);
        drop(waited);
    }

    fn change(&self, change: impl FnOnce(&mut SwitchState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SwitchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker: a stream of its own, and ids that no other worker of any life uses.
pub(super) struct Worker {
    pub(super) life: u64,
    pub(super) stream: u32,
    pub(super) tries: u64,
}

impl Worker {
    /// Works while the switch allows it, forever.
    pub(super) fn run(
        mut self,
        env: &ReplicatedEnvironment,
        switch: &Switch,
        report: impl Fn(&Report),
    ) {
        loop {
            switch.begin();
            self.tries += 1;
            // Each attempt has an id of its own: one whose outcome is unknown may still appear.
            let id = format!("{}-{}-{}", self.life, self.stream, self.tries);
            let appended = env.write(|txn| append(txn, self.stream, &id));
            let is_refused = appended.is_err();
            report(&told(appended, id));
            let paid = if is_refused { None } else { self.pay(env).ok() };
            if let Some(CommitToken { term, vlsn, .. }) = paid {
                report(&Report::Paid {
                    term: term.0,
                    vlsn: vlsn.0,
                });
            }
            switch.end();
            if paid.is_none() {
                switch.pause();
            }
        }
    }

    fn pay(&self, env: &ReplicatedEnvironment) -> Result<CommitToken, WriteError> {
        let seed = (self.life << 40) ^ (u64::from(self.stream) << 32) ^ self.tries;
        let chance = scramble(seed);
        let account = |bits: u64| u32::try_from(bits % u64::from(ACCOUNT_COUNT)).unwrap_or(0);
        let from = account(chance);
        let to = (from + 1 + account(chance >> 16) % (ACCOUNT_COUNT - 1)) % ACCOUNT_COUNT;
        let amount = i64::from(account(chance >> 32));
        Ok(env.write(|txn| pay(txn, from, to, amount))?.token)
    }
}

fn told(appended: Result<Committed<u64>, WriteError>, id: String) -> Report {
    match appended {
        Ok(Committed { value, token }) => Report::Appended {
            id,
            number: value,
            term: token.term.0,
            vlsn: token.vlsn.0,
        },
        Err(WriteError::OutcomeUnknown { .. } | WriteError::InsufficientAcks { .. }) => {
            Report::Uncertain { id }
        }
        Err(error) if error.is_retryable() => Report::Refused { id },
        Err(error) => Report::Failed(error.to_string()),
    }
}

/// Appends `id` to the stream under the number after its last; returns that number.
fn append(txn: &Transaction, stream: u32, id: &str) -> Result<u64, WriteError> {
    let (counters, journal) = (txn.database(COUNTERS)?, txn.database(JOURNAL)?);
    let last = counters.get(stream.to_be_bytes())?;
    let number = last.map_or(Ok(0), |bytes| number_of(&bytes))? + 1;
    counters.put(stream.to_be_bytes(), number.to_be_bytes())?;
    journal.put(
        [&stream.to_be_bytes()[..], &number.to_be_bytes()[..]].concat(),
        id,
    )?;
    Ok(number)
}

/// Moves `amount`; creates the accounts if there are none yet.
fn pay(txn: &Transaction, from: u32, to: u32, amount: i64) -> Result<(), WriteError> {
    let accounts = txn.database(ACCOUNTS)?;
    if accounts.get(from.to_be_bytes())?.is_none() {
        for account in 0..ACCOUNT_COUNT {
            accounts.put(account.to_be_bytes(), ACCOUNT_START.to_le_bytes())?;
        }
    }
    for (account, change) in [(from, -amount), (to, amount)] {
        let held = accounts.get(account.to_be_bytes())?;
        let held = held.ok_or_else(|| WriteError::abort("an account is missing"))?;
        let balance = number_of(&held.iter().rev().copied().collect::<Vec<_>>())?.cast_signed();
        accounts.put(account.to_be_bytes(), (balance + change).to_le_bytes())?;
    }
    Ok(())
}

/// A big-endian number.
fn number_of(bytes: &[u8]) -> Result<u64, WriteError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| WriteError::abort("a number is not 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Spreads the bits of a seed (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", the finalizer).
pub(crate) fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
