//! A group that has lost its quorum continues from one survivor, without the others.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use steadfast::quorum_loss::{self, NextStep, RecoverError, RecoveryPlan};
use steadfast::{
    CommitToken, ConsistencyPolicy, Durability, OpenError, ReadyError, Role, TokenOutcome,
};
use steadfast_net::{Connected, Listener, NetError, Result as NetResult, Transport};

use crate::world::World;
use crate::{SILENCE, paused};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

fn directory() -> &'static Path {
    Path::new("/data")
}

async fn plan(world: &mut World, at: usize) -> Result<RecoveryPlan, RecoverError> {
    let machine = world.machine(at);
    quorum_loss::plan(&machine, &[PathBuf::from("/data")], &[]).await
}

fn confirmation(plan: &RecoveryPlan) -> String {
    match &plan.next {
        NextStep::Apply { confirm, .. } => confirm.clone(),
        NextStep::Stop { node } => panic!("{node} is said to run"),
    }
}

/// A group of three, all stopped: returns a node that lacks the last write, and that write's token.
async fn stopped_group(seed: u64) -> (World, usize, CommitToken) {
    let mut world = World::new(seed).await;
    let master = world.master().await;
    let kept = world.put(master, Durability::ALL, "kept").await;
    assert!(kept.is_ok(), "all three have it");
    let survivor = (master + 1) % 3;
    let name = world.hosts[survivor].name.clone();
    world.network.isolate(&name);
    let lost = world.put(master, Durability::MAJORITY, "lost").await;
    for at in 0..3 {
        world.close(at).await;
    }
    world.network.heal(&name);
    (world, survivor, lost.expect("the other two have it"))
}

async fn recover(world: &mut World, at: usize) {
    let plan = plan(world, at).await.expect("there is no quorum");
    let machine = world.machine(at);
    let applied = quorum_loss::apply(&machine, directory(), &confirmation(&plan)).await;
    assert_eq!(
        applied.expect("applied").epoch,
        plan.epoch.0.wrapping_add(1).into()
    );
    world.restart(at).await;
    let ready = world.hosts[at].env().wait_ready_async(SILENCE).await;
    ready.expect("it needs nobody");
}

#[test]
fn a_survivor_goes_on_alone_with_everything_it_has_and_knows_what_was_lost() {
    paused().block_on(async {
        let (mut world, survivor, lost) = stopped_group(21).await;
        let plan = plan(&mut world, survivor).await.expect("no quorum");
        assert!(plan.may_lose, "the other two are a majority");
        assert_eq!((plan.survivors.len(), plan.missing.len()), (1, 2));
        let machine = world.machine(survivor);
        for wrong in ["", "yes", &confirmation(&plan).to_uppercase()] {
            let refused = quorum_loss::apply(&machine, directory(), wrong).await;
            assert!(matches!(refused, Err(RecoverError::Unconfirmed)));
        }
        let same = quorum_loss::plan(&machine, &[directory().to_owned()], &[]).await;
        assert_eq!(same.expect("nothing was changed"), plan);

        recover(&mut world, survivor).await;
        let env = world.hosts[survivor].env().clone();
        assert_eq!(env.state().role, Role::Master);
        assert_eq!(env.status().members.len(), 1);
        assert_eq!(env.status().epoch.0, 2);
        assert_eq!(
            world.has(survivor, LINEARIZABLE, "kept").await.ok(),
            Some(true)
        );
        assert_eq!(
            world.has(survivor, LINEARIZABLE, "lost").await.ok(),
            Some(false)
        );
        let written = world.put(survivor, Durability::ALL, "new").await;
        let written = written.expect("one of one is a majority");
        assert_eq!(written.vlsn, lost.vlsn, "the number is given again");
        let outcome = env.outcome_async(lost).await.expect("known");
        assert!(matches!(outcome, TokenOutcome::NotCommitted), "{outcome:?}");

        world.close(survivor).await;
        let again = quorum_loss::plan(&machine, &[directory().to_owned()], &[]).await;
        assert!(
            matches!(again, Err(RecoverError::NotNeeded { voters: 1, .. })),
            "{again:?}"
        );
        world.restart(survivor).await;
        let ready = world.hosts[survivor].env().wait_ready_async(SILENCE).await;
        ready.expect("it comes back alone");
        assert_eq!(
            world.has(survivor, LINEARIZABLE, "new").await.ok(),
            Some(true)
        );
    });
}

