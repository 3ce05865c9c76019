//! Which functions given to `write` run on this thread.
//!
//! A write of the same environment within one cannot see what the function has written, conflicts with
//! it as a rule, and may wait for it without an end. On the function's own thread that is known at
//! once, also in a task, for the function is never suspended.

use std::cell::RefCell;

use crate::error::WriteError;
use crate::node::Node;

thread_local! {
    /// The nodes, by address, that functions on this thread write to; the innermost last.
    static RUNNING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Runs a function that writes to `node`.
pub(super) fn within<T>(node: &Node, function: impl FnOnce() -> T) -> T {
    let _running = Running::enter(node);
    function()
}

/// # Errors
/// [`WriteError::Nested`] when a function that writes to `node` runs on this thread.
pub(super) fn check(node: &Node) -> Result<(), WriteError> {
    let address = address(node);
    if RUNNING.with_borrow(|running| running.contains(&address)) {
        Err(WriteError::Nested)
    } else {
        Ok(())
    }
}

/// Until dropped, also by a panic of the function.
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
