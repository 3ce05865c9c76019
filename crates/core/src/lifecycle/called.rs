//! Calls between the applications of this node and of others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::calls::line::{Asked, LineError, Lines, Peer};
use crate::calls::messages::{CallRefusal, CallRequest};
use crate::calls::service::{self, Handled, Tell, sendable};
use crate::calls::{Handlers, IncomingCall, ServedCalls};
use crate::error::{CallError, ServeCallsError};
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::waiting::SearchOver;
use crate::limits::CALL_BYTES_MAX;
use crate::listener::Role;
use crate::node;
use crate::node::phase::Phase;
use crate::wire::CALLS;
use crate::wire::hello::{DialError, Session};

/// What this node handles, and its connections to those that it calls.
#[derive(Default)]
pub(super) struct Called {
    pub(super) handlers: Arc<Handlers>,
    lines: Lines,
}

impl Lifecycle {
    /// See [`crate::ReplicatedEnvironment::serve_calls`].
    ///
    /// # Errors
    /// See [`ServeCallsError`].
    pub(crate) fn serve_calls<F>(
        &self,
        name: &str,
        handler: impl Fn(IncomingCall) -> F + Send + Sync + 'static,
    ) -> Result<ServedCalls, ServeCallsError>
    where
        F: Future<Output = Bytes> + Send + 'static,
    {
        self.called.handlers.register(name, handler)
    }

    /// See [`crate::ReplicatedEnvironment::call_async`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub(crate) async fn call(
        &self,
        node: &str,
        name: &str,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let asked = Asked {
            name,
            to_master: false,
            body: checked(request)?,
            deadline: Instant::now() + timeout,
            waits: false,
            progress: Arc::default(),
        };
        if node == self.config.node {
            return self.call_own(&asked).await;
        }
        let members = self.around.members.borrow().clone();
        let found = members.iter().find(|(_, member)| member.name == node);
        let no_such_node = || CallError::NoSuchNode {
            node: node.to_owned(),
        };
        let (id, _) = found.ok_or_else(no_such_node)?;
        let called = self.call_peer(*id, &asked).await;
        called.map_err(|error| self.call_error(node, name, error))
    }

    /// See [`crate::ReplicatedEnvironment::call_master_async`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub(crate) async fn call_master(
        &self,
        name: &str,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + timeout;
        let asked = Asked {
            name,
            to_master: true,
            body: checked(request)?,
            deadline,
            waits: false,
            progress: Arc::default(),
        };
        let mut search = self.search_master(deadline);
        loop {
            let state = search.state();
            let why = match (state.role, state.master) {
                (Role::Master, _) => return self.call_own(&asked).await,
                (Role::Replica, Some(master)) => match self.call_peer(master.id, &asked).await {
                    Err(LineError::NotSent(why)) => format!("{}: {why}", master.name),
                    Err(LineError::Refused(CallRefusal::NotMaster)) => {
                        format!("{} is not the master", master.name)
                    }
                    Err(error) => return Err(self.call_error(&master.name, name, error)),
                    Ok(answer) => return Ok(answer),
                },
                _ => "no master is known".to_owned(),
            };
            search.pause().await.map_err(|over| match over {
                SearchOver::Closed => CallError::Closed,
                SearchOver::Late => CallError::NoMaster {
                    after: timeout,
                    reason: why,
                },
            })?;
        }
    }

    /// Has this node's own handler answer.
    async fn call_own(&self, asked: &Asked<'_>) -> Result<Bytes, CallError> {
        let (node, name) = (&self.config.node, asked.name);
        let incoming = IncomingCall {
            from: node.clone(),
            request: asked.body.clone(),
        };
        let no_such_service = || CallError::NoSuchService {
            node: node.clone(),
            name: name.to_owned(),
        };
        let handled = self.called.handlers.begin(name, incoming);
        let handled = handled.ok_or_else(no_such_service)?;
        let mut phase = self.phase.subscribe();
        let handled = tokio::select! {
            biased;
            handled = timeout_at(asked.deadline, handled) => handled,
            // The sender is part of `self`.
            _ = phase.wait_for(Phase::is_closing) => Ok(Err("this node closes".to_owned())),
        };
        let answer = handled.unwrap_or_else(|_| Err("not in time".to_owned()));
        answer
            .and_then(sendable)
            .map_err(|reason| CallError::Unanswered {
                node: node.clone(),
                reason,
            })
    }

    async fn call_peer(&self, id: NodeId, asked: &Asked<'_>) -> Result<Bytes, LineError> {
        self.call_line(&self.called.lines, (id, CALLS), asked).await
    }

    /// Calls a service of a member over one of these lines.
    pub(super) async fn call_line(
        &self,
        lines: &Lines,
        (id, service): (NodeId, &'static str),
        asked: &Asked<'_>,
    ) -> Result<Bytes, LineError> {
        let identity = self.identity.borrow().clone();
        let members = self.around.members.borrow().clone();
        let Some(member) = members.get(&id) else {
            return Err(LineError::NotSent("it is no member any more".to_owned()));
        };
        let peer = Peer {
            id,
            address: member.address.clone(),
            service,
            dialler: &node::dialler(&self.config, &self.machine, &identity, &self.around),
            tasks: &self.tasks,
            phase: self.phase.subscribe(),
            silence_max: self.config.tuning.silence_max,
        };
        let line = lines.to(id, &members);
        line.call(&peer, asked).await
    }

    fn call_error(&self, node: &str, name: &str, error: LineError) -> CallError {
        let (node, name) = (node.to_owned(), name.to_owned());
        match error {
            LineError::NotSent(_) if self.phase.borrow().is_closing() => CallError::Closed,
            LineError::NotSent(reason) => CallError::NotSent { node, reason },
            LineError::Full { calls, bytes } => CallError::Full { node, calls, bytes },
            LineError::Unanswered(reason) => CallError::Unanswered { node, reason },
            LineError::Refused(CallRefusal::NoSuchService) => {
                CallError::NoSuchService { node, name }
            }
            LineError::Refused(refusal) => CallError::NotSent {
                node,
                reason: format!("it takes no such request ({refusal:?})"),
            },
        }
    }

    /// Serves the calls of one member.
    pub(super) async fn serve_called(
        self: Arc<Self>,
        caller: NodeId,
        session: Session,
    ) -> Result<(), DialError> {
        let members = self.around.members.borrow().clone();
        let Some(from) = members.get(&caller).map(|member| member.name.clone()) else {
            return Ok(());
        };
        let handlers = Arc::clone(&self.called.handlers);
        let role = self.around.role.subscribe();
        // A connection must not keep a dropped environment alive.
        drop(self);
        let begin = move |request: &CallRequest, _: Tell| -> Result<Handled, CallRefusal> {
            if request.to_master && role.borrow().role != Role::Master {
                return Err(CallRefusal::NotMaster);
            }
            let incoming = IncomingCall {
                from: from.clone(),
                request: request.body.clone(),
            };
            let handled = handlers.begin(&request.name, incoming);
            handled.ok_or(CallRefusal::NoSuchService)
        };
        service::serve(session, CALL_BYTES_MAX, begin).await
    }
}

fn checked(request: Bytes) -> Result<Bytes, CallError> {
    let actual = request.len();
    if actual > CALL_BYTES_MAX {
        let max = CALL_BYTES_MAX;
        return Err(CallError::TooLarge { actual, max });
    }
    Ok(request)
}
