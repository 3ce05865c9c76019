//! The onlooker: an operator's read-only verbs, run from a separate machine at any moment. They
//! stop no node and take nothing from it, and what they report about the data is true.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::{
    Comparison, FeedEvent, GroupEvents, NodeAddress, NodeStatus, StartAt, SubscribeOptions,
    Subscription,
};
use steadfast_net::Transport;

use crate::plan::{Fault, Plan};
use crate::world::{PORT, World, wait};

/// Host that runs the verbs.
const HOST: &str = "onlooker";
/// Timeout of every request, whatever is under way.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs one onlooker forever.
pub async fn onlooker(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let transport = world.net.host(HOST);
    loop {
        wait(Duration::from_millis(rng.random_range(100..4_000))).await;
        let at = rng.random_range(0..world.plan.nodes);
        let address = format!("{}:{PORT}", Plan::host(at));
        let verb = rng.random_range(0..6);
        let looking = async {
            match verb {
                0 => drop(NodeStatus::ask_on(&*transport, &address, true, PATIENCE).await),
                1 => compare(&world, &*transport, &address, false).await,
                2 | 3 => compare(&world, &*transport, &address, true).await,
                4 => back_up(Arc::clone(&transport), address).await,
                _ => watch(Arc::clone(&transport), address).await,
            }
        };
        // Some leave before they get an answer.
        let stays = if rng.random_range(0..4) == 0 {
            Duration::from_millis(rng.random_range(1..50))
        } else {
            PATIENCE
        };
        tokio::time::timeout(stays, looking).await.ok();
    }
}

/// `verify`: reports differences where data was damaged, and nowhere else.
async fn compare(world: &World, transport: &dyn Transport, address: &str, is_deep: bool) {
    let Ok(status) = NodeStatus::ask_on(transport, address, false, PATIENCE).await else {
        return;
    };
    let with_data = status.members.iter().filter(|of| of.node_type.has_data());
    let others = with_data.map(|of| of.node.clone());
    let others: Vec<NodeAddress> = others.filter(|of| of.id != status.node.id).collect();
    let was_whole = is_whole(world);
    let compared = Comparison::run_on(transport, &status.node, &others, is_deep, |_, _| {}).await;
    let name = &status.node.name;
    match compared {
        Ok(found) if found.divergent > 0 && was_whole && is_whole(world) => {
            world.story.violation(format!(
                "a comparison from {name} finds differences where there are none: {:?}",
                found.divergences
            ));
        }
        Ok(found) => world.story.tell(|| {
            let compared = found.nodes.join(", ");
            format!("{compared} are compared: {} differences", found.divergent)
        }),
        Err(why) => world
            .story
            .tell(|| format!("no comparison from {name}: {why}")),
    }
}

/// Whether no node's data was damaged.
fn is_whole(world: &World) -> bool {
    let mut of_engines = Fault::OF_ENGINES.iter();
    let is_hurt = world.hosts.iter().any(|host| {
        let state = host.state();
        state.damaged || state.lost || state.suspect
    });
    !is_hurt && !of_engines.any(|fault| world.plan.has(*fault))
}

/// `backup create`: reads the whole state of one node.
async fn back_up(transport: Arc<dyn Transport>, address: String) {
    let options = SubscribeOptions::new(StartAt::Start).patience(PATIENCE);
    let connected = Subscription::connect_on(transport, vec![address], "sim", options).await;
    let Ok(mut state) = connected else { return };
    while let Some(Ok(event)) = state.next_async().await {
        if matches!(event, FeedEvent::StateComplete { .. }) {
            break;
        }
    }
    state.close_async().await;
}

/// `events`: follows a few of them.
async fn watch(transport: Arc<dyn Transport>, address: String) {
    let connected = GroupEvents::connect_on(transport, vec![address], "sim").await;
    let Ok(mut events) = connected else { return };
    for _ in 0..3 {
        if events.next_async().await.is_err() {
            return;
        }
    }
}
