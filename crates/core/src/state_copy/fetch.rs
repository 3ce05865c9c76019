//! Copies a peer's state into an engine beside the node's own.
//!
//! One question at a time, so that memory is bounded by one answer. Any failure ends the attempt;
//! the next one resumes the copy, from whichever source suits best by then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use steadfast_net::Transport;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::{EngineError, EngineFactory, RowDigest, StorageEngine};
use crate::ids::{DatabaseId, NodeId, Vlsn};
use crate::log::{Entry, LogId};
use crate::state_copy::service::{
    BeginMessage, BegunMessage, FinishMessage, NextMessage, RestoreAnswer, RestoreCall,
    RestoreClient,
};
use crate::state_copy::staged::{Staged, StagedError};
use crate::wire::RESTORE;
use crate::wire::hello::{Callee, Caller, DialError};
use crate::wire::messages::WireError;

/// Number of chunks after which the copy follows the log and is synced: this bounds what an
/// interruption can cost, and how much log the source keeps meanwhile.
const CHUNKS_PER_SYNC: usize = 16;
/// How often the log reports the progress of the copy.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Progress of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// 0 while there is none.
    pub(crate) source: NodeId,
    pub(crate) bytes: u64,
    /// The source's estimate; 0 while there is none.
    pub(crate) bytes_total: u64,
    pub(crate) bytes_per_s: u64,
}

/// Why an attempt ended without a copy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the source cannot send a copy: {0}")]
    Refused(String),
    #[error(transparent)]
    Staged(#[from] StagedError),
    #[error("the partial copy holds more than the source has applied")]
    Behind,
    /// The partial copy cannot be resumed.
    #[error("the entries that the copy needs next are gone; it starts over")]
    Gone,
    #[error("the copy was abandoned: the node is closing")]
    Ended,
}

impl From<EngineError> for FetchError {
    fn from(error: EngineError) -> Self {
        Self::Staged(error.into())
    }
}

impl From<WireError> for FetchError {
    fn from(error: WireError) -> Self {
        Self::Dial(error.into())
    }
}

/// One attempt, with one source.
pub(crate) struct Fetch {
    pub(crate) caller: Caller,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) source: (NodeId, String),
    pub(crate) dial_timeout: Duration,
    pub(crate) answer_timeout: Duration,
    pub(crate) engines: Arc<dyn EngineFactory>,
    /// Where the copy is built.
    pub(crate) dir: PathBuf,
    /// The entry that the copy has to reach.
    pub(crate) entry: LogId,
    /// Whether this node has data.
    pub(crate) has_data: bool,
    pub(crate) progress: watch::Sender<Option<Progress>>,
    /// Becomes true when the copy is to be given up.
    pub(crate) ended: watch::Receiver<bool>,
}

