//! The data model of the etcd v3 API on the databases of a replicated environment.
//!
//! ```text
//!  put, delete, txn, compact, lease ──► queue ──► one task ──► one transaction for all that wait
//!     (on a replica: forwarded to the master)        │              │
//!                                                    │              ▼ the change feed of each node
//!  range, time to live, hash ──► a snapshot          │         decoded once ──► watches
//!     (read barrier first, unless serializable)      └──► expiry of leases, compaction
//! ```
//!
//! Revisions are numbers of this store: each transaction of a client that changes something takes the
//! next one. The rows are described in `keys.rs`. Nothing in here knows of gRPC: requests and answers
//! are the messages of [`crate::proto`], as plain structs.

mod apply;
mod check;
mod command;
mod compact;
mod compare;
mod config;
mod forward;
mod hash;
mod inner;
mod keys;
mod lease;
mod range;
mod read;
mod round;
mod view;
mod watch;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use steadfast::ReplicatedEnvironment;
use steadfast::ids::NodeId;
use tokio::sync::{mpsc, watch as channel};

use crate::error::Error;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, HashKvResponse,
    HashResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
    WatchRequest, WatchResponse,
};
use command::{Answer, AuthMessage, AuthRow, Command};
use inner::{Inner, Stop};

pub use config::{REQUEST_BYTES_MAX, StoreConfig, TXN_OPERATIONS_MAX};

