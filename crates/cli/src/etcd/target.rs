//! What is written to the target: a list of changes and the record of progress, in one transaction
//! that is guarded by the record before it.
//!
//! ```text
//!   if   record = as this process wrote it last
//!   then put record; 127 changes, or transactions of changes each
//!   else range record              (the answer to an earlier attempt was lost, or another took over)
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::lease_client::LeaseClient;
use steadfast_server::proto::etcdserverpb::request_op::Request as Op;
use steadfast_server::proto::etcdserverpb::response_op::Response as Answer;
use steadfast_server::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, TxnResponse,
};

use crate::etcd::leases::{self, exists};
use crate::etcd::peer::{FIRST_KEY, MESSAGE_BYTES_MAX, NO_END, Peer, Trouble};
use crate::etcd::record::{RECORD_KEY, Record, name};
use crate::failure::Failure;

/// Operations that servers allow in a transaction. What a nested one has is what is left of them.
const OPERATIONS_MAX: usize = 128;
/// Changes that a transaction holds, in lists of operations two deep.
pub(super) const CHANGES_MAX: usize = (OPERATIONS_MAX / 2 - 1) * (OPERATIONS_MAX / 2);
/// How often a large value is sent before the copy gives up.
const STAGINGS_MAX: usize = 5;
/// TTL of the lease that a large value travels with, in seconds. Longer than any retry.
const STAGING_TTL: i64 = 3600;
/// Ids of such leases are short, as they count for the size of the request.
const STAGING_IDS: std::ops::RangeInclusive<i64> = 1..=127;

/// Bytes of a key that an error shows.
const SHOWN_BYTES_MAX: usize = 100;

/// What becomes of each key: a value with its lease (0: none), or `None`: it is deleted.
pub(super) type Changes = BTreeMap<Bytes, Option<(Bytes, i64)>>;

/// Why changes were not written.
pub(super) enum NotWritten {
    /// One of the leases is not there (any more).
    LeaseMissing,
    /// The transaction is larger than the target takes.
    TooLarge,
    Failed(Failure),
}

impl From<Failure> for NotWritten {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// See the module.
pub(super) struct Target<'a> {
    pub(super) peer: &'a Peer,
    /// As it is in the target.
    record: Record,
    /// The newest revision of the target that is known.
    revision: i64,
}

pub(super) const GO_ON: &str = "what was copied stays in the target, and so does the record of it";

impl<'a> Target<'a> {
    /// Begins a copy in an empty target.
    ///
    /// # Errors
    /// When it is not empty.
    pub(super) async fn begin(peer: &'a Peer, record: Record) -> Result<Self, Failure> {
        let nothing = Compare {
            key: Bytes::from_static(FIRST_KEY),
            range_end: Bytes::from_static(NO_END),
            target: CompareTarget::Version.into(),
            result: CompareResult::Equal.into(),
            target_union: Some(TargetUnion::Version(0)),
        };
        let mut target = Self {
            peer,
            record: record.clone(),
            revision: 0,
        };
        if target
            .guarded(nothing, vec![put_record(&record)], &record)
            .await?
            .is_some()
        {
            return Ok(target);
        }
        Err(Failure::new(
            format!("the target at {} is not empty", peer.names()),
            "nothing was changed",
            "copy into a group that holds no keys of etcd's clients yet; what it holds shows \
             `etcdctl get --prefix '' --keys-only --limit 10`",
        ))
    }

