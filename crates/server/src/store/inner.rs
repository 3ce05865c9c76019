//! What the parts of a store share, and how a request finds the master.

use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steadfast::ids::NodeId;
use steadfast::{ReplicatedEnvironment, Role};
use tokio::sync::{Notify, Semaphore, mpsc, watch as channel};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::xxh3_64;

use super::command::{Answer, Command, Refusal};
use super::config::StoreConfig;
use super::keys::StateRow;
use super::lease::{Kept, Lessor};
use super::range::Counts;
use super::watch::Hub;
use super::write::Waiting;
use super::{OpenStoreError, compact, read, watch, write};
use crate::error::Error;
use crate::proto::etcdserverpb::{LeaseKeepAliveResponse, LeaseTimeToLiveResponse, ResponseHeader};

/// Pause of a request that found no master before it looks again, unless one is heard of before.
const RETRY: Duration = Duration::from_millis(20);

/// Most reads at a time that may take long: each takes a thread.
const LONG_READS_MAX: usize = 32;

/// Where writes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) is_known: bool,
    pub(super) is_here: bool,
    pub(super) term: u64,
}

/// See the module.
pub(super) struct Inner {
    pub(super) env: ReplicatedEnvironment,
    pub(super) config: StoreConfig,
    pub(super) cluster: u64,
    member: u64,
    /// This store, as the owner of the data. Changed when it must read everything anew.
    owner: AtomicU64,
    pub(super) queue: mpsc::Sender<Waiting>,
    /// Bytes that may still wait.
    pub(super) room: Arc<Semaphore>,
    pub(super) long_reads: Semaphore,
    lessor: Mutex<Lessor>,
    /// The term for which the memory of the lessor is known to be right.
    pub(super) leases_term: AtomicU64,
    pub(super) leases_changed: Notify,
    pub(super) counts: Counts,
    pub(super) leader: channel::Sender<Leader>,
    pub(super) hub: Hub,
    /// The newest that was read here.
    revision: AtomicI64,
    term: AtomicU64,
    pub(super) stops: channel::Sender<bool>,
    tasks: TaskTracker,
}

/// Ends the tasks of a store when the last handle goes.
pub(super) struct Stop {
    stops: channel::Sender<bool>,
}

impl Stop {
    pub(super) fn new(inner: &Inner) -> Self {
        Self {
            stops: inner.stops.clone(),
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.stops.send_replace(true);
    }
}

impl Inner {
    /// # Errors
    /// See [`OpenStoreError`].
    pub(super) async fn open(
        env: ReplicatedEnvironment,
        config: StoreConfig,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Waiting>), OpenStoreError> {
        let status = env.status();
        let group = status.group.ok_or(OpenStoreError::NoGroup)?;
        let cluster = id_of(&group.0.to_string());
        let (queue, queued) = mpsc::channel(config.waiting_writes_max.max(1));
        let inner = Arc::new(Self {
            member: member_id(cluster, status.node.id),
            cluster,
            owner: AtomicU64::new(random()),
            queue,
            room: Arc::new(Semaphore::new(config.waiting_bytes_max)),
            long_reads: Semaphore::new(LONG_READS_MAX),
            lessor: Mutex::default(),
            leases_term: AtomicU64::new(0),
            leases_changed: Notify::new(),
            counts: Counts::default(),
            leader: channel::Sender::default(),
            hub: Hub::default(),
            revision: AtomicI64::new(0),
            term: AtomicU64::new(0),
            stops: channel::Sender::default(),
            tasks: TaskTracker::new(),
            env,
            config,
        });
        let feed = watch::subscribe(&inner)?;
        watch::resume(&inner).await.map_err(read::open_error)?;
        let served = inner.serve_others()?;
        let serving = Arc::clone(&inner);
        inner.spawn(async move {
            serving.unless_stopped(pending::<()>()).await;
            drop(served);
        });
        inner.spawn(watch::follow(Arc::clone(&inner), feed));
        Ok((inner, queued))
    }

