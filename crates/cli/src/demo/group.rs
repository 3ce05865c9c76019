//! The three processes of the demo, as their parent sees them: starts and kills them, keeps the
//! ledger of what they acknowledge, and waits for conditions on all of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use steadfast::{NodeStatus, Transport};
use tokio::time::Instant;

use super::ledger::{Holding, Ledger, Process};
use super::progress::Progress;
use super::protocol::{Command, Report};
use crate::child::{self, Child, ChildEvent, ChildEvents, ChildNews};
use crate::credentials::{self, ADMIN};
use crate::failure::Failure;
use crate::network::with_credentials;
use crate::ports::free_addresses;
use crate::status::ANSWER_TIMEOUT;

/// Name of the group.
pub(super) const GROUP: &str = "demo";
/// The directory of everybody's credentials.
const CREDENTIALS: &str = "credentials";
/// Nodes of the demo.
const NODES: usize = 3;
/// How long any single step may take before the demo gives up.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a condition that no report covers is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a node may take to close at the end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Group {
    dir: PathBuf,
    network: Arc<dyn Transport>,
    addresses: Vec<String>,
    clients: u32,
    children: Vec<Option<Child>>,
    nodes: Vec<NodeView>,
    lives: u64,
    sender: tokio::sync::mpsc::Sender<ChildEvent>,
    events: ChildEvents,
    pub(super) ledger: Ledger,
    pub(super) progress: Progress,
}

/// One node, as of its last report.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that a node reports"
)]
struct NodeView {
    is_ready: bool,
    is_master: bool,
    is_resting: bool,
    term: u64,
    /// The first acknowledgement of this life, and its term.
    acknowledged: Option<(u64, Instant)>,
    is_killed: bool,
    holding: Holding,
    has_told: bool,
}

pub(super) fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

impl Group {
    /// Does not start anything yet.
    ///
    /// # Errors
    /// When there are no free ports.
    pub(super) fn new(dir: PathBuf, clients: u32) -> Result<Self, Failure> {
        let addresses = free_addresses(NODES)
            .map_err(|error| Failure::system("no free ports for the nodes", &error))?;
        let names: Vec<_> = Self::all().map(name).collect();
        let credentials = dir.join(CREDENTIALS);
        credentials::make(&credentials, GROUP, &names, true)?;
        let network = with_credentials(&credentials.join(ADMIN))?;
        let (sender, events) = child::events();
        Ok(Self {
            dir,
            network,
            addresses,
            clients,
            children: (0..NODES).map(|_| None).collect(),
            nodes: (0..NODES).map(|_| NodeView::default()).collect(),
            lives: 0,
            sender,
            events,
            ledger: Ledger::default(),
            progress: Progress::new(),
        })
    }

    pub(super) fn all() -> std::ops::Range<usize> {
        0..NODES
    }

