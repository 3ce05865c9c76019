//! All keys of the source at one revision, compared with those of the target, and made the same.
//!
//! Both sides are read page by page in the order of keys, and walked together. So it is the same
//! whether the target is empty, or has what an earlier attempt left, at another revision.

use std::cmp::Ordering;
use std::collections::VecDeque;

use bytes::Bytes;
use steadfast_server::proto::etcdserverpb::RangeRequest;
use steadfast_server::proto::mvccpb::KeyValue;

use crate::etcd::leases::Leases;
use crate::etcd::peer::{NO_END, Peer, Trouble};
use crate::etcd::record::RECORD_KEY;
use crate::etcd::target::{Changes, GO_ON, NotWritten, Target};
use crate::failure::Failure;
use crate::progress::Progress;

/// Bytes of a page that are aimed at, from the size of the keys before it.
const PAGE_BYTES: usize = 1024 * 1024;
const PAGE_KEYS_MAX: i64 = 1000;
const PAGE_KEYS_FIRST: i64 = 32;
/// Changes of one transaction, unless one key is larger.
const BATCH_KEYS: usize = 1000;
const BATCH_BYTES: usize = 512 * 1024;

/// Why keys were not all compared.
pub(super) enum Stopped {
    /// It has to begin again, at a newer revision; why.
    Outdated(&'static str),
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Makes the target the same as the source at the revision of its record, from the key of its record
/// on.
///
/// # Errors
/// See [`Stopped`].
pub(super) async fn run(
    source: &Peer,
    target: &mut Target<'_>,
    leases: &Leases<'_>,
) -> Result<(), Stopped> {
    let Some(from) = target.record().compare_from() else {
        return Ok(());
    };
    let mut walk = Walk {
        there: Pages::new(source, from.clone(), target.record().revision),
        here: Pages::new(target.peer, from, 0),
        changes: Changes::new(),
        bytes: 0,
        seen_bytes: 0,
    };
    let mut progress = Progress::new("compared", 0);
    while let Some(key) = walk.step(leases).await? {
        if walk.changes.len() >= BATCH_KEYS || walk.bytes >= BATCH_BYTES {
            let next = [&key[..], b"\0"].concat();
            walk.flush(target, leases, Some(&next)).await?;
        }
        progress.update(walk.seen_bytes);
        if leases.have_lost_keys() {
            return Err(Stopped::Outdated("leases ended in the target meanwhile"));
        }
    }
    walk.flush(target, leases, None).await
}

/// Both sides, as far as they were read.
struct Walk<'a> {
    there: Pages<'a>,
    here: Pages<'a>,
    changes: Changes,
    bytes: usize,
    seen_bytes: u64,
}

impl Walk<'_> {
    /// Compares the next key; returns it, or `None` at the end of both sides.
    async fn step(&mut self, leases: &Leases<'_>) -> Result<Option<Bytes>, Stopped> {
        let (there, here) = (self.there.peek().await?, self.here.peek().await?);
        let order = match (there, here) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(there), Some(here)) => there.key.cmp(&here.key),
        };
        let there = if order.is_le() {
            self.there.rows.pop_front()
        } else {
            None
        };
        let here = if order.is_ge() {
            self.here.rows.pop_front()
        } else {
            None
        };
        let Some(there) = there else {
            let gone = here.map(|kv| kv.key).unwrap_or_default();
            self.changes.insert(gone.clone(), None);
            return Ok(Some(gone));
        };
        let lease = leases.attach(there.lease).await?;
        let is_same = here.is_some_and(|here| here.value == there.value && here.lease == lease);
        let size = there.key.len() + there.value.len();
        self.seen_bytes += size as u64;
        if !is_same {
            self.bytes += size;
            self.changes
                .insert(there.key.clone(), Some((there.value, there.lease)));
        }
        Ok(Some(there.key))
    }

    /// Writes the changes; `next` is where it goes on.
    async fn flush(
        &mut self,
        target: &mut Target<'_>,
        leases: &Leases<'_>,
        next: Option<&[u8]>,
    ) -> Result<(), Stopped> {
        let mut record = target.record().following();
        record.counts.keys += self.changes.len() as u64;
        match next {
            Some(next) => record.compared_below(next),
            None => record.all_compared(),
        }
        self.bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        let mut done = write(target, leases, &changes, record.clone()).await;
        if matches!(done, Err(NotWritten::TooLarge)) && changes.len() > 1 {
            // One by one: of a page that is not whole, the record says that it is to be done again.
            for (key, change) in changes {
                let one = Changes::from([(key, change)]);
                write(target, leases, &one, target.record().following()).await?;
            }
            done = write(target, leases, &Changes::new(), record).await;
        }
        Ok(done?)
    }
}