    /// Starts what runs until the store closes.
    pub(super) fn start(self: &Arc<Self>, queue: mpsc::Receiver<Waiting>) {
        self.spawn(write::run(Arc::clone(self), queue));
        self.spawn(follow_leader(Arc::clone(self)));
        self.spawn(compact::run(Arc::clone(self)));
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    pub(super) async fn close(&self) {
        self.stops.send_replace(true);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The result of `work`; `None` once the store closes.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut stops = self.stops.subscribe();
        tokio::select! {
            biased;
            _ = stops.wait_for(|stops| *stops) => None,
            done = work => Some(done),
        }
    }

    pub(super) fn owner(&self) -> u64 {
        self.owner.load(Ordering::Acquire)
    }

    /// Makes the next round take over, and read all leases, as if another store had been the owner.
    pub(super) fn renew_owner(&self) {
        self.owner.store(random(), Ordering::Release);
    }

    pub(super) fn lessor(&self) -> MutexGuard<'_, Lessor> {
        // Every change of it is whole.
        self.lessor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the memory of leases says, if this node is master and the memory is right.
    pub(super) fn with_leases<T>(&self, ask: impl FnOnce(&mut Lessor) -> T) -> Option<T> {
        let leader = *self.leader.borrow();
        let is_right = leader.is_here && self.leases_term.load(Ordering::Acquire) == leader.term;
        let mut lessor = self.lessor();
        (is_right && lessor.is_active()).then(|| ask(&mut lessor))
    }

    pub(super) fn member_id(&self, node: NodeId) -> u64 {
        member_id(self.cluster, node)
    }

    pub(super) fn header(&self) -> ResponseHeader {
        self.header_at(self.revision.load(Ordering::Acquire))
    }

    pub(super) fn header_at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster,
            member_id: self.member,
            revision,
            raft_term: self.term.load(Ordering::Acquire).max(1),
        }
    }

    /// Notes what was read of the state, and gives the header of an answer from there.
    pub(super) fn seen(&self, state: StateRow) -> ResponseHeader {
        self.revision.fetch_max(state.revision, Ordering::AcqRel);
        self.term.fetch_max(state.term, Ordering::AcqRel);
        ResponseHeader {
            raft_term: state.term.max(1),
            ..self.header_at(state.revision)
        }
    }

