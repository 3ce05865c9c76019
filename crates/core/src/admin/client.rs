//! ADMIN: changes to the group, requested from any member and carried out by the master.
//!
//! A member that is not the master names the master, and the caller goes there. A call that gets no
//! answer may have been carried out; every call is safe to repeat.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use steadfast_net::{NetError, Transport};
use tokio::time::Instant;

use crate::admin::messages::{
    AdminAnswer, AdminCall, AdminDone, AdminReply, AdminRequest, RefusedMessage,
};
use crate::error::in_full;
use crate::ids::GroupUuid;
use crate::wire::ADMIN;
use crate::wire::hello::{Callee, Caller, DialError, Session};
use crate::wire::messages::{Kind, decode, encode};

/// Pause before a caller asks all addresses again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How long a caller goes on that all nodes turn away for want of credentials.
const DENIED_MAX: Duration = Duration::from_secs(1);

/// Why a call was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AdminRefusal {
    /// The reason.
    pub(crate) what: String,
    /// What to do.
    pub(crate) to_do: String,
    /// Whether it is temporary: the group lacks a majority, say, but the call itself is valid.
    pub(crate) passes: bool,
    /// Whether the change may still have been made, or may yet be. Otherwise nothing was changed.
    pub(crate) may_be_done: bool,
}

impl AdminRefusal {
    pub(crate) fn new(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            to_do: to_do.into(),
            passes: false,
            may_be_done: false,
        }
    }

    /// A temporary refusal.
    pub(crate) fn for_now(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self {
            passes: true,
            ..Self::new(what, to_do)
        }
    }

    /// The refusal of a change that was begun, and whose outcome is unknown.
    pub(crate) fn uncertain(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self {
            may_be_done: true,
            ..Self::for_now(what, to_do)
        }
    }
}

impl From<RefusedMessage> for AdminRefusal {
    fn from(message: RefusedMessage) -> Self {
        let RefusedMessage {
            what,
            to_do,
            passes,
            may_be_done,
        } = message;
        Self {
            what,
            to_do,
            passes,
            may_be_done,
        }
    }
}

impl From<AdminRefusal> for RefusedMessage {
    fn from(refusal: AdminRefusal) -> Self {
        let AdminRefusal {
            what,
            to_do,
            passes,
            may_be_done,
        } = refusal;
        Self {
            what,
            to_do,
            passes,
            may_be_done,
        }
    }
}

impl fmt::Display for AdminRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.to_do)
    }
}

/// How a call ended.
pub(crate) enum Asked<T> {
    Done(T),
    Refused(AdminRefusal),
    /// For want of credentials, on either side.
    Denied {
        why: String,
    },
    /// Nobody answered in time, or no node that answered knew a master.
    NoAnswer {
        why: String,
        /// Whether a node was asked that did not answer, and may have carried it out.
        may_be_done: bool,
    },
}

/// Calls a group.
pub(crate) struct Client<'a> {
    pub(crate) transport: &'a dyn Transport,
    /// The intended group, if the caller knows it.
    pub(crate) group: Option<(&'a str, GroupUuid)>,
    pub(crate) addresses: &'a [String],
    pub(crate) dial_timeout: Duration,
}