impl From<NotWritten> for Stopped {
    fn from(error: NotWritten) -> Self {
        match error {
            NotWritten::Failed(failure) => Self::Failed(failure),
            NotWritten::LeaseMissing => Self::Outdated("leases ended in the target meanwhile"),
            NotWritten::TooLarge => {
                Self::Outdated("a revision of the source fits into no transaction of the target")
            }
        }
    }
}

/// Writes changes whose leases are those of the source, with `record`.
///
/// # Errors
/// See [`NotWritten`]; a lease is missing only if it was several times in a row.
pub(super) async fn write(
    target: &mut Target<'_>,
    leases: &Leases<'_>,
    changes: &Changes,
    record: crate::etcd::record::Record,
) -> Result<(), NotWritten> {
    /// A lease may end between being looked at and being used.
    const ATTEMPTS_MAX: u32 = 3;
    let mut attempt = 1;
    loop {
        let mut attached = changes.clone();
        for (_, lease) in attached.values_mut().flatten() {
            *lease = if attempt == 1 {
                leases.attach(*lease).await?
            } else {
                leases.attach_again(*lease).await?
            };
        }
        match target.apply(&attached, record.clone()).await {
            Err(NotWritten::LeaseMissing) if attempt < ATTEMPTS_MAX => attempt += 1,
            done => return done,
        }
    }
}

/// The keys of one side, in order.
struct Pages<'a> {
    peer: &'a Peer,
    /// 0: the newest at each page.
    revision: i64,
    /// Where the next page begins; `None`: there is none.
    next: Option<Bytes>,
    limit: i64,
    rows: VecDeque<KeyValue>,
}

impl<'a> Pages<'a> {
    fn new(peer: &'a Peer, from: Bytes, revision: i64) -> Self {
        let first = Bytes::from_static(b"\0");
        Self {
            peer,
            revision,
            next: Some(if from.is_empty() { first } else { from }),
            limit: PAGE_KEYS_FIRST,
            rows: VecDeque::new(),
        }
    }

    /// The next key, without taking it.
    async fn peek(&mut self) -> Result<Option<&KeyValue>, Stopped> {
        while self.rows.is_empty()
            && let Some(key) = self.next.clone()
        {
            self.read(key).await?;
        }
        Ok(self.rows.front())
    }

    async fn read(&mut self, key: Bytes) -> Result<(), Stopped> {
        let request = RangeRequest {
            key,
            range_end: Bytes::from_static(NO_END),
            limit: self.limit,
            revision: self.revision,
            ..RangeRequest::default()
        };
        let answer = match self.peer.range(request).await {
            Ok(answer) => answer,
            Err(trouble) if trouble.is_too_large() && self.limit > 1 => {
                self.limit = (self.limit / 4).max(1);
                return Ok(());
            }
            Err(trouble) if trouble.is_compacted() => {
                return Err(Stopped::Outdated("the source was compacted meanwhile"));
            }
            Err(trouble) => return Err(self.failed(trouble).into()),
        };
        let size = |kv: &KeyValue| kv.key.len() + kv.value.len();
        let bytes: usize = answer.kvs.iter().map(size).sum();
        let last = answer.kvs.last().filter(|_| answer.more);
        self.next = last.map(|kv| [&kv.key[..], b"\0"].concat().into());
        self.limit = limit_after(self.limit, answer.kvs.len(), bytes);
        let kvs = answer.kvs.into_iter().filter(|kv| kv.key != RECORD_KEY);
        self.rows.extend(kvs);
        Ok(())
    }

    fn failed(&self, trouble: Trouble) -> Failure {
        self.peer.failure(trouble, GO_ON)
    }
}

/// How many keys to ask for after a page of so many keys and bytes: at most four times as many.
fn limit_after(limit: i64, keys: usize, bytes: usize) -> i64 {
    let each = (bytes / keys.max(1)).max(1);
    let fitting = i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_KEYS_MAX);
    fitting.clamp(1, (limit * 4).min(PAGE_KEYS_MAX))
}
