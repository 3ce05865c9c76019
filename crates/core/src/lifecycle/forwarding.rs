//! Writes on a node that is not the master: the function runs on what this node has applied, and the
//! master validates and numbers what it read and wrote.
//!
//! A conflict runs the function again, once this node has applied what the master had numbered by
//! then. A write whose master is lost is looked up by its number, as far as that was told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use steadfast_net::lock;
use tokio::time::{Instant, timeout_at};

use crate::calls::line::{Asked, LineError, Lines, Progress};
use crate::calls::messages::{CallRefusal, CallRequest};
use crate::calls::service::{self, Handled, Tell};
use crate::error::WriteError;
use crate::forward::messages::{NumberMessage, WriteAnswer, WriteReply, WriteRequest};
use crate::ids::{GroupUuid, NodeId, Term, Vlsn};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::waiting::SearchOver;
use crate::limits::FORWARDED_BYTES_MAX;
use crate::listener::{Role, RoleState};
use crate::node::write::{Failure, elsewhere};
use crate::node::{Node, read};
use crate::policy::{Durability, ReplicaAckPolicy};
use crate::token::{CommitToken, Committed, TokenOutcome};
use crate::txn::transaction::Transaction;
use crate::wire::WRITES;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::WireError;

/// Conflicts after which a write gives up. The master holds nobody off for it.
const CONFLICTS_MAX: u32 = 100;

/// How long a function that is to run again waits until this node has applied what changed. A number
/// may never be applied, when its master is lost.
const APPLY_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a master keeps what changes after a conflict, so that the transaction that runs again can be
/// validated, however soon the engine has the changes. A new hold begins after half of that.
const HOLD: Duration = Duration::from_secs(1);

/// How much longer than the write itself its answer may take.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// How long an old master that was replaced may take to say what became of a write.
const REPLACED_GRACE: Duration = Duration::from_millis(100);

/// Why a write was not committed that may be run again: what the reason of the master begins with.
const MASTER_CHANGED: &str = "the master changed";

/// How durable a write is to be, within which time.
type Promise = (Durability, Duration);

/// What this node has forwarded.
#[derive(Default)]
pub(super) struct Forwarding {
    lines: Lines,
    /// The newest transaction that it has committed so: the next one sees it.
    newest: AtomicU64,
    /// When this node, as master, last began to hold what changes for those that run again.
    held: Mutex<Option<Instant>>,
}

/// What became of a transaction that was sent to the master.
enum Sent {
    Committed(CommitToken),
    /// Run it again on something newer than this.
    Conflict(Vlsn),
    /// It was not committed. It may be run again.
    NotCommitted,
    /// This node has become the master.
    Own,
}

impl Lifecycle {
    /// How long a write looks for a master, on a node that can run it; `None` where it does not.
    pub(super) fn forwards_for(&self, node: &Node) -> Option<Duration> {
        let members = self.around.members.borrow();
        let own = members.get(&node.identity.node_id);
        let has_data = own.is_some_and(|own| own.node_type.has_data());
        self.config.tuning.forward_timeout.filter(|_| has_data)
    }

    /// A transaction on what this node has applied, which sees what this node has forwarded.
    ///
    /// # Errors
    /// [`WriteError::Nested`].
    pub(super) async fn begin_elsewhere(&self, node: &Node) -> Result<Transaction, WriteError> {
        let newest = Vlsn(self.forwarding.newest.load(Ordering::Acquire));
        caught_up(node, newest, Instant::now() + APPLY_WAIT_MAX).await;
        elsewhere::begin(node)
    }

    /// Runs a function here and has the master commit it, which may be found until `until`. `None`
    /// when this node has become the master: nothing was written.
    ///
    /// # Errors
    /// What the function returned, or see [`WriteError`].
    pub(super) async fn forward<T, E>(
        &self,
        until: Instant,
        promise: Promise,
        transaction: &mut impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Option<Committed<T>>, Failure<E>> {
        let mut conflicts = 0;
        // Whether the snapshot has all that was acknowledged before this began.
        let mut is_current = false;
        loop {
            let node = self.writable()?;
            let _writing = self.shutdown.write()?;
            let running = self.begin_elsewhere(&node).await?;
            let value = match elsewhere::run(&node, || transaction(&running)) {
                Ok(value) => value,
                Err(error) if is_current => return Err(Failure::Returned(error)),
                // It may have refused because of something that has changed since.
                Err(_) => {
                    drop(running);
                    self.become_current(&node, until).await?;
                    is_current = true;
                    continue;
                }
            };
            match self
                .send_transaction(&node, until, promise, running)
                .await?
            {
                Sent::Committed(token) => return Ok(Some(Committed { value, token })),
                Sent::Own => return Ok(None),
                Sent::Conflict(newest) => {
                    caught_up(&node, newest, Instant::now() + APPLY_WAIT_MAX).await;
                }
                Sent::NotCommitted => {}
            }
            conflicts += 1;
            if conflicts == CONFLICTS_MAX {
                return Err(WriteError::Contended { conflicts }.into());
            }
            elsewhere::step_back(&node, conflicts).await;
        }
    }

    /// Has the master commit a transaction that began here.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub(super) async fn commit_elsewhere(
        &self,
        node: &Node,
        promise: Promise,
        transaction: Transaction,
    ) -> Result<CommitToken, WriteError> {
        let for_at_most = self.forwards_for(node).unwrap_or_default();
        let until = Instant::now() + for_at_most;
        let request = encode(transaction, promise)?;
        match self.send(node, until, promise, &request).await? {
            Sent::Own => {
                let answered = self.answer_write(request, |_| {}).await;
                let answer = answered.expect("it was just made here");
                answer.into_result(node.group())
            }
            Sent::Committed(token) => Ok(token),
            Sent::Conflict(_) => Err(WriteError::Conflict),
            Sent::NotCommitted => Err(WriteError::NotCommitted {
                reason: MASTER_CHANGED,
            }),
        }
    }