impl Fetch {
    /// Returns the last entry of a copy that is complete, verified, durable and closed.
    ///
    /// # Errors
    /// See [`FetchError`]. The partial copy is kept, unless it cannot be resumed.
    pub(crate) async fn run(mut self) -> Result<LogId, FetchError> {
        let engine = self.open()?;
        let mut ended = self.ended.clone();
        let copied = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => Err(FetchError::Ended),
            copied = self.copy(&engine) => copied,
        };
        // Closing syncs: the next attempt finds everything copied so far.
        let closed = engine.close();
        if matches!(copied, Err(FetchError::Gone)) {
            self.engines.remove(&self.dir)?;
        }
        let expected = copied?;
        closed?;
        let engine = self.open()?;
        let finished = verify(&engine).and_then(|databases| finish(&engine, &databases, expected));
        let closed = engine.close();
        if let Err(FetchError::Staged(
            StagedError::Lost { .. } | StagedError::Contradicted { .. },
        )) = finished
        {
            self.engines.remove(&self.dir)?;
        }
        let last = finished?;
        closed?;
        Ok(last)
    }

    /// A partial copy that cannot be opened is worthless.
    fn open(&self) -> Result<Arc<dyn StorageEngine>, FetchError> {
        match self.engines.open(&self.dir) {
            Err(EngineError::Corrupt { what }) => {
                tracing::warn!(what, "the partial copy is discarded");
                self.engines.remove(&self.dir)?;
                Ok(self.engines.open(&self.dir)?)
            }
            opened => Ok(opened?),
        }
    }

    /// Returns the digest that the whole must have, according to the source.
    async fn copy(
        &mut self,
        engine: &Arc<dyn StorageEngine>,
    ) -> Result<Option<RowDigest>, FetchError> {
        let (source, address) = self.source.clone();
        let callee = Callee {
            address: &address,
            id: source,
        };
        let dialled = self
            .caller
            .dial(&*self.transport, callee, RESTORE, self.dial_timeout);
        let mut client = RestoreClient::new(dialled.await?, self.answer_timeout);
        let staged = Staged::resume(engine)?;
        let begin = BeginMessage {
            entry: Some(self.entry.into()),
            next: staged.as_ref().map(|staged| staged.next().0),
            vlsn: staged.as_ref().map_or(0, |staged| staged.newest().0),
        };
        let begun = match client.call(RestoreCall::Begin(begin)).await? {
            RestoreAnswer::Begun(begun) => begun,
            answer => return Err(unexpected(answer)),
        };
        if begun.has_data != self.has_data {
            let why = "it takes this node for one of another type";
            return Err(FetchError::Refused(why.to_owned()));
        }
        let bytes_total = begun.bytes_total;
        let mut staged = match staged.filter(|_| begun.goes_on) {
            Some(staged) => {
                tracing::info!(%source, at = %staged.id(), "a copy of the state resumes");
                staged
            }
            None if !is_empty(&**engine)? => return Err(FetchError::Gone),
            None => begin_anew(engine, begun)?,
        };
        let mut meter = Meter::new(&self.progress, source, bytes_total, staged.bytes());
        let mut received = RowDigest::default();
        let mut chunks = 0;
        while let Some(place) = staged.rest() {
            let chunk = match client.call(RestoreCall::Chunk(place)).await? {
                RestoreAnswer::Chunk(chunk) => chunk,
                answer => return Err(unexpected(answer)),
            };
            received.add_all(staged.take_chunk(chunk)?);
            meter.at(staged.bytes());
            chunks += 1;
            if chunks % CHUNKS_PER_SYNC == 0 {
                // Up to the end of the log, if it grows no faster than that.
                for _ in 0..CHUNKS_PER_SYNC {
                    if follow(&mut client, &mut staged, None).await? {
                        break;
                    }
                }
                staged.sync()?;
            }
        }
        let is_far_enough =
            |staged: &Staged| staged.is_complete() && staged.id().position >= self.entry.position;
        while !(follow(&mut client, &mut staged, None).await? && is_far_enough(&staged)) {}
        let expected = self.expected(&mut client, &mut staged, received).await?;
        staged.sync()?;
        Ok(expected)
    }

    /// Follows the log up to where the source has stated the digest of the whole.
    async fn expected(
        &self,
        client: &mut RestoreClient,
        staged: &mut Staged,
        received: RowDigest,
    ) -> Result<Option<RowDigest>, FetchError> {
        let vlsn = staged.vlsn().0;
        let finish = RestoreCall::Finish(FinishMessage { vlsn });
        let manifest = match client.call(finish).await? {
            RestoreAnswer::Manifest(manifest) => manifest,
            answer => return Err(unexpected(answer)),
        };
        if manifest.sent.and_then(|sent| sent.digest()) != Some(received) {
            return Err(StagedError::Nonsense("a manifest that does not match the rows").into());
        }
        if !self.has_data {
            return Ok(None);
        }
        let state = manifest.state.ok_or(WireError::Missing("a state"))?;
        let rows = state.rows.and_then(|rows| rows.digest());
        let rows = rows.ok_or(WireError::Missing("rows of a state"))?;
        follow_upto(client, staged, Vlsn(state.vlsn)).await?;
        Ok(Some(rows))
    }
}

fn verify(engine: &Arc<dyn StorageEngine>) -> Result<BTreeMap<DatabaseId, RowDigest>, FetchError> {
    Ok(copy_in(engine)?.verify()?)
}

