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
//! next one. The rows are described in [`keys`]. Nothing in here knows of gRPC: requests and answers
//! are the messages of [`crate::proto`], as plain structs.

mod config;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use steadfast::ReplicatedEnvironment;
use tokio::sync::{mpsc, watch};

use crate::error::Error;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, HashKvResponse,
    HashResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
    WatchRequest, WatchResponse,
};

pub use config::{REQUEST_BYTES_MAX, StoreConfig, TXN_OPERATIONS_MAX};

/// The store of this node. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    env: ReplicatedEnvironment,
    config: StoreConfig,
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
        let inner = Arc::new(Inner { env, config });
        Ok(Self { inner })
    }

    /// Ends the tasks of the store and waits for them. Requests under way end with
    /// [`Error::Stopped`], and streams of watches end. The environment stays open.
    pub async fn close(self) {
        drop(self);
    }

    /// Keys and values of a range, at the newest or an older revision. Everything acknowledged before
    /// the call is in it, unless the request is serializable.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], [`Error::InvalidSortOption`], [`Error::Compacted`],
    /// [`Error::FutureRevision`], [`Error::Timeout`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        Err(Error::Stopped)
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
        futures_util::stream::empty()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], [`Error::KeyNotFound`], [`Error::ValueProvided`],
    /// [`Error::LeaseProvided`], [`Error::LeaseNotFound`], and those of every write:
    /// [`Error::RequestTooLarge`], [`Error::TooManyRequests`], [`Error::NoSpace`];
    /// [`Error::NoLeader`] and [`Error::LeaderChanged`] for what certainly did not happen;
    /// [`Error::OutcomeUnknown`] for what may have.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, Error> {
        Err(Error::Stopped)
    }

    /// Deletes the keys of a range.
    ///
    /// # Errors
    /// [`Error::EmptyKey`], and those of every write.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        Err(Error::Stopped)
    }

    /// Compares, then does one of two lists of operations, as one revision. One that can only read
    /// is answered by this node like a range; linearizable, unless all of its ranges are
    /// serializable.
    ///
    /// # Errors
    /// [`Error::TooManyOps`], [`Error::DuplicateKey`], and those of the operations in it: then
    /// nothing is written.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Error> {
        Err(Error::Stopped)
    }

    /// Gives up all revisions below one. They are gone for readers at once; with `physical` the
    /// answer comes when their space is free too.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::FutureRevision`], and those of every write.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Error> {
        Err(Error::Stopped)
    }

    /// Makes a lease.
    ///
    /// # Errors
    /// [`Error::LeaseExists`], [`Error::LeaseTtlTooLarge`], and those of every write.
    pub async fn lease_grant(
        &self,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Error> {
        Err(Error::Stopped)
    }

    /// Ends a lease and deletes its keys, as one revision.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`], and those of every write.
    pub async fn lease_revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Error> {
        Err(Error::Stopped)
    }

    /// Gives a lease its whole time to live again, from now on. A TTL of 0 in the answer: there is no
    /// such lease.
    ///
    /// # Errors
    /// [`Error::NoLeader`], and those of every write.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        Err(Error::Stopped)
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
        Err(Error::Stopped)
    }

    /// All leases.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub async fn lease_leases(&self) -> Result<LeaseLeasesResponse, Error> {
        Err(Error::Stopped)
    }

    /// A hash of all that is readable at `revision` and since the last compaction; 0 means the newest
    /// that this node has. Nodes that answer for the same revision and the same compaction agree.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::FutureRevision`].
    pub async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Error> {
        Err(Error::Stopped)
    }

    /// A hash of everything this node has, leases and users included.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn hash(&self) -> Result<HashResponse, Error> {
        Err(Error::Stopped)
    }

    /// One stream of watches: requests go in, answers come out. Dropping either ends it. A client
    /// that does not read its answers has bounded memory here, and gets all events once it does.
    pub fn watches(&self) -> (mpsc::Sender<WatchRequest>, mpsc::Receiver<WatchResponse>) {
        (mpsc::channel(1).0, mpsc::channel(1).1)
    }

    /// The header of an answer that depends on no read: the newest revision and term that this node
    /// has applied. After [`Store::linearize`], it is at least everything acknowledged before.
    pub fn header(&self) -> ResponseHeader {
        ResponseHeader::default()
    }

    /// Waits until this node has everything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub async fn linearize(&self) -> Result<(), Error> {
        Err(Error::Stopped)
    }

    /// All rows of `etcd/auth` whose key begins with `prefix`, as this node has them;
    /// [`Store::linearize`] before makes them current.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn auth_rows(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Error> {
        Err(Error::Stopped)
    }

    /// Changes rows of `etcd/auth`, if they are as expected; else nothing, and the answer is false:
    /// read again. Takes no revision.
    ///
    /// # Errors
    /// Those of every write.
    pub async fn auth_change(&self, change: AuthChange) -> Result<bool, Error> {
        Err(Error::Stopped)
    }

    /// A number that changes whenever this node has applied a change of `etcd/auth`: what was read
    /// of it before is to be read again.
    pub fn auth_version(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// The environment that the store is on.
    pub fn env(&self) -> &ReplicatedEnvironment {
        &self.inner.env
    }

    /// The cluster's id in headers: the same on every node, never 0.
    pub fn cluster_id(&self) -> u64 {
        1
    }

    /// The id in headers of the member with this node id: never 0, and never another member's.
    pub fn member_id(&self, node: steadfast::ids::NodeId) -> u64 {
        1
    }
}
