//! Member addresses: a group goes on when names no longer resolve, and a wrong address can be
//! corrected from any node.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::log::MemoryDisk;
use steadfast::machine::Machine;
use steadfast::{AdminCommand, AdminError, Bootstrap, ConsistencyPolicy, RepConfig, Role};
use steadfast_net::{
    BoxFuture, Connected, Listener, MemoryNetwork, NetError, Result, TcpTransport, Transport,
};
use tokio::runtime::Runtime;

use crate::support::{
    Env, Group, Numbers, PATIENCE, eventually, free_address, get, name, put, runtime,
};

/// Elections are quick, yet a busy machine seldom causes an unintended one.
const QUICK: Numbers = &[
    ("heartbeat_interval_ms", 20),
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 60_000),
];

/// Result of resolving a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolver {
    Answers,
    Fails,
    Hangs,
}

/// TCP, with names resolved by the test.
#[derive(Clone)]
struct Names {
    addresses: Arc<BTreeMap<String, String>>,
    resolver: Arc<Mutex<Resolver>>,
}

impl Names {
    fn answer_with(&self, resolver: Resolver) {
        *self.resolver.lock().expect("no panic") = resolver;
    }
}

impl Transport for Names {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected>> {
        let Some(stands_for) = self.addresses.get(address) else {
            return TcpTransport.connect(address);
        };
        match *self.resolver.lock().expect("no panic") {
            Resolver::Answers => TcpTransport.connect(stands_for),
            Resolver::Hangs => Box::pin(pending()),
            Resolver::Fails => Box::pin(async move {
                Err(NetError::Io {
                    doing: format!("resolve {address}"),
                    source: io::ErrorKind::NotFound.into(),
                })
            }),
        }
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        TcpTransport.bind(address)
    }
}

/// Three nodes that know each other by name.
struct Named {
    names: Names,
    disks: Vec<MemoryDisk>,
    machines: Vec<Machine>,
    nodes: Vec<Option<Env>>,
    runtime: Runtime,
}

impl Named {
    fn start() -> Self {
        let addresses = (0..3).map(|at| (format!("{}.test:7400", name(at)), free_address()));
        let names = Names {
            addresses: Arc::new(addresses.collect()),
            resolver: Arc::new(Mutex::new(Resolver::Answers)),
        };
        let disks: Vec<_> = (0..3).map(|_| MemoryDisk::new()).collect();
        let machine = |disk: &MemoryDisk| Machine {
            disk: Arc::new(disk.clone()),
            transport: Arc::new(names.clone()),
            ..Machine::in_memory(&MemoryNetwork::new(), "none").expect("entropy")
        };
        let mut named = Self {
            machines: disks.iter().map(machine).collect(),
            names,
            disks,
            nodes: vec![None, None, None],
            runtime: runtime(),
        };
        for at in 0..3 {
            named.open(at);
        }
        for node in named.nodes.iter().flatten() {
            node.wait_ready(PATIENCE).expect("ready");
        }
        named
    }

    fn address(&self, at: usize) -> &str {
        &self.names.addresses[&format!("{}.test:7400", name(at))]
    }

    fn open(&mut self, at: usize) {
        let list = (0..3).map(|at| format!("{0}={0}.test:7400", name(at)));
        let config = RepConfig::builder("promises", name(at))
            .data_dir("/data")
            .listen(self.address(at))
            .bootstrap(Bootstrap::expect(list).expect("a list"));
        let set = |config: steadfast::RepConfigBuilder, (key, value): &(&str, u64)| {
            config.set(*key, *value)
        };
        let config = QUICK.iter().fold(config, set).build().expect("valid");
        let opening = Env::open_on(config, self.machines[at].clone());
        self.nodes[at] = Some(self.runtime.block_on(opening).expect("opened"));
    }

    fn close(&mut self, at: usize) {
        if let Some(node) = self.nodes[at].take() {
            node.close().expect("closed");
        }
    }

    /// Waits until each node has the others' addresses on disk.
    fn wait_met(&self) {
        eventually("each has met the others", || {
            let has = |disk: &MemoryDisk, at: usize| {
                let file = disk.bytes(Path::new("/data/addresses")).unwrap_or_default();
                let address = self.address(at).as_bytes();
                file.windows(address.len()).any(|bytes| bytes == address)
            };
            let mut pairs = (0..3).flat_map(|of| (0..3).map(move |at| (of, at)));
            pairs.all(|(of, at)| of == at || has(&self.disks[of], at))
        });
    }

    fn master(&self) -> usize {
        let mut found = None;
        eventually("a master", || {
            let is_master = |node: &Option<Env>| {
                let node = node.as_ref();
                node.is_some_and(|node| node.state().role == Role::Master)
            };
            found = self.nodes.iter().position(is_master);
            found.is_some()
        });
        found.expect("just found")
    }

