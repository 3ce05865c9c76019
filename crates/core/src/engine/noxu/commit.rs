//! One Noxu transaction.

use noxu::{Durability, NoxuError, Transaction, TransactionConfig};

use super::open::Open;

/// A batch that Noxu refused.
pub(super) struct ApplyFailure {
    pub(super) error: NoxuError,
    /// Whether the databases are as they were before.
    pub(super) undone: bool,
}

impl Open {
    /// Runs `write` in one transaction.
    pub(super) fn commit<T>(
        &self,
        write: impl Fn(&Transaction) -> noxu::Result<T>,
    ) -> Result<T, ApplyFailure> {
        let config = TransactionConfig::default().with_durability(Durability::COMMIT_NO_SYNC);
        let transaction = self
            .environment
            .begin_transaction(Some(&config))
            .map_err(|error| ApplyFailure {
                error,
                undone: true,
            })?;
        let written = match write(&transaction) {
            Ok(written) => written,
            Err(error) => {
                let _turn = self.turns.to_move_records();
                let undone = transaction.abort().is_ok();
                return Err(ApplyFailure { error, undone });
            }
        };
        // A failed commit may have reached the log all the same.
        let committed = transaction.commit().map_err(|error| ApplyFailure {
            error,
            undone: false,
        });
        committed.map(|()| written)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::NoxuEngine;
    use crate::engine::{Applied, Change, EngineBatch, StorageEngine};
    use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};

    const DATABASES: u32 = 300;
    const CACHE_BYTES: u64 = 16 * 1024 * 1024;

    #[test]
    fn the_databases_of_a_batch_are_made_together_and_not_synced_one_by_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = NoxuEngine::open(&dir.path().join("engine"), CACHE_BYTES).expect("opened");
        let syncs = || engine.with_open(|open| Ok(open.environment.stat_fsync_count()));
        let before = syncs().expect("it is open");
        let put = |id| {
            (
                DatabaseId(id),
                Bytes::from("k"),
                Change::Put(Bytes::from("v")),
            )
        };
        let applied = Applied {
            term: Term(1),
            position: LogPosition(1),
            vlsn: Vlsn(1),
            membership: Bytes::new(),
        };
        let changes = (1..=DATABASES).map(put).collect();
        engine
            .apply(&EngineBatch { applied, changes })
            .expect("applied");
        let made = syncs().expect("it is open") - before;
        assert!(made < u64::from(DATABASES) / 10, "{made} syncs");
        assert_eq!(engine.databases().expect("open").len(), DATABASES as usize);
        engine.close().expect("closed");
    }
}
