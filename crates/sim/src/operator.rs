//! The group's operator: changes the group while it works, whatever else happens to it.
//!
//! Only nodes that the group can spare anyway lose their votes or their right to be master: so a
//! majority that can lead always remains, and the end of a run may rely on it.

use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;
use steadfast::{AdminCommand, AdminError, JoinToken, NodeType};

use crate::nemesis::{Event, is_member, restart};
use crate::plan::Fault;
use crate::workload::mark;
use crate::world::{End, Host, Life, wait};

/// How long the operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before asking again.
const RETRY: Duration = Duration::from_millis(200);

impl Event {
    /// One change of the group.
    pub(crate) async fn administer(&self) {
        let world = &self.world;
        if world.history().acknowledged == 0 {
            return;
        }
        match self.fault {
            Fault::Transfer => {
                let any = world.chance(|rng| rng.random_range(0..3) == 0);
                let names = (0..world.plan.nodes).map(|at| world.hosts[at].name.clone());
                let names: Vec<_> = names.collect();
                let to = world.chance(|rng| names.choose(rng).cloned());
                let command = AdminCommand::Transfer {
                    to: to.into_iter().filter(|_| !any).collect(),
                    within: Duration::from_millis(world.chance(|rng| rng.random_range(100..3000))),
                };
                self.fired(|| format!("operator: {command:?}"));
                self.ask(&command).await;
            }
            Fault::Priority => {
                let at = world.chance(|rng| rng.random_range(0..world.plan.nodes));
                let least = u32::from(!world.plan.expendable.contains(&at));
                let command = AdminCommand::SetPriority {
                    node: world.hosts[at].name.clone(),
                    priority: world.chance(|rng| rng.random_range(least..4)),
                };
                self.fired(|| format!("operator: {command:?}"));
                self.ask(&command).await;
            }
            Fault::Demote => self.demote().await,
            _ => self.replace().await,
        }
    }

    fn pick_expendable(&self) -> Option<&Host> {
        let nodes: Vec<_> = self.world.plan.expendable.iter().copied().collect();
        let at = self.world.chance(|rng| nodes.choose(rng).copied());
        at.map(|at| &self.world.hosts[at])
    }

    /// Makes a node a secondary for a while.
    async fn demote(&self) {
        let Some(host) = self.pick_expendable().filter(|host| !host.state().lost) else {
            return;
        };
        host.set_state(|state| state.outside = true);
        let set = |node_type| AdminCommand::SetType {
            node: host.name.clone(),
            node_type,
        };
        self.fired(|| format!("operator: {} becomes a secondary", host.name));
        self.ask(&set(NodeType::Secondary)).await;
        self.last(4000).await;
        self.insist(host, &set(NodeType::Electable)).await;
    }

    /// Retries until it is done, or the group has no such node: an answer may be lost, and what is
    /// refused for lack of a majority is not done.
    async fn insist(&self, host: &Host, command: &AdminCommand) {
        while !matches!(self.ask(command).await, Some(Ok(_))) && !self.is_gone(host).await {
            wait(RETRY).await;
        }
    }

    /// Removes a node, perhaps a lost one, and lets it in again with an empty disk.
    async fn replace(&self) {
        let world = &self.world;
        let Some(host) = self.pick_expendable() else {
            return;
        };
        let state = host.state();
        // A joining node has to be known to the others before it can be removed.
        let is_member = state.lost || is_member(host);
        if state.busy || !is_member {
            return;
        }
        host.set_state(|state| (state.busy, state.outside) = (true, true));
        self.fired(|| format!("operator: {} is replaced", host.name));
        // A wiped node asks to join, and is admitted as soon as the name is free: then its
        // successor is refused. So it ends first.
        let asks_to_join = state.lost && !state.damaged;
        let is_told = world.chance(RngExt::random) && !asks_to_join;
        if !is_told {
            world.end(host.at(), End::Kill);
        }
        let remove = AdminCommand::Remove {
            node: host.name.clone(),
            force: false,
        };
        self.insist(host, &remove).await;
        if is_told {
            self.last(500).await;
            world.end(host.at(), End::Kill);
        }
        host.replace_disk(world);
        let token = loop {
            if let Some(token) = self.join_token(host) {
                break token;
            }
            wait(RETRY).await;
        };
        host.set_token(token);
        host.set_state(|state| (state.lost, state.fenced, state.damaged) = (false, false, false));
        restart(world, host.at()).await;
        host.set_state(|state| state.busy = false);
    }

    /// Whether the group has no such node. What a master knows may not be committed yet; what it
    /// writes afterwards comes later in the log.
    async fn is_gone(&self, host: &Host) -> bool {
        let masters = self.world.masters();
        let master = masters.first().map(|at| &self.world.hosts[*at]);
        let Some(life) = master.and_then(Host::life) else {
            return false;
        };
        let Some(env) = life.env.clone() else {
            return false;
        };
        let term = env.state().term;
        let members = env.status().members;
        if members.iter().any(|member| member.node.name == host.name) {
            return false;
        }
        let written = self.patiently(&life, mark(&self.world, &env)).await;
        written.flatten().is_some_and(|token| token.term == term)
    }

    fn join_token(&self, host: &Host) -> Option<JoinToken> {
        let mut open = self.world.open_nodes();
        open.retain(|(at, _)| *at != host.at());
        let from = self.world.chance(|rng| open.choose(rng).cloned())?;
        from.1.env?.join_token(NodeType::Electable)
    }

    /// Asks some node. `None` if it gave no answer.
    async fn ask(&self, command: &AdminCommand) -> Option<Result<String, AdminError>> {
        let open = self.world.open_nodes();
        let (at, life) = self.world.chance(|rng| open.choose(rng).cloned())?;
        let env = life.env.clone()?;
        let answer = self.patiently(&life, env.administer_async(command)).await;
        self.world
            .story
            .tell(|| format!("operator: n{} answers {answer:?}", at + 1));
        answer
    }

    /// Runs `call` in a node's process. `None` if the process ended or gave no answer.
    async fn patiently<T>(&self, life: &Life, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            answer = life.process.run(call) => Some(answer),
            () = life.ended.cancelled() => None,
            () = wait(PATIENCE) => None,
        }
    }
}
