//! The blocking API over real sockets: what its callers see of services, limits and stopping.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: threads, bare sockets"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use steadfast_net::{
    Channel, DispatcherOptions, LocalChannelPair, NetError, Result, ServiceDispatcher,
    ServiceHandler, TcpChannel, TcpChannelListener, TcpServiceDispatcher, connect_to_service,
};
use tokio::time::Instant;

/// Longer than any successful wait in these tests.
const LONG: Duration = Duration::from_secs(20);

/// A blocking service made of a function.
struct Service<F>(&'static str, F);

impl<F> ServiceHandler for Service<F>
where
    F: Fn(Box<dyn Channel>) -> Result<()> + Send + Sync,
{
    fn handle(&self, channel: Box<dyn Channel>) -> Result<()> {
        (self.1)(channel)
    }

    fn service_name(&self) -> &str {
        self.0
    }
}

fn echo() -> Arc<dyn ServiceHandler> {
    Arc::new(Service("ECHO", |channel: Box<dyn Channel>| {
        loop {
            if let Some(message) = channel.receive(LONG)? {
                channel.send(&message)?;
            }
        }
    }))
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn echo_server(options: DispatcherOptions) -> (TcpServiceDispatcher, SocketAddr) {
    let dispatcher = TcpServiceDispatcher::with_options(any_port(), options).unwrap();
    dispatcher.register("ECHO", echo());
    let address = dispatcher.start().unwrap();
    (dispatcher, address)
}

fn echoes(channel: &dyn Channel) -> bool {
    match channel.send(b"ping").and_then(|()| channel.receive(LONG)) {
        Ok(answer) => answer.as_deref() == Some(b"ping"),
        Err(_) => false,
    }
}

#[test]
fn a_client_reaches_the_service_that_it_names() {
    let (dispatcher, address) = echo_server(DispatcherOptions::default());
    assert!(dispatcher.is_running());
    assert_eq!(dispatcher.addr(), address);
    assert!(echoes(&connect_to_service(address, "ECHO").unwrap()));
    assert!(!echoes(&connect_to_service(address, "NONE").unwrap()));
}

#[test]
fn a_client_that_is_not_ours_is_understood_byte_by_byte() {
    let (_dispatcher, address) = echo_server(DispatcherOptions::default());
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"\x04\0\0\0ECHO\x03\0\0\0abc").unwrap();
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\x03\0\0\0abc");
}

#[test]
fn a_client_sends_its_service_open_before_anything_else() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let channel = connect_to_service(listener.local_addr().unwrap(), "ECHO").unwrap();
    let mut server = listener.accept().unwrap().0;
    channel.send(b"abc").unwrap();
    drop(channel);
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"\x04\0\0\0ECHO\x03\0\0\0abc");
}

#[test]
fn names_that_fit_into_no_service_open_are_refused() {
    let address = any_port();
    for name in [String::new(), "N".repeat(257)] {
        let asked = connect_to_service(address, &name);
        assert!(
            matches!(asked, Err(NetError::Configuration { .. })),
            "{asked:?}"
        );
        let dispatcher = TcpServiceDispatcher::new(address).unwrap();
        dispatcher.register(name, echo());
        let started = dispatcher.start();
        assert!(
            matches!(started, Err(NetError::Configuration { .. })),
            "{started:?}"
        );
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_of_start() {
    let taken = TcpListener::bind(any_port()).unwrap();
    let dispatcher = TcpServiceDispatcher::new(taken.local_addr().unwrap()).unwrap();
    let failed = dispatcher.start();
    assert!(matches!(failed, Err(NetError::Io { .. })), "{failed:?}");
    assert!(!dispatcher.is_running());
    drop(taken);
    dispatcher.start().unwrap();
}

#[test]
fn starting_twice_is_an_error_and_leaves_the_first_start_alone() {
    let (dispatcher, address) = echo_server(DispatcherOptions::default());
    assert!(matches!(
        dispatcher.start(),
        Err(NetError::Configuration { .. })
    ));
    assert!(echoes(&connect_to_service(address, "ECHO").unwrap()));
}

#[test]
fn stop_wakes_handlers_closes_channels_and_frees_the_port() {
    let dispatcher = TcpServiceDispatcher::new(any_port()).unwrap();
    let (inside, returned) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&inside), Arc::clone(&returned));
    dispatcher.register(
        "WAIT",
        Arc::new(Service("WAIT", move |channel: Box<dyn Channel>| {
            counts.0.fetch_add(1, Ordering::SeqCst);
            let ended = channel.receive(Duration::MAX);
            counts.1.fetch_add(1, Ordering::SeqCst);
            ended.map(|_| ())
        })),
    );
    let address = dispatcher.start().unwrap();
    let clients = [(); 3].map(|()| connect_to_service(address, "WAIT").unwrap());
    wait_until("the handlers run", || {
        inside.load(Ordering::SeqCst) == clients.len()
    });

    let began = Instant::now();
    dispatcher.stop();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "took {:?}",
        began.elapsed()
    );
    assert_eq!(returned.load(Ordering::SeqCst), clients.len());
    assert!(!dispatcher.is_running());
    drop(TcpListener::bind(address).unwrap());
    for client in clients {
        assert!(matches!(client.receive(LONG), Err(NetError::ChannelClosed)));
    }
    assert!(connect_to_service(address, "WAIT").is_err());
}

