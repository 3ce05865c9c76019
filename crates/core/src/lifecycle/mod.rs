//! A node from open to close: locks its directory, listens, finds its group, works, stops.
//!
//! ```text
//!  open ──► Forming ──group formed──► Running ──log or engine failed──► Stopped
//!              │  refused              │ ▲ │
//!              ▼       log is gone ────┘ │ └───close──► Closed   (from everywhere)
//!           Refused         ▼            │ a copy is in place
//!                       Restoring ───────┘
//! ```
//!
//! `NODE_STATE` is answered in every phase; FEEDER, ELECTION, RESTORE and SUBSCRIPTION only by a
//! running node, CALLS and
//! WRITES by any that belongs to a group.

mod admin;
mod admission;
mod called;
mod calls;
mod changes;
mod compare;
mod data;
mod describe;
mod enrolment;
mod expiry;
mod feeds;
mod fence;
#[cfg(test)]
mod forgery;
pub(crate) mod formation;
mod forwarding;
mod founding;
mod health;
pub(crate) mod join;
mod known;
mod metadata;
mod node_ids;
pub(crate) mod protection;
mod quorum;
mod repair;
mod restoring;
mod room;
mod serving;
mod shutdown;
mod sources;
mod transfer;
mod views;
mod waiting;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use steadfast_net::{Descriptors, Dispatcher, lock, process};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::compare::digest::SharedDigest;
use crate::config::RepConfig;
use crate::consensus::MasterNotices;
use crate::credentials::Authority;
use crate::error::OpenError;
use crate::events::change::Changes;
use crate::group::addresses::{self, Addresses};
use crate::group::identity::{DataDir, Identity};
use crate::lifecycle::metadata::Published;
use crate::listener::{Role, RoleState};
use crate::machine::Machine;
use crate::node::phase::{NotRunning, Phase};
use crate::node::status::NodeStatus;
use crate::node::{Node, Surroundings};
use crate::state_copy::fetch::Progress;
use crate::state_copy::source::Copies;
use crate::tasks::Tasks;
use crate::wire::WRITES;
use crate::wire::gate::Gate;
use crate::wire::{
    ADMIN, CALLS, DATA, ELECTION, EVENTS, FEEDER, NODE_STATE, RESTORE, SUBSCRIPTION,
};
use called::Called;
use compare::Compared;
use fence::Fence;
use forwarding::Forwarding;
use known::Known;
use node_ids::Given;
use protection::{is_unprotected, warn_of_plaintext};
use room::Room;
use serving::Service;
use shutdown::Shutdown;

/// See the module.
pub(crate) struct Lifecycle {
    config: RepConfig,
    /// `None` without a certificate.
    certificate_ends_ms: Mutex<Option<u64>>,
    /// The authority that this node certifies others with, if it has its key.
    authority: Mutex<Option<Arc<Authority>>>,
    /// The changes that it was asked for as master.
    changes: watch::Sender<Changes>,
    machine: Machine,
    dir: Mutex<Option<DataDir>>,
    identity: watch::Sender<Arc<Identity>>,
    around: Surroundings,
    phase: watch::Sender<Phase>,
    /// The nodes that formation waits for.
    waiting_for: watch::Sender<String>,
    fence: Arc<Fence>,
    /// How much of the disk is free, and what follows from that.
    room: watch::Sender<Room>,
    /// The node at work; replaced after a copy of the state is put in place.
    node: Mutex<Option<Arc<Node>>>,
    /// Progress of the copy of a peer's state that this node is making.
    restore: watch::Sender<Option<Progress>>,
    /// The task that waits until a copy is needed, and makes it.
    restoring: Mutex<Option<JoinHandle<()>>>,
    /// Copies that this node serves.
    copies: Arc<Copies>,
    /// The digest that `NODE_STATE` reports.
    digest: SharedDigest,
    compared: Compared,
    /// Whether the node currently leaves mastership to others.
    gives_way: AtomicBool,
    /// Rows put right from the log by engines before the current one.
    put_right_before: AtomicU64,
    shutdown: Shutdown,
    /// Slots for subscriptions.
    subscriptions: Arc<Semaphore>,
    dispatcher: Dispatcher,
    listen_address: OnceLock<String>,
    forming: Mutex<Option<JoinHandle<()>>>,
    known: Known,
    published: Published,
    called: Called,
    forwarding: Forwarding,
    tasks: Tasks,
    closing: tokio::sync::Mutex<()>,
}

