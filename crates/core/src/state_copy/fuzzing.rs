//! A copy of the state, and what its source sends, as functions of bytes. See `crate::fuzzing`.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::service::{ChunkMessage, RestoreAnswer, RestoreReply, RowsMessage};
use super::staged::{Staged, StagedError};
use crate::engine::{Applied, EngineBatch, EngineFactory, MemoryStore, RowDigest, StorageEngine};
use crate::group::MembershipRecord;
use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};
use crate::log::{Entry, LogId};

const BEGIN: LogId = LogId {
    term: Term(1),
    position: LogPosition(1),
};

/// With 0 in front, the progress that a copy finds in its engine; with another number, the answers
/// of its source, each preceded by its length.
pub(crate) fn copy(input: &[u8]) {
    let engine = MemoryStore::new().open(Path::new("/copy"));
    let engine = engine.expect("a store in memory");
    match input.split_first() {
        None => {}
        Some((0, progress)) => resume(&engine, progress),
        Some((_, answers)) => drop(take(&engine, Bytes::copy_from_slice(answers))),
    }
}

fn resume(engine: &Arc<dyn StorageEngine>, progress: &[u8]) {
    let applied = Applied {
        term: BEGIN.term,
        position: BEGIN.position,
        vlsn: Vlsn(1),
        membership: Bytes::copy_from_slice(progress),
    };
    let changes = Vec::new();
    let applied = engine.apply(&EngineBatch { applied, changes });
    applied.expect("memory takes everything");
    if let Some(staged) = found(engine) {
        assert_eq!(staged.id(), BEGIN);
        assert!(!staged.is_complete() || staged.newest() == staged.vlsn());
    }
}

fn take(engine: &Arc<dyn StorageEngine>, mut answers: Bytes) -> Result<(), StagedError> {
    let membership = MembershipRecord::default().encode_bytes();
    let mut staged = Staged::begin(Arc::clone(engine), BEGIN, Vlsn(1), membership, true)?;
    let mut expected = None;
    while let Ok(reply) = RestoreReply::decode_length_delimited(&mut answers) {
        match reply.answer {
            Some(RestoreAnswer::Chunk(chunk)) => {
                let database = staged.rest().map_or(0, |rest| rest.database);
                staged.take_chunk(digested(chunk, DatabaseId(database)))?;
            }
            Some(RestoreAnswer::Entries(message)) => {
                let entries = message.entries.into_iter().map(Entry::try_from);
                let entries: Result<_, _> = entries.collect();
                let invalid = |_| StagedError::Nonsense("an entry");
                staged.take_entries(entries.map_err(invalid)?, None)?;
            }
            Some(RestoreAnswer::Manifest(manifest)) => {
                let rows = manifest.state.and_then(|state| state.rows);
                expected = rows.as_ref().and_then(RowsMessage::digest);
            }
            _ => {}
        }
        let again = found(engine).expect("a copy finds itself");
        assert_eq!(progress(&again), progress(&staged));
    }
    if staged.is_complete() {
        let databases = staged.verify()?;
        staged.finish(&databases, expected)?;
    }
    Ok(())
}

/// The chunk with the right digest, without which nothing in it is looked at.
fn digested(mut chunk: ChunkMessage, database: DatabaseId) -> ChunkMessage {
    let mut digest = RowDigest::default();
    for row in &chunk.rows {
        digest.add(database, &row.key, &row.value);
    }
    chunk.digest = digest.to_bytes();
    chunk
}

fn found(engine: &Arc<dyn StorageEngine>) -> Option<Staged> {
    Staged::resume(engine).expect("memory gives everything")
}

fn progress(staged: &Staged) -> impl PartialEq + std::fmt::Debug + use<> {
    let position = (staged.id(), staged.vlsn(), staged.newest());
    (position, staged.rest(), staged.bytes())
}
