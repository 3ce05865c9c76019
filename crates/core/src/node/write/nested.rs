//! Which closures given to `write` run on this thread.
//!
//! A write to the same environment within one cannot see what the closure has written, usually
//! conflicts with it, and may wait for it forever. On the closure's own thread this is detected at
//! once, even in a task, because the closure is never suspended.

use std::cell::RefCell;

use crate::error::WriteError;
use crate::node::Node;

thread_local! {
    /// The nodes, by address, to which closures on this thread write; the innermost last.
    static RUNNING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Runs a closure that writes to `node`.
pub(super) fn within<T>(node: &Node, function: impl FnOnce() -> T) -> T {
    let _running = Running::enter(node);
    function()
}

/// # Errors
/// [`WriteError::Nested`] when a closure that writes to `node` runs on this thread.
pub(super) fn check(node: &Node) -> Result<(), WriteError> {
    let address = address(node);
    if RUNNING.with_borrow(|running| running.contains(&address)) {
        Err(WriteError::Nested)
    } else {
        Ok(())
    }
}

/// Until dropped, even when the closure panics.
struct Running;

impl Running {
    fn enter(node: &Node) -> Self {
        RUNNING.with_borrow_mut(|running| running.push(address(node)));
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(Vec::pop);
    }
}

fn address(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}