fn finish(
    engine: &Arc<dyn StorageEngine>,
    databases: &BTreeMap<DatabaseId, RowDigest>,
    expected: Option<RowDigest>,
) -> Result<LogId, FetchError> {
    Ok(copy_in(engine)?.finish(databases, expected)?)
}

fn copy_in(engine: &Arc<dyn StorageEngine>) -> Result<Staged, FetchError> {
    let staged = Staged::resume(engine)?;
    Ok(staged.ok_or(StagedError::Nonsense("the copy is gone"))?)
}

fn begin_anew(engine: &Arc<dyn StorageEngine>, begun: BegunMessage) -> Result<Staged, FetchError> {
    let entry = begun.entry.ok_or(WireError::Missing("an entry"))?;
    let id = LogId::try_from(entry).map_err(WireError::from)?;
    // An arbiter counts no transactions.
    let vlsn = Vlsn(if begun.has_data { begun.vlsn } else { 0 });
    tracing::info!(at = %id, bytes = begun.bytes_total, "a copy of the state begins");
    let engine = Arc::clone(engine);
    let staged = Staged::begin(engine, id, vlsn, begun.membership, begun.has_data)?;
    Ok(staged)
}

fn is_empty(engine: &dyn StorageEngine) -> Result<bool, EngineError> {
    Ok(engine.applied()?.is_none() && engine.databases()?.is_empty())
}

/// Takes the entries up to this transaction.
async fn follow_upto(
    client: &mut RestoreClient,
    staged: &mut Staged,
    vlsn: Vlsn,
) -> Result<(), FetchError> {
    let mut is_all = false;
    while staged.vlsn() < vlsn && !is_all {
        is_all = follow(client, staged, Some(vlsn)).await?;
    }
    if staged.vlsn() == vlsn {
        return Ok(());
    }
    Err(StagedError::Nonsense("a state as of another transaction").into())
}

/// Takes the next entries, at most up to `upto`; returns whether the source had no more.
async fn follow(
    client: &mut RestoreClient,
    staged: &mut Staged,
    upto: Option<Vlsn>,
) -> Result<bool, FetchError> {
    let next = NextMessage {
        next: staged.next().0,
    };
    let message = match client.call(RestoreCall::Entries(next)).await? {
        RestoreAnswer::Entries(entries) => entries,
        answer => return Err(unexpected(answer)),
    };
    let entries: Result<Vec<Entry>, _> = message.entries.into_iter().map(Entry::try_from).collect();
    let entries = entries?;
    if entries.is_empty() && !message.is_all {
        return Err(StagedError::Nonsense("no entries, and more to come").into());
    }
    staged.take_entries(entries, upto)?;
    Ok(message.is_all)
}

fn unexpected(answer: RestoreAnswer) -> FetchError {
    match answer {
        RestoreAnswer::Refused(why) => FetchError::Refused(why),
        RestoreAnswer::Behind(_) => FetchError::Behind,
        _ => WireError::Invalid("answer").into(),
    }
}

/// Reports how fast the copy grows.
struct Meter<'a> {
    progress: &'a watch::Sender<Option<Progress>>,
    source: NodeId,
    bytes_total: u64,
    bytes_before: u64,
    began: Instant,
    told: Instant,
}

impl<'a> Meter<'a> {
    fn new(
        progress: &'a watch::Sender<Option<Progress>>,
        source: NodeId,
        bytes_total: u64,
        bytes_before: u64,
    ) -> Self {
        let now = Instant::now();
        let meter = Self {
            progress,
            source,
            bytes_total,
            bytes_before,
            began: now,
            told: now,
        };
        meter.show(bytes_before);
        meter
    }

    fn at(&mut self, bytes: u64) {
        let now = self.show(bytes);
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            tracing::info!(
                source = %self.source, bytes, bytes_total = self.bytes_total, bytes_per_s = now.bytes_per_s,
                "a copy of the state is in progress"
            );
        }
    }

    fn show(&self, bytes: u64) -> Progress {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = Progress {
            source: self.source,
            bytes,
            bytes_total: self.bytes_total.max(bytes),
            bytes_per_s: (bytes - self.bytes_before) * 1000 / ms.max(1),
        };
        self.progress.send_replace(Some(now));
        now
    }
}
