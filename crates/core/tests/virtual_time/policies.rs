//! Consistency policies, tokens and their outcomes, and events.

use std::time::Duration;

use futures_util::StreamExt;
use steadfast::ids::{GroupUuid, Term, Vlsn};
use steadfast::{CommitToken, ConsistencyPolicy, Durability, ReadError, Role, TokenOutcome};

use crate::paused;
use crate::world::World;

const IMPATIENT: Duration = Duration::from_millis(300);
const LAG: Duration = Duration::from_secs(1);

#[test]
fn a_read_at_least_at_a_token_waits_until_its_node_has_it() {
    paused().block_on(async {
        let world = World::new(41).await;
        let master = world.master().await;
        let replica = (master + 1) % 3;
        let first = world
            .put(master, Durability::ALL, "first")
            .await
            .expect("acknowledged");
        let at = |token| ConsistencyPolicy::AtLeast(token);
        assert!(world.has(replica, at(first), "first").await.expect("read"));
        world.network.isolate(&world.hosts[replica].name);
        let second = world
            .put(master, Durability::MAJORITY, "second")
            .await
            .expect("committed");
        match world
            .has(replica, at(second).within(IMPATIENT), "second")
            .await
        {
            Err(ReadError::Behind { token, vlsn }) => {
                assert_eq!((token, vlsn), (second, first.vlsn));
            }
            other => panic!("{other:?}"),
        }
        // What it has, it shows, isolated or not.
        assert!(world.has(replica, at(first), "first").await.expect("read"));
        let (patient, heal) = tokio::join!(world.has(replica, at(second), "second"), async {
            world.network.heal(&world.hosts[replica].name);
        });
        assert!(patient.expect("read"));
        let () = heal;
        let foreign = CommitToken {
            group: GroupUuid(uuid::Uuid::from_u128(1)),
            ..first
        };
        for read in [
            world.has(replica, at(foreign), "first").await.map(|_| ()),
            world.hosts[replica]
                .env()
                .outcome_async(foreign)
                .await
                .map(|_| ()),
        ] {
            assert!(
                matches!(read, Err(ReadError::ForeignToken { .. })),
                "{read:?}"
            );
        }
    });
}

#[test]
fn a_replica_that_is_cut_off_exceeds_the_lag_and_one_in_an_idle_group_does_not() {
    paused().block_on(async {
        let world = World::new(42).await;
        let master = world.master().await;
        let replica = (master + 1) % 3;
        let _token = world
            .put(master, Durability::ALL, "key")
            .await
            .expect("acknowledged");
        let lag = ConsistencyPolicy::MaxLag(LAG).within(IMPATIENT);
        tokio::time::sleep(Duration::from_mins(1)).await;
        for at in 0..3 {
            assert!(
                world
                    .has(at, lag, "key")
                    .await
                    .expect("nothing has happened")
            );
        }
        world.network.isolate(&world.hosts[replica].name);
        let _token = world
            .put(master, Durability::MAJORITY, "new")
            .await
            .expect("committed");
        // What was true a moment ago is fresh enough.
        assert!(
            !world
                .has(replica, lag, "new")
                .await
                .expect("within the lag")
        );
        tokio::time::sleep(LAG * 3).await;
        match world.has(replica, lag, "new").await {
            Err(ReadError::Lagging {
                max: LAG,
                lag: Some(lag),
                ..
            }) => {
                assert!(lag >= LAG * 3 && lag < LAG * 5, "{lag:?}");
            }
            other => panic!("{other:?}"),
        }
        let loose = ConsistencyPolicy::MaxLag(Duration::from_mins(1));
        assert!(
            world
                .has(replica, loose, "key")
                .await
                .expect("within the lag")
        );
        world.network.heal(&world.hosts[replica].name);
        let lag = ConsistencyPolicy::MaxLag(LAG);
        assert!(world.has(replica, lag, "new").await.expect("it is back"));
    });
}

