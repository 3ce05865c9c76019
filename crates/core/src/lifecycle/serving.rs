//! Our services on the one port: the hello, then the service, of a node in any phase.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use steadfast_net::{AsyncServiceHandler, BoxFuture, Connection, DispatcherOptions, Refusals};
use tokio::sync::watch;

use crate::admin::client;
use crate::admin::messages::AdminAnswer;
use crate::config::Tuning;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::node::phase::Phase;
use crate::state_copy::service;
use crate::state_copy::source::Source;
use crate::wire::WRITES;
use crate::wire::gate::Gate;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::Refusal;
use crate::wire::node_state::NodeStateMessage;
use crate::wire::{
    ADMIN, CALLS, DATA, ELECTION, EVENTS, FEEDER, NODE_STATE, RESTORE, SUBSCRIPTION, node_state,
};

/// One of our services, as the dispatcher sees it.
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) gate: Gate,
    pub(super) refusals: Refusals,
    pub(super) lifecycle: Weak<Lifecycle>,
}

impl AsyncServiceHandler for Service {
    fn service_name(&self) -> &str {
        self.name
    }

    /// The hello of these services rejects callers that are not members, within `dial_timeout`.
    fn is_for_peers(&self) -> bool {
        [FEEDER, ELECTION, RESTORE, CALLS, WRITES].contains(&self.name)
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, steadfast_net::Result<()>> {
        let (name, gate, refusals) = (self.name, self.gate.clone(), self.refusals.clone());
        let lifecycle = Weak::clone(&self.lifecycle);
        let peer = connection.peer().to_owned();
        Box::pin(async move {
            let served = async {
                let accepted = gate.accept(connection, name).await;
                let (caller, session) = accepted.inspect_err(|error| {
                    note(&refusals, &peer, name, error);
                })?;
                match lifecycle.upgrade() {
                    Some(lifecycle) => lifecycle.serve_session(name, caller, session).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = served.await {
                tracing::debug!(%peer, service = name, %error, "a connection ended");
            }
            Ok(())
        })
    }
}

/// How long a node that closes waits for its services to end by themselves.
const STOP_MAX: Duration = Duration::from_secs(1);

/// What strangers can take of this node.
pub(super) fn limits(tuning: &Tuning) -> DispatcherOptions {
    DispatcherOptions {
        handshake_timeout: tuning.handshake_timeout,
        connections_max: tuning.connections_max,
        connections_per_address_max: tuning.connections_per_address_max,
        stop_timeout: STOP_MAX,
        ..DispatcherOptions::default()
    }
}

/// Notes a refused hello, unless the caller is welcome later: the others call a member that is being
/// admitted until it is ready.
fn note(refusals: &Refusals, peer: &str, service: &str, error: &DialError) {
    match error {
        DialError::Refused { refusal, text } if *refusal != Refusal::NotFormed => {
            refusals.note(&format!("{refusal:?}"), peer, &format!("{service}: {text}"));
        }
        _ => {}
    }
}

/// Serves until the node closes: an answer may take longer than the node may.
async fn unless_closing(
    mut phase: watch::Receiver<Phase>,
    serving: impl Future<Output = Result<(), DialError>>,
) -> Result<(), DialError> {
    tokio::select! {
        biased;
        served = serving => served,
        _ = phase.wait_for(Phase::is_closing) => Ok(()),
    }
}

impl Lifecycle {
    async fn serve_node_state(self: Arc<Self>, session: Session) -> Result<(), DialError> {
        let weak = &Arc::downgrade(&self);
        drop(self);
        let describe = |request| async move {
            match weak.upgrade() {
                Some(lifecycle) => lifecycle.describe_for(request).await,
                None => NodeStateMessage::default(),
            }
        };
        node_state::serve(describe, session).await
    }

    async fn serve_session(
        self: Arc<Self>,
        name: &'static str,
        caller: Option<NodeId>,
        session: Session,
    ) -> Result<(), DialError> {
        if name == SUBSCRIPTION {
            return self.serve_subscription(session).await;
        }
        if name == EVENTS {
            return self.serve_events(session).await;
        }
        let closing = self.phase.subscribe();
        if name == ADMIN {
            let weak = &Arc::downgrade(&self);
            drop(self);
            let (holder, peer) = (&session.holder.clone(), &session.peer.clone());
            let answer = |request| async move {
                match weak.upgrade() {
                    Some(lifecycle) => {
                        let answering = lifecycle.answer_admin(request, holder.as_ref(), peer);
                        answering.await
                    }
                    None => AdminAnswer::NotMaster(String::new()),
                }
            };
            let served = unless_closing(closing, client::serve(answer, session)).await;
            if let Some(lifecycle) = weak.upgrade() {
                lifecycle.shutdown.answered.notify_waiters();
            }
            return served;
        }
        if name == DATA {
            return unless_closing(closing, self.serve_data(session)).await;
        }
        if name == NODE_STATE {
            return unless_closing(closing, self.serve_node_state(session)).await;
        }
        if let (CALLS, Some(caller)) = (name, caller) {
            return unless_closing(closing, self.serve_called(caller, session)).await;
        }
        if name == WRITES {
            return unless_closing(closing, self.serve_writes(session)).await;
        }
        // Only a node that takes part serves these.
        let (Some(caller), Ok(node)) = (caller, self.running()) else {
            return Ok(());
        };
        let copies = Arc::clone(&self.copies);
        // A connection must not keep a dropped environment alive.
        drop(self);
        match name {
            RESTORE => {
                let members = node.consensus.members();
                let member = members.get(&caller);
                let has_data = member.map(|member| member.node_type.has_data());
                let mut source = Source::new(node, copies, has_data);
                service::serve(session, &mut source).await
            }
            FEEDER => {
                match node.consensus.serve_feeder(caller, session).await {
                    Err(error) if error.is_end() => {
                        tracing::debug!(%caller, %error, "a FEEDER connection ended");
                    }
                    Err(error) => tracing::warn!(%caller, %error, "a FEEDER connection was cut"),
                    Ok(()) => {}
                }
                Ok(())
            }
            _ => node.consensus.serve_election(caller, session).await,
        }
    }
}