    /// Goes on with a copy whose record is `found`.
    ///
    /// # Errors
    /// When another process goes on with it at the same moment.
    pub(super) async fn take_over(
        peer: &'a Peer,
        found: Record,
        record: Record,
    ) -> Result<Self, Failure> {
        let mut target = Self {
            peer,
            record: found,
            revision: 0,
        };
        target.advance(record).await?;
        if let Some(lease) = target.record.staging {
            target.revoke(lease).await?;
        }
        Ok(target)
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// Writes changes, and `next` as the record, at once. `next` need not know of records in between.
    ///
    /// # Errors
    /// See [`NotWritten`]; nothing was written then.
    pub(super) async fn apply(
        &mut self,
        changes: &Changes,
        next: Record,
    ) -> Result<(), NotWritten> {
        if changes.len() > CHANGES_MAX {
            return Err(NotWritten::TooLarge);
        }
        let next = next.after(&self.record);
        let mut ops = vec![put_record(&next)];
        ops.extend(operations(changes));
        match self.try_commit(ops, &next).await {
            Err(NotWritten::TooLarge) => match single_put(changes) {
                Some((key, value, lease)) => self.stage(key, value, lease, next).await,
                None => Err(NotWritten::TooLarge),
            },
            done => done,
        }
    }

    /// Writes the record alone.
    ///
    /// # Errors
    /// When another process has taken over, or the target is lost.
    pub(super) async fn advance(&mut self, next: Record) -> Result<(), Failure> {
        let ops = vec![put_record(&next)];
        self.commit(ops, &next).await
    }

    /// Removes the record: the copy is complete.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        let delete = op(Op::RequestDeleteRange(DeleteRangeRequest {
            key: Bytes::from_static(RECORD_KEY),
            ..DeleteRangeRequest::default()
        }));
        let guard = self.guard();
        let record = self.record.clone();
        match self.txn(guard, vec![delete]).await {
            // An earlier attempt has removed it.
            Ok(answer) if answer.succeeded || found(&answer).is_none() => Ok(()),
            Ok(_) => Err(taken_over(&record)),
            Err(trouble) => Err(self.peer.failure(trouble, "everything is copied")),
        }
    }

    async fn try_commit(&mut self, ops: Vec<RequestOp>, next: &Record) -> Result<(), NotWritten> {
        let guard = self.guard();
        let answer = match self.txn(guard, ops).await {
            Ok(answer) => answer,
            Err(trouble) if trouble.says("requested lease not found") => {
                return Err(NotWritten::LeaseMissing);
            }
            Err(trouble) if trouble.is_too_large() => return Err(NotWritten::TooLarge),
            Err(trouble) => return Err(self.peer.failure(trouble, GO_ON).into()),
        };
        if !answer.succeeded && found(&answer) != Some(next.bytes()) {
            return Err(taken_over(&self.record).into());
        }
        self.record = next.clone();
        Ok(())
    }

    async fn commit(&mut self, ops: Vec<RequestOp>, next: &Record) -> Result<(), Failure> {
        match self.try_commit(ops, next).await {
            Ok(()) => Ok(()),
            Err(NotWritten::Failed(failure)) => Err(failure),
            Err(NotWritten::LeaseMissing | NotWritten::TooLarge) => Err(Failure::new(
                "the target refuses the record of the copy",
                GO_ON,
                "run the same command again",
            )),
        }
    }

    /// One guarded transaction; `None` if the guard does not hold.
    async fn guarded(
        &mut self,
        guard: Compare,
        ops: Vec<RequestOp>,
        next: &Record,
    ) -> Result<Option<()>, Failure> {
        let answer = self.txn(guard, ops).await;
        let answer = answer.map_err(|trouble| self.peer.failure(trouble, "nothing was changed"))?;
        let is_done = answer.succeeded || found(&answer) == Some(next.bytes());
        Ok(is_done.then_some(()))
    }

    async fn txn(
        &mut self,
        guard: Compare,
        success: Vec<RequestOp>,
    ) -> Result<TxnResponse, Trouble> {
        let range = op(Op::RequestRange(RangeRequest {
            key: Bytes::from_static(RECORD_KEY),
            ..RangeRequest::default()
        }));
        let request = TxnRequest {
            compare: vec![guard],
            success,
            failure: vec![range],
        };
        let answer = self.peer.call(request, |channel, request| async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            client.txn(request).await
        });
        let answer = answer.await?;
        if let Some(header) = &answer.header {
            self.revision = self.revision.max(header.revision);
        }
        Ok(answer)
    }

    fn guard(&self) -> Compare {
        Compare {
            key: Bytes::from_static(RECORD_KEY),
            target: CompareTarget::Value.into(),
            result: CompareResult::Equal.into(),
            target_union: Some(TargetUnion::Value(self.record.bytes())),
            ..Compare::default()
        }
    }

    /// Puts a value that leaves no room for the record in its request.
    ///
    /// ```text
    ///   record: staging L ─► grant L ─► put key, value, lease L ─► put key, its value, its own lease
    ///                            ▲                                          │
    ///                            └──── is it gone? again ◄── is it there? ◄─ revoke L
    /// ```
    ///
    /// L is what keeps an attempt whose answer was lost from coming late: once L is revoked, it is
    /// refused.
    async fn stage(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        lease: i64,
        next: Record,
    ) -> Result<(), NotWritten> {
        let mut ids = STAGING_IDS;
        for _ in 0..STAGINGS_MAX {
            let id = self.staging_lease(&mut ids).await?;
            let put = PutRequest {
                key: key.clone(),
                value: value.clone(),
                lease: id,
                ..PutRequest::default()
            };
            let sent = self.peer.call(put, |channel, request| async move {
                KvClient::new(channel).put(request).await
            });
            match sent.await {
                Ok(_) => {}
                Err(trouble) if trouble.says("requested lease not found") => continue,
                Err(trouble) if trouble.is_too_large() => return Err(too_large(key, value).into()),
                Err(trouble) => return Err(self.peer.failure(trouble, GO_ON).into()),
            }
            let mut moved = self.record.following();
            moved.staging = Some(id);
            let keep_value = op(Op::RequestPut(PutRequest {
                key: key.clone(),
                lease,
                ignore_value: true,
                ..PutRequest::default()
            }));
            let committed = self
                .try_commit(vec![put_record(&moved), keep_value], &moved)
                .await;
            self.revoke(id).await?;
            committed?;
            if self.has(key, lease).await? {
                return Ok(self.advance(next.after(&self.record)).await?);
            }
        }
        let what = format!("the value of {} was put and is gone again", shown(key));
        Err(Failure::new(
            what,
            GO_ON,
            "see what else writes to the target, and stop it",
        )
        .into())
    }

    /// A new lease for [`Self::stage`], which the record knows of before it is there.
    async fn staging_lease(&mut self, ids: &mut impl Iterator<Item = i64>) -> Result<i64, Failure> {
        for id in ids {
            let mut noted = self.record.following();
            noted.staging = Some(id);
            let there = leases::time_to_live(self.peer, id, false).await;
            if exists(&there.map_err(|trouble| self.peer.failure(trouble, GO_ON))?) {
                continue;
            }
            self.advance(noted).await?;
            let grant = LeaseGrantRequest {
                ttl: STAGING_TTL,
                id,
            };
            let granted = self.peer.call(grant, |channel, request| async move {
                LeaseClient::new(channel).lease_grant(request).await
            });
            match granted.await {
                Ok(_) => return Ok(id),
                // An earlier attempt, whose answer was lost.
                Err(trouble) if trouble.says("lease already exists") => return Ok(id),
                Err(trouble) => return Err(self.peer.failure(trouble, GO_ON)),
            }
        }
        Err(Failure::new(
            "the target has all leases with ids from 1 to 127, and a large value needs one",
            GO_ON,
            "revoke one of them that is no longer used",
        ))
    }

    async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let revoked = leases::revoke(self.peer, id).await;
        revoked.map_err(|trouble| self.peer.failure(trouble, GO_ON))
    }

    async fn has(&self, key: &Bytes, lease: i64) -> Result<bool, Failure> {
        let request = RangeRequest {
            key: key.clone(),
            keys_only: true,
            ..RangeRequest::default()
        };
        let answer = self.peer.range(request).await;
        let answer = answer.map_err(|trouble| self.peer.failure(trouble, GO_ON))?;
        Ok(answer.kvs.first().is_some_and(|kv| kv.lease == lease))
    }
}

