//! Spans around what a caller waits for, children of the caller's own span.
//!
//! All have one target and the level `debug`, so that a subscriber can take them without the rest.
//! Where nobody does, a span costs one look at a flag.

use tracing::field::Empty;
use tracing::{Span, debug_span};

use crate::policy::ConsistencyPolicy;

/// The target of the spans `commit`, `read` and `feed`, which have the level `debug`: add
/// `steadfast::spans=debug` to a filter to get them. Each is a child of the span that the caller is
/// in.
pub const SPANS: &str = "steadfast::spans";

/// A write, from its function to its acknowledgement. `vlsn` is recorded when it has one.
pub(crate) fn commit(node: &str) -> Span {
    debug_span!(target: SPANS, "commit", node, vlsn = Empty)
}

/// A read: the wait until the node is fresh enough, and the function.
pub(crate) fn read(node: &str, policy: ConsistencyPolicy) -> Span {
    debug_span!(target: SPANS, "read", node, ?policy)
}

/// The wait for one event of a feed.
pub(crate) fn feed(node: &str) -> Span {
    debug_span!(target: SPANS, "feed", node)
}