#[test]
fn stop_closes_the_channel_of_a_stuck_handler_and_leaves_the_handler_behind() {
    let stop_timeout = Duration::from_millis(200);
    let options = DispatcherOptions {
        stop_timeout,
        ..DispatcherOptions::default()
    };
    let dispatcher = TcpServiceDispatcher::with_options(any_port(), options).unwrap();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    dispatcher.register(
        "STUCK",
        Arc::new(Service("STUCK", move |channel: Box<dyn Channel>| {
            channel.send(b"stuck")?;
            // Ends with an error when the test drops the other end.
            assert!(released.lock().unwrap().recv().is_err());
            Ok(())
        })),
    );
    let address = dispatcher.start().unwrap();
    let client = connect_to_service(address, "STUCK").unwrap();
    assert_eq!(
        client.receive(LONG).unwrap().as_deref(),
        Some(&b"stuck"[..])
    );
    let began = Instant::now();
    dispatcher.stop();
    assert!(began.elapsed() >= stop_timeout);
    assert!(matches!(client.receive(LONG), Err(NetError::ChannelClosed)));
    drop(TcpListener::bind(address).unwrap());
    drop(release);
}

#[test]
fn a_stopped_dispatcher_starts_again_on_the_same_port() {
    let (first, address) = echo_server(DispatcherOptions::default());
    first.stop();
    first.stop();
    let dispatcher = TcpServiceDispatcher::new(address).unwrap();
    dispatcher.register("ECHO", echo());
    for _ in 0..3 {
        assert_eq!(dispatcher.start().unwrap(), address);
        let client = connect_to_service(address, "ECHO").unwrap();
        assert!(echoes(&client));
        dispatcher.stop();
        assert!(!echoes(&client));
    }
}

#[test]
fn the_dispatcher_starts_and_stops_inside_an_async_context() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (dispatcher, address) = echo_server(DispatcherOptions::default());
        let client = connect_to_service(address, "ECHO").unwrap();
        assert!(echoes(&client));
        dispatcher.stop();
        assert!(!echoes(&client));
    });
}

#[test]
fn a_handler_that_panics_or_fails_harms_nobody_else() {
    let (dispatcher, address) = echo_server(DispatcherOptions::default());
    dispatcher.register(
        "PANIC",
        Arc::new(Service("PANIC", |_| panic!("on purpose"))),
    );
    dispatcher.register(
        "FAIL",
        Arc::new(Service("FAIL", |_| {
            Err(NetError::Configuration {
                reason: "on purpose".into(),
            })
        })),
    );
    let bystander = connect_to_service(address, "ECHO").unwrap();
    assert!(echoes(&bystander));
    for name in ["PANIC", "FAIL"] {
        let client = connect_to_service(address, name).unwrap();
        assert!(matches!(client.receive(LONG), Err(NetError::ChannelClosed)));
    }
    assert!(echoes(&bystander));
    assert!(echoes(&connect_to_service(address, "ECHO").unwrap()));
}