    /// Waits until this node has applied all that was acknowledged before this call.
    ///
    /// # Errors
    /// [`WriteError::NotMaster`] where nobody tells in time.
    async fn become_current(&self, node: &Node, until: Instant) -> Result<(), WriteError> {
        let left = until.saturating_duration_since(Instant::now());
        let within = left.max(self.config.tuning.read_timeout);
        let current = read::current(node, self.role(), None, within).await;
        match current? {
            Ok(()) => Ok(()),
            Err(reason) => {
                tracing::debug!(
                    reason,
                    "the result of a write's function was not proven current"
                );
                Err(WriteError::NotMaster { master: None })
            }
        }
    }

    async fn send_transaction(
        &self,
        node: &Node,
        until: Instant,
        promise: Promise,
        transaction: Transaction,
    ) -> Result<Sent, WriteError> {
        let request = encode(transaction, promise)?;
        self.send(node, until, promise, &request).await
    }

    /// Sends a transaction to the master, whoever that is, until one takes it.
    ///
    /// # Errors
    /// See [`WriteError`].
    async fn send(
        &self,
        node: &Node,
        until: Instant,
        promise: Promise,
        request: &Bytes,
    ) -> Result<Sent, WriteError> {
        let mut search = self.search_master(until);
        loop {
            let state = search.state();
            match (state.role, state.master) {
                // As soon as it numbers.
                (Role::Master, _) if node.sequencer.newest().is_some() => return Ok(Sent::Own),
                (Role::Replica, Some(master)) => {
                    let to = (master.id, state.term);
                    let sent = self.send_to(node, to, promise, request).await;
                    match sent {
                        Err(WriteError::NotMaster { .. }) => {}
                        sent => return sent,
                    }
                }
                _ => {}
            }
            search.pause().await.map_err(|over| match over {
                SearchOver::Closed => WriteError::Closed,
                SearchOver::Late => WriteError::NotMaster { master: None },
            })?;
        }
    }

    /// Sends a transaction to the master of this term.
    ///
    /// # Errors
    /// [`WriteError::NotMaster`] when that did not take it; otherwise see [`WriteError`].
    async fn send_to(
        &self,
        node: &Node,
        (master, term): (NodeId, Term),
        (durability, timeout): Promise,
        request: &Bytes,
    ) -> Result<Sent, WriteError> {
        let progress = Arc::<Progress>::default();
        let asked = Asked {
            name: "",
            to_master: true,
            body: request.clone(),
            deadline: Instant::now() + timeout + ANSWER_MARGIN,
            waits: true,
            progress: Arc::clone(&progress),
        };
        let called = self.call_line(&self.forwarding.lines, (master, WRITES), &asked);
        let mut role = self.role();
        let replaced = async {
            let is_later = |state: &RoleState| state.term > term && state.role.is_known();
            if role.wait_for(is_later).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(REPLACED_GRACE).await;
        };
        let called = tokio::select! {
            biased;
            called = called => called,
            () = replaced => Err(if progress.is_sent() {
                LineError::Unanswered("another node is master".to_owned())
            } else {
                LineError::NotSent("another node is master".to_owned())
            }),
        };
        let group = node.group();
        let told = || NumberMessage::decode(&progress.told()?[..]).ok();
        let lost = match called {
            Err(LineError::NotSent(_) | LineError::Full { .. } | LineError::Refused(_)) => {
                return Err(WriteError::NotMaster { master: None });
            }
            Err(LineError::Unanswered(why)) => {
                tracing::debug!(why, "a write on its way to the master has no answer");
                told()
            }
            Ok(answer) => match WriteReply::decode(answer).map(|reply| reply.answer) {
                // What cannot be read is no answer.
                Err(_) | Ok(None) => told(),
                Ok(Some(WriteAnswer::Unknown(number))) => Some(number),
                Ok(Some(answer)) => return self.sent(answer, group, durability),
            },
        };
        let Some(number) = lost else {
            return Err(WriteError::AnswerLost {
                node: self.name_of(master),
            });
        };
        self.look_up(number.in_group(group), durability).await
    }