    /// How the nodes are reached.
    pub(super) fn network(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.network)
    }

    /// Where the nodes listen.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Starts a node: a new life on the same directory.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(super) fn start(&mut self, node: usize) -> Result<(), Failure> {
        self.lives += 1;
        let list: Vec<_> = Self::all()
            .map(|node| format!("{}={}", name(node), self.addresses[node]))
            .collect();
        let data_dir = self.dir.join(name(node)).display().to_string();
        let credentials = self.dir.join(CREDENTIALS).join(name(node));
        let credentials = credentials.display().to_string();
        let (life, clients) = (self.lives.to_string(), self.clients.to_string());
        let arguments = [
            ["--group", GROUP],
            ["--node", &name(node)],
            ["--data-dir", &data_dir],
            ["--listen", &self.addresses[node]],
            ["--bootstrap", &list.join(",")],
            ["--credentials", &credentials],
            ["--life", &life],
            ["--clients", &clients],
        ];
        let arguments = std::iter::once("demo-node").chain(arguments.into_iter().flatten());
        let log = self.dir.join(format!("{}.log", name(node)));
        let child = Child::start(node, self.lives, arguments, &log, self.sender.clone())?;
        self.children[node] = Some(child);
        self.nodes[node] = NodeView::default();
        Ok(())
    }

    /// Sends SIGKILL to a node.
    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].is_killed = true;
        if let Some(child) = &mut self.children[node] {
            child.kill();
        }
    }

    /// Sends a command to every node.
    pub(super) async fn command(&mut self, command: Command) {
        let line = serde_json::to_string(&command).expect("a command is plain data");
        for child in self.children.iter_mut().flatten() {
            // A child that cannot be told has ended, which is reported as its end.
            child.tell(&line).await;
        }
    }

    /// The master of the newest term.
    pub(super) fn master(&self) -> Option<usize> {
        let masters = Self::all().filter(|node| self.nodes[*node].is_master);
        masters.max_by_key(|node| self.nodes[*node].term)
    }

    /// Follows the group until `condition` holds.
    ///
    /// # Errors
    /// When it does not in time: that is a violation too.
    pub(super) async fn wait_for(
        &mut self,
        what: &str,
        condition: impl Fn(&Self) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while !condition(self) {
            if Instant::now() >= deadline {
                let what = format!("waited over {STEP_TIMEOUT:?} for {what}");
                self.ledger.violation(what.clone());
                return Err(Failure::new(
                    what,
                    "see the violations",
                    "read the nodes' logs",
                ));
            }
            self.follow_until((Instant::now() + LOOK_INTERVAL).min(deadline))
                .await;
        }
        Ok(())
    }

    /// Follows the group until `deadline`, or until the next report.
    async fn follow_until(&mut self, deadline: Instant) {
        if let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.events.recv()).await {
            self.handle(event);
            while let Ok(event) = self.events.try_recv() {
                self.handle(event);
            }
        }
        let acked = self.ledger.appended() as u64 + self.ledger.payments();
        let master = self.master().map_or("-".to_owned(), name);
        self.progress.update(acked, &master, self.ledger.term());
    }

    /// Follows the group until `deadline`.
    pub(super) async fn follow_to(&mut self, deadline: Instant) {
        self.follow_for(deadline.saturating_duration_since(Instant::now()))
            .await;
    }

    /// Follows the group until `work` is done.
    pub(super) async fn follow_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.follow_for(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Follows the group for `time`.
    pub(super) async fn follow_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.follow_until(deadline).await;
        }
    }

    fn handle(
        &mut self,
        ChildEvent {
            who,
            life,
            at,
            what,
        }: ChildEvent,
    ) {
        match what {
            ChildNews::Line(line) => match serde_json::from_str(&line) {
                Ok(report) => self.take_report((who, life), at, report),
                Err(error) => self.complain(who, &format!("said {line:?}: {error}")),
            },
            ChildNews::Ended(status) => {
                self.children[who] = None;
                if !self.nodes[who].is_killed {
                    self.complain(who, &format!("ended by itself: {status}"));
                }
                self.nodes[who].is_master = false;
                self.nodes[who].is_ready = false;
            }
        }
    }

    fn take_report(&mut self, process: Process, at: Instant, report: Report) {
        let node = &mut self.nodes[process.0];
        match report {
            Report::Ready => node.is_ready = true,
            Report::Resting => node.is_resting = true,
            Report::Role { role, term, .. } => {
                node.is_master = role == "master";
                node.term = term;
            }
            Report::Appended { id, term, vlsn, .. } => {
                node.acknowledge(term, at);
                self.ledger.note_time(term, at);
                self.ledger.add_record(process, &id, term, vlsn);
            }
            Report::Paid { term, vlsn } => {
                node.acknowledge(term, at);
                self.ledger.note_time(term, at);
                self.ledger.add_payment(process, term, vlsn);
            }
            Report::Uncertain { id } => self.ledger.add_uncertain(id),
            Report::Refused { id } => self.ledger.add_refused(id),
            // The demo never asks for these.
            Report::Read { .. } | Report::Unread(_) => {}
            Report::Rows(rows) => node.holding.rows.extend(rows),
            Report::Told {
                vlsn,
                accounts,
                sum,
                digest,
                digest_vlsn,
            } => {
                let rows = std::mem::take(&mut node.holding.rows);
                node.holding = Holding {
                    rows,
                    vlsn,
                    accounts,
                    sum,
                    digest,
                    digest_vlsn,
                };
                node.has_told = true;
            }
            Report::Failed(why) => self.complain(process.0, &why),
        }
    }

    fn complain(&mut self, node: usize, what: &str) {
        let what = format!("{}: {what}", name(node));
        self.progress.line(&what);
        self.ledger.violation(what);
    }

    /// Waits until a master of a term after `term` has acknowledged something; returns when it did,
    /// and which one.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) async fn wait_acknowledged(
        &mut self,
        term: u64,
    ) -> Result<(Instant, usize), Failure> {
        let found = |group: &Self| {
            let acknowledged = |node: usize| {
                let (_, at) = group.nodes[node]
                    .acknowledged
                    .filter(|(of, _)| *of > term)?;
                Some((at, node))
            };
            Self::all().filter_map(acknowledged).min()
        };
        self.wait_for("the failover", |group| found(group).is_some())
            .await?;
        Ok(found(self).expect("waited for"))
    }

    /// Waits until a node has ended.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) async fn wait_ended(&mut self, node: usize) -> Result<(), Failure> {
        self.wait_for("the end of a killed process", |group| {
            group.children[node].is_none()
        })
        .await
    }

    /// Waits until all nodes are ready, one of them is master, and all have what had been
    /// acknowledged by then.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) async fn wait_whole(&mut self) -> Result<(), Failure> {
        let is_ready =
            |group: &Self| group.master().is_some() && group.nodes.iter().all(|node| node.is_ready);
        self.wait_for("the nodes to be ready", is_ready).await?;
        let target = self.ledger.vlsn();
        self.wait_statuses("the nodes to catch up", |nodes| {
            nodes.iter().all(|node| node.vlsn.0 >= target)
        })
        .await
    }

    /// Waits until nothing changes any more: the load has ended and all nodes have the same data.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) async fn wait_still(&mut self) -> Result<(), Failure> {
        self.command(Command::Rest).await;
        let is_resting = |group: &Self| group.nodes.iter().all(|node| node.is_resting);
        self.wait_for("the end of the load", is_resting).await?;
        let target = self.ledger.vlsn();
        self.wait_statuses("all nodes to have the same data", |nodes| {
            let first = nodes[0].vlsn;
            first.0 >= target && nodes.iter().all(|node| node.vlsn == first)
        })
        .await
    }

    async fn wait_statuses(
        &mut self,
        what: &str,
        condition: impl Fn(&[NodeStatus]) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        let network = Arc::clone(&self.network);
        let network = &*network;
        loop {
            let asked = self
                .addresses
                .iter()
                .map(|address| NodeStatus::ask_on(network, address, false, ANSWER_TIMEOUT));
            let answers: Result<Vec<_>, _> = join_all(asked).await.into_iter().collect();
            if answers.is_ok_and(|nodes| condition(&nodes)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return self.wait_for(what, |_| false).await;
            }
            self.follow_for(LOOK_INTERVAL).await;
        }
    }

    /// Asks every node for everything it holds, and checks it; returns how many acknowledged
    /// records are lost.
    ///
    /// # Errors
    /// When a node does not report in time.
    pub(super) async fn verify(&mut self) -> Result<usize, Failure> {
        self.command(Command::Tell).await;
        let has_told = |group: &Self| group.nodes.iter().all(|node| node.has_told);
        self.wait_for("the nodes to report what they hold", has_told)
            .await?;
        let holdings: Vec<_> = self
            .nodes
            .iter_mut()
            .map(|node| std::mem::take(&mut node.holding))
            .collect();
        let check = |(node, holding)| self.ledger.check(&name(node), holding);
        let lost = holdings.iter().enumerate().map(check).max().unwrap_or(0);
        self.ledger.check_together(&holdings);
        Ok(lost)
    }

    /// Ends every process and waits for it.
    pub(super) async fn end(&mut self, is_in_order: bool) {
        let patience = if is_in_order {
            CLOSE_PATIENCE
        } else {
            Duration::ZERO
        };
        child::end_all(&mut self.children, &mut self.events, patience).await;
    }
}

impl NodeView {
    fn acknowledge(&mut self, term: u64, at: Instant) {
        if self.acknowledged.is_none_or(|(before, _)| before < term) {
            self.acknowledged = Some((term, at));
        }
    }
}
