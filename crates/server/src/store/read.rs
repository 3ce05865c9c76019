//! Reads: at any node, from a snapshot that is as fresh as the request wants.

use std::sync::Arc;

use bytes::Bytes;
use steadfast::{ConsistencyPolicy, ReadError, Snapshot, SnapshotDatabase};

use super::inner::Inner;
use super::keys::{Failure, StateRow, Tables, lease_bounds, number};
use super::view::{Committed, View};
use super::{OpenStoreError, Store, compare, range};
use crate::error::Error;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    LeaseLeasesResponse, LeaseStatus, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    ResponseOp, TxnRequest, TxnResponse,
};

/// What a client is told of a read that failed.
pub(super) fn read_error(error: &ReadError) -> Error {
    match error {
        ReadError::Stopped { .. } | ReadError::Closed | ReadError::NoData => Error::Stopped,
        ReadError::Engine(_) | ReadError::Log(_) => {
            tracing::error!(%error, "the store cannot be read");
            Error::Corrupt
        }
        ReadError::TooManyReads { .. } => Error::RequestTooLarge,
        _ => Error::Timeout,
    }
}

/// What a client is told of a request that only reads.
pub(super) fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Refused(error) => error,
        Failure::Read(error) => read_error(&error),
        Failure::Write(error) => {
            tracing::error!(%error, "a read ended as a write");
            Error::Corrupt
        }
        Failure::Row(what) => {
            tracing::error!(what, "a row of the store is malformed");
            Error::Corrupt
        }
    }
}

pub(super) fn open_error(failure: Failure) -> OpenStoreError {
    match failure {
        Failure::Read(error) => OpenStoreError::Read(error),
        _ => OpenStoreError::Rows,
    }
}

type SnapshotView<'s> = Committed<SnapshotDatabase<'s>>;

fn view(snapshot: &Snapshot) -> Result<SnapshotView<'_>, Failure> {
    Committed::new(Tables::of_snapshot(snapshot)?)
}

impl Inner {
    fn policy(is_serializable: bool) -> ConsistencyPolicy {
        if is_serializable {
            ConsistencyPolicy::Eventual
        } else {
            ConsistencyPolicy::Linearizable
        }
    }

    /// A read of a few keys.
    ///
    /// # Errors
    /// Those of a read.
    pub(super) async fn read_short<T>(
        &self,
        is_serializable: bool,
        read: impl FnOnce(&SnapshotView<'_>) -> Result<T, Failure>,
    ) -> Result<(ResponseHeader, T), Error> {
        let options = Self::policy(is_serializable).within(self.config.request_timeout);
        let reading = self.env.read_async(options, |snapshot| {
            let view = view(snapshot)?;
            let answer = read(&view)?;
            Ok((view.state, answer))
        });
        let (state, answer) = reading.await.map_err(failed)?;
        Ok((self.seen(state), answer))
    }

    /// A read of any size, on a thread of its own.
    ///
    /// # Errors
    /// Those of a read.
    pub(super) async fn read_long<T: Send + 'static>(
        self: &Arc<Self>,
        is_serializable: bool,
        read: impl FnOnce(&Self, &SnapshotView<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<(ResponseHeader, T), Error> {
        if !is_serializable {
            self.linearize().await?;
        }
        let inner = Arc::clone(self);
        let reading = self.read_blocking(move |snapshot| {
            let view = view(snapshot)?;
            let answer = read(&inner, &view)?;
            Ok::<(StateRow, T), Failure>((view.state, answer))
        });
        let (state, answer) = reading.await?;
        Ok((self.seen(state), answer))
    }

    /// Reads what this node has, on a thread of its own.
    ///
    /// # Errors
    /// Those of a read.
    pub(super) async fn read_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Snapshot) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        let _place = self
            .long_reads
            .acquire()
            .await
            .map_err(|_| Error::Stopped)?;
        let env = self.env.clone();
        let reading = move || env.read(ConsistencyPolicy::Eventual, read);
        let read = tokio::task::spawn_blocking(reading).await;
        read.map_err(|_| Error::Stopped)?.map_err(failed)
    }

    /// # Errors
    /// [`Error::Timeout`], [`Error::Stopped`].
    pub(super) async fn linearize(&self) -> Result<(), Error> {
        self.read_short(false, |_| Ok(())).await.map(|_| ())
    }
}

