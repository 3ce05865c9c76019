//! The comparisons of a transaction, which decide which of its lists is done.

use std::cmp::Ordering;

use bytes::Bytes;

use super::keys::{Failure, Keys, Meta};
use super::view::{Item, View};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{Compare, TxnRequest};

/// Whether the comparisons of a transaction hold, and of those in the list that is done, in the order
/// in which they come: all are made on the state before it.
///
/// # Errors
/// Those of a read.
pub(super) fn paths(view: &impl View, request: &TxnRequest) -> Result<Vec<bool>, Failure> {
    let mut paths = Vec::new();
    choose(view, request, &mut paths)?;
    Ok(paths)
}

fn choose(view: &impl View, request: &TxnRequest, paths: &mut Vec<bool>) -> Result<(), Failure> {
    let mut holds = true;
    for compare in &request.compare {
        holds = holds && is_true(view, compare)?;
    }
    paths.push(holds);
    let ops = if holds {
        &request.success
    } else {
        &request.failure
    };
    for op in ops {
        if let Some(Request::RequestTxn(inner)) = &op.request {
            choose(view, inner, paths)?;
        }
    }
    Ok(())
}

/// A comparison of a range holds if it does for each of its keys. A key that is missing, and a range
/// without keys, counts as 0, and no comparison with a value holds.
fn is_true(view: &impl View, compare: &Compare) -> Result<bool, Failure> {
    let keys = Keys::of(&compare.key, &compare.range_end);
    let mut items = view.latest(&keys).peekable();
    if items.peek().is_none() {
        let is_value = target(compare) == CompareTarget::Value;
        return Ok(!is_value && has_result(compare, number_ordering(compare, &Meta::default())));
    }
    for item in items {
        let item = item?;
        if !has_result(compare, ordering(view, compare, &item)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn target(compare: &Compare) -> CompareTarget {
    CompareTarget::try_from(compare.target).unwrap_or_default()
}

fn ordering(view: &impl View, compare: &Compare, item: &Item) -> Result<Ordering, Failure> {
    if target(compare) != CompareTarget::Value {
        return Ok(number_ordering(compare, &item.meta));
    }
    let wanted = match &compare.target_union {
        Some(TargetUnion::Value(value)) => value.clone(),
        _ => Bytes::new(),
    };
    Ok(view.value(item)?.cmp(&wanted))
}

/// The target decides what is compared; a wanted number of another kind counts as 0.
fn number_ordering(compare: &Compare, meta: &Meta) -> Ordering {
    let (number, wanted) = match (target(compare), &compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(wanted))) => (meta.version, *wanted),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(wanted))) => {
            (meta.create, *wanted)
        }
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(wanted))) => (meta.modified, *wanted),
        (CompareTarget::Lease, Some(TargetUnion::Lease(wanted))) => (meta.lease, *wanted),
        (CompareTarget::Version | CompareTarget::Value, _) => (meta.version, 0),
        (CompareTarget::Create, _) => (meta.create, 0),
        (CompareTarget::Mod, _) => (meta.modified, 0),
        (CompareTarget::Lease, _) => (meta.lease, 0),
    };
    number.cmp(&wanted)
}

fn has_result(compare: &Compare, ordering: Ordering) -> bool {
    match CompareResult::try_from(compare.result).unwrap_or_default() {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
    }
}
