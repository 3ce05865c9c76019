//! Everything under way when an environment is closed or dropped ends with a clear result: on its
//! own runtime and on the application's, from any thread.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use steadfast::{
    AdminCommand, CommitToken, ConsistencyPolicy, Durability, Feed, FeedError, GroupEvents,
    ReadError, ReadOptions, ReadyError, Role, StartAt, StateChanges, WriteError,
};
use tokio::runtime::{Builder, Runtime};

use crate::support::{Env, Group, PATIENCE, eventually, in_time, put, runtime};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

/// The runtime the environment uses.
#[derive(Clone, Copy, Debug)]
enum Ground {
    Own,
    Guest,
}

/// Three nodes in this process.
struct Nodes {
    nodes: Vec<Env>,
    /// The application's runtime, and whatever else the nodes need.
    _group: Option<Group>,
}

impl Nodes {
    fn new(ground: Ground) -> Self {
        match ground {
            Ground::Own => Self {
                nodes: Env::in_memory_group(3).expect("opened"),
                _group: None,
            },
            Ground::Guest => {
                let mut group = Group::in_memory(3, &[]);
                let nodes = group.nodes.iter_mut().filter_map(Option::take).collect();
                Self {
                    nodes,
                    _group: Some(group),
                }
            }
        }
    }

    /// Takes the node with this role, without closing it.
    fn take(&mut self, role: Role) -> Env {
        let mut found = None;
        eventually("such a node", || {
            found = self.nodes.iter().position(|node| node.state().role == role);
            found.is_some()
        });
        self.nodes.remove(found.expect("just found"))
    }
}

/// The kind of caller that waits.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    /// A thread, in a blocking call.
    Thread,
    /// A task on an application runtime, in a blocking call.
    Task,
    /// A task on a single-threaded runtime, without blocking.
    Async,
}

const WAITERS: [Waiter; 3] = [Waiter::Thread, Waiter::Task, Waiter::Async];

fn one_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// An iterator of an environment.
enum Iterated {
    Feed(Box<Feed>),
    Events(Box<GroupEvents>),
    States(StateChanges),
}

impl Iterated {
    fn of(env: &Env) -> [Self; 3] {
        [
            Self::Feed(Box::new(env.subscribe(StartAt::Now).expect("a feed"))),
            Self::Events(Box::new(env.group_events())),
            Self::States(env.state_changes()),
        ]
    }

    /// Its last item. `waits` is notified once an item has come, or may have.
    fn last(self, waits: &mpsc::Sender<()>) -> String {
        // After the first notification nobody listens any more.
        let tell = || {
            waits.send(()).ok();
        };
        match self {
            Self::Feed(feed) => {
                tell();
                format!("{:?}", feed.last())
            }
            Self::Events(events) => format!("{:?}", events.inspect(|_| tell()).last()),
            Self::States(states) => format!("{:?}", states.inspect(|_| tell()).last()),
        }
    }

    async fn last_async(self, waits: &mpsc::Sender<()>) -> String {
        // After the first notification nobody listens any more.
        let tell = || {
            waits.send(()).ok();
        };
        match self {
            Self::Feed(mut feed) => {
                tell();
                let mut last = None;
                while let Some(event) = feed.next_async().await {
                    last = Some(event);
                }
                format!("{last:?}")
            }
            Self::Events(mut events) => loop {
                let event = events.next_async().await;
                tell();
                if event.is_err() {
                    break format!("{:?}", Some(event));
                }
            },
            Self::States(mut states) => {
                let mut last = None;
                while let Some(state) = states.next_async().await {
                    tell();
                    last = Some(state);
                }
                format!("{last:?}")
            }
        }
    }

    /// Waits for the end; returns as soon as it is waiting.
    fn wait(self, waiter: Waiter) -> JoinHandle<String> {
        let (waits, has_begun) = mpsc::channel();
        let waiting = std::thread::spawn(move || match waiter {
            Waiter::Thread => self.last(&waits),
            Waiter::Task => {
                let runtime = runtime();
                let task = runtime.spawn(async move { self.last(&waits) });
                runtime.block_on(task).expect("no panic")
            }
            Waiter::Async => one_thread().block_on(self.last_async(&waits)),
        });
        has_begun.recv_timeout(PATIENCE).expect("it begins");
        waiting
    }
}