impl Store {
    /// Answers a checked request, up to the key that reaches `bytes_max`.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub(super) async fn read_range(
        &self,
        request: &RangeRequest,
        bytes_max: Option<usize>,
    ) -> Result<RangeResponse, Error> {
        let is_serializable = request.serializable;
        let (header, mut answer) = if request.range_end.is_empty() {
            let read = |view: &SnapshotView<'_>| {
                range::answer(view, request, view.state.revision, None, bytes_max)
            };
            self.inner.read_short(is_serializable, read).await?
        } else {
            let request = request.clone();
            let read = move |inner: &Inner, view: &SnapshotView<'_>| {
                let counts = Some(&inner.counts);
                range::answer(view, &request, view.state.revision, counts, bytes_max)
            };
            self.inner.read_long(is_serializable, read).await?
        };
        answer.header = Some(header);
        Ok(answer)
    }

    /// Answers a checked transaction that can only read.
    ///
    /// # Errors
    /// As [`Store::txn`].
    pub(super) async fn read_txn(&self, request: TxnRequest) -> Result<TxnResponse, Error> {
        let is_serializable = is_serializable(&request);
        let (header, mut answer) = if has_ranges(&request) {
            let read = move |_: &Inner, view: &SnapshotView<'_>| answer_txn(view, &request);
            self.inner.read_long(is_serializable, read).await?
        } else {
            let read = |view: &SnapshotView<'_>| answer_txn(view, &request);
            self.inner.read_short(is_serializable, read).await?
        };
        answer.header = Some(header);
        Ok(answer)
    }

    /// The keys of a lease, as of now.
    ///
    /// # Errors
    /// As [`Store::lease_time_to_live`].
    pub(super) async fn read_lease_keys(
        &self,
        id: i64,
    ) -> Result<(ResponseHeader, Vec<Bytes>), Error> {
        let read = move |_: &Inner, view: &SnapshotView<'_>| {
            let rows = view.tables.lease_keys.range(lease_bounds(id));
            let keys = rows.map(|row| Ok(row?.0.slice(8..)));
            keys.collect::<Result<Vec<_>, Failure>>()
        };
        self.inner.read_long(false, read).await
    }

    /// # Errors
    /// As [`Store::lease_leases`].
    pub(super) async fn read_leases(&self) -> Result<LeaseLeasesResponse, Error> {
        let read = |_: &Inner, view: &SnapshotView<'_>| {
            let rows = view.tables.leases.iter();
            let leases = rows.map(|row| {
                let id = number(&row?.0)?;
                Ok(LeaseStatus { id })
            });
            leases.collect::<Result<Vec<_>, Failure>>()
        };
        let (header, leases) = self.inner.read_long(false, read).await?;
        Ok(LeaseLeasesResponse {
            header: Some(header),
            leases,
        })
    }

    /// # Errors
    /// As [`Store::auth_rows`].
    pub(super) async fn read_auth(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let read = |view: &SnapshotView<'_>| {
            let rows = view.tables.auth.prefix(prefix);
            Ok(rows.collect::<Result<Vec<_>, ReadError>>()?)
        };
        Ok(self.inner.read_short(true, read).await?.1)
    }
}

/// Whether this node's own state is good enough for all of a transaction's ranges.
fn is_serializable(request: &TxnRequest) -> bool {
    let ops = || request.success.iter().chain(&request.failure);
    let is_serializable = |op: &RequestOp| match &op.request {
        Some(Request::RequestRange(request)) => request.serializable,
        Some(Request::RequestTxn(inner)) => is_serializable(inner),
        _ => false,
    };
    ops().next().is_some() && ops().all(is_serializable)
}

/// Whether a transaction reads more than single keys.
fn has_ranges(request: &TxnRequest) -> bool {
    let has_range = |op: &RequestOp| match &op.request {
        Some(Request::RequestRange(request)) => !request.range_end.is_empty(),
        Some(Request::RequestTxn(inner)) => has_ranges(inner),
        _ => false,
    };
    let mut compares = request.compare.iter();
    compares.any(|compare| !compare.range_end.is_empty())
        || request
            .success
            .iter()
            .chain(&request.failure)
            .any(has_range)
}

fn answer_txn(view: &SnapshotView<'_>, request: &TxnRequest) -> Result<TxnResponse, Failure> {
    let paths = compare::paths(view, request)?;
    branch(view, request, &mut paths.into_iter())
}

fn branch(
    view: &SnapshotView<'_>,
    request: &TxnRequest,
    paths: &mut impl Iterator<Item = bool>,
) -> Result<TxnResponse, Failure> {
    let succeeded = paths.next().unwrap_or_default();
    let ops = if succeeded {
        &request.success
    } else {
        &request.failure
    };
    let revision = view.revision();
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            Some(Request::RequestRange(request)) => {
                let mut answer = range::answer(view, request, revision, None, None)?;
                answer.header = Some(ResponseHeader {
                    revision,
                    ..ResponseHeader::default()
                });
                Response::ResponseRange(answer)
            }
            Some(Request::RequestTxn(inner)) => Response::ResponseTxn(branch(view, inner, paths)?),
            // Such a transaction is no read.
            _ => return Err(Error::KeyNotFound.into()),
        };
        responses.push(ResponseOp {
            response: Some(response),
        });
    }
    Ok(TxnResponse {
        header: Some(ResponseHeader::default()),
        succeeded,
        responses,
    })
}