    /// Has a command done by the master, wherever it is. What certainly did not happen is tried
    /// again until the time for a request is over.
    ///
    /// # Errors
    /// Whatever comes of it; [`Error::NoLeader`] or [`Error::LeaderChanged`] when no master took it.
    pub(super) async fn submit(self: &Arc<Self>, command: Command) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.config.request_timeout;
        let mut leader = self.leader.subscribe();
        loop {
            if *self.stops.borrow() {
                return Err(Error::Stopped);
            }
            let now = *leader.borrow_and_update();
            let answer = match now {
                Leader { is_here: true, .. } => self.answer_here(command.clone(), None).await,
                Leader { is_known: true, .. } => self.ask_master(&command, deadline).await,
                _ => Err(Refusal::Again),
            };
            match answer {
                Ok(answer) => return Ok(self.own_header(answer)),
                Err(Refusal::Told(error)) => return Err(error),
                Err(Refusal::Again) if Instant::now() >= deadline => {
                    return Err(if now.is_known {
                        Error::LeaderChanged
                    } else {
                        Error::NoLeader
                    });
                }
                Err(Refusal::Again) => {
                    let again = deadline.min(Instant::now() + RETRY);
                    timeout_at(again, leader.changed()).await.ok();
                }
            }
        }
    }

    /// Answers as the master. What is answered with more than `answer_bytes_max` is not done.
    ///
    /// # Errors
    /// [`Refusal::Again`] if this node is not the master, or not ready as one.
    pub(super) async fn answer_here(
        self: &Arc<Self>,
        command: Command,
        answer_bytes_max: Option<usize>,
    ) -> Result<Answer, Refusal> {
        match command {
            Command::KeepAlive(id) => {
                let term = self.leases_term.load(Ordering::Acquire);
                let kept = self.with_leases(|lessor| lessor.keep_alive(id, Instant::now()));
                let Some(Kept::Alive(ttl)) = kept else {
                    let _keeping = Keeping::begin(self, id);
                    return self.enqueue(command, answer_bytes_max).await;
                };
                self.leases_changed.notify_one();
                self.confirm_master(term).await?;
                Ok(Answer::KeepAlive(LeaseKeepAliveResponse {
                    header: Some(self.header()),
                    id,
                    ttl,
                }))
            }
            Command::TimeToLive(id) => self.time_to_live(id).await,
            command => self.enqueue(command, answer_bytes_max).await,
        }
    }

    /// Makes sure that no other node was master when this was asked. Another one knows nothing of what
    /// is in the memory of this one, and may have ended a lease meanwhile.
    ///
    /// # Errors
    /// [`Refusal::Again`] if this node is not known to be the master of that term.
    async fn confirm_master(&self, term: u64) -> Result<(), Refusal> {
        self.linearize().await.map_err(|_| Refusal::Again)?;
        let state = self.env.state();
        if state.role == Role::Master && state.term.0 == term {
            Ok(())
        } else {
            Err(Refusal::Again)
        }
    }

    async fn time_to_live(&self, id: i64) -> Result<Answer, Refusal> {
        let (header, ()) = self.read_short(false, |_| Ok(())).await?;
        let left = self.with_leases(|lessor| lessor.left(id, Instant::now()));
        let Some(left) = left else {
            self.enqueue_own();
            return Err(Refusal::Again);
        };
        let seconds = |left: Duration| i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        Ok(Answer::TimeToLive(LeaseTimeToLiveResponse {
            header: Some(header),
            id,
            ttl: left.map_or(-1, |left| seconds(left.left)),
            granted_ttl: left.map_or(0, |left| left.ttl),
            keys: Vec::new(),
        }))
    }

    /// The answer with this node in its header, whichever node it came from.
    fn own_header(&self, mut answer: Answer) -> Answer {
        if let Some(Some(header)) = answer.header() {
            self.revision.fetch_max(header.revision, Ordering::AcqRel);
            self.term.fetch_max(header.raft_term, Ordering::AcqRel);
            (header.cluster_id, header.member_id) = (self.cluster, self.member);
        }
        answer
    }
}

/// While a write that keeps a lease alive is on its way. One whose end the writer has not told must
/// not be ended by a round after it: its client is told that it lives.
struct Keeping<'i> {
    inner: &'i Inner,
    id: i64,
}

impl<'i> Keeping<'i> {
    fn begin(inner: &'i Inner, id: i64) -> Self {
        inner.lessor().keep(id);
        Self { inner, id }
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.inner.lessor().kept(self.id, Instant::now());
        self.inner.leases_changed.notify_one();
    }
}

/// Follows who is master until the store or the environment closes.
async fn follow_leader(inner: Arc<Inner>) {
    let mut states = inner.env.state_changes();
    let following = async {
        while let Some(state) = states.next_async().await {
            let leader = Leader {
                is_known: state.role.is_known(),
                is_here: state.role == Role::Master,
                term: state.term.0,
            };
            inner.leader.send_replace(leader);
            inner.leases_changed.notify_one();
            if leader.is_here {
                inner.enqueue_own();
            }
        }
    };
    inner.unless_stopped(following).await;
    inner.leader.send_replace(Leader::default());
}

fn member_id(cluster: u64, node: NodeId) -> u64 {
    id_of(&format!("{cluster}/{node}"))
}

/// An id that is the same wherever it is made of the same, and never 0.
fn id_of(text: &str) -> u64 {
    xxh3_64(text.as_bytes()).max(1)
}

fn random() -> u64 {
    RandomState::new().hash_one(0).max(1)
}
