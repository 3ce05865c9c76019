//! What locks and elections are made of: keys under one prefix stand in a queue, in the order in
//! which they were made. Each ends with its lease. Whoever is not first waits until the one before is
//! gone: a watch, not a poll.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Code, Status};

use crate::auth::Caller;
use crate::error::Error;
use crate::etcd::Node;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::response_op::Response as Done;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;

/// Seconds of the lease that a caller without one gets. Nobody keeps it alive.
const TTL: i64 = 60;

/// A place in a queue.
pub(super) struct Place {
    pub(super) key: Bytes,
    /// The create revision of the key, and the fencing token of who holds it.
    pub(super) revision: i64,
    pub(super) lease: i64,
    pub(super) header: Option<ResponseHeader>,
    /// What the key had before, if the caller stood there already.
    pub(super) found: Option<KeyValue>,
}

/// A place that is given up unless it is [kept](Claim::keep).
pub(super) struct Claim {
    node: Arc<Node>,
    caller: Caller,
    place: Option<Place>,
}

/// The error of a call of locks or elections: etcd keeps the text, and loses the code. Those that
/// clients act upon keep it here.
pub(super) fn refused(error: Error) -> Status {
    match error.code() {
        Code::Unavailable | Code::Unauthenticated | Code::PermissionDenied => error.into(),
        _ => Status::unknown(error.to_string()),
    }
}

/// The first key that does not begin with `prefix`; all keys, if there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

/// The keys of the queue with this name.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

pub(super) fn first_of(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

pub(super) fn op(request: Op) -> RequestOp {
    let request = Some(request);
    RequestOp { request }
}

/// Whether the key was made at this revision; 0: whether it is not there.
pub(super) fn made_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn revision_of(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// The first key of an answer's range operation.
fn key_in(answer: &TxnResponse, at: usize) -> Option<KeyValue> {
    match answer.responses.get(at)?.response.as_ref()? {
        Done::ResponseRange(range) => range.kvs.first().cloned(),
        _ => None,
    }
}

impl Node {
    /// Deletes a key, if it is still the one that was made at this revision.
    pub(super) async fn give_up(
        &self,
        caller: &Caller,
        key: &Bytes,
        revision: i64,
    ) -> Result<TxnResponse, Error> {
        let delete = DeleteRangeRequest {
            key: key.clone(),
            ..DeleteRangeRequest::default()
        };
        let request = TxnRequest {
            compare: vec![made_at(key, revision)],
            success: vec![op(Op::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        self.txn(caller, request).await
    }

    /// Waits until a key is gone, which it was not at `revision`.
    pub(super) async fn gone(
        &self,
        caller: &Caller,
        key: &Bytes,
        revision: i64,
    ) -> Result<(), Error> {
        let create = WatchCreateRequest {
            key: key.clone(),
            start_revision: revision + 1,
            filters: vec![FilterType::Noput.into()],
            ..WatchCreateRequest::default()
        };
        self.changed(caller, create).await.map(|_| ())
    }

    /// Waits for the first event of a watch. `None`: it has to be looked at anew, since what was
    /// asked for is compacted.
    pub(super) async fn changed(
        &self,
        caller: &Caller,
        create: WatchCreateRequest,
    ) -> Result<Option<(EventType, KeyValue)>, Error> {
        self.access(caller)
            .await?
            .read(&create.key, &create.range_end)?;
        let (requests, mut answers) = self.store.watches();
        let request_union = Some(RequestUnion::CreateRequest(create));
        let sent = requests.send(WatchRequest { request_union }).await;
        sent.map_err(|_| Error::Stopped)?;
        loop {
            let answer = tokio::select! {
                answer = answers.recv() => answer.ok_or(Error::Stopped)?,
                () = self.stopped() => return Err(Error::Stopped),
            };
            if answer.canceled {
                return Ok(None);
            }
            if let Some(event) = answer.events.into_iter().next() {
                let kind = event.r#type();
                return Ok(Some((kind, event.kv.unwrap_or_default())));
            }
        }
    }

    async fn lease_or_own(&self, caller: &Caller, lease: i64) -> Result<i64, Error> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = LeaseGrantRequest { ttl: TTL, id: 0 };
        Ok(self.lease_grant(caller, request).await?.id)
    }

    /// Takes the last place in the queue with this prefix, or the one that this lease has already.
    pub(super) async fn stand_in_line(
        self: &Arc<Self>,
        caller: &Caller,
        prefix: &Bytes,
        lease: i64,
        value: Bytes,
    ) -> Result<Claim, Error> {
        let lease = self.lease_or_own(caller, lease).await?;
        let key: Bytes = [&**prefix, format!("{lease:x}").as_bytes()].concat().into();
        let put = PutRequest {
            key: key.clone(),
            value,
            lease,
            ..PutRequest::default()
        };
        let get = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let request = TxnRequest {
            compare: vec![made_at(&key, 0)],
            success: vec![op(Op::RequestPut(put))],
            failure: vec![op(Op::RequestRange(get))],
        };
        let answer = self.txn(caller, request).await?;
        let found = if answer.succeeded {
            None
        } else {
            key_in(&answer, 0)
        };
        let revision = match &found {
            Some(found) => found.create_revision,
            None => revision_of(answer.header.as_ref()),
        };
        let place = Place {
            key,
            revision,
            lease,
            header: answer.header,
            found,
        };
        Ok(Claim {
            node: Arc::clone(self),
            caller: caller.clone(),
            place: Some(place),
        })
    }

    /// Waits until every key of the queue is gone that was made before `revision`.
    pub(super) async fn wait_for_turn(
        &self,
        caller: &Caller,
        prefix: &Bytes,
        revision: i64,
    ) -> Result<RangeResponse, Error> {
        loop {
            let before = RangeRequest {
                sort_order: SortOrder::Descend.into(),
                max_create_revision: revision - 1,
                ..first_of(prefix)
            };
            let answer = self.range(caller, before).await?;
            let Some(last) = answer.kvs.first() else {
                return Ok(answer);
            };
            let at = revision_of(answer.header.as_ref());
            self.gone(caller, &last.key, at).await?;
        }
    }
}

impl Claim {
    pub(super) fn place(&self) -> &Place {
        self.place
            .as_ref()
            .expect("it is there until the claim is kept")
    }

    /// The place, which is the caller's from now on.
    pub(super) fn keep(mut self) -> Place {
        self.place.take().expect("a claim is kept once")
    }
}

impl Drop for Claim {
    /// A caller that is gone, or that got an error, stands in nobody's way.
    fn drop(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        let (node, caller) = (Arc::clone(&self.node), self.caller.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let given_up = node.give_up(&caller, &place.key, place.revision).await;
            if let Err(error) = given_up {
                tracing::debug!(%error, "a place in a queue ends with its lease alone");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn a_prefix_ends_before_the_first_key_that_is_not_of_it() {
        assert_eq!(prefix_end(b"a/"), "a0");
        assert_eq!(*prefix_end(b"a\xff\xff"), *b"b");
        assert_eq!(*prefix_end(b"\xff"), *b"\0");
    }
}