/// The record that a copy has left in the target, if there is one.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn record_in(peer: &Peer) -> Result<Option<Bytes>, Failure> {
    let request = RangeRequest {
        key: Bytes::from_static(RECORD_KEY),
        ..RangeRequest::default()
    };
    let answer = peer.range(request).await;
    let mut answer = answer.map_err(|trouble| peer.failure(trouble, "nothing was changed"))?;
    Ok(answer.kvs.pop().map(|kv| kv.value))
}

fn single_put(changes: &Changes) -> Option<(&Bytes, &Bytes, i64)> {
    let (key, change) = changes.first_key_value()?;
    let (value, lease) = change.as_ref().filter(|_| changes.len() == 1)?;
    Some((key, value, *lease))
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn put_record(record: &Record) -> RequestOp {
    op(Op::RequestPut(PutRequest {
        key: Bytes::from_static(RECORD_KEY),
        value: record.bytes(),
        ..PutRequest::default()
    }))
}

/// At most 127 operations that make the changes: themselves, or lists of them.
fn operations(changes: &Changes) -> Vec<RequestOp> {
    let mut ops: Vec<_> = changes
        .iter()
        .map(|(key, change)| one(key, change.as_ref()))
        .collect();
    if ops.len() < OPERATIONS_MAX {
        return ops;
    }
    // The outer list has this one less than half of what is allowed, and the record.
    let inner = OPERATIONS_MAX / 2;
    let mut outer = Vec::new();
    while !ops.is_empty() {
        let rest = ops.split_off(inner.min(ops.len()));
        let success = std::mem::replace(&mut ops, rest);
        outer.push(op(Op::RequestTxn(TxnRequest {
            success,
            ..TxnRequest::default()
        })));
    }
    outer
}

fn one(key: &Bytes, change: Option<&(Bytes, i64)>) -> RequestOp {
    let key = key.clone();
    match change {
        Some((value, lease)) => op(Op::RequestPut(PutRequest {
            key,
            value: value.clone(),
            lease: *lease,
            ..PutRequest::default()
        })),
        None => op(Op::RequestDeleteRange(DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        })),
    }
}

