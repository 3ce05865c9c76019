//! Hashes, by which nodes can be compared.

use bytes::Bytes;
use steadfast::{Snapshot, SnapshotDatabase};
use xxhash_rust::xxh3::Xxh3;

use super::Store;
use super::inner::Inner;
use super::keys::{Failure, HASHED, Tables, history_parts};
use super::view::{Committed, View, wanted_revision};
use crate::error::Error;
use crate::proto::etcdserverpb::{HashKvResponse, HashResponse};

/// A hash of rows, in order.
#[derive(Default)]
struct Rows {
    hash: Xxh3,
}

impl Rows {
    fn add(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.hash.update(&(part.len() as u64).to_be_bytes());
            self.hash.update(part);
        }
    }

    fn end(&self) -> u32 {
        let hash = self.hash.digest();
        // Half of it is as good as any hash of that length.
        u32::try_from(hash >> 32).unwrap_or_default()
    }
}

/// Of one key, the row that a reader at the compacted revision sees, and all later ones up to
/// `revision`: whether or not the others are gone already.
fn hash_kv(
    tables: &Tables<SnapshotDatabase<'_>>,
    compacted: i64,
    revision: i64,
) -> Result<u32, Failure> {
    let mut rows = Rows::default();
    // The newest version of the present key up to the compacted revision.
    let mut base = None::<(Bytes, Bytes, Bytes)>;
    for row in &tables.history {
        let (row, version) = row?;
        let (key, modified, _) = history_parts(&row)?;
        if let Some((base_key, base_row, base_version)) = &base
            && (*base_key != key || modified > compacted)
        {
            rows.add(&[base_row, base_version]);
            base = None;
        }
        if modified > revision {
            continue;
        }
        if modified > compacted {
            rows.add(&[&row, &version]);
        } else {
            base = (!version.is_empty()).then_some((key, row, version));
        }
    }
    if let Some((_, row, version)) = base {
        rows.add(&[&row, &version]);
    }
    Ok(rows.end())
}

fn hash_all(snapshot: &Snapshot) -> Result<u32, Failure> {
    let mut rows = Rows::default();
    for name in HASHED {
        rows.add(&[name.as_bytes()]);
        for row in &snapshot.database(name)? {
            let (key, value) = row?;
            rows.add(&[&key, &value]);
        }
    }
    Ok(rows.end())
}

impl Store {
    /// # Errors
    /// As [`Store::hash_kv`].
    pub(super) async fn read_hash_kv(&self, revision: i64) -> Result<HashKvResponse, Error> {
        let read = move |_: &Inner, view: &Committed<SnapshotDatabase<'_>>| {
            let revision = wanted_revision(view, revision, view.revision())?;
            let compact_revision = view.tables.compacted()?;
            let hash = hash_kv(&view.tables, compact_revision, revision)?;
            Ok(HashKvResponse {
                header: None,
                hash,
                compact_revision,
                hash_revision: revision,
            })
        };
        let (header, mut answer) = self.inner.read_long(true, read).await?;
        answer.header = Some(header);
        Ok(answer)
    }

    /// # Errors
    /// As [`Store::hash`].
    pub(super) async fn read_hash(&self) -> Result<HashResponse, Error> {
        let hash = self.inner.read_blocking(hash_all).await?;
        Ok(HashResponse {
            header: Some(self.header()),
            hash,
        })
    }
}