#[test]
fn a_majority_of_the_old_epoch_that_comes_back_ends_and_stays_out() {
    paused().block_on(async {
        let (mut world, survivor, _) = stopped_group(22).await;
        recover(&mut world, survivor).await;
        let others = [(survivor + 1) % 3, (survivor + 2) % 3];
        for at in others {
            world.restart(at).await;
        }
        for at in others {
            let mut states = world.hosts[at].env().state_changes();
            let detached = async {
                while let Some(state) = states.next_async().await
                    && state.role != Role::Detached
                {}
            };
            let ended = tokio::time::timeout(SILENCE, detached).await;
            ended.expect("it hears of the later epoch");
            let refused = world.hosts[at].env().wait_ready_async(SILENCE).await;
            let Err(ReadyError::Refused { reason }) = refused else {
                panic!("{refused:?}");
            };
            assert!(
                reason.contains("epoch 2") && reason.contains("keep it aside"),
                "{reason}"
            );
            world.close(at).await;
        }
        let refused = plan(&mut world, others[0]).await.expect_err("it goes on");
        assert!(
            matches!(refused, RecoverError::Superseded { .. }),
            "{refused:?}"
        );
        let text = refused.to_string();
        assert!(text.contains("steadfast token create"), "{text}");
        // They are a majority of the group they know, and nobody is up to stop them.
        world.close(survivor).await;
        for at in others {
            let refused = world.try_open(at).await;
            assert!(
                matches!(refused, Err(OpenError::Superseded { .. })),
                "{refused:?}"
            );
        }
    });
}

#[test]
fn nothing_is_recovered_while_a_majority_is_there_or_another_has_more() {
    paused().block_on(async {
        let mut world = World::of(5, 23).await;
        let master = world.master().await;
        let behind = (master + 1) % 5;
        let name = world.hosts[behind].name.clone();
        world.network.isolate(&name);
        world.write("more").await;
        for at in 0..5 {
            world.close(at).await;
        }
        world.network.heal(&name);
        let alone = plan(&mut world, behind).await.expect("one of five");
        let confirm = confirmation(&alone);

        world.restart(master).await;
        let two = plan(&mut world, behind).await.expect("two of five");
        let next = NextStep::Stop {
            node: world.hosts[master].name.clone(),
        };
        assert_eq!((two.next, two.may_lose), (next, true));
        let machine = world.machine(behind);
        let refused = quorum_loss::apply(&machine, directory(), &confirm).await;
        assert!(
            matches!(refused, Err(RecoverError::Behind { .. })),
            "{refused:?}"
        );

        world.restart((master + 2) % 5).await;
        let refused = quorum_loss::apply(&machine, directory(), &confirm).await;
        assert!(
            matches!(refused, Err(RecoverError::NotNeeded { there: 3, .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn half_of_an_even_group_has_everything_that_was_acknowledged() {
    paused().block_on(async {
        let mut world = World::of(4, 24).await;
        world.write("everything").await;
        for at in 0..4 {
            world.close(at).await;
        }
        world.restart(0).await;
        let plan = plan(&mut world, 1).await.expect("two of four");
        assert!(!plan.may_lose, "any three have one of these two among them");
    });
}

/// Reaches one host only.
struct OneWay {
    transport: Arc<dyn Transport>,
    address: String,
}

impl Transport for OneWay {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, NetResult<Connected>> {
        if address == self.address {
            return self.transport.connect(address);
        }
        Box::pin(async move {
            Err(NetError::Io {
                doing: format!("connect to {address}"),
                source: io::ErrorKind::HostUnreachable.into(),
            })
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, NetResult<Box<dyn Listener>>> {
        self.transport.bind(address)
    }
}

#[test]
fn nothing_is_recovered_while_a_node_hears_a_master_that_cannot_be_reached_from_here() {
    paused().block_on(async {
        let mut world = World::of(5, 25).await;
        world.write("everything").await;
        let master = world.master().await;
        let (here, witness) = ((master + 1) % 5, (master + 2) % 5);
        world.close(here).await;
        let machine = world.machine(here);
        let mut cut_off = machine.clone();
        cut_off.transport = Arc::new(OneWay {
            transport: machine.transport,
            address: format!("{}:7400", world.hosts[witness].name),
        });
        let refused = quorum_loss::plan(&cut_off, &[directory().to_owned()], &[]).await;
        let Err(RecoverError::Works { name }) = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(*name, world.hosts[witness].name);

        // Without a master it is the two of five that count.
        for at in (0..5).filter(|at| ![here, witness].contains(at)) {
            world.close(at).await;
        }
        let mut states = world.hosts[witness].env().state_changes();
        let mut state = world.hosts[witness].env().state();
        while matches!(state.role, Role::Master | Role::Replica) {
            state = states.next_async().await.expect("it stays open");
        }
        let plan = quorum_loss::plan(&cut_off, &[directory().to_owned()], &[]).await;
        assert_eq!(plan.expect("two of five").missing.len(), 3);
    });
}