/// The value of the record that a transaction found instead of what it expected.
fn found(answer: &TxnResponse) -> Option<Bytes> {
    let Some(Answer::ResponseRange(range)) = &answer.responses.first()?.response else {
        return None;
    };
    Some(range.kvs.first()?.value.clone())
}

fn taken_over(record: &Record) -> Failure {
    Failure::new(
        format!(
            "the record of this copy ({}) was changed by somebody else after revision {}",
            name(),
            record.revision
        ),
        "this process has stopped; what it copied is in the target",
        "run one copy into a target at a time; if none runs, run the same command again",
    )
}

fn too_large(key: &Bytes, value: &Bytes) -> Failure {
    Failure::new(
        format!(
            "the target does not take the key {} ({} bytes) with its value ({} bytes)",
            shown(key),
            key.len(),
            value.len()
        ),
        GO_ON,
        "let the target take larger requests (etcd: --max-request-bytes), or make them smaller: in a group \
         a key has at most 64 KiB, and a request 1.5 MiB",
    )
}

/// A key, for people.
fn shown(key: &[u8]) -> String {
    let shown = &key[..key.len().min(SHOWN_BYTES_MAX)];
    format!("{:?}", String::from_utf8_lossy(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth_and_size(ops: &[RequestOp], left: usize) -> usize {
        assert!(
            ops.len() <= left,
            "{} operations where {left} are allowed",
            ops.len()
        );
        let inner = |op: &RequestOp| match &op.request {
            Some(Op::RequestTxn(txn)) => depth_and_size(&txn.success, left - ops.len()),
            _ => 1,
        };
        ops.iter().map(inner).sum()
    }

    #[test]
    fn any_number_of_changes_fits_into_what_servers_allow() {
        for count in [0, 1, 126, 127, 128, 500, CHANGES_MAX] {
            let keys = (0..count).map(|n| (Bytes::from(n.to_string()), None));
            let changes: Changes = keys.collect();
            let mut ops = vec![put_record(&Record::begin(1, "run", 1))];
            ops.extend(operations(&changes));
            assert_eq!(depth_and_size(&ops, OPERATIONS_MAX), count + 1);
        }
    }
}
