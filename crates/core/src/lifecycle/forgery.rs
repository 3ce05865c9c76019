//! How a node reacts to messages from senders that have no right to send them.

use std::sync::Arc;
use std::time::Duration;

use steadfast_net::MemoryNetwork;

use crate::NodeStatus;
use crate::config::{Bootstrap, RepConfig};
use crate::consensus::election::{CallError, ElectionClient, Peer};
use crate::env::ReplicatedEnvironment;
use crate::group::identity::Identity;
use crate::ids::{GroupEpoch, Incarnation, NodeId, Term};
use crate::listener::Role;
use crate::log::LogId;
use crate::machine::Machine;
use crate::wire::comparison::Diverged;
use crate::wire::dialling::Dialler;
use crate::wire::hello::Caller;
use crate::wire::messages::{
    ElectionAnswer, ElectionCall, MasterGone, Removed, Stop, TakeOver, VoteMessage,
    VoteRequestMessage,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn open(network: &MemoryNetwork, name: &str) -> ReplicatedEnvironment {
    let list = ["n1=n1:7400", "n2=n2:7400", "n3=n3:7400"];
    let config = RepConfig::builder("g", name)
        .data_dir("/data")
        .listen(format!("{name}:7400"))
        .bootstrap(Bootstrap::expect(list).expect("a list"))
        // The master stays master.
        .set("election_timeout_min_ms", 5_000)
        .set("election_timeout_max_ms", 6_000);
    let machine = Machine::in_memory(network, name).expect("entropy");
    let opened = ReplicatedEnvironment::open_on(config.build().expect("a configuration"), machine);
    opened.await.expect("opened")
}

/// A caller that claims to be this node.
fn forge(
    network: &MemoryNetwork,
    of: &NodeStatus,
    node: NodeId,
    incarnation: u64,
) -> ElectionClient {
    let identity = Identity {
        group: of.group,
        node_id: node,
        epoch: GroupEpoch::default(),
        ..Identity::fresh("g", "forged", Incarnation(incarnation))
    };
    ElectionClient::start(Peer {
        dialler: Dialler {
            caller: Caller::Node(Arc::new(identity), Arc::new(|_, _| ())),
            transport: network.host("forger"),
            addresses: Arc::default(),
            timeout: PATIENCE,
        },
        address: of.node.address.clone(),
        id: of.node.id,
        silence_max: PATIENCE,
        refusing: tokio::sync::watch::Sender::default(),
    })
}

fn life_of(node: &ReplicatedEnvironment) -> u64 {
    node.lifecycle().identity.borrow().incarnation.0
}

/// Every message that ends a node, its data or its mastership, as of a far later term.
fn words(of: NodeId, by: NodeId, incarnation: u64) -> Vec<ElectionCall> {
    let vote = |committed| {
        Some(VoteMessage {
            term: 1_000,
            node: by.0,
            committed,
        })
    };
    let last = Some(LogId {
        term: Term(1_000),
        position: crate::ids::LogPosition(1_000),
    });
    let last = last.map(Into::into);
    vec![
        ElectionCall::Removed(Removed { term: 1_000 }),
        ElectionCall::Diverged(Diverged {
            term: 1_000,
            what: "forged".to_owned(),
            incarnation,
        }),
        ElectionCall::Stop(Stop { term: 1_000 }),
        ElectionCall::MasterGone(MasterGone {
            master: of.0,
            term: 1_000,
            last,
        }),
        ElectionCall::TakeOver(TakeOver {
            vote: vote(false),
            last,
        }),
        ElectionCall::Vote(VoteRequestMessage {
            vote: vote(true).map(|vote| VoteMessage { node: 77, ..vote }),
            last,
            lease_is_over: true,
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_a_node_or_its_data_is_taken_from_the_master_that_it_follows_alone() {
    let network = MemoryNetwork::new();
    let (n1, n2, n3) = tokio::join!(
        open(&network, "n1"),
        open(&network, "n2"),
        open(&network, "n3")
    );
    let nodes = [n1, n2, n3];
    for node in &nodes {
        node.wait_ready_async(PATIENCE).await.expect("ready");
    }
    let is_master = |node: &&ReplicatedEnvironment| node.state().role == Role::Master;
    let (masters, replicas): (Vec<_>, Vec<_>) = nodes.iter().partition(is_master);
    let (master, stranger) = (masters[0].status(), NodeId(99));
    let of = |node: &ReplicatedEnvironment| node.status().node.id;
    for (told, by, life) in [
        // A replica forges to the master, and one replica to the other.
        (masters[0], of(replicas[0]), life_of(replicas[0])),
        (replicas[0], of(replicas[1]), life_of(replicas[1])),
        // An unknown node forges to both.
        (masters[0], stranger, 1),
        (replicas[0], stranger, 1),
    ] {
        let client = forge(&network, &told.status(), by, life);
        for word in words(master.node.id, by, life_of(told)) {
            let answer = client.call(word.clone(), PATIENCE).await;
            let is_refused = match answer {
                Ok(ElectionAnswer::Agrees(false)) => by != stranger,
                // It is not even answered.
                Err(CallError::Lost) => true,
                _ => false,
            };
            assert!(is_refused, "{by} to {}: {word:?}: {answer:?}", of(told));
        }
    }
    for node in &nodes {
        let status = node.status();
        assert_eq!(status.damage, None);
        assert_eq!(node.state().term, master.term);
        let is_master = status.node.id == master.node.id;
        let role = if is_master {
            Role::Master
        } else {
            Role::Replica
        };
        assert_eq!(status.role, role);
        let written = node.read_async(crate::ConsistencyPolicy::Eventual, |snapshot| {
            snapshot.list_databases()
        });
        written.await.expect("it works");
    }
    for node in nodes {
        node.close_async().await.expect("closed");
    }
}
