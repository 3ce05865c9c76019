//! The simulated network: hosts with names, TCP-like connections between them, and their faults.
//!
//! ```text
//!   SimHost ── dial ──► backlog ──► SimListener      one lock over State:
//!      │                                │              Links        faults, blocks, chance
//!   SimStream ═ pipe 0: chunks, due ═► SimStream       Connections  two pipes, two ends
//!             ◄═ pipe 1: chunks, due ═                 Hosts        killed, off
//! ```
//!
//! Time is tokio's, which the runtime has paused; chance comes from one seed; nothing depends on a
//! hash or on a thread. A write becomes one chunk with the time at which it arrives, in the queue
//! that the other end reads. A reader sleeps only while the front chunk is under way, so a link
//! without delays costs no timer. Delays are whole milliseconds, as tokio's timers are.
//!
//! As TCP does, a connection delivers what was written, in order and once, or it ends: lost and
//! overtaken packets show as delays of what follows them. A direction that is blocked is silent: no
//! end sees anything until what was held arrives after the block, or until 15 s of silence end the
//! connection. Each direction takes 256 KiB of unread bytes.
//!
//! It models no acknowledgements: blocking one direction does not fill the window of the other.
//! Links of a host with itself are perfect. Pauses of a process are none of its business.
//!
//! | module | holds |
//! | --- | --- |
//! | `links` | faults per link, blocked directions, counts |
//! | `connection` | the pipes and the ends of one connection |
//! | `state` | hosts, listeners and connections: what calls and faults do to them |
//! | `host` | the transport, the listener and the stream that a process holds |

mod connection;
mod host;
mod links;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use steadfast_net::Transport;
use tokio::sync::Notify;

use self::host::SimHost;
use self::links::{Count, Pair};
use self::state::State;

pub use self::links::NetFaults;

/// Sees what happens: `"dial"` (with the port), `"accept"`, `"send"` (with the bytes as they were
/// written) or `"close"`; from which host; to which host. It must not call the network.
pub type Tap = Box<dyn Fn(&str, &str, &str, &[u8]) + Send + Sync>;

/// A network of hosts in this process. Clones are the same network.
#[derive(Clone)]
pub struct SimNet {
    state: Arc<Mutex<State>>,
    /// Wakes dials when a host or a block changed.
    changed: Arc<Notify>,
}

impl SimNet {
    /// A network whose links all have these faults, drawn from `seed`.
    pub fn new(seed: u64, faults: NetFaults) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(seed, faults))),
            changed: Arc::new(Notify::new()),
        }
    }

    /// The transport of the process that runs on this host. It listens at addresses of its own
    /// name; those it dials see that name as the address of their peer. When the process is killed
    /// or its machine goes off, every call on it fails for good: ask for another one then.
    pub fn host(&self, name: &str) -> Arc<dyn Transport> {
        Arc::new(SimHost {
            network: self.clone(),
            process: self.with(|state| state.process(name)),
        })
    }

    /// Sets the faults of all links without faults of their own, for what is sent from now on.
    pub fn set_faults(&self, faults: NetFaults) {
        self.with(|state| state.links.set_faults(faults));
    }

    /// Gives one direction faults of its own.
    pub fn set_link(&self, from: &str, to: &str, faults: NetFaults) {
        self.with(|state| {
            let pair = state.pair(from, to);
            state.links.set_link(pair, faults);
        });
    }

    /// Takes from all links the faults of their own.
    pub fn clear_links(&self) {
        self.with(|state| state.links.clear_links());
    }

    /// How often each fault struck, by kind, with zeros. A partition counts once, when it first
    /// held something up. `net_chunks` and `net_bytes` are what was sent in all.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.with(|state| state.links.counts())
    }

    /// Shows all that happens to `tap`.
    pub fn set_tap(&self, tap: Tap) {
        self.with(|state| state.tap = Some(tap));
    }

    /// Runs `act` on the state; wakes whoever it wants woken after that, because a waker may run
    /// code that calls the network.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let (result, wakes) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = act(&mut state);
            (result, mem::take(&mut state.wakes))
        };
        for waker in wakes {
            waker.wake();
        }
        result
    }

    /// As [`with`](Self::with), for what may let a dial go on.
    fn change(&self, act: impl FnOnce(&mut State)) {
        self.with(act);
        self.changed.notify_waiters();
    }
}