impl Lifecycle {
    /// Opens the node. See [`crate::ReplicatedEnvironment::open`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) async fn open(config: RepConfig, machine: Machine) -> Result<Arc<Self>, OpenError> {
        // What stands in the way of looking stands in the way of opening, which names it.
        if let Ok(false) = DataDir::is_one(&*machine.disk, &config.data_dir) {
            config.check_listed()?;
        }
        let dir = DataDir::open(&*machine.disk, &config.data_dir)?;
        let identity = founding::own_identity(&config, &machine, &dir).await?;
        let lifecycle = Arc::new(Self::new(config, machine, dir, identity));
        let opened = lifecycle.begin().await;
        if opened.is_err()
            && let Err(error) = lifecycle.close().await
        {
            tracing::warn!(error, "a node that did not open could not be closed");
        }
        opened.map(|()| lifecycle)
    }

    fn new(config: RepConfig, machine: Machine, dir: DataDir, identity: Identity) -> Self {
        let phase = watch::Sender::new(Phase::Forming);
        let on_failure = phase.clone();
        let failed = move |reason: String| {
            on_failure.send_if_modified(|phase| {
                let is_news = matches!(phase, Phase::Forming | Phase::Running | Phase::Restoring);
                if is_news {
                    tracing::error!(reason, "the node has stopped");
                    *phase = Phase::Stopped(reason);
                }
                is_news
            });
        };
        let founders = identity.founders.iter().cloned().collect();
        let book = addresses::read(&*machine.disk, &config.data_dir, &identity);
        let fence = Arc::new(Fence::new(phase.clone()));
        let around = Surroundings {
            members: watch::Sender::new(Arc::new(founders)),
            role: watch::Sender::new(RoleState::default()),
            addresses: Arc::new(Addresses::new(book)),
            failed: Arc::new(failed),
            may_stand: true,
            is_suspect: false,
            notices: MasterNotices::new(identity.incarnation),
            superseded: Fence::alarm(&fence),
        };
        let subscriptions = Arc::new(Semaphore::new(config.tuning.subscriptions_max));
        let copies = Arc::new(Copies::new(config.tuning.restore_bytes_per_s_max));
        Self {
            subscriptions,
            copies,
            certificate_ends_ms: Mutex::new(protection::certificate_ends_ms(&config)),
            authority: Mutex::default(),
            changes: watch::Sender::default(),
            dispatcher: Dispatcher::new(serving::limits(&config.tuning)),
            config,
            machine,
            dir: Mutex::new(Some(dir)),
            identity: watch::Sender::new(Arc::new(identity)),
            around,
            phase,
            fence,
            room: watch::Sender::default(),
            waiting_for: watch::Sender::new(String::new()),
            node: Mutex::default(),
            restore: watch::Sender::new(None),
            restoring: Mutex::default(),
            digest: SharedDigest::default(),
            compared: Compared::default(),
            gives_way: AtomicBool::new(false),
            put_right_before: AtomicU64::new(0),
            shutdown: Shutdown::default(),
            listen_address: OnceLock::new(),
            forming: Mutex::default(),
            known: Known::default(),
            published: Published::default(),
            called: Called::default(),
            forwarding: Forwarding::default(),
            tasks: Tasks::default(),
            closing: tokio::sync::Mutex::default(),
        }
    }

    async fn begin(self: &Arc<Self>) -> Result<(), OpenError> {
        self.begin_with_room();
        let (weak, tasks) = (Arc::downgrade(self), &self.tasks);
        tasks.spawn(room::watch(Weak::clone(&weak), self.phase.subscribe()));
        tasks.spawn(compare::run(Weak::clone(&weak), self.phase.subscribe()));
        tasks.spawn(compare::watch_damage(Weak::clone(&weak)));
        // It closes the node itself, so a close must not wait for it.
        let (told, mut phase) = (shutdown::watch(weak), self.phase.subscribe());
        process::spawn(async move {
            tokio::select! {
                biased;
                () = told => {}
                _ = phase.wait_for(|phase| *phase == Phase::Closed) => {}
            }
        });
        self.known.begin(self);
        self.begin_metadata();
        let identity = self.identity.borrow().clone();
        let (mut why_damaged, mut differs) = (None, None);
        if identity.group.is_some() {
            let damaged = identity.damaged.is_some();
            let started = if damaged {
                Ok(())
            } else {
                self.start_node(identity).await
            };
            match started {
                Err(error) if self.repairs(&error) => why_damaged = Some(error.to_string()),
                Err(OpenError::EngineDiffers { what }) if self.copies_state() => {
                    differs = Some(what);
                }
                started => started?,
            }
            if damaged {
                self.know_latest_members();
                why_damaged = Some("the damage was found earlier".to_owned());
            }
        }
        self.serve();
        let transport = Arc::clone(&self.machine.transport);
        warn_of_few(transport.descriptors());
        let listening = self.dispatcher.start(transport, &self.config.listen).await;
        let address = listening.map_err(|source| OpenError::Listen {
            address: self.config.listen.clone(),
            source,
        })?;
        if is_unprotected(&self.config, &address) {
            self.tasks.spawn(warn_of_plaintext(address.clone()));
        }
        self.listen_address.get_or_init(|| address);
        if let Some(why) = why_damaged {
            self.begin_repair(why);
        } else if let Some(what) = differs {
            self.begin_copy_of_state(what);
        } else if self.node().is_none() {
            let forming = process::spawn(founding::form(Arc::clone(self)));
            *lock(&self.forming) = Some(forming);
        }
        Ok(())
    }

    async fn start_node(self: &Arc<Self>, identity: Arc<Identity>) -> Result<(), OpenError> {
        self.config.check_holder(identity.node_id)?;
        let dir = lock(&self.dir)
            .take()
            .ok_or(OpenError::Start("closed".to_owned()))?;
        let around = Surroundings {
            may_stand: self.may_stand(),
            is_suspect: self.around.notices.damage.borrow().differs().is_some(),
            ..self.around.clone()
        };
        let started = Node::start(
            &self.config,
            &self.machine,
            &dir,
            Arc::clone(&identity),
            around,
        )
        .await;
        *lock(&self.dir) = Some(dir);
        let node = started?;
        let is_founder = identity
            .founders
            .first()
            .is_some_and(|(id, _)| *id == identity.node_id);
        *lock(&self.node) = Some(Arc::clone(&node));
        self.phase.send_if_modified(|phase| {
            let comes_to_work = matches!(phase, Phase::Forming | Phase::Restoring);
            if comes_to_work {
                *phase = Phase::Running;
            }
            comes_to_work
        });
        if is_founder {
            let founded = node.consensus.found().await;
            founded.map_err(|error| OpenError::Start(error.to_string()))?;
        }
        // Only now: they may stop the node again.
        let watching = watch_failure(Arc::downgrade(self), Arc::clone(&node));
        let expiry = expiry::run(Arc::downgrade(self), Arc::clone(&node));
        self.tasks.spawn(async {
            tokio::select! {
                biased;
                () = watching => {}
                () = expiry => {}
            }
        });
        let watching = restoring::watch(Arc::downgrade(self), Arc::clone(&node));
        *lock(&self.restoring) = Some(process::spawn(watching));
        Ok(())
    }

    fn serve(self: &Arc<Self>) {
        let timeout = self.config.tuning.dial_timeout;
        let members = self.around.members.subscribe();
        let gate = Gate::new(
            self.identity.subscribe(),
            members,
            timeout,
            Arc::clone(&self.around.superseded),
            Arc::new(Given(Arc::downgrade(self))),
        );
        for name in [
            FEEDER,
            ELECTION,
            RESTORE,
            CALLS,
            WRITES,
            NODE_STATE,
            DATA,
            SUBSCRIPTION,
            EVENTS,
            ADMIN,
        ] {
            let (gate, lifecycle) = (gate.clone(), Arc::downgrade(self));
            let refusals = self.dispatcher.refusals();
            self.dispatcher.register_async(Arc::new(Service {
                name,
                gate,
                refusals,
                lifecycle,
            }));
        }
    }

    /// The node at work.
    fn running(&self) -> Result<Arc<Node>, NotRunning> {
        self.phase.borrow().running()?;
        self.node().ok_or(NotRunning::NotYet)
    }

    /// The node, in any phase.
    fn node(&self) -> Option<Arc<Node>> {
        lock(&self.node).clone()
    }

    pub(crate) fn role(&self) -> watch::Receiver<RoleState> {
        self.around.role.subscribe()
    }

    pub(crate) fn listen_address(&self) -> &str {
        self.listen_address
            .get()
            .map_or(&self.config.listen, String::as_str)
    }

    pub(crate) fn status(&self) -> NodeStatus {
        let described = NodeStatus::from_message(self.describe());
        described.expect("what a node says of itself is well-formed")
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.phase.borrow() == Phase::Closed
    }

    /// Stops everything. Every call waits until that is done.
    pub(crate) async fn close(&self) -> Result<(), String> {
        let _one_at_a_time = self.closing.lock().await;
        if self.is_closed() {
            return Ok(());
        }
        self.phase.send_replace(Phase::Closing);
        self.called.handlers.close();
        self.tasks.end().await;
        let forming = lock(&self.forming).take();
        if let Some(forming) = forming {
            // The phase ends it, and it leaves nothing half done. A panic in it has been reported.
            forming.await.ok();
        }
        let restoring = lock(&self.restoring).take();
        if let Some(restoring) = restoring {
            // So does this.
            restoring.await.ok();
        }
        self.known.end().await;
        self.dispatcher.stop().await;
        let node = lock(&self.node).take();
        let stopped = match node {
            Some(node) => node.stop().await,
            None => Ok(()),
        };
        self.around
            .role
            .send_modify(|role| role.role = Role::Detached);
        self.write_superseded().await;
        self.phase.send_replace(Phase::Closed);
        lock(&self.dir).take();
        stopped
    }
}