impl Client<'_> {
    /// Makes a call at the master, wherever it is, within `timeout`.
    pub(crate) async fn call(&self, call: AdminCall, timeout: Duration) -> Asked<AdminDone> {
        let deadline = Instant::now() + timeout;
        let mut last = "no address to ask".to_owned();
        let may_be_done = AtomicBool::new(false);
        let no_answer = |why| Asked::NoAnswer {
            why,
            may_be_done: may_be_done.load(Ordering::Relaxed),
        };
        let mut next: VecDeque<String> = self.addresses.iter().cloned().collect();
        // Addresses asked in this round: two nodes that name each other are asked once in each.
        let mut asked_before = BTreeSet::new();
        // Addresses of this round where somebody denies the call, and where nobody is.
        let (mut denied, mut silent) = (0, 0);
        let mut denied_since = None;
        let mut why_denied = String::new();
        loop {
            let Some(address) = next.pop_front() else {
                denied_since = match denied_since {
                    _ if denied == 0 || denied + silent < asked_before.len() => None,
                    None => Some(Instant::now()),
                    since => since,
                };
                let is_denied = denied_since.is_some_and(|since| since.elapsed() >= DENIED_MAX);
                if is_denied && !may_be_done.load(Ordering::Relaxed) {
                    return Asked::Denied { why: why_denied };
                }
                if self.addresses.is_empty() || Instant::now() + RETRY_INTERVAL >= deadline {
                    return no_answer(last);
                }
                (denied, silent) = (0, 0);
                tokio::time::sleep(RETRY_INTERVAL).await;
                asked_before.clear();
                next.extend(self.addresses.iter().cloned());
                continue;
            };
            if !asked_before.insert(address.clone()) {
                continue;
            }
            let asked =
                tokio::time::timeout_at(deadline, self.ask(&address, call.clone(), &may_be_done));
            match asked.await {
                Err(_) => return no_answer(format!("{address} did not answer in time")),
                Ok(Err(error)) => {
                    let is_silent = matches!(error, DialError::Net(NetError::Io { .. }));
                    silent += usize::from(is_silent);
                    last = format!("{address}: {}", in_full(&error));
                    if error.is_denied() {
                        denied += 1;
                        why_denied.clone_from(&last);
                    }
                }
                Ok(Ok(AdminAnswer::Done(done))) => return Asked::Done(done),
                Ok(Ok(AdminAnswer::Refused(refused))) => {
                    return Asked::Refused(refused.into());
                }
                Ok(Ok(AdminAnswer::NotMaster(master))) => {
                    last = format!("{address} is not the master");
                    if !master.is_empty() {
                        next.push_front(master);
                    }
                }
            }
            if Instant::now() >= deadline {
                return no_answer(last);
            }
        }
    }

    /// Asks one node; `is_open` is set while it may have carried out an unanswered call.
    async fn ask(
        &self,
        address: &str,
        call: AdminCall,
        is_open: &AtomicBool,
    ) -> Result<AdminAnswer, DialError> {
        let anyone = Callee::any(address);
        let dialled = Caller::Client.dial(self.transport, anyone, ADMIN, self.dial_timeout);
        let mut session = dialled.await?;
        let request = AdminRequest {
            group_name: self.group.map_or("", |(name, _)| name).to_owned(),
            group: self
                .group
                .map(|(_, group)| group.to_bytes())
                .unwrap_or_default(),
            call: Some(call),
        };
        let was_open = is_open.swap(true, Ordering::Relaxed);
        session
            .sender
            .send(encode(Kind::AdminRequest, &request))
            .await?;
        let reply = session.receiver.receive().await?.ok_or(DialError::Closed)?;
        let reply: AdminReply = decode(Kind::AdminReply, reply)?;
        let answer = reply.answer.ok_or(DialError::Closed)?;
        is_open.store(was_open, Ordering::Relaxed);
        Ok(answer)
    }
}

