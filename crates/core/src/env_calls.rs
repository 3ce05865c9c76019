//! The environment: calls between the applications of the nodes.

use std::time::Duration;

use bytes::Bytes;

use crate::calls::{IncomingCall, ServedCalls};
use crate::env::ReplicatedEnvironment;
use crate::error::{CallError, ServeCallsError};

impl ReplicatedEnvironment {
    /// Has `handler` answer the calls of this name that the applications of the group's nodes make
    /// to this node, until what is returned is dropped. Only members of the group can call.
    ///
    /// Calls are handled at the same time, each in a task of the environment's runtime. A call is
    /// dropped where it is when its caller waits no longer, when the connection ends, and when this
    /// node closes: what must be done in full belongs into a task of its own. A panic in a handler is
    /// an error for its caller alone. A handler that holds the environment keeps it open.
    ///
    /// ```
    /// use std::time::Duration;
    /// use bytes::Bytes;
    /// use steadfast::{IncomingCall, ReplicatedEnvironment};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let group = ReplicatedEnvironment::in_memory_group(3)?;
    /// let mut served = Vec::new();
    /// for node in &group {
    ///     let name = node.status().node.name;
    ///     let greet = move |call: IncomingCall| {
    ///         let answer = format!("{} greets {}", name, call.from);
    ///         async move { Bytes::from(answer) }
    ///     };
    ///     served.push(node.serve_calls("greet", greet)?);
    /// }
    /// let answer = group[0].call("n2", "greet", "", Duration::from_secs(10))?;
    /// assert_eq!(answer, "n2 greets n1");
    /// let answer = group[0].call_master("greet", "", Duration::from_secs(10))?;
    /// assert!(answer.ends_with(b" greets n1"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ServeCallsError`].
    pub fn serve_calls<F>(
        &self,
        name: &str,
        handler: impl Fn(IncomingCall) -> F + Send + Sync + 'static,
    ) -> Result<ServedCalls, ServeCallsError>
    where
        F: Future<Output = Bytes> + Send + 'static,
    {
        self.lifecycle().serve_calls(name, handler)
    }

    /// What the handler `name` of that node answers, within `timeout`. A node can call itself.
    ///
    /// All calls of one node by another share one connection, and are answered as they come. There
    /// is no retry: see [`CallError::may_have_run`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call(
        &self,
        node: &str,
        name: &str,
        request: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.block_on(self.call_async(node, name, request, timeout))
    }

    /// As [`ReplicatedEnvironment::call`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_async(
        &self,
        node: &str,
        name: &str,
        request: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let _held = self.ground().hold().ok_or(CallError::Closed)?;
        let call = self.lifecycle().call(node, name, request.into(), timeout);
        self.ground().run(call).await
    }

    /// What the handler `name` of the master answers, within `timeout`, which includes the wait for
    /// a master. This node's own handler is called when it is the master itself. The handler runs at
    /// most once, on a node that is the master when the request arrives; it may be deposed by the
    /// time it answers, as its writes then show.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call_master(
        &self,
        name: &str,
        request: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.block_on(self.call_master_async(name, request, timeout))
    }

    /// As [`ReplicatedEnvironment::call_master`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_master_async(
        &self,
        name: &str,
        request: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let _held = self.ground().hold().ok_or(CallError::Closed)?;
        let call = self.lifecycle().call_master(name, request.into(), timeout);
        self.ground().run(call).await
    }
}