#[test]
fn blocking_handlers_run_on_a_bounded_number_of_threads() {
    let handshake_timeout = Duration::from_millis(300);
    let options = DispatcherOptions {
        handlers_blocking_max: 2,
        handshake_timeout,
        ..DispatcherOptions::default()
    };
    let (_dispatcher, address) = echo_server(options);
    let first = connect_to_service(address, "ECHO").unwrap();
    let second = connect_to_service(address, "ECHO").unwrap();
    assert!(echoes(&first) && echoes(&second));

    let refused = connect_to_service(address, "ECHO").unwrap();
    let began = Instant::now();
    assert!(!echoes(&refused));
    assert!(
        began.elapsed() >= handshake_timeout / 2,
        "took {:?}",
        began.elapsed()
    );

    let waiting = connect_to_service(address, "ECHO").unwrap();
    drop(first);
    assert!(echoes(&waiting) && echoes(&second));
}

#[test]
fn connections_over_the_limit_are_closed() {
    let options = DispatcherOptions {
        connections_per_address_max: 2,
        ..DispatcherOptions::default()
    };
    let (_dispatcher, address) = echo_server(options);
    let held = [(); 2].map(|()| connect_to_service(address, "ECHO").unwrap());
    assert!(held.iter().all(|client| echoes(client)));
    assert!(!connect_to_service(address, "ECHO").is_ok_and(|client| echoes(&client)));
    drop(held);
    wait_until("a place is free", || {
        connect_to_service(address, "ECHO").is_ok_and(|client| echoes(&client))
    });
}

#[test]
fn host_names_are_resolved_and_every_address_is_tried() {
    for literal in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpChannelListener::bind(literal.parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        for host in ["localhost", &address.ip().to_string()] {
            if host == "localhost" && address.is_ipv6() && !localhost_has_ipv6() {
                continue;
            }
            let dialled = TcpChannel::connect_host(host, address.port()).unwrap();
            let accepted = listener.accept().unwrap();
            dialled.send(b"hello").unwrap();
            assert_eq!(
                accepted.receive(LONG).unwrap().as_deref(),
                Some(&b"hello"[..])
            );
        }
    }
    let failed = TcpChannel::connect_host("no-such-host.invalid", 1);
    assert!(matches!(failed, Err(NetError::Io { .. })), "{failed:?}");
}

#[test]
fn a_socket_sends_at_once_and_notices_a_dead_peer() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let observed = socket.try_clone().unwrap();
    let _channel = TcpChannel::new(socket);
    assert!(observed.nodelay().unwrap());
    assert!(SockRef::from(&observed).keepalive().unwrap());
}

#[test]
fn a_registry_in_memory_dispatches_by_name() {
    let registry = ServiceDispatcher::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for (name, mark) in [("B", 1), ("A", 2), ("B", 3)] {
        let seen = Arc::clone(&seen);
        registry.register(Arc::new(Service(name, move |_| {
            seen.lock().unwrap().push(mark);
            Ok(())
        })));
    }
    assert_eq!(registry.list_services(), ["A", "B"]);
    let channel = || Box::new(LocalChannelPair::new().channel_a);
    registry.dispatch("B", channel()).unwrap();
    registry.dispatch("A", channel()).unwrap();
    assert_eq!(*seen.lock().unwrap(), [3, 2]);
    assert!(
        registry
            .unregister("B")
            .is_some_and(|handler| handler.service_name() == "B")
    );
    assert!(registry.get_handler("B").is_none());
    let unknown = registry.dispatch("B", channel());
    assert!(
        matches!(unknown, Err(NetError::ServiceNotFound { .. })),
        "{unknown:?}"
    );
}

fn localhost_has_ipv6() -> bool {
    use std::net::ToSocketAddrs;
    ("localhost", 1)
        .to_socket_addrs()
        .unwrap()
        .any(|address| address.is_ipv6())
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        thread::yield_now();
    }
}