/// Ends the node's work when consensus stops by itself, or something under it fails.
async fn watch_failure(lifecycle: Weak<Lifecycle>, node: Arc<Node>) {
    let Some((mut phase, failed)) = lifecycle.upgrade().map(|lifecycle| {
        let failed = Arc::clone(&lifecycle.around.failed);
        (lifecycle.phase.subscribe(), failed)
    }) else {
        return;
    };
    tokio::select! {
        biased;
        ended = phase.wait_for(|phase| !matches!(phase, Phase::Forming | Phase::Running)) => {
            let is_meant =
                |phase: &Phase| matches!(phase, Phase::Restoring | Phase::Closing | Phase::Closed);
            if ended.is_ok_and(|phase| is_meant(&phase)) {
                return;
            }
        }
        reason = node.consensus.failure() => {
            // It says nothing about a node that was stopped on purpose.
            if node.has_ended() {
                return;
            }
            // If consensus was waiting for its state machine, it knows only that it has ended.
            failed(node.flush.why_given_up().map_or(reason, str::to_owned));
        }
    }
    // Whatever failed, this node must no longer vote or acknowledge.
    node.consensus.shutdown().await;
    if let Some(lifecycle) = lifecycle.upgrade() {
        lifecycle.note_superseded().await;
    }
}

/// Says so if this process may open few files and connections. A node that runs out of them stops.
fn warn_of_few(descriptors: Option<Descriptors>) {
    let few = descriptors.filter(|descriptors| !descriptors.suffice());
    if let Some(Descriptors { max, .. }) = few {
        tracing::warn!(
            max,
            "this process may open few files and connections, and a node under attack could run out \
             of them: raise its hard limit of open files (ulimit -n, LimitNOFILE=) to 256 or more"
        );
    }
}