/// The store of this node. Clones are the same store; the last one dropped ends its tasks.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    _stop: Arc<Stop>,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// The node belongs to no group yet: wait until it is ready.
    #[error("the node belongs to no group yet; open the store once it does")]
    NoGroup,
    /// The node has no data, or does not run.
    #[error("the databases cannot be read: {0}")]
    Read(#[from] steadfast::ReadError),
    /// The node does not give its changes.
    #[error("the changes of the databases cannot be followed: {0}")]
    Feed(#[from] steadfast::FeedError),
    /// The node has a store already, or is closed.
    #[error("the writes of other nodes cannot be taken: {0}")]
    Calls(#[from] steadfast::ServeCallsError),
    /// The rows are not what this version writes.
    #[error("the databases of the store have rows that this version does not know")]
    Rows,
}

/// A change of the data about users and roles, in the order of all writes: `set` is done if every row
/// of `expect` is as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthChange {
    /// Keys with the value that they must have; `None`: that they must not exist.
    pub expect: Vec<(Bytes, Option<Bytes>)>,
    /// Keys with their new value; `None`: they are deleted.
    pub set: Vec<(Bytes, Option<Bytes>)>,
}

impl Store {
    /// The store on this environment. The node belongs to a group already. Every node of the group
    /// that serves clients, and every one that can become master, must have one open: the master's
    /// takes the writes, ends leases and compacts.
    ///
    /// # Errors
    /// See [`OpenStoreError`].
    pub async fn open(
        env: ReplicatedEnvironment,
        config: StoreConfig,
    ) -> Result<Self, OpenStoreError> {
        let (inner, queue) = Inner::open(env, config).await?;
        let stop = Arc::new(Stop::new(&inner));
        inner.start(queue);
        Ok(Self { inner, _stop: stop })
    }

    /// Ends the tasks of the store and waits for them. Requests under way end with
    /// [`Error::Stopped`], and streams of watches end. The environment stays open.
    pub async fn close(self) {
        let inner = Arc::clone(&self.inner);
        drop(self);
        inner.close().await;
    }

    /// Keys and values of a range, at the newest or an older revision. Everything acknowledged before
    /// the call is in it, unless the request is serializable.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], [`Error::InvalidSortOption`], [`Error::Compacted`],
    /// [`Error::FutureRevision`], [`Error::Timeout`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        check::range(&request)?;
        self.read_range(&request, None).await
    }

    /// The same in pages of one revision, ordered by key; together they are what
    /// [`Store::range`] would answer. Every page has the header and the whole count; `more` is set in
    /// all but the last, and there as the limit says. Holds one page in memory.
    ///
    /// # Errors
    /// As [`Store::range`], and [`Error::InvalidSortOption`] for an order other than by ascending
    /// key; [`Error::Compacted`] also when the revision is compacted between two pages.
    pub fn range_stream(
        &self,
        request: RangeRequest,
    ) -> impl Stream<Item = Result<RangeResponse, Error>> + Send + use<> {
        self.pages(request)
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], [`Error::KeyNotFound`], [`Error::ValueProvided`],
    /// [`Error::LeaseProvided`], [`Error::LeaseNotFound`], and those of every write:
    /// [`Error::RequestTooLarge`], [`Error::TooManyRequests`], [`Error::NoSpace`];
    /// [`Error::NoLeader`] and [`Error::LeaderChanged`] for what certainly did not happen;
    /// [`Error::OutcomeUnknown`] for what may have; [`Error::AnswerTooLarge`] for what this node would
    /// have to be told by the master with more than a call may carry
    /// ([`steadfast::limits::CALL_BYTES_MAX`], 8 MiB): it was not done.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, Error> {
        check::size(&request)?;
        check::put(&request)?;
        match self.inner.submit(Command::Put(request)).await? {
            Answer::Put(answer) => Ok(answer),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Deletes the keys of a range, as one revision. It is whole or nothing, so what a transaction of
    /// the environment may write bounds it ([`steadfast::limits`]): 49,999 keys, or 33,332 that are all
    /// attached to leases, and fewer if a key has more than about 200 bytes. More are refused with
    /// [`Error::RequestTooLarge`], and none is deleted.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], and those of every write.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        check::size(&request)?;
        check::delete_range(&request)?;
        match self.inner.submit(Command::DeleteRange(request)).await? {
            Answer::DeleteRange(answer) => Ok(answer),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Compares, then does one of two lists of operations, as one revision. One that can only read
    /// is answered by this node like a range; linearizable, unless all of its ranges are
    /// serializable.
    ///
    /// # Errors
    /// [`Error::TooManyOps`], [`Error::DuplicateKey`], and those of the operations in it: then
    /// nothing is written.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Error> {
        check::size(&request)?;
        check::txn(&request)?;
        if check::is_read_only(&request) {
            return self.read_txn(request).await;
        }
        match self.inner.submit(Command::Txn(request)).await? {
            Answer::Txn(answer) => Ok(answer),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Gives up all revisions below one. They are gone for readers at once; with `physical` the
    /// answer comes when their space is free too.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::FutureRevision`], and those of every write.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Error> {
        let (revision, physical) = (request.revision, request.physical);
        match self.inner.submit(Command::Compact(request)).await? {
            Answer::Compact(answer) => {
                if physical {
                    self.inner.compacted_to(revision).await;
                }
                Ok(answer)
            }
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Makes a lease.
    ///
    /// # Errors
    /// [`Error::LeaseExists`], [`Error::LeaseTtlTooLarge`], and those of every write.
    pub async fn lease_grant(
        &self,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Error> {
        match self.inner.submit(Command::Grant(request)).await? {
            Answer::Grant(answer) => Ok(answer),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Ends a lease and deletes its keys, as one revision; more than 10,000 keys, or keys of more than
    /// 1 MiB together, as several, which others can be between. From the first on there is no such
    /// lease. With [`Error::OutcomeUnknown`] the rest may still be to be deleted, and will be.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`], and those of every write.
    pub async fn lease_revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Error> {
        match self.inner.submit(Command::Revoke(id)).await? {
            Answer::Revoke(answer) => Ok(answer),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Gives a lease its whole time to live again, from now on. A TTL of 0 in the answer: there is no
    /// such lease.
    ///
    /// # Errors
    /// [`Error::NoLeader`], and those of every write.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        match self.inner.submit(Command::KeepAlive(id)).await? {
            Answer::KeepAlive(answer) => Ok(answer),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// What a lease has left, in whole seconds rounded down, and its keys if they are asked for. A
    /// TTL of -1: there is no such lease.
    ///
    /// # Errors
    /// [`Error::NoLeader`], [`Error::Timeout`].
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Error> {
        let id = request.id;
        let Answer::TimeToLive(mut answer) = self.inner.submit(Command::TimeToLive(id)).await?
        else {
            return Err(Error::OutcomeUnknown);
        };
        let is_there = answer.ttl >= 0;
        if request.keys && is_there {
            let (header, keys) = self.read_lease_keys(id).await?;
            (answer.header, answer.keys) = (Some(header), keys);
        }
        Ok(answer)
    }

    /// All leases.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub async fn lease_leases(&self) -> Result<LeaseLeasesResponse, Error> {
        self.read_leases().await
    }

    /// A hash of all that is readable at `revision` and since the last compaction; 0 means the newest
    /// that this node has. Nodes that answer for the same revision and the same compaction agree.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::FutureRevision`].
    pub async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Error> {
        self.read_hash_kv(revision).await
    }

    /// A hash of everything this node has, leases and users included.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn hash(&self) -> Result<HashResponse, Error> {
        self.read_hash().await
    }

    /// One stream of watches: requests go in, answers come out. Dropping either ends it. A client
    /// that does not read its answers has bounded memory here, and gets all events once it does.
    pub fn watches(&self) -> (mpsc::Sender<WatchRequest>, mpsc::Receiver<WatchResponse>) {
        watch::open(&self.inner)
    }

    /// The header of an answer that depends on no read: the newest revision and term that this node
    /// has applied. After [`Store::linearize`], it is at least everything acknowledged before.
    pub fn header(&self) -> ResponseHeader {
        self.inner.header()
    }

    /// Waits until this node has everything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub async fn linearize(&self) -> Result<(), Error> {
        self.inner.linearize().await
    }

    /// All rows of `etcd/auth` whose key begins with `prefix`, as this node has them;
    /// [`Store::linearize`] before makes them current.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn auth_rows(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Error> {
        self.read_auth(prefix).await
    }

    /// Changes rows of `etcd/auth`, if they are as expected; else nothing, and the answer is false:
    /// read again. Takes no revision.
    ///
    /// # Errors
    /// Those of every write.
    pub async fn auth_change(&self, change: AuthChange) -> Result<bool, Error> {
        let rows = |rows: Vec<(Bytes, Option<Bytes>)>| {
            let rows = rows.into_iter().map(|(key, value)| AuthRow { key, value });
            rows.collect()
        };
        let message = AuthMessage {
            expect: rows(change.expect),
            set: rows(change.set),
        };
        check::size(&message)?;
        match self.inner.submit(Command::Auth(message)).await? {
            Answer::Auth(is_done) => Ok(is_done),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// A number that changes whenever this node has applied a change of `etcd/auth`: what was read
    /// of it before is to be read again.
    pub fn auth_version(&self) -> channel::Receiver<u64> {
        self.inner.hub.auth_version()
    }

    /// The environment that the store is on.
    pub fn env(&self) -> &ReplicatedEnvironment {
        &self.inner.env
    }

    /// The cluster's id in headers: the same on every node, never 0.
    pub fn cluster_id(&self) -> u64 {
        self.inner.cluster
    }

    /// The id in headers of the member with this node id: never 0, and never another member's.
    pub fn member_id(&self, node: NodeId) -> u64 {
        self.inner.member_id(node)
    }
}
