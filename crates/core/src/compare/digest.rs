//! A digest of everything visible, equal on every node at an equal VLSN.

use std::ops::Bound;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::engine::KeyRange;
use crate::error::ReadError;
use crate::ids::Vlsn;
use crate::machine::Machine;
use crate::txn::transaction::Snapshot;
use crate::wire::comparison::{RangeOutcome, RangeReply, RangeRequest};

/// The VLSN of the snapshot and the xxh3-128 of every database's name, keys and values, in order.
///
/// # Errors
/// The errors of a read.
pub(crate) fn digest(snapshot: &Snapshot) -> Result<(Vlsn, u128), ReadError> {
    let mut hash = Xxh3::new();
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for name in snapshot.list_databases()? {
        add(name.as_bytes());
        for row in &snapshot.database(&name)? {
            let (key, value) = row?;
            add(&key);
            add(&value);
        }
    }
    Ok((snapshot.vlsn(), hash.digest128()))
}

/// The digest of a range of keys of one database.
///
/// # Errors
/// The errors of a read.
pub(crate) fn range_digest(
    snapshot: &Snapshot,
    request: &RangeRequest,
) -> Result<RangeReply, ReadError> {
    let start = Bound::Included(request.from.clone());
    let end = request.to.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let range = KeyRange { start, end };
    let is_catalog = request.database.is_empty();
    let rows = match &request.database[..] {
        "" => snapshot.catalog(range),
        name => snapshot.any_database(name)?.scan(range),
    };
    let (mut hash, mut count, mut to) = (Xxh3::new(), 0, None);
    for row in rows {
        let (key, value) = row?;
        if request.rows_max > 0 && count == request.rows_max {
            to = Some(key);
            break;
        }
        for bytes in [&key, &value] {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        count += 1;
    }
    let databases = if is_catalog {
        snapshot.list_all_databases()?
    } else {
        Vec::new()
    };
    Ok(RangeReply {
        outcome: RangeOutcome::Done.into(),
        text: String::new(),
        vlsn: snapshot.vlsn().0,
        digest: format!("{:032x}", hash.digest128()),
        rows: count,
        to,
        databases,
        ..RangeReply::default()
    })
}

/// A node's digest for remote callers: only one is computed at a time, and everyone who asked
/// before it began shares it.
#[derive(Default)]
pub(crate) struct SharedDigest {
    /// The last digest. Locked while the next one is computed.
    last: Arc<tokio::sync::Mutex<Option<(Vlsn, u128)>>>,
}

impl SharedDigest {
    /// A digest as of `vlsn_min` or later, from `compute` unless the last one will do.
    ///
    /// # Errors
    /// The errors of a read.
    pub(crate) async fn get(
        &self,
        machine: &Machine,
        vlsn_min: Vlsn,
        compute: impl FnOnce() -> Result<(Vlsn, u128), ReadError> + Send + 'static,
    ) -> Result<(Vlsn, u128), ReadError> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(digest) = last.filter(|(vlsn, _)| *vlsn >= vlsn_min) {
            return Ok(digest);
        }
        let stopped = |reason: String| ReadError::Stopped { reason };
        // The work owns the lock: it completes even if the caller goes away.
        let work = async move {
            let digest = compute()?;
            *last = Some(digest);
            Ok(digest)
        };
        let computed = machine.run_in_background("steadfast-digest", work);
        let computed = computed.map_err(|error| stopped(error.to_string()))?;
        let computed = computed.await;
        computed.unwrap_or_else(|_| Err(stopped("the digest's thread died".to_owned())))
    }
}
