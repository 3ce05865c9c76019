//! Answers to range requests, and the counts that pages share.
//!
//! The count of an answer is of all keys of the range, whatever the limit. A list that is read page by
//! page at one revision would count what is left for each page; instead, the count of what follows a
//! page is remembered, and the next page takes it from there. The first page reads the range once,
//! without its values.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::{Stream, stream};

use super::keys::{Failure, Keys};
use super::view::{Item, View, as_of, wanted_revision};
use super::{Store, check};
use crate::error::Error;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::proto::mvccpb::KeyValue;

/// How many counts are remembered: of as many lists that are read at the same time.
const COUNTS_MAX: usize = 1024;

/// Longest key and end, together, that a count is remembered for, in bytes.
const COUNT_KEY_BYTES_MAX: usize = 4096;

/// Most keys in a page of a stream.
const PAGE_KEYS: i64 = 1000;

/// A page of a stream that has reached this many bytes takes no further key.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// The counts of what follows pages, by first key, end and revision.
#[derive(Default)]
pub(super) struct Counts {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_rest: HashMap<(Keys, i64), i64>,
    /// In the order in which they came.
    order: VecDeque<(Keys, i64)>,
}

impl Counts {
    fn find(&self, keys: &Keys, revision: i64) -> Option<i64> {
        let known = self.known.lock().ok()?;
        known.by_rest.get(&(keys.clone(), revision)).copied()
    }

    fn note(&self, keys: &Keys, last: &Bytes, revision: i64, count: i64) {
        let Keys::Range(_, end) = keys else { return };
        if last.len() + end.as_ref().map_or(0, Bytes::len) > COUNT_KEY_BYTES_MAX {
            return;
        }
        let after = Bytes::from([&last[..], &[0]].concat());
        // Its own memory: a part of an answer would keep all of that.
        let end = end.as_ref().map(|end| Bytes::copy_from_slice(end));
        let rest = (Keys::Range(after, end), revision);
        let Ok(mut known) = self.known.lock() else {
            return;
        };
        if known.by_rest.insert(rest.clone(), count).is_none() {
            known.order.push_back(rest);
        }
        if known.order.len() > COUNTS_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.by_rest.remove(&oldest);
        }
    }
}

/// The answer to a checked request, without its header. Nothing above `newest` can be asked for.
/// With `bytes_max` the answer ends with the key that reaches it.
///
/// # Errors
/// [`Error::Compacted`], [`Error::FutureRevision`], and those of a read.
pub(super) fn answer(
    view: &impl View,
    request: &RangeRequest,
    newest: i64,
    counts: Option<&Counts>,
    bytes_max: Option<usize>,
) -> Result<RangeResponse, Failure> {
    let keys = Keys::of(&request.key, &request.range_end);
    let revision = wanted_revision(view, request.revision, newest)?;
    let mut items = as_of(view, &keys, revision)?;
    if request.count_only {
        let count = items.try_fold(0, |count, item| item.map(|_| count + 1))?;
        return Ok(RangeResponse {
            count,
            ..RangeResponse::default()
        });
    }
    let wanted = wanted_keys(request);
    let known = counts.and_then(|counts| counts.find(&keys, revision));
    let (mut found, count) = take(items, wanted, known)?;
    found.retain(|item| is_let_through(request, item));
    sort(view, request, &mut found)?;
    let limit = usize::try_from(request.limit).unwrap_or_default();
    let mut more = limit > 0 && found.len() > limit;
    if more {
        found.truncate(limit);
    }
    let kvs = key_values(view, request, &found, bytes_max)?;
    more |= kvs.len() < found.len();
    let is_page = more && wanted.is_some() && !is_sorted_otherwise(request);
    if let (Some(counts), Some(last), true) = (counts, kvs.last(), is_page) {
        let read = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        counts.note(&keys, &last.key, revision, count - read);
    }
    Ok(RangeResponse {
        header: None,
        kvs,
        more,
        count,
    })
}

/// What was found, with its values, up to the bytes that are wanted.
fn key_values(
    view: &impl View,
    request: &RangeRequest,
    found: &[Item],
    bytes_max: Option<usize>,
) -> Result<Vec<KeyValue>, Failure> {
    let (mut kvs, mut bytes) = (Vec::with_capacity(found.len()), 0);
    for item in found {
        if bytes_max.is_some_and(|bytes_max| bytes >= bytes_max) {
            break;
        }
        let value = if request.keys_only {
            Bytes::new()
        } else {
            view.value(item)?
        };
        bytes += item.key.len() + value.len();
        kvs.push(item.meta.key_value(item.key.clone(), value));
    }
    Ok(kvs)
}

