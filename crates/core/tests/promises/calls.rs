//! Calls between the applications of nodes: many at a time over one connection, once at most, and an
//! error that says whether one may have run.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use steadfast::limits::{CALL_BYTES_MAX, CALL_HANDLERS_MAX, CALLS_IN_FLIGHT_MAX, NAME_BYTES_MAX};
use steadfast::machine::Machine;
use steadfast::{
    Bootstrap, CallError, IncomingCall, RepConfig, RepConfigBuilder, Role, ServeCallsError,
    ServedCalls, TcpTransport, Transport,
};
use steadfast_net::{BoxFuture, Connected, Listener, MemoryNetwork};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::support::{Env, Group, PATIENCE, STEADY, eventually, free_address, name, put, runtime};
use crate::tls::World;

/// How long a call waits that is to have no answer.
const SHORT: Duration = Duration::from_millis(100);

fn echo(node: &Env) -> ServedCalls {
    let served = node.serve_calls("echo", |call| async move { call.request });
    served.expect("registered")
}

fn ask(node: &Env, of: &str, request: impl Into<Bytes>) -> Result<Bytes, CallError> {
    node.call(of, "echo", request, PATIENCE)
}

/// Counts the connections that one node makes.
struct Counting {
    dials: Arc<AtomicUsize>,
}

impl Transport for Counting {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, steadfast_net::Result<Connected>> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        TcpTransport.connect(address)
    }

    fn bind<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, steadfast_net::Result<Box<dyn Listener>>> {
        TcpTransport.bind(address)
    }
}

/// Three nodes on real sockets, the first of which counts the connections that it makes.
fn open_on_sockets(runtime: &Runtime, dials: &Arc<AtomicUsize>) -> Vec<Env> {
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let list = addresses.iter().enumerate();
    let list: Vec<_> = list.map(|(at, of)| format!("{}={of}", name(at))).collect();
    let open = |at: usize| {
        let config = RepConfig::builder("sockets", name(at))
            .data_dir("/data")
            .listen(&addresses[at])
            .bootstrap(Bootstrap::expect(&list).expect("a list"));
        let set = |config: RepConfigBuilder, (key, value): &(&str, u64)| config.set(*key, *value);
        let config = STEADY.iter().fold(config, set).build().expect("valid");
        let dials = Arc::clone(dials);
        let transport: Arc<dyn Transport> = match at {
            0 => Arc::new(Counting { dials }),
            _ => Arc::new(TcpTransport),
        };
        let machine = Machine::in_memory(&MemoryNetwork::new(), &name(at));
        let machine = Machine {
            transport,
            ..machine.expect("entropy")
        };
        let opened = runtime.block_on(Env::open_on(config, machine));
        opened.expect("opened")
    };
    let nodes: Vec<_> = (0..3).map(open).collect();
    for node in &nodes {
        node.wait_ready(PATIENCE).expect("ready");
    }
    nodes
}

#[test]
fn many_calls_share_a_connection_and_are_answered_as_they_are_ready() {
    let (runtime, dials) = (runtime(), Arc::<AtomicUsize>::default());
    let nodes = open_on_sockets(&runtime, &dials);
    // A call of "slow" is answered once a later one of "go" was.
    let (go, may_go) = watch::channel(false);
    let handler = move |call: IncomingCall| {
        let (go, mut may_go) = (go.clone(), may_go.clone());
        async move {
            match &call.request[..] {
                b"go" => drop(go.send_replace(true)),
                b"slow" => drop(may_go.wait_for(|go| *go).await.expect("kept")),
                _ => {}
            }
            call.request
        }
    };
    let _served = nodes[1].serve_calls("echo", handler).expect("registered");
    let before = dials.load(Ordering::SeqCst);
    runtime.block_on(async {
        let call = |request: Bytes| nodes[0].call_async("n2", "echo", request, PATIENCE);
        let slow = join_all((0..100).map(|_| call("slow".into())));
        let large = join_all((0..6).map(|n| call(vec![n; CALL_BYTES_MAX].into())));
        let fast = join_all((0_u32..400).map(|n| call(n.to_le_bytes().to_vec().into())));
        let go = async {
            let (fast, large) = tokio::join!(fast, large);
            for (n, answer) in (0_u32..).zip(fast) {
                assert_eq!(answer.expect("answered"), n.to_le_bytes()[..]);
            }
            for (n, answer) in (0_u8..).zip(large) {
                assert_eq!(answer.expect("answered"), vec![n; CALL_BYTES_MAX]);
            }
            call("go".into()).await.expect("answered");
        };
        let (slow, ()) = tokio::join!(slow, go);
        assert!(
            slow.into_iter()
                .all(|answer| answer.is_ok_and(|it| it == "slow"))
        );
    });
    // The others are those that a node makes by itself, now and then.
    let made = dials.load(Ordering::SeqCst) - before;
    assert!(made < 10, "{made} connections for 507 calls");
    for node in &nodes {
        node.close().expect("closed");
    }
}