fn closed_feed() -> String {
    format!("{:?}", Some(Err::<(), _>(FeedError::Closed)))
}

/// Gives everything begun a moment to reach the point where it waits.
fn let_wait() {
    std::thread::park_timeout(Duration::from_millis(50));
}

fn ends_of_iterators(ground: Ground, end: fn(Env)) {
    let mut nodes = Nodes::new(ground);
    let env = nodes.take(Role::Master);
    let mut waiting = Vec::new();
    for waiter in WAITERS {
        for iterated in Iterated::of(&env) {
            waiting.push(iterated.wait(waiter));
        }
    }
    // Also iterators that nobody is waiting on at that moment.
    let idle = Iterated::of(&env);
    let_wait();
    in_time("the end", move || end(env));
    let ended = waiting.into_iter().enumerate().map(|(n, waiting)| {
        let what = format!("{ground:?}: iterator {n}");
        (what.clone(), in_time(&what, move || waiting.join()))
    });
    let mut ended: Vec<_> = ended
        .map(|(what, joined)| match joined {
            Ok(last) => (what, last),
            Err(panic) => std::panic::resume_unwind(panic),
        })
        .collect();
    let (told, _listens) = mpsc::channel();
    for (n, iterated) in idle.into_iter().enumerate() {
        let told = told.clone();
        let what = format!("{ground:?}: idle iterator {n}");
        let last = in_time(&what, move || iterated.last(&told));
        ended.push((what, last));
    }
    for (n, (what, last)) in ended.into_iter().enumerate() {
        if n % 3 == 2 {
            assert!(last.contains("Detached"), "{what}: {last}");
        } else {
            assert_eq!(last, closed_feed(), "{what}");
        }
    }
}

fn close(env: Env) {
    env.close().expect("closed");
    drop(env);
}

fn close_from_a_task(env: Env) {
    one_thread().block_on(env.close_async()).expect("closed");
    drop(env);
}

#[test]
fn iterators_end_when_their_environment_closes() {
    for ground in [Ground::Own, Ground::Guest] {
        ends_of_iterators(ground, close);
        ends_of_iterators(ground, close_from_a_task);
    }
}

#[test]
fn iterators_end_when_the_last_handle_of_their_environment_is_dropped() {
    for ground in [Ground::Own, Ground::Guest] {
        ends_of_iterators(ground, drop);
    }
}

/// A call under way; returns its result as text.
type Call = fn(Env, CommitToken) -> String;

const LONG: Duration = Duration::from_mins(10);

fn later(token: CommitToken) -> ReadOptions {
    let unknown = CommitToken {
        vlsn: steadfast::ids::Vlsn(token.vlsn.0 + 1_000_000),
        ..token
    };
    let mut options = ReadOptions::from(ConsistencyPolicy::AtLeast(unknown));
    options.timeout = Some(LONG);
    options
}

fn linearizable() -> ReadOptions {
    let mut options = ReadOptions::from(LINEARIZABLE);
    options.timeout = Some(LONG);
    options
}

/// On a node that has lost the other members of its group.
const CALLS: [(&str, Call); 7] = [
    ("a read of what is not there yet", |env, token| {
        format!("{:?}", env.read(later(token), |_| Ok::<_, ReadError>(())))
    }),
    ("a read that no master confirms", |env, _| {
        format!("{:?}", env.read(linearizable(), |_| Ok::<_, ReadError>(())))
    }),
    ("a read within a task", |env, token| {
        let runtime = runtime();
        let read = runtime.spawn(async move { env.read(later(token), |_| Ok::<_, ReadError>(())) });
        format!("{:?}", runtime.block_on(read).expect("no panic"))
    }),
    ("a change of the group", |env, _| {
        let command = AdminCommand::Transfer {
            to: Vec::new(),
            within: LONG,
        };
        format!("{:?}", env.administer(&command))
    }),
    ("a change of the group within a task", |env, _| {
        let command = AdminCommand::Transfer {
            to: vec!["n9".to_owned()],
            within: LONG,
        };
        let changed = env.administer_async(&command);
        format!("{:?}", one_thread().block_on(changed))
    }),
    ("a write that no majority gets", |env, _| {
        let majority = Durability::MAJORITY.within(LONG);
        format!(
            "{:?}",
            env.write_with(majority, |txn| txn.database("d")?.put("k", "w"))
        )
    }),
    ("a write that all nodes should get", |env, _| {
        let all = Durability::ALL.within(LONG);
        let put = env.write_with_async(all, |txn| txn.database("d")?.put("k", "w"));
        format!("{:?}", one_thread().block_on(put))
    }),
];

