//! The simulated network: named hosts, TCP-like connections between them, and their faults.
//!
//! ```text
//!   SimHost ── dial ──► backlog ──► SimListener      one lock over State:
//!      │                                │              Links        faults, blocks, chance
//!   SimStream ═ pipe 0: chunks, due ═► SimStream       Connections  two pipes, two ends
//!             ◄═ pipe 1: chunks, due ═                 Hosts        killed, off
//! ```
//!
//! Time is tokio's, paused by the runtime; randomness comes from one seed; nothing depends on hash
//! order or threads. A write becomes one chunk with an arrival time, queued for the other end to
//! read. A reader sleeps only while the front chunk is under way, so a link without delays costs no
//! timer. Delays are whole milliseconds, as tokio's timers are.
//!
//! As with TCP, a connection delivers what was written, in order and once, or it ends: lost and
//! reordered packets appear as delays of what follows them. A blocked direction is silent: neither
//! end notices until held data arrives after the block, or until 15 s of silence end the
//! connection. Each direction holds at most 256 KiB of unread bytes.
//!
//! Acknowledgements are not modelled: blocking one direction does not fill the window of the other.
//! A host's links to itself are perfect. Process pauses are handled elsewhere.
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
use std::sync::{Arc, Mutex};

use steadfast_net::{Transport, lock};
use tokio::sync::Notify;

use self::host::SimHost;
use self::links::{Count, Pair};
use self::state::State;

pub use self::links::NetFaults;

/// Observes events: `"dial"` (with the port), `"accept"`, `"send"` (with the bytes as written) or
/// `"close"`; from which host; to which host. It must not call the network.
pub type Tap = Box<dyn Fn(&str, &str, &str, &[u8]) + Send + Sync>;

/// A network of hosts in this process. Clones refer to the same network.
#[derive(Clone)]
pub struct SimNet {
    state: Arc<Mutex<State>>,
    /// Wakes dials when a host or a block changes.
    changed: Arc<Notify>,
}

impl SimNet {
    /// A network in which all links have these faults, drawn from `seed`.
    pub fn new(seed: u64, faults: NetFaults) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(seed, faults))),
            changed: Arc::new(Notify::new()),
        }
    }

    /// The transport of the process that runs on this host. It listens at addresses under its own
    /// name; hosts it dials see that name as their peer's address. Once the process is killed or
    /// its machine powered off, every call fails for good: ask for a new transport then.
    pub fn host(&self, name: &str) -> Arc<dyn Transport> {
        Arc::new(SimHost {
            network: self.clone(),
            process: self.with(|state| state.process(name)),
        })
    }

    /// Sets the faults of all links without their own, for what is sent from now on.
    pub fn set_faults(&self, faults: NetFaults) {
        self.with(|state| state.links.set_faults(faults));
    }

    /// Gives one direction its own faults.
    pub fn set_link(&self, from: &str, to: &str, faults: NetFaults) {
        self.with(|state| {
            let pair = state.pair(from, to);
            state.links.set_link(pair, faults);
        });
    }

    /// Removes the per-link faults of all links.
    pub fn clear_links(&self) {
        self.with(|state| state.links.clear_links());
    }

    /// How often each fault struck, by kind, including zeros. A partition counts once, when it
    /// first holds something up. `net_chunks` and `net_bytes` are totals of what was sent.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.with(|state| state.links.counts())
    }

    /// Reports every event to `tap`.
    pub fn set_tap(&self, tap: Tap) {
        self.with(|state| state.tap = Some(tap));
    }

    /// Runs `act` on the state, and wakes its wakers only after unlocking, because a waker may run
    /// code that calls the network.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let (result, wakes) = {
            let mut state = lock(&self.state);
            let result = act(&mut state);
            (result, mem::take(&mut state.wakes))
        };
        for waker in wakes {
            waker.wake();
        }
        result
    }

    /// Like [`with`](Self::with), for changes that may let a dial go on.
    fn change(&self, act: impl FnOnce(&mut State)) {
        self.with(act);
        self.changed.notify_waiters();
    }
}

/// Partitions. They add to existing blocks; where they overlap, the later one counts.
impl SimNet {
    /// Silences one direction between two hosts.
    pub fn block(&self, from: &str, to: &str) {
        self.partition_by(Count::OneWay, |state| vec![state.pair(from, to)]);
    }

    /// Lets a direction through again. Held data arrives within 500 ms.
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

    /// Separates the groups from each other. Hosts in no group reach everyone.
    pub fn partition(&self, groups: &[Vec<String>]) {
        let hosts: Vec<(usize, &String)> = (0..)
            .zip(groups)
            .flat_map(|(group, hosts)| hosts.iter().map(move |host| (group, host)))
            .collect();
        let apart = |a: usize, b: usize| hosts[a].0 != hosts[b].0;
        let names: Vec<&str> = hosts.iter().map(|(_, host)| host.as_str()).collect();
        self.separate(Count::Full, &names, apart);
    }

    /// Nothing gets from the hosts in `from` to those in `to`. The reverse direction works.
    pub fn one_way(&self, from: &[String], to: &[String]) {
        self.partition_by(Count::OneWay, |state| {
            let ends = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
            ends.map(|(a, b)| state.pair(a, b)).collect()
        });
    }

    /// The quorum-loss scenario of `OmniPaxos`: every host reaches only `hub`. A leader other than
    /// `hub` has no quorum although it is connected; only `hub` can lead.
    pub fn quorum_loss_hub(&self, hosts: &[String], hub: &str) {
        self.separate(Count::Hub, &names(hosts), |a, b| {
            hosts[a] != hub && hosts[b] != hub
        });
    }

    /// The constrained election of `OmniPaxos`: `old_leader` is cut off, and the others reach only
    /// `outdated`. Only `outdated` has a quorum. The caller has to make its log lack entries, so
    /// that it must not win as it is: cut it off for some writes beforehand.
    pub fn constrained_election(&self, hosts: &[String], old_leader: &str, outdated: &str) {
        self.separate(Count::Constrained, &names(hosts), |a, b| {
            let cut_off = hosts[a] == old_leader || hosts[b] == old_leader;
            cut_off || (hosts[a] != outdated && hosts[b] != outdated)
        });
    }

    /// The chained scenario of `OmniPaxos`: every host reaches only its neighbours in `hosts`.
    pub fn chain(&self, hosts: &[String]) {
        self.separate(Count::Chain, &names(hosts), |a, b| a.abs_diff(b) > 1);
    }

    /// Blocks both directions between the pairs of hosts that `apart` selects, by index.
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
    /// Kills the process on this host; its kernel goes on. It closes all connections, so that peers
    /// see the end of stream after the bytes that were sent, and refuses new ones.
    pub fn kill_host(&self, host: &str) {
        self.change(|state| {
            let host = state.number(host);
            state.kill(host);
        });
    }

    /// Powers this machine off. Peers are not told: neither what they send nor their dials are
    /// answered.
    pub fn power_off(&self, host: &str) {
        self.change(|state| {
            let host = state.number(host);
            state.power_off(host);
        });
    }

    /// Powers this machine on, without its connections and listeners. What arrives on an old
    /// connection is answered with a reset; an idle peer gets one when its keepalive is due.
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
