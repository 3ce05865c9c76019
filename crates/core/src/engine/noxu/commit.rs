//! One Noxu transaction.

use noxu::{Durability, NoxuError, Transaction, TransactionConfig};

use super::Open;

/// A batch that Noxu refused.
pub(super) struct ApplyFailure {
    pub(super) error: NoxuError,
    /// Whether the databases are as they were before.
    pub(super) undone: bool,
}

impl Open {
    /// Runs `write` in one transaction.
    pub(super) fn commit(
        &self,
        write: impl Fn(&Transaction) -> noxu::Result<()>,
    ) -> Result<(), ApplyFailure> {
        let config = TransactionConfig::default().with_durability(Durability::COMMIT_NO_SYNC);
        let transaction = self
            .environment
            .begin_transaction(Some(&config))
            .map_err(|error| ApplyFailure {
                error,
                undone: true,
            })?;
        if let Err(error) = write(&transaction) {
            let _turn = self.turn_to_write();
            let undone = transaction.abort().is_ok();
            return Err(ApplyFailure { error, undone });
        }
        // A commit that failed may have reached the log all the same.
        transaction.commit().map_err(|error| ApplyFailure {
            error,
            undone: false,
        })
    }
}
