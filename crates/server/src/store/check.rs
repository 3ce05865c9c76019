//! What is wrong with a request by itself, before anything is read.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

use super::config::{REQUEST_BYTES_MAX, TXN_OPERATIONS_MAX};
use super::keys::{Keys, check_key};
use crate::error::Error;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// What etcd adds to a request before it measures it, in bytes.
const ENVELOPE_BYTES: usize = 18;

/// # Errors
/// [`Error::RequestTooLarge`].
pub(super) fn size(request: &impl Message) -> Result<(), Error> {
    if request.encoded_len() + ENVELOPE_BYTES > REQUEST_BYTES_MAX {
        return Err(Error::RequestTooLarge);
    }
    Ok(())
}

/// # Errors
/// [`Error::EmptyKey`], [`Error::InvalidSortOption`].
pub(super) fn range(request: &RangeRequest) -> Result<(), Error> {
    let is_known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if !is_known {
        return Err(Error::InvalidSortOption);
    }
    key(&request.key)
}

/// # Errors
/// [`Error::EmptyKey`], [`Error::ValueProvided`], [`Error::LeaseProvided`].
pub(super) fn put(request: &PutRequest) -> Result<(), Error> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    check_key(&request.key)
}

/// # Errors
/// [`Error::EmptyKey`].
pub(super) fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    key(&request.key)
}

/// # Errors
/// [`Error::TooManyOps`], [`Error::DuplicateKey`], and those of the operations.
pub(super) fn txn(request: &TxnRequest) -> Result<(), Error> {
    lists(request, TXN_OPERATIONS_MAX)?;
    touched(&request.success)?;
    touched(&request.failure)?;
    Ok(())
}

/// Whether a transaction can only read.
pub(super) fn is_read_only(request: &TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.all(|op| match &op.request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestTxn(inner)) => is_read_only(inner),
        _ => false,
    })
}

fn key(key: &Bytes) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(())
}

/// The longest list of a transaction is what it takes of the operations that may still come; the
/// transactions in it share what is left, each the whole of it.
fn lists(request: &TxnRequest, left: usize) -> Result<(), Error> {
    let lengths = [
        request.compare.len(),
        request.success.len(),
        request.failure.len(),
    ];
    let longest = lengths.into_iter().max().unwrap_or_default();
    let left = left.checked_sub(longest).ok_or(Error::TooManyOps)?;
    for compare in &request.compare {
        key(&compare.key)?;
    }
    let mut ops = request.success.iter().chain(&request.failure);
    ops.try_for_each(|op| match &op.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete_range(request),
        Some(Request::RequestTxn(request)) => lists(request, left),
        None => Err(Error::KeyNotFound),
    })
}

/// The keys that a list puts and the ranges that it deletes, at any depth.
#[derive(Default)]
struct Touched {
    puts: HashSet<Bytes>,
    deletes: Intervals,
}

/// Checks that no key of a list is put twice, or put where it is also deleted. Of two nested
/// transactions the second may delete what the first puts.
fn touched(ops: &[RequestOp]) -> Result<Touched, Error> {
    let mut all = Touched::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.add(Keys::of(&delete.key, &delete.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(inner)) = &op.request else {
            continue;
        };
        let (success, failure) = (touched(&inner.success)?, touched(&inner.failure)?);
        for key in &success.puts {
            all.put(key)?;
        }
        // The other branch may put the same key: only one of the two is done.
        for key in failure.puts.difference(&success.puts) {
            all.put(key)?;
        }
        all.deletes.join(success.deletes);
        all.deletes.join(failure.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

impl Touched {
    fn put(&mut self, key: &Bytes) -> Result<(), Error> {
        if self.deletes.contains(key) || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// A set of keys, as ranges that do not overlap: each start with its end, `None` for all from there.
#[derive(Default)]
struct Intervals {
    by_start: BTreeMap<Bytes, Option<Bytes>>,
}

impl Intervals {
    fn add(&mut self, keys: Keys) {
        if keys.is_empty() {
            return;
        }
        let (start, end) = match keys {
            Keys::One(key) => {
                let after = [&key[..], &[0]].concat();
                (key, Some(Bytes::from(after)))
            }
            Keys::Range(start, end) => (start, end),
        };
        self.insert(start, end);
    }

    fn join(&mut self, other: Self) {
        for (start, end) in other.by_start {
            self.insert(start, end);
        }
    }

    fn insert(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        let upto = end.clone().map_or(Bound::Unbounded, Bound::Included);
        let before = self.by_start.range::<Bytes, _>((Bound::Unbounded, upto));
        let overlapping: Vec<Bytes> = before
            .rev()
            .take_while(|(_, end)| end.as_ref().is_none_or(|end| *end >= start))
            .map(|(start, _)| start.clone())
            .collect();
        for other in overlapping {
            let other_end = self.by_start.remove(&other).flatten();
            // `None` is the farthest end.
            end = end.zip(other_end).map(|(a, b)| a.max(b));
            start = start.min(other);
        }
        self.by_start.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        let before = self.by_start.range::<Bytes, _>(..=key).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }
}