    fn node(&self, at: usize) -> &Env {
        self.nodes[at].as_ref().expect("it is open")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.close().ok();
        }
    }
}

fn a_group_goes_on_without_names(resolver: Resolver) {
    let mut group = Named::start();
    group.wait_met();
    group.names.answer_with(resolver);
    let dead = group.master();
    let _token = put(group.node(dead), "k", "v").expect("written");
    group.close(dead);
    let master = group.master();
    let _token = put(group.node(master), "later", "v").expect("written");

    // Remembered addresses outlive the processes.
    let left: Vec<_> = (0..3).filter(|at| *at != dead).collect();
    for at in &left {
        group.close(*at);
    }
    for at in &left {
        group.open(*at);
    }
    let master = group.master();
    let found = get(group.node(master), ConsistencyPolicy::Linearizable, "later");
    assert_eq!(found.expect("read").as_deref(), Some(&b"v"[..]));
    let _token = put(group.node(master), "last", "v").expect("written");
}

#[test]
fn a_master_that_dies_is_followed_by_another_when_names_fail() {
    a_group_goes_on_without_names(Resolver::Fails);
}

#[test]
fn a_master_that_dies_is_followed_by_another_when_names_hang() {
    a_group_goes_on_without_names(Resolver::Hangs);
}

fn set_address(node: &str, address: &str, force: bool) -> AdminCommand {
    AdminCommand::SetAddress {
        node: node.to_owned(),
        address: address.to_owned(),
        force,
    }
}

fn refusal(done: std::result::Result<String, AdminError>) -> String {
    match done {
        Err(AdminError::Refused { what, to_do }) => format!("{what}; {to_do}"),
        other => panic!("not refused: {other:?}"),
    }
}

/// A member's address, as known to a node.
fn address_of(node: &Env, name: &str) -> String {
    let members = node.status().members;
    let member = members.into_iter().find(|of| of.node.name == name);
    member.expect("it is a member").node.address
}

#[test]
fn an_address_is_tried_before_it_is_taken() {
    let group = Group::in_memory(2, QUICK);
    for (node, wrong, why) in [
        ("n1", "n1:9999", "cannot reach n1 at n1:9999"),
        // Another member answers there.
        ("n1", "n2:7400", "is the address of n2"),
        ("n2", "0.0.0.0:7400", "every address of a machine"),
        ("n2", "[::]:7400", "every address of a machine"),
    ] {
        for asked in group.open_nodes() {
            let refused = refusal(asked.administer(&set_address(node, wrong, false)));
            assert!(refused.contains(why), "{refused}");
        }
    }
    let forced = set_address("n2", "0.0.0.0:7400", true);
    let refused = refusal(group.master().administer(&forced));
    assert!(refused.contains("every address"), "{refused}");
    for node in group.open_nodes() {
        assert_eq!(address_of(node, "n1"), "n1:7400");
        assert_eq!(address_of(node, "n2"), "n2:7400");
    }
}

/// All connections are reopened after the wrong address was set.
#[test]
fn a_wrong_address_in_a_group_of_two_is_corrected_from_any_node() {
    let mut group = Group::in_memory(2, QUICK);
    for (master, asked) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let wrong = set_address("n1", "nowhere:1", true);
        group.master().administer(&wrong).expect("it is forced");
        for at in [0, 1] {
            eventually("the wrong address", || {
                address_of(group.node(at), "n1") == "nowhere:1"
            });
            group.close(at);
            group.reopen(at).expect("opened");
        }
        group.wait_ready();
        let transfer = AdminCommand::Transfer {
            to: vec![name(master)],
            within: Duration::from_secs(20),
        };
        let transferred = group.node(asked).administer(&transfer);
        transferred.expect("each reaches the other one");
        let right = set_address("n1", "n1:7400", false);
        let corrected = group.node(asked).administer(&right);
        corrected.expect("the way back works");
        eventually("the right address everywhere", || {
            let mut nodes = group.open_nodes();
            nodes.all(|node| address_of(node, "n1") == "n1:7400")
        });
        let _token = put(group.master(), "k", "v").expect("written");
    }
}

/// The moved node is started at its new address first.
#[test]
fn a_member_that_has_moved_is_taken_where_it_answers() {
    let mut group = Group::in_memory(3, QUICK);
    let master = group.master_except(None);
    let moved = (master + 1) % 3;
    group.close(moved);
    let new = format!("{}:9999", name(moved));
    let command = set_address(&name(moved), &new, false);
    let refused = refusal(group.node(master).administer(&command));
    assert!(
        refused.contains(&format!("start {} there first", name(moved))),
        "{refused}"
    );
    group.listen_on(moved, 9999);
    group.reopen(moved).expect("opened");
    eventually("it answers there", || {
        group.node(master).administer(&command).is_ok()
    });
    group.node(moved).wait_ready(PATIENCE).expect("ready");
    let _token = put(group.master(), "k", "v").expect("written");
    group.digest();
}
