//! The handlers that an application has registered, by name.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use steadfast_net::{BoxFuture, lock};

use crate::error::ServeCallsError;
use crate::limits::{CALL_HANDLERS_MAX, NAME_BYTES_MAX};

/// A call, as its handler gets it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IncomingCall {
    /// The name of the node that calls; this node's own, when it calls itself.
    pub from: String,
    /// The request: at most [`CALL_BYTES_MAX`](crate::limits::CALL_BYTES_MAX) bytes.
    pub request: Bytes,
}

type Handler = Arc<dyn Fn(IncomingCall) -> BoxFuture<'static, Bytes> + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(crate) struct Handlers(Mutex<Registered>);

#[derive(Default)]
struct Registered {
    by_name: BTreeMap<Arc<str>, Handler>,
    is_closed: bool,
}

/// A handler that is registered until this is dropped. Calls under way go on.
#[must_use = "the handler is registered for as long as this is kept"]
pub struct ServedCalls {
    handlers: Weak<Handlers>,
    name: Arc<str>,
}

impl ServedCalls {
    /// The name of the handler.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for ServedCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServedCalls").field(&self.name).finish()
    }
}

impl Drop for ServedCalls {
    fn drop(&mut self) {
        let removed = self
            .handlers
            .upgrade()
            .and_then(|handlers| lock(&handlers.0).by_name.remove(&self.name));
        // Without the lock: it may hold the last environment.
        drop(removed);
    }
}

impl Handlers {
    /// # Errors
    /// See [`ServeCallsError`].
    pub(crate) fn register<F>(
        self: &Arc<Self>,
        name: &str,
        handler: impl Fn(IncomingCall) -> F + Send + Sync + 'static,
    ) -> Result<ServedCalls, ServeCallsError>
    where
        F: Future<Output = Bytes> + Send + 'static,
    {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(ServeCallsError::Name {
                actual: name.len(),
                max: NAME_BYTES_MAX,
            });
        }
        let handler: Handler = Arc::new(move |call| handler(call).boxed());
        let mut registered = lock(&self.0);
        if registered.is_closed {
            return Err(ServeCallsError::Closed);
        }
        if registered.by_name.contains_key(name) {
            let name = name.to_owned();
            return Err(ServeCallsError::NameTaken { name });
        }
        if registered.by_name.len() >= CALL_HANDLERS_MAX {
            return Err(ServeCallsError::TooMany {
                max: CALL_HANDLERS_MAX,
            });
        }
        let name: Arc<str> = name.into();
        registered.by_name.insert(Arc::clone(&name), handler);
        let handlers = Arc::downgrade(self);
        Ok(ServedCalls { handlers, name })
    }

    /// What the handler of this name makes of a call, or why it makes nothing of it; `None` when
    /// there is no such handler.
    pub(crate) fn begin(
        &self,
        name: &str,
        call: IncomingCall,
    ) -> Option<BoxFuture<'static, Result<Bytes, String>>> {
        let handler = lock(&self.0).by_name.get(name).cloned()?;
        // It may panic before its future exists.
        let handled = async move { handler(call).await };
        let handled = AssertUnwindSafe(handled).catch_unwind();
        Some(
            handled
                .map(|done| done.map_err(|panic| what(&*panic)))
                .boxed(),
        )
    }

    /// Forgets all handlers, which may hold the environment that holds them, and takes no more.
    pub(crate) fn close(&self) {
        let handlers = {
            let mut registered = lock(&self.0);
            registered.is_closed = true;
            std::mem::take(&mut registered.by_name)
        };
        drop(handlers);
    }
}

fn what(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("its handler panicked: {}", text.unwrap_or("without a text"))
}