#[test]
fn a_replica_that_was_stopped_wakes_without_a_stale_answer() {
    paused().block_on(async {
        let world = World::new(43).await;
        let master = world.master().await;
        let replica = (master + 1) % 3;
        let lag = ConsistencyPolicy::MaxLag(LAG);
        let old = world
            .put(master, Durability::ALL, "old")
            .await
            .expect("acknowledged");
        assert!(world.has(replica, lag, "old").await.expect("read"));
        for policy in [
            |_| ConsistencyPolicy::Linearizable,
            ConsistencyPolicy::AtLeast,
            |_| ConsistencyPolicy::MaxLag(LAG),
        ] {
            world.hosts[replica].process.pause();
            let key = format!("new {:?}", policy(old));
            let new = world
                .put(master, Durability::MAJORITY, &key)
                .await
                .expect("committed");
            tokio::time::sleep(LAG * 2).await;
            world.hosts[replica].process.resume();
            let read = world.has(replica, policy(new), &key).await;
            assert!(read.expect("it catches up"), "{key}");
        }
    });
}

#[test]
fn the_outcome_of_every_token_is_found_through_crashes_and_restarts() {
    paused().block_on(async {
        let mut world = World::new(44).await;
        for round in 0..4 {
            for n in 0..5 {
                world.write(&format!("{round}-{n}")).await;
            }
            world.crash_master(round).await;
        }
        world.write("last").await;
        let tokens: Vec<_> = world.acknowledged.iter().map(|(_, token)| *token).collect();
        let terms = tokens.iter().map(|token| token.term).max();
        assert!(
            terms > tokens.first().map(|token| token.term),
            "one term only"
        );
        let last = *tokens.last().expect("some");
        for at in 0..3 {
            // The engine holds everything, so nothing is replayed: only the log knows the terms.
            world.hosts[at].env().close_async().await.expect("closed");
            world.restart(at).await;
            let env = world.hosts[at].env().clone();
            for token in &tokens {
                let outcome = |term: u64, vlsn: u64| {
                    env.outcome_async(CommitToken {
                        term: Term(term),
                        vlsn: Vlsn(vlsn),
                        ..*token
                    })
                };
                let (term, vlsn) = (token.term.0, token.vlsn.0);
                let found = [
                    outcome(term, vlsn).await.expect("known"),
                    outcome(term - 1, vlsn).await.expect("known"),
                    outcome(term + 1, vlsn).await.expect("known"),
                ];
                let not = TokenOutcome::NotCommitted;
                assert_eq!(found, [TokenOutcome::Committed, not, not], "{token}");
            }
            world.master().await;
            let next = CommitToken {
                vlsn: last.vlsn.next(),
                ..last
            };
            let past = CommitToken {
                term: Term(0),
                ..next
            };
            let outcome = env.outcome_async(past).await;
            assert_eq!(outcome.expect("known"), TokenOutcome::NotCommitted);
        }
    });
}

#[test]
fn the_outcome_of_a_write_under_way_is_not_guessed() {
    paused().block_on(async {
        let world = World::new(45).await;
        let master = world.master().await;
        let first = world
            .put(master, Durability::ALL, "first")
            .await
            .expect("acknowledged");
        let next = CommitToken {
            vlsn: first.vlsn.next(),
            ..first
        };
        for at in 0..3 {
            let outcome = world.hosts[at].env().outcome_async(next).await;
            assert_eq!(outcome.expect("asked"), TokenOutcome::StillUnknown);
        }
        let second = world
            .put(master, Durability::MAJORITY, "second")
            .await
            .expect("committed");
        assert_eq!(second, next);
        for at in 0..3 {
            let outcome = world.hosts[at].env().outcome_async(next).await;
            assert_eq!(outcome.expect("asked"), TokenOutcome::Committed);
        }
    });
}

#[test]
fn the_newest_state_is_in_the_stream_however_late_it_is_read() {
    paused().block_on(async {
        let mut world = World::new(46).await;
        world.write("before").await;
        let old = world.master().await;
        let watched = (old + 1) % 3;
        let mut states = Box::pin(world.hosts[watched].env().state_changes().into_stream());
        let before = states.next().await.expect("a state");
        // Nobody reads while the group fails over and back; nothing waits for the reader.
        for _ in 0..3 {
            let master = world.master().await;
            world.kill(master).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            world.restart(master).await;
            world.write("between").await;
            if master == watched {
                break;
            }
        }
        let last = loop {
            let state = states.next().await.expect("a state");
            if matches!(state.role, Role::Master | Role::Detached) {
                break state;
            }
            let now = world.hosts[watched].env().state();
            if state == now {
                break state;
            }
        };
        assert!(last.term > before.term, "{last:?}");
    });
}