#[test]
fn a_call_of_the_master_runs_there_once_at_most_through_failovers() {
    let mut group = Group::in_memory(3, &[]);
    // How often each request was handled, on whatever node.
    let handled = Arc::<Mutex<BTreeMap<Bytes, usize>>>::default();
    let serve = |node: &Env| {
        let (handled, of) = (Arc::clone(&handled), node.status().node.name);
        let served = node.serve_calls("count", move |call| {
            *handled
                .lock()
                .expect("no panic")
                .entry(call.request)
                .or_default() += 1;
            let of = Bytes::from(of.clone());
            async move { of }
        });
        served.expect("registered")
    };
    let mut served: Vec<_> = group.open_nodes().map(serve).collect();
    let nodes = group.shared_nodes();
    let ends = AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        let callers = (0..4).map(|caller: usize| {
            let (nodes, ends) = (&nodes, &ends);
            scope.spawn(move || {
                let mut results = Vec::new();
                for n in 0.. {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    let Some(node) = nodes.get(caller + n) else {
                        continue;
                    };
                    let request = Bytes::from(format!("{caller}/{n}"));
                    let called = node.call_master("count", request.clone(), Duration::from_secs(3));
                    results.push((request, called));
                }
                results
            })
        });
        let callers: Vec<_> = callers.collect();
        for _ in 0..6 {
            let master = group.master_except(None);
            let enough = handled.lock().expect("no panic").len() + 200;
            eventually("calls", || {
                handled.lock().expect("no panic").len() >= enough
            });
            group.crash(master);
            let again = group.master_except(Some(master));
            assert_ne!(again, master);
            group.reopen(master).expect("opened");
            served[master] = serve(group.node(master));
        }
        ends.store(true, Ordering::Relaxed);
        let answers = callers
            .into_iter()
            .flat_map(|it| it.join().expect("no panic"));
        answers.collect::<Vec<_>>()
    });
    let handled = handled.lock().expect("no panic");
    let mut masters = BTreeMap::<Bytes, usize>::new();
    for (request, called) in answered {
        let times = handled.get(&request).copied().unwrap_or_default();
        match called {
            Ok(by) => {
                assert_eq!(times, 1, "{request:?}");
                *masters.entry(by).or_default() += 1;
            }
            Err(error) if error.may_have_run() => assert!(times <= 1, "{request:?}: {error}"),
            Err(error) => assert_eq!(times, 0, "{request:?}: {error}"),
        }
    }
    assert!(masters.len() > 1, "{masters:?}");
}

#[test]
fn a_call_waits_for_a_master_and_says_so_when_there_is_none() {
    let mut group = Group::in_memory(3, &[]);
    let served: Vec<_> = group.open_nodes().map(echo).collect();
    let master = group.master_except(None);
    let (left, other) = ((master + 1) % 3, (master + 2) % 3);
    group.close(master);
    group.close(other);
    let alone = group.node(left);
    eventually("no master", || alone.state().role == Role::Unknown);
    match alone.call_master("echo", "x", SHORT) {
        Err(CallError::NoMaster { after, .. }) => assert_eq!(after, SHORT),
        called => panic!("{called:?}"),
    }
    let node = alone.clone();
    let waiting = std::thread::spawn(move || node.call_master("echo", "x", PATIENCE));
    group.reopen(other).expect("opened");
    let _served = echo(group.node(other));
    let waited = waiting.join().expect("no panic");
    // The new master may be the one that has only just registered.
    assert!(
        matches!(&waited, Ok(answer) if answer == "x")
            || matches!(waited, Err(CallError::NoSuchService { .. })),
        "{waited:?}"
    );
    drop(served);
}