/// Answers requests with `handle`, one after the other, until the caller closes or sends no request
/// for a while.
///
/// # Errors
/// When the caller sends nonsense or disconnects.
pub(crate) async fn serve<F>(
    handle: impl Fn(AdminRequest) -> F,
    mut session: Session,
) -> Result<(), DialError>
where
    F: Future<Output = AdminAnswer>,
{
    while let Some(frame) = session.next_request().await? {
        let request: AdminRequest = decode(Kind::AdminRequest, frame)?;
        let answer = Some(handle(request).await);
        let reply = encode(Kind::AdminReply, &AdminReply { answer });
        session.sender.send(reply).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use steadfast_net::{
        AsyncServiceHandler, BoxFuture, Connection, Dispatcher, DispatcherOptions, MemoryNetwork,
    };

    use super::*;
    use crate::admin::messages::RemoveRequest;
    use crate::wire::messages::HelloReply;

    /// A number of calls that only happens without pauses.
    const FAR_TOO_MANY: usize = 1_000;

    /// Names `other` as the master to any caller; without one, disconnects without an answer.
    struct Stale {
        other: Option<&'static str>,
        calls: Arc<AtomicUsize>,
    }

    impl AsyncServiceHandler for Stale {
        fn service_name(&self) -> &'static str {
            ADMIN
        }

        fn serve(&self, connection: Connection) -> BoxFuture<'static, steadfast_net::Result<()>> {
            let (other, calls) = (self.other, Arc::clone(&self.calls));
            Box::pin(async move {
                let (mut sender, mut receiver) = connection.split();
                receiver.receive().await?;
                let welcome = HelloReply {
                    version: 1,
                    ..HelloReply::default()
                };
                sender.send(encode(Kind::HelloReply, &welcome)).await?;
                receiver.receive().await?;
                let Some(other) = other else {
                    return Ok(());
                };
                let answer = if calls.fetch_add(1, Ordering::Relaxed) < FAR_TOO_MANY {
                    AdminAnswer::NotMaster(other.to_owned())
                } else {
                    AdminAnswer::Done(AdminDone::default())
                };
                let reply = AdminReply {
                    answer: Some(answer),
                };
                sender.send(encode(Kind::AdminReply, &reply)).await?;
                while receiver.receive().await?.is_some() {}
                Ok(())
            })
        }
    }

    /// A node at each of these addresses, which names the given address as the master.
    async fn start(
        network: &MemoryNetwork,
        nodes: &[(&str, Option<&'static str>)],
        calls: &Arc<AtomicUsize>,
    ) -> Vec<Dispatcher> {
        let mut dispatchers = Vec::new();
        for (at, other) in nodes {
            let dispatcher = Dispatcher::new(DispatcherOptions::default());
            let (other, calls) = (*other, Arc::clone(calls));
            dispatcher.register_async(Arc::new(Stale { other, calls }));
            let (host, _) = at.split_once(':').expect("host:port");
            let listening = dispatcher.start(network.host(host), at).await;
            listening.expect("it listens");
            dispatchers.push(dispatcher);
        }
        dispatchers
    }

    /// Asks `a` for a change that nobody makes; returns whether it may have been made all the same.
    async fn ask(network: &MemoryNetwork, timeout: Duration) -> bool {
        let client = Client {
            transport: &*network.host("operator"),
            group: None,
            addresses: &["a:1".to_owned()],
            dial_timeout: Duration::from_secs(1),
        };
        let call = AdminCall::Remove(RemoveRequest::default());
        match client.call(call, timeout).await {
            Asked::NoAnswer { may_be_done, .. } => may_be_done,
            _ => panic!("it never ends otherwise"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_name_each_other_as_the_master_are_asked_with_pauses() {
        let (network, calls) = (MemoryNetwork::new(), Arc::<AtomicUsize>::default());
        let nodes = [("a:1", Some("b:1")), ("b:1", Some("a:1"))];
        let dispatchers = start(&network, &nodes, &calls).await;
        let timeout = Duration::from_secs(2);
        let may_be_done = ask(&network, timeout).await;
        assert!(!may_be_done, "both said that they did nothing");
        let rounds = timeout.as_millis() / RETRY_INTERVAL.as_millis() + 1;
        let calls = calls.load(Ordering::Relaxed);
        assert!(
            calls > 2 && calls as u128 <= 2 * rounds,
            "{calls} in {rounds} rounds"
        );
        for dispatcher in dispatchers {
            dispatcher.stop().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_may_have_been_made_by_whoever_was_asked_and_did_not_answer() {
        let timeout = Duration::from_secs(2);
        let network = MemoryNetwork::new();
        assert!(!ask(&network, timeout).await, "nobody was asked");
        let dispatchers = start(&network, &[("a:1", None)], &Arc::default()).await;
        assert!(ask(&network, timeout).await, "a node has heard it");
        for dispatcher in dispatchers {
            dispatcher.stop().await;
        }
    }
}
