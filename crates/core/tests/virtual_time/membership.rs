//! Calls that change the group, and wait for each other.

use std::sync::Arc;
use std::time::Duration;

use steadfast::engine::MemoryStore;
use steadfast::log::MemoryDisk;
use steadfast::machine::Machine;
use steadfast::{
    AdminCommand, Bootstrap, JoinToken, NodeType, ReadyError, RepConfig, ReplicatedEnvironment,
};

use crate::world::World;
use crate::{SILENCE, paused};

/// Longer than a call takes to reach the master.
const ON_ITS_WAY: Duration = Duration::from_millis(50);

/// Opens n4 with an empty directory.
async fn open_newcomer(world: &mut World, token: JoinToken) -> ReplicatedEnvironment {
    let config = RepConfig::builder("group", "n4")
        .data_dir("/data")
        .listen("n4:7400")
        .bootstrap(Bootstrap::join(token))
        .build();
    let machine = Machine {
        disk: Arc::new(MemoryDisk::new()),
        engines: Arc::new(MemoryStore::new()),
        transport: world.network.host("n4"),
        ..world.machine(0)
    };
    let opening = ReplicatedEnvironment::open_on(config.expect("valid"), machine);
    opening.await.expect("opened")
}

#[test]
fn a_wiped_node_that_asked_before_it_was_removed_is_not_let_in_after() {
    paused().block_on(async {
        let mut world = World::new(51).await;
        let at = world.master().await;
        let master = world.hosts[at].env().clone();
        master.wait_ready_async(SILENCE).await.expect("ready");
        let token = master.join_token(NodeType::Electable).expect("a group");
        let first = open_newcomer(&mut world, token.clone()).await;
        first.wait_ready_async(SILENCE).await.expect("let in");
        first.close_async().await.expect("closed");

        // A change that no majority accepts yet, and the removal queued behind it.
        let hosts = world.hosts.iter().enumerate();
        for (_, host) in hosts.filter(|(other, _)| *other != at) {
            host.disk.hold_syncs(true);
        }
        let ask = |command: AdminCommand| {
            let master = master.clone();
            tokio::spawn(async move { master.administer_async(&command).await })
        };
        let changed = ask(AdminCommand::SetPriority {
            node: "n1".to_owned(),
            priority: 2,
        });
        tokio::time::sleep(ON_ITS_WAY).await;
        let removed = ask(AdminCommand::Remove {
            node: "n4".to_owned(),
            force: false,
        });
        tokio::time::sleep(ON_ITS_WAY).await;
        let wiped = open_newcomer(&mut world, token).await;
        tokio::time::sleep(ON_ITS_WAY).await;
        assert!(!changed.is_finished() && !removed.is_finished());
        for host in &world.hosts {
            host.disk.hold_syncs(false);
        }
        changed.await.expect("it ends").expect("changed");
        removed.await.expect("it ends").expect("removed");
        let ready = wiped.wait_ready_async(SILENCE).await;
        assert!(
            matches!(ready, Err(ReadyError::Refused { .. })),
            "{ready:?}"
        );
        assert_eq!(master.status().members.len(), 3);
    });
}