#[test]
fn a_node_that_is_cut_off_is_not_called_and_answers_when_it_is_back() {
    let group = Group::in_memory(3, STEADY);
    let served: Vec<_> = group.open_nodes().map(echo).collect();
    let master = group.master_except(None);
    let (caller, called) = ((master + 1) % 3, name((master + 2) % 3));
    let caller = group.node(caller);
    assert_eq!(ask(caller, &called, "x").expect("answered"), "x");
    group.network.isolate(&called);
    let refused = caller.call(&called, "echo", "x", Duration::from_secs(2));
    let refused = refused.expect_err("it is cut off");
    assert!(matches!(refused, CallError::NotSent { .. }), "{refused}");
    assert!(refused.is_retryable() && !refused.may_have_run());
    group.network.heal(&called);
    eventually("an answer", || ask(caller, &called, "x").is_ok());
    drop(served);
}

#[test]
fn a_node_that_goes_while_it_is_asked_may_have_done_it() {
    let mut group = Group::in_memory(3, STEADY);
    let master = group.master_except(None);
    let (caller, called) = ((master + 1) % 3, (master + 2) % 3);
    let (begun, mut has_begun) = watch::channel(false);
    let handler = move |_| {
        begun.send_replace(true);
        pending::<Bytes>()
    };
    let served = group.node(called).serve_calls("never", handler);
    let (node, to) = (group.node(caller).clone(), name(called));
    let calling = std::thread::spawn(move || node.call(&to, "never", "x", PATIENCE));
    group
        .runtime
        .block_on(has_begun.wait_for(|begun| *begun))
        .expect("it begins");
    group.close(called);
    let lost = calling
        .join()
        .expect("no panic")
        .expect_err("nobody answers");
    assert!(lost.may_have_run() && !lost.is_retryable(), "{lost}");
    drop(served);
    // A node that closes tells its own callers.
    let node = group.node(caller).clone();
    group.close(caller);
    let closed = node.call_master("never", "x", PATIENCE);
    assert!(matches!(closed, Err(CallError::Closed)), "{closed:?}");
    let closed = node.serve_calls("never", |call| async move { call.request });
    assert!(matches!(closed, Err(ServeCallsError::Closed)), "{closed:?}");
}

/// Notes that it was dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_handler_that_never_answers_is_dropped_with_its_caller_and_others_are_answered() {
    let group = Group::in_memory(3, STEADY);
    let dropped = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&dropped);
    let never = move |_| {
        let held = Dropped(Arc::clone(&count));
        async move {
            let _held = held;
            pending::<Bytes>().await
        }
    };
    let _never = group
        .node(1)
        .serve_calls("never", never)
        .expect("registered");
    let _echo = echo(group.node(1));
    for (times, at) in [(1, 0), (2, 1)] {
        let called = group.node(at).call("n2", "never", "x", SHORT);
        let error = called.expect_err("it never answers");
        assert!(error.may_have_run(), "{error}");
        eventually("the end of the handler", || {
            dropped.load(Ordering::SeqCst) == times
        });
    }
    // As many as may be under way, and one more.
    let node = group.node(0);
    let full = group.runtime.block_on(async {
        let never = |_| node.call_async("n2", "never", "x", 20 * SHORT);
        let all = join_all((0..=CALLS_IN_FLIGHT_MAX).map(never)).await;
        let errors = all.into_iter().filter_map(Result::err);
        let full = errors.filter(|error| matches!(error, CallError::Full { .. }));
        full.collect::<Vec<_>>()
    });
    assert_eq!(full.len(), 1, "{full:?}");
    assert!(full[0].is_retryable());
    eventually("an answer", || ask(node, "n2", "x").is_ok());
}

