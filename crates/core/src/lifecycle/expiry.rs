//! The end of keys with a time to live: what the master does about it.
//!
//! ```text
//!            no key has a time to live                 some have
//!   asleep ◄────────────────────────── look ──────────────────────► wait for the first deadline,
//!     │                                 ▲ ▲                          noting the time every second
//!     └─ a write gives a key a deadline ┘ │ rest                        │ due
//!                                         └── a transaction deletes ◄───┘
//! ```
//!
//! Each transaction deletes a chunk of keys, and one is under way at a time: while many keys end
//! together, the writes of applications get at least half of the time. In a group that never used a
//! time to live, this looks once for each mastership.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::WriteError;
use crate::lifecycle::Lifecycle;
use crate::node::Node;
use crate::txn::lifetimes::{self, Deadline};
use crate::txn::transaction::{Ended, NextDeadline};

/// How often the master notes the group time while any key has a time to live. A failover makes
/// keys live longer by up to this, and by the time without a master.
const NOTE_TIME_EVERY: Duration = Duration::from_secs(1);

/// Pause after a chunk, as a multiple of its duration.
const REST: u32 = 1;

/// Pause after all keys that were due have been deleted. Those that end meanwhile end together.
const GATHER: Duration = Duration::from_millis(50);

/// Pause after a failure: the group is being shut down, or the disk is full.
const RETRY: Duration = Duration::from_millis(500);

/// Runs until dropped, at each mastership of this node.
pub(super) async fn run(lifecycle: Weak<Lifecycle>, node: Arc<Node>) {
    loop {
        node.sequencer.session_begins().await;
        loop {
            tokio::select! {
                biased;
                // Another mastership: others may have given deadlines in between.
                () = node.sequencer.session_begins() => {}
                () = serve(&lifecycle, &node) => break,
            }
        }
    }
}

/// Ends keys as they become due, as long as this node is master.
async fn serve(lifecycle: &Weak<Lifecycle>, node: &Arc<Node>) {
    let mut expiry = Expiry {
        from: Deadline::first_index_key(),
        noted: Instant::now(),
        node: Arc::clone(node),
    };
    while let Some(lifecycle) = lifecycle.upgrade() {
        let began = Instant::now();
        let looked = expiry.look(&lifecycle).await;
        drop(lifecycle);
        match looked {
            Ok(Look::Asleep) => node.group_time.given_before(None).await,
            Ok(Look::Until(next)) => expiry.wait(next).await,
            Ok(Look::Chunk(ended)) if ended.rest.is_some() => {
                tokio::time::sleep(began.elapsed() * REST).await;
            }
            Ok(Look::Chunk(_)) => tokio::time::sleep(GATHER).await,
            Err(WriteError::NotMaster { .. }) => return,
            Err(error) => {
                tracing::debug!(%error, "keys past their time to live wait");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What a look found, and did.
enum Look {
    Asleep,
    Until(NextDeadline),
    Chunk(Ended),
}

struct Expiry {
    node: Arc<Node>,
    /// Where the index begins: what was before has been deleted. An engine may take long to pass
    /// over many deleted rows.
    from: Bytes,
    /// When the group time was noted.
    noted: Instant,
}

impl Expiry {
    async fn look(&mut self, lifecycle: &Lifecycle) -> Result<Look, WriteError> {
        // In this order: a write gets its number before its deadline is given.
        if let Some(given_ms) = self.node.group_time.take_given() {
            self.from = Deadline::index_key_at(given_ms).min(self.from.clone());
        }
        let next = {
            let transaction = lifecycle.begin_as_master().await?;
            transaction.next_deadline(&self.from)?
        };
        let Some(next) = next else {
            return Ok(Look::Asleep);
        };
        if next.at_ms > next.now_ms {
            if self.noted.elapsed() >= NOTE_TIME_EVERY {
                self.note_time(lifecycle).await?;
            }
            return Ok(Look::Until(next));
        }
        let ended = self.end_chunk(lifecycle).await?;
        Ok(Look::Chunk(ended))
    }

    async fn note_time(&mut self, lifecycle: &Lifecycle) -> Result<(), WriteError> {
        let noted = lifecycle.write_as_master(|transaction| {
            transaction.note_time()?;
            Ok(())
        });
        let _token = noted.await?;
        self.noted = Instant::now();
        Ok(())
    }

    async fn end_chunk(&mut self, lifecycle: &Lifecycle) -> Result<Ended, WriteError> {
        let deleted =
            lifecycle.write_as_master(|transaction| transaction.end_lifetimes(&self.from));
        let ended = deleted.await?.value;
        self.noted = Instant::now();
        metrics::counter!("steadfast_expired_keys_total").increment(ended.keys);
        metrics::gauge!("steadfast_expiry_lag_seconds", "node" => lifecycle.config.node.clone())
            .set(Duration::from_millis(ended.late_ms).as_secs_f64());
        self.from = ended.rest.clone().unwrap_or_else(|| self.from.clone());
        Ok(ended)
    }

    /// Waits until the first deadline, an earlier one, or until it is time to note the time.
    async fn wait(&self, next: NextDeadline) {
        let until = self.noted + NOTE_TIME_EVERY;
        let until = until.min(Instant::now() + lifetimes::own_time(next.at_ms - next.now_ms));
        let earlier = self.node.group_time.given_before(Some(next.at_ms));
        // Either is a reason to look again.
        tokio::time::timeout_at(until, earlier).await.ok();
    }
}