    /// What the master's answer says.
    fn sent(
        &self,
        answer: WriteAnswer,
        group: GroupUuid,
        durability: Durability,
    ) -> Result<Sent, WriteError> {
        match answer {
            WriteAnswer::Conflict(newest) => Ok(Sent::Conflict(Vlsn(newest))),
            WriteAnswer::NotCommitted(why) if why.starts_with(MASTER_CHANGED) => {
                Ok(Sent::NotCommitted)
            }
            answer => {
                let token = answer.into_result(group)?;
                // What a failover can roll back may never be applied.
                if durability.ack != ReplicaAckPolicy::None {
                    let newest = &self.forwarding.newest;
                    newest.fetch_max(token.vlsn.0, Ordering::AcqRel);
                }
                Ok(Sent::Committed(token))
            }
        }
    }

    /// What became of a write whose master is lost, as far as this node finds out.
    async fn look_up(
        &self,
        token: CommitToken,
        durability: Durability,
    ) -> Result<Sent, WriteError> {
        match self.outcome(token).await {
            // More than a majority has to say so itself.
            Ok(TokenOutcome::Committed) if durability.ack != ReplicaAckPolicy::All => {
                Ok(Sent::Committed(token))
            }
            Ok(TokenOutcome::NotCommitted) => Ok(Sent::NotCommitted),
            _ => Err(WriteError::OutcomeUnknown { token }),
        }
    }

    fn name_of(&self, id: NodeId) -> String {
        let members = self.around.members.borrow();
        let member = members.get(&id);
        member.map_or_else(|| format!("node {id}"), |member| member.name.clone())
    }

    /// Serves the writes of one member.
    pub(super) async fn serve_writes(self: Arc<Self>, session: Session) -> Result<(), DialError> {
        let weak = Arc::downgrade(&self);
        // A connection must not keep a dropped environment alive.
        drop(self);
        let begin = move |request: &CallRequest, tell: Tell| -> Result<Handled, CallRefusal> {
            let lifecycle = weak.upgrade().ok_or(CallRefusal::NotMaster)?;
            if lifecycle.around.role.borrow().role != Role::Master {
                return Err(CallRefusal::NotMaster);
            }
            let body = request.body.clone();
            Ok(Box::pin(async move {
                let tell = |token: CommitToken| {
                    let number = NumberMessage::from(token);
                    tell.tell(number.encode_to_vec().into());
                };
                let answer = lifecycle.answer_write(body, tell).await;
                let answer = Some(answer.map_err(|error| error.to_string())?);
                Ok(WriteReply { answer }.encode_to_vec().into())
            }))
        };
        service::serve(session, FORWARDED_BYTES_MAX, begin).await
    }

    /// Keeps everything that changes from now on for a while.
    fn hold(&self, node: &Node) {
        let now = Instant::now();
        {
            let mut held = lock(&self.forwarding.held);
            if held.is_some_and(|held| now - held < HOLD / 2) {
                return;
            }
            *held = Some(now);
        }
        let reader = node.readers.begin(|| node.sequencer.visible());
        self.tasks.spawn(async move {
            tokio::time::sleep(HOLD).await;
            drop(reader);
        });
    }

    /// Commits a transaction that another node has run, as master.
    ///
    /// # Errors
    /// When the request is malformed.
    async fn answer_write(
        &self,
        body: Bytes,
        tell: impl FnOnce(CommitToken),
    ) -> Result<WriteAnswer, WireError> {
        let request = WriteRequest::decode(body)?;
        let (forwarded, durability, timeout) = request.parts()?;
        let node = match self.writable() {
            Ok(node) => node,
            Err(error) => return Ok(WriteAnswer::new(Err(error), Vlsn(0))),
        };
        let done = async {
            let _writing = self.shutdown.write()?;
            elsewhere::commit(&node, (durability, timeout), forwarded, tell).await
        };
        let done = done.await;
        let newest = node.sequencer.newest().map(|(_, newest)| newest);
        let newest = newest.unwrap_or_else(|| node.sequencer.visible());
        if matches!(done, Err(WriteError::Conflict)) {
            self.hold(&node);
        }
        Ok(WriteAnswer::new(done, newest))
    }
}

/// Waits until this node has applied a transaction, for as long as that may take.
async fn caught_up(node: &Node, vlsn: Vlsn, until: Instant) {
    // It may never be applied, and what is there will do.
    timeout_at(until, elsewhere::applied(node, vlsn)).await.ok();
}

/// # Errors
/// [`WriteError::TooLarge`].
fn encode(transaction: Transaction, (durability, timeout): Promise) -> Result<Bytes, WriteError> {
    let forwarded = transaction.into_forwarded();
    let request = WriteRequest::new(forwarded, durability, timeout);
    let (actual, max) = (request.encoded_len(), FORWARDED_BYTES_MAX);
    if actual > max {
        let what = "what a transaction has read and writes";
        return Err(WriteError::TooLarge { what, actual, max });
    }
    Ok(request.encode_to_vec().into())
}