/// Whether this is a clear answer to a call under way when its environment closes.
fn is_clear(answer: &str) -> bool {
    let clear = [
        "Err(Closed)",
        "Err(NotMaster",
        "Err(NotCommitted",
        "Err(OutcomeUnknown",
        "Err(InsufficientReplicas",
        "Err(InsufficientAcks",
        "Err(Refused",
        "Err(Uncertain",
        "Err(NoAnswer { why: \"the environment is closed\"",
    ];
    clear.iter().any(|begins| answer.starts_with(begins))
}

fn ends_of_calls(ground: Ground, role: Role) {
    let mut nodes = Nodes::new(ground);
    let master = nodes.take(Role::Master);
    let token = put(&master, "k", "v").expect("committed");
    nodes.nodes.push(master);
    let env = nodes.take(role);
    let others: Vec<_> = nodes.nodes.drain(..).collect();
    in_time("the others close", move || {
        others.into_iter().for_each(close);
    });
    let calls = CALLS.map(|(what, call)| {
        let env = env.clone();
        (what, std::thread::spawn(move || call(env, token)))
    });
    let_wait();
    in_time("the close", move || close(env));
    for (what, call) in calls {
        let what = format!("{ground:?}, {role:?}: {what}");
        let answer = in_time(&what, move || call.join()).expect("no panic");
        assert!(is_clear(&answer), "{what}: {answer}");
    }
}

#[test]
fn calls_that_wait_for_other_nodes_end_when_their_environment_closes() {
    for ground in [Ground::Own, Ground::Guest] {
        for role in [Role::Master, Role::Replica] {
            ends_of_calls(ground, role);
        }
    }
}

#[test]
fn functions_that_run_while_their_environment_closes_see_it_and_their_calls_end() {
    for ground in [Ground::Own, Ground::Guest] {
        let mut nodes = Nodes::new(ground);
        let env = nodes.take(Role::Master);
        let filled = env.write(|txn| {
            let database = txn.database("d")?;
            (0..10_000_u32).try_for_each(|n| database.put(n.to_be_bytes(), [0; 100]))
        });
        let _token = filled.expect("committed");
        in_time("the functions", move || {
            let written = env.write(|txn| {
                let mut rows = txn.database("d")?.iter();
                rows.next().expect("a row")?;
                close(env.clone());
                // Either the rest of what was fetched and then the end, or everything, from memory.
                rows.try_for_each(|row| row.map(drop))?;
                txn.database("d")?.put("k", "v")
            });
            assert!(
                matches!(
                    written,
                    Err(WriteError::Closed | WriteError::NotMaster { .. })
                ),
                "{written:?}"
            );
            let read = env.read(LINEARIZABLE, |_| Ok::<_, ReadError>(()));
            assert!(matches!(read, Err(ReadError::Closed)), "{read:?}");
            let ready = env.wait_ready(LONG);
            assert!(matches!(ready, Err(ReadyError::Closed)), "{ready:?}");
            let begun = env.begin_transaction().map(drop);
            assert!(matches!(begun, Err(WriteError::Closed)), "{begun:?}");
            let feed = env.subscribe(StartAt::Now).map(drop);
            assert!(matches!(feed, Err(FeedError::Closed)), "{feed:?}");
            let changed = env.administer(&AdminCommand::Remove {
                node: "n2".to_owned(),
                force: false,
            });
            assert!(is_clear(&format!("{changed:?}")), "{changed:?}");
        });
    }
}
