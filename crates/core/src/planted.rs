//! Bugs planted on purpose, to show that the simulator finds them.
//!
//! Each is one [`is`] call beside the line that it breaks. Without the feature `planted`, which no
//! build meant for use has, [`is`] is a constant `false` and none of them is compiled; with it, a
//! build without debug assertions does not compile. At most one bug is switched on per process, by
//! its name, before any node opens.
#![cfg_attr(
    not(feature = "planted"),
    expect(unreachable_pub, reason = "only the feature makes the module public")
)]

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!(
    "the feature `planted` breaks the library on purpose: it is never built for release"
);

/// One line per bug: its name, the number of seeds within which the simulator has to find it, and
/// what it breaks.
macro_rules! bugs {
    ($($bug:ident = $name:literal, $seeds:literal, $breaks:literal;)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $breaks] $bug,)*
        }

        #[cfg(feature = "planted")]
        impl Bug {
            /// Every bug.
            pub const ALL: &[Self] = &[$(Self::$bug),*];

            /// The name that switches it on.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// Seeds within which the simulator has to find it, counted from 1.
            pub fn seeds_max(self) -> u64 {
                match self {
                    $(Self::$bug => $seeds,)*
                }
            }
        }
    };
}

bugs! {
    // The log.
    AckBeforeSync = "ack_before_sync", 100, "An append is acknowledged when it is queued, not when it is synced.";
    SyncAfterCallbacks = "sync_after_callbacks", 100, "A group of the log is acknowledged between its write and its sync.";
    VoteNotSaved = "vote_not_saved", 100, "A vote is given and never written.";
    IgnoreFailedSync = "ignore_failed_sync", 300, "The log goes on after a sync that failed.";
    SkipRecordChecksum = "skip_record_checksum", 100, "Records are taken from disk without a look at their checksum.";
    DropTruncation = "drop_truncation", 100, "A truncation is not written: the conflicting tail is back after a restart.";
    SegmentNameNotSynced = "segment_name_not_synced", 100, "A new segment is used before its name is durable.";
    RollWithoutSync = "roll_without_sync", 100, "A segment is left for the next one with its end not synced.";
    KeepPageCache = "keep_page_cache", 100, "Opening the log trusts what a dead process left unsynced.";
    CheckRemovesSpares = "check_removes_spares", 300, "A check of all files removes the segments that the writer has ready.";
    CacheDropsUnsynced = "cache_drops_unsynced", 100, "Entries leave the log's cache before they are on disk.";
    // Consensus.
    NoBarrier = "no_barrier", 100, "A linearizable read asks nobody.";
    BarrierAlone = "barrier_alone", 300, "A master confirms itself without a majority.";
    BarrierNotAwaited = "barrier_not_awaited", 200, "A linearizable read does not wait until its position is applied.";
    AtLeastNotAwaited = "at_least_not_awaited", 100, "A read at least as new as a token does not wait for it.";
    LeaderRestore = "leader_restore", 300, "A master that restarts goes on in its old term.";
    NoBlank = "no_blank", 100, "A new master numbers before everything earlier is applied.";
    VoteForAnyLog = "vote_for_any_log", 300, "A vote is given to a candidate whose log is behind.";
    MasterOnce = "master_once", 100, "A node that has lost its mastership never takes it again.";
    AcceptWiped = "accept_wiped", 300, "A node with a wiped directory is taken for the member that it was.";
    AcceptCopy = "accept_copy", 100, "A copy of a data directory is taken for the original.";
    DeadlineIgnoresProgress = "deadline_ignores_progress", 300, "A replica that has not acknowledged within a fixed time is given up, even while bytes move.";
    SkipBatch = "skip_batch", 100, "Now and then a replica applies a batch without its changes.";
    // Purge and restore.
    PurgePastEngine = "purge_past_engine", 200, "The log is purged past what the engine has on disk.";
    RestoreSkipsEntries = "restore_skips_entries", 200, "A copy of the state leaves out what was committed while it was made.";
    // The audit of the engine.
    DigestKeepsDeleted = "digest_keeps_deleted", 100, "The running digest goes on counting a row that was deleted.";
    SkipCheckAtOpen = "skip_check_at_open", 300, "An engine that nobody suspects is not checked against the log when it is opened.";
    PurgePastChecked = "purge_past_checked", 300, "The log is purged past what was found right.";
    // Transactions.
    ForgetKeys = "forget_keys", 100, "Keys that were read are left out of the conflict check.";
    ForgetRanges = "forget_ranges", 100, "Ranges that were read are left out of the conflict check.";
    CommittedOnLoss = "committed_on_loss", 100, "What was proposed is called committed when the mastership is lost.";
    NotCommittedOnLoss = "not_committed_on_loss", 100, "What was proposed is called not committed when the mastership is lost.";
    NotCommittedInTime = "not_committed_in_time", 100, "A commit that takes too long is called not committed.";
    KeepPending = "keep_pending", 100, "Pending versions stay in the window when their session ends.";
    ReadNumbered = "read_numbered", 100, "A snapshot begins at the newest numbered transaction.";
    MovingSnapshot = "moving_snapshot", 100, "A snapshot reads the newest version of a key, whatever its number.";
    LostWakeup = "lost_wakeup", 100, "A submitted transaction wakes nobody.";
    LeakBudget = "leak_budget", 100, "Bytes of writes in flight are never given back.";
    AllIsMajority = "all_is_majority", 100, "A write that is to be on every disk is acknowledged when a majority has it.";
    AllCountsSecondary = "all_counts_secondary", 300, "A secondary's copy counts for a write that is to be on every electable disk.";
    FeedSkipsTerm = "feed_skips_term", 100, "A subscriber is not told of the first batch of a new master.";
    // The flush and scans.
    FlushOldest = "flush_oldest", 100, "Of several versions of a key the flush takes the oldest.";
    FlushNoDeletes = "flush_no_deletes", 100, "The flush leaves deletions out.";
    FlushSkipsLast = "flush_skips_last", 100, "The engine says that it holds an entry whose changes it was not given.";
    EngineAhead = "engine_ahead", 100, "The engine is given entries that this node's log may lose.";
    NeverEvict = "never_evict", 100, "What was flushed stays in the window for ever.";
    ForgetMembership = "forget_membership", 100, "The flush loses the membership.";
    ChunkLosesEnd = "chunk_loses_end", 100, "A scan leaves out the last key of each chunk.";
    ReverseForward = "reverse_forward", 100, "A reverse scan gives its rows in ascending order.";
    DeletedShows = "deleted_shows", 100, "A deletion in the window does not hide the engine's row from a scan.";
}

#[cfg(feature = "planted")]
mod switch {
    use std::sync::OnceLock;

    use super::Bug;

    static PLANTED: OnceLock<Bug> = OnceLock::new();

    /// Switches on a bug for the rest of this process.
    ///
    /// # Panics
    /// When one is on already.
    pub fn plant(bug: Bug) {
        let planted = PLANTED.set(bug);
        planted.expect("one bug in a process");
    }

    /// The bug that is on, if any.
    pub fn planted() -> Option<Bug> {
        PLANTED.get().copied()
    }

    impl std::str::FromStr for Bug {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let found = Self::ALL.iter().find(|bug| bug.name() == text);
            found.copied().ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|bug| bug.name()).collect();
                format!("no bug {text:?}; there are: {}", known.join(", "))
            })
        }
    }

    /// Whether this bug is on.
    pub(crate) fn is(bug: Bug) -> bool {
        planted() == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub(crate) use switch::is;
#[cfg(feature = "planted")]
pub use switch::{plant, planted};

/// Whether this bug is on: never, in a build without the feature.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}