/// Partitions. They add to what is blocked already; where they overlap, the later one counts.
impl SimNet {
    /// Silences the direction between two hosts.
    pub fn block(&self, from: &str, to: &str) {
        self.partition_by(Count::OneWay, |state| vec![state.pair(from, to)]);
    }

    /// Lets a direction through again. What was held arrives within 500 ms.
    pub fn unblock(&self, from: &str, to: &str) {
        self.change(|state| {
            let pair = state.pair(from, to);
            state.links.unblock(pair);
            state.settle();
        });
    }

    /// Ends all partitions.
    pub fn unblock_all(&self) {
        self.change(|state| {
            state.links.unblock_all();
            state.settle();
        });
    }

    /// Hosts in different groups do not reach each other. Hosts in no group reach everyone.
    pub fn partition(&self, groups: &[Vec<String>]) {
        let hosts: Vec<(usize, &String)> = (0..)
            .zip(groups)
            .flat_map(|(group, hosts)| hosts.iter().map(move |host| (group, host)))
            .collect();
        let apart = |a: usize, b: usize| hosts[a].0 != hosts[b].0;
        let names: Vec<&str> = hosts.iter().map(|(_, host)| host.as_str()).collect();
        self.separate(Count::Full, &names, apart);
    }

    /// Nothing gets from the hosts in `from` to those in `to`. The other way works.
    pub fn one_way(&self, from: &[String], to: &[String]) {
        self.partition_by(Count::OneWay, |state| {
            let ends = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
            ends.map(|(a, b)| state.pair(a, b)).collect()
        });
    }

    /// The quorum-loss shape of `OmniPaxos`: every host reaches `hub` and nobody else. A leader other
    /// than `hub` has no quorum although it is connected; only `hub` can lead.
    pub fn quorum_loss_hub(&self, hosts: &[String], hub: &str) {
        self.separate(Count::Hub, &names(hosts), |a, b| {
            hosts[a] != hub && hosts[b] != hub
        });
    }

    /// The constrained election of `OmniPaxos`: `old_leader` is cut off, the others reach `outdated`
    /// and nobody else. Only `outdated` has a quorum; that its log lacks entries, so that it must
    /// not win as it is, is up to the caller: cut it off for some writes before this.
    pub fn constrained_election(&self, hosts: &[String], old_leader: &str, outdated: &str) {
        self.separate(Count::Constrained, &names(hosts), |a, b| {
            let cut_off = hosts[a] == old_leader || hosts[b] == old_leader;
            cut_off || (hosts[a] != outdated && hosts[b] != outdated)
        });
    }

    /// The chain of `OmniPaxos`: every host reaches only those next to it in `hosts`.
    pub fn chain(&self, hosts: &[String]) {
        self.separate(Count::Chain, &names(hosts), |a, b| a.abs_diff(b) > 1);
    }

    /// Blocks both directions between the hosts that `apart` says, by their places.
    fn separate(&self, kind: Count, hosts: &[&str], apart: impl Fn(usize, usize) -> bool) {
        let places = (0..hosts.len()).flat_map(|a| (0..hosts.len()).map(move |b| (a, b)));
        let ends = places.filter(|&(a, b)| hosts[a] != hosts[b] && apart(a, b));
        self.partition_by(kind, |state| {
            ends.map(|(a, b)| state.pair(hosts[a], hosts[b])).collect()
        });
    }

    fn partition_by(&self, kind: Count, pairs: impl FnOnce(&mut State) -> Vec<Pair>) {
        self.change(|state| {
            let pairs = pairs(state);
            state.links.block(kind, pairs);
            state.settle();
        });
    }
}

/// Crashes.
impl SimNet {
    /// Ends the process on this host; its kernel goes on. It closes all connections, so that peers
    /// see their end after the bytes that were sent, and refuses new ones.
    pub fn kill_host(&self, host: &str) {
        self.change(|state| {
            let host = state.number(host);
            state.kill(host);
        });
    }

    /// Takes this machine away. Peers see nothing of that: what they send is not answered, nor are
    /// their dials.
    pub fn power_off(&self, host: &str) {
        self.change(|state| {
            let host = state.number(host);
            state.power_off(host);
        });
    }

    /// Gives this machine back, without its connections and listeners. What arrives on an old
    /// connection is answered with a reset; an idle peer sees one when its keepalive is due.
    pub fn power_on(&self, host: &str) {
        self.change(|state| {
            let host = state.number(host);
            state.power_on(host);
        });
    }
}

fn names(hosts: &[String]) -> Vec<&str> {
    hosts.iter().map(String::as_str).collect()
}