/// The first `wanted` items, and how many there are; no more are counted than needed.
fn take(
    items: impl Iterator<Item = Result<Item, Failure>>,
    wanted: Option<usize>,
    known: Option<i64>,
) -> Result<(Vec<Item>, i64), Failure> {
    let (mut found, mut count) = (Vec::new(), 0);
    for item in items {
        let item = item?;
        count += 1;
        if wanted.is_none_or(|wanted| found.len() < wanted) {
            found.push(item);
        } else if known.is_some() {
            break;
        }
    }
    Ok((found, known.unwrap_or(count)))
}

/// How many keys have to be looked at; `None`: all. One more than the limit tells whether there are
/// more.
fn wanted_keys(request: &RangeRequest) -> Option<usize> {
    let has_order = request.sort_order != SortOrder::None as i32;
    if is_filtered(request) || has_order && is_sorted_otherwise(request) {
        return None;
    }
    let limit = usize::try_from(request.limit).ok()?;
    (limit > 0).then(|| limit.saturating_add(1))
}

fn is_filtered(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Whether the order is another than that of the keys.
fn is_sorted_otherwise(request: &RangeRequest) -> bool {
    request.sort_target != SortTarget::Key as i32 || request.sort_order == SortOrder::Descend as i32
}

fn is_let_through(request: &RangeRequest, item: &Item) -> bool {
    let is_within =
        |at: i64, min: i64, max: i64| (min == 0 || at >= min) && (max == 0 || at <= max);
    let (modified, create) = (item.meta.modified, item.meta.create);
    is_within(modified, request.min_mod_revision, request.max_mod_revision)
        && is_within(
            create,
            request.min_create_revision,
            request.max_create_revision,
        )
}

/// Sorts as asked. An order of nothing but a target is ascending.
fn sort(view: &impl View, request: &RangeRequest, found: &mut [Item]) -> Result<(), Failure> {
    let target = SortTarget::try_from(request.sort_target).unwrap_or_default();
    let number = |item: &Item| match target {
        SortTarget::Version => item.meta.version,
        SortTarget::Create => item.meta.create,
        SortTarget::Mod => item.meta.modified,
        SortTarget::Key | SortTarget::Value => 0,
    };
    match target {
        SortTarget::Key => {}
        SortTarget::Value => {
            for item in &mut *found {
                item.value = Some(view.value(item)?);
            }
            found.sort_by(|a, b| a.value.cmp(&b.value));
        }
        _ => found.sort_by_key(number),
    }
    if request.sort_order == SortOrder::Descend as i32 {
        found.reverse();
    }
    Ok(())
}

impl Store {
    pub(super) fn pages(
        &self,
        request: RangeRequest,
    ) -> impl Stream<Item = Result<RangeResponse, Error>> + Send + use<> {
        let paging = Paging {
            store: self.clone(),
            left: request.limit.max(0),
            has_limit: request.limit > 0,
            request,
            first: None,
        };
        stream::try_unfold(Some(paging), |paging| async {
            let Some(paging) = paging else {
                return Ok(None);
            };
            paging.next().await.map(Some)
        })
    }
}

/// A range that is read page by page.
struct Paging {
    store: Store,
    /// What is still to be read.
    request: RangeRequest,
    has_limit: bool,
    /// Keys up to the limit.
    left: i64,
    /// Of the whole range, and the header of its first page.
    first: Option<(i64, Option<ResponseHeader>)>,
}

impl Paging {
    /// The next page, and what follows it.
    async fn next(mut self) -> Result<(RangeResponse, Option<Self>), Error> {
        check::range(&self.request)?;
        if is_sorted_otherwise(&self.request) {
            return Err(Error::InvalidSortOption);
        }
        let is_whole = self.request.count_only || is_filtered(&self.request);
        if !is_whole {
            self.request.limit = if self.has_limit {
                self.left.min(PAGE_KEYS)
            } else {
                PAGE_KEYS
            };
        }
        let bytes_max = (!is_whole).then_some(PAGE_BYTES_MAX);
        let mut page = self.store.read_range(&self.request, bytes_max).await?;
        let first = self.first.get_or_insert((page.count, page.header));
        (page.count, page.header) = *first;
        let read = i64::try_from(page.kvs.len()).unwrap_or(i64::MAX);
        self.left -= read;
        let last = page.kvs.last().map(|last| last.key.clone());
        let goes_on = page.more && !is_whole && (!self.has_limit || self.left > 0);
        let (Some(last), true) = (last, goes_on) else {
            return Ok((page, None));
        };
        if self.request.revision <= 0 {
            self.request.revision = page.header.as_ref().map_or(0, |header| header.revision);
            // The first page has waited for what the request asks for.
            self.request.serializable = true;
        }
        self.request.key = [&last[..], &[0]].concat().into();
        Ok((page, Some(self)))
    }
}