#[test]
fn what_cannot_be_called_is_told() {
    let group = Group::in_memory(3, STEADY);
    let node = group.node(0);
    let _echo = echo(group.node(1));
    let too_large = node.call("n2", "echo", vec![0; CALL_BYTES_MAX + 1], PATIENCE);
    assert!(
        matches!(too_large, Err(CallError::TooLarge { actual, max }) if actual > max),
        "{too_large:?}"
    );
    let doubled =
        |call: IncomingCall| async move { [&call.request[..], &call.request].concat().into() };
    for at in [0, 1] {
        let _doubled = group
            .node(at)
            .serve_calls("doubled", doubled)
            .expect("registered");
        let half = vec![1; CALL_BYTES_MAX / 2];
        let answer = node.call(&name(at), "doubled", half.clone(), PATIENCE);
        assert_eq!(answer.expect("just fits").len(), CALL_BYTES_MAX);
        let answer = node.call(&name(at), "doubled", [&half[..], &[1]].concat(), PATIENCE);
        let error = answer.expect_err("too large");
        assert!(error.may_have_run(), "{error}");
        assert!(error.to_string().contains("exceeds the limit"), "{error}");
        let panics = |call: IncomingCall| async move {
            assert!(call.request.is_empty(), "it is not empty");
            call.request
        };
        let _panics = group
            .node(at)
            .serve_calls("panics", panics)
            .expect("registered");
        let error = node
            .call(&name(at), "panics", "x", PATIENCE)
            .expect_err("panicked");
        assert!(error.may_have_run(), "{error}");
        assert!(error.to_string().contains("it is not empty"), "{error}");
        assert_eq!(
            node.call(&name(at), "panics", "", PATIENCE)
                .expect("answered"),
            ""
        );
    }
    for at in [0, 2] {
        let unknown = node.call(&name(at), "doubled", "x", PATIENCE);
        assert!(
            matches!(unknown, Err(CallError::NoSuchService { .. })),
            "{unknown:?}"
        );
    }
    let unknown = node.call("n9", "echo", "x", PATIENCE);
    assert!(
        matches!(unknown, Err(CallError::NoSuchNode { .. })),
        "{unknown:?}"
    );
}

#[test]
fn a_name_is_taken_until_its_registration_is_dropped_and_names_are_bounded() {
    let group = Group::in_memory(1, STEADY);
    let node = group.node(0);
    let first = echo(node);
    assert_eq!(first.name(), "echo");
    let again = || node.serve_calls("echo", |call| async move { call.request });
    assert!(matches!(again(), Err(ServeCallsError::NameTaken { .. })));
    drop(first);
    assert!(matches!(
        ask(node, "n1", "x"),
        Err(CallError::NoSuchService { .. })
    ));
    let _second = again().expect("free again");
    assert_eq!(ask(node, "n1", "x").expect("answered"), "x");
    let serve = |name: &str| node.serve_calls(name, |call| async move { call.request });
    for wrong in [String::new(), "n".repeat(NAME_BYTES_MAX + 1)] {
        assert!(matches!(serve(&wrong), Err(ServeCallsError::Name { .. })));
    }
    let more = (1..CALL_HANDLERS_MAX).map(|n| serve(&format!("s{n}")).expect("registered"));
    let _more: Vec<_> = more.collect();
    assert!(matches!(
        serve("more"),
        Err(ServeCallsError::TooMany { .. })
    ));
}

#[test]
fn nodes_that_prove_who_they_are_call_each_other() {
    let world = World::new();
    let nodes = world.open_three();
    let from = |call: IncomingCall| async move { Bytes::from(call.from) };
    let served = nodes.iter().map(|node| node.serve_calls("from", from));
    let _served: Vec<_> = served.map(|served| served.expect("registered")).collect();
    let began = Instant::now();
    for (at, node) in nodes.iter().enumerate() {
        for to in 0..3 {
            let answer = node
                .call(&name(to), "from", "", PATIENCE)
                .expect("answered");
            assert_eq!(answer, name(at));
        }
        assert_eq!(
            node.call_master("from", "", PATIENCE).expect("answered"),
            name(at)
        );
    }
    assert!(began.elapsed() < PATIENCE);
    // So does what they write.
    for (at, node) in nodes.iter().enumerate() {
        let _token = put(node, name(at), "v").expect("written");
    }
}
