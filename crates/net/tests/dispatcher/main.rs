//! The dispatcher on an in-memory network under paused time: limits, deadlines, handlers, stopping.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod counters;
mod server;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use steadfast_net::{ByteStream, DispatcherOptions, MAX_SERVICE_NAME_LEN, NetError, open_service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::counters::Counters;
use crate::server::{
    ACCEPT_ERRORS, ADDRESS, Failing, ForPeers, MembersOnly, Scarce, Server, echo, echo_service,
};

#[test]
fn a_connection_goes_to_the_service_that_it_names() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        server.register("SILENT", |_| async { pending().await });
        server.register("HELLO", |connection| async {
            let (mut sender, _receiver) = connection.split();
            sender.send(Bytes::from_static(b"hello")).await
        });
        assert!(server.open("n1", "ECHO").await.echoes().await);
        let mut hello = server.open("n1", "HELLO").await;
        assert_eq!(
            hello.receiver.receive().await.unwrap().as_deref(),
            Some(&b"hello"[..])
        );
        assert_eq!(hello.receiver.receive().await.unwrap(), None);
    });
}

#[test]
fn a_handshake_that_is_not_complete_in_time_is_closed() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let began = Instant::now();
        let silent = server.dial("n1").await;
        let (mut reader, mut writer) = tokio::io::split(server.dial("n2").await);
        let trickling = async {
            for byte in b"\x08\0\0\0LONGNAME" {
                writer.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = trickling => panic!("progress must not postpone the deadline"),
            read = reader.read_u8() => assert!(read.is_err()),
        }
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert_closed_without_reply(silent).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert_eq!(server.refused("handshake_timeout"), 2);
    });
}

#[test]
fn a_name_that_no_service_can_have_is_refused_without_reply_and_counted() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let too_long = u32::try_from(MAX_SERVICE_NAME_LEN + 1)
            .unwrap()
            .to_le_bytes();
        let cases: [(&[u8], &str); 5] = [
            (&[0, 0, 0, 0], "name_length"),
            (&too_long, "name_length"),
            (&[0xff, 0xff, 0xff, 0xff], "name_length"),
            (&[2, 0, 0, 0, 0xc3, 0x28], "name_not_utf8"),
            (&[4, 0, 0, 0, b'N', b'O', b'N', b'E'], "service_unknown"),
        ];
        let mut expected = BTreeMap::new();
        for (bytes, reason) in cases {
            let began = Instant::now();
            let mut stream = server.dial("n1").await;
            stream.write_all(bytes).await.unwrap();
            assert_closed_without_reply(stream).await;
            // At once: it does not wait for what the peer claims to send.
            assert_eq!(began.elapsed(), Duration::ZERO, "{bytes:?}");
            *expected.entry(reason).or_default() += 1;
            assert_eq!(server.refused(reason), expected[reason], "{bytes:?}");
        }
        assert!(server.open("n1", "ECHO").await.echoes().await);
    });
}

#[test]
fn a_name_of_the_greatest_length_is_served() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let name = "N".repeat(MAX_SERVICE_NAME_LEN);
        server.register(&name, echo);
        assert!(server.open("n1", &name).await.echoes().await);
    });
}

#[test]
fn connections_over_the_limit_are_refused_and_places_come_free_again() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            connections_max: 2,
            connections_reserved: 0,
            ..limits()
        };
        let server = Server::started(options, counters).await;
        let mut first = server.open("n1", "ECHO").await;
        let mut second = server.open("n2", "ECHO").await;
        assert!(first.echoes().await && second.echoes().await);
        assert!(!server.open("n3", "ECHO").await.echoes().await);
        assert_eq!(server.refused("connections_max"), 1);
        assert!(first.echoes().await && second.echoes().await);
        drop(first);
        let mut third = server.open_until_served("n3").await;
        assert!(third.echoes().await && second.echoes().await);
    });
}

#[test]
fn the_oldest_half_open_connection_gives_way_when_all_places_are_taken() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            connections_max: 3,
            connections_reserved: 0,
            ..limits()
        };
        let server = Server::started(options, counters).await;
        let mut served = server.open("n1", "ECHO").await;
        assert!(served.echoes().await);
        let oldest = server.dial("n2").await;
        let _younger = server.dial("n2").await;
        let mut other = server.open("n3", "ECHO").await;
        assert!(other.echoes().await);
        assert_closed_without_reply(oldest).await;
        assert_eq!(server.refused("handshake_evicted"), 1);
        assert!(served.echoes().await);
    });
}

#[test]
fn one_address_has_only_so_many_places() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            connections_per_address_max: 2,
            ..limits()
        };
        let server = Server::started(options, counters).await;
        let mut first = server.open("n1", "ECHO").await;
        let mut second = server.open("n1", "ECHO").await;
        assert!(first.echoes().await && second.echoes().await);
        assert!(!server.open("n1", "ECHO").await.echoes().await);
        assert_eq!(server.refused("connections_per_address_max"), 1);
        assert!(server.open("n2", "ECHO").await.echoes().await);
        drop(first);
        assert!(server.open_until_served("n1").await.echoes().await);
    });
}

#[test]
fn a_peer_gets_in_beside_silent_and_idle_connections_of_its_own_address() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            connections_per_address_max: 8,
            ..limits()
        };
        let server = Server::started(options, counters).await;
        server.dispatcher.register_async(Arc::new(ForPeers));
        let mut idle = Vec::new();
        for _ in 0..7 {
            let mut client = server.open("n1", "ECHO").await;
            assert!(client.echoes().await);
            idle.push(client);
        }
        assert!(!server.open("n1", "ECHO").await.echoes().await);
        let silent = server.dial("n1").await;
        // Peers do not count against their address's limit.
        let mut peers = Vec::new();
        for _ in 0..4 {
            let mut peer = server.open("n1", "PEERS").await;
            assert!(peer.echoes().await);
            peers.push(peer);
        }
        assert_closed_without_reply(silent).await;
        assert!(idle[0].echoes().await && peers[0].echoes().await);
    });
}

#[test]
fn the_descriptors_that_the_process_keeps_go_to_peers_and_the_last_of_them_to_nobody() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            descriptors_kept: 1000,
            ..limits()
        };
        let server = Server::new(options, counters);
        server.dispatcher.register_async(echo_service());
        server.dispatcher.register_async(Arc::new(ForPeers));
        let scarce = Scarce::new(server.network.host("server"));
        let started = server
            .dispatcher
            .start(Arc::clone(&scarce) as _, ADDRESS)
            .await;
        started.unwrap();
        // Half of a hundred are kept free.
        scarce.leave(49);
        let mut served = server.open("n1", "ECHO").await;
        assert!(served.echoes().await);
        let oldest = server.dial("n2").await;
        let mut younger = Vec::new();
        for _ in 0..6 {
            younger.push(server.dial("n2").await);
        }
        scarce.leave(37);
        assert!(!server.open("n4", "ECHO").await.echoes().await);
        assert!(server.open("n3", "PEERS").await.echoes().await);
        assert_closed_without_reply(oldest).await;
        scarce.leave(11);
        assert!(!server.open("n3", "PEERS").await.echoes().await);
        assert_eq!(server.refused("descriptors_kept"), 2);
        scarce.leave(49);
        assert!(server.open("n2", "ECHO").await.echoes().await);
        assert!(served.echoes().await);
    });
}

#[test]
fn places_are_reserved_for_peers_that_authenticate() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            connections_max: 4,
            connections_reserved: 2,
            connections_per_address_max: 2,
            ..limits()
        };
        let server = Server::new(options, counters);
        server.register("WHO", |connection| async move {
            let identity = connection.identity().unwrap_or("nobody").to_owned();
            let (mut sender, mut receiver) = connection.split();
            sender.send(identity.into()).await?;
            receiver.receive().await.map(|_| ())
        });
        let transport = MembersOnly(server.network.host("server"));
        server
            .dispatcher
            .start(Arc::new(transport), ADDRESS)
            .await
            .unwrap();
        let mut held = Vec::new();
        for (from, expected) in [
            ("stranger-1", Some("nobody")),
            ("stranger-2", Some("nobody")),
            ("stranger-3", None),
            ("member-1", Some("member-1")),
            ("stranger-4", None),
            ("member-1", Some("member-1")),
        ] {
            let mut client = server.open(from, "WHO").await;
            let answer = client.receiver.receive().await.ok().flatten();
            assert_eq!(answer.as_deref(), expected.map(str::as_bytes), "{from}");
            held.push(client);
        }
        assert_eq!(server.refused("connections_reserved"), 2);
    });
}

#[test]
fn more_reserved_places_than_places_are_an_error_of_start() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            connections_max: 10,
            connections_reserved: 11,
            ..limits()
        };
        let server = Server::new(options, counters);
        let failed = server
            .dispatcher
            .start(server.network.host("server"), ADDRESS)
            .await;
        assert!(
            matches!(failed, Err(NetError::Configuration { .. })),
            "{failed:?}"
        );
    });
}

#[test]
fn a_client_that_does_not_authenticate_is_refused() {
    on_paused_time(async |counters| {
        let server = Server::new(DispatcherOptions::default(), counters);
        server.dispatcher.register_async(echo_service());
        let transport = MembersOnly(server.network.host("server"));
        server
            .dispatcher
            .start(Arc::new(transport), ADDRESS)
            .await
            .unwrap();
        assert!(!server.open("impostor", "ECHO").await.echoes().await);
        assert_eq!(server.refused("handshake_failed"), 1);
    });
}

#[test]
fn accepting_survives_any_number_of_errors() {
    on_paused_time(async |counters| {
        let server = Server::new(DispatcherOptions::default(), counters);
        server.dispatcher.register_async(echo_service());
        let transport = Failing(server.network.host("server"));
        server
            .dispatcher
            .start(Arc::new(transport), ADDRESS)
            .await
            .unwrap();
        assert!(server.open("n1", "ECHO").await.echoes().await);
        assert_eq!(
            server.counters.value("steadfast_accept_errors_total"),
            ACCEPT_ERRORS
        );
    });
}

#[test]
fn a_handler_that_panics_or_fails_harms_nobody_else() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        server.register("PANIC", |_| async { panic!("on purpose") });
        server.register("FAIL", |_| async {
            Err(NetError::Configuration {
                reason: "on purpose".into(),
            })
        });
        let mut bystander = server.open("n1", "ECHO").await;
        assert!(bystander.echoes().await);
        assert!(!server.open("n1", "PANIC").await.echoes().await);
        assert!(!server.open("n1", "FAIL").await.echoes().await);
        assert!(bystander.echoes().await);
        assert!(server.open("n1", "ECHO").await.echoes().await);
        assert_eq!(
            server
                .counters
                .value("steadfast_handler_panics_total{PANIC}"),
            1
        );
        assert_eq!(
            server
                .counters
                .value("steadfast_handler_failures_total{FAIL}"),
            1
        );
    });
}

#[test]
fn a_frame_over_the_limit_is_counted_and_ends_its_connection() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let mut stream = server.dial("n1").await;
        stream
            .write_all(b"\x04\0\0\0ECHO\xff\xff\xff\xff")
            .await
            .unwrap();
        assert_closed_without_reply(stream).await;
        assert_eq!(server.counters.value("steadfast_frames_rejected_total"), 1);
    });
}

#[test]
fn stop_closes_connections_joins_handlers_and_frees_the_address() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let returned = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&returned);
        server.register("SLOW", move |connection| {
            let flag = Arc::clone(&flag);
            async move {
                let (_sender, mut receiver) = connection.split();
                let received = receiver.receive().await;
                assert!(
                    matches!(received, Err(NetError::ChannelClosed)),
                    "{received:?}"
                );
                // A handler may need time to clean up.
                tokio::time::sleep(Duration::from_secs(3)).await;
                flag.store(true, Ordering::SeqCst);
                Ok(())
            }
        });
        let mut slow = server.open("n1", "SLOW").await;
        let mut echo = server.open("n1", "ECHO").await;
        assert!(echo.echoes().await);
        let half_open = server.dial("n1").await;
        tokio::task::yield_now().await;

        server.dispatcher.stop().await;
        assert!(returned.load(Ordering::SeqCst));
        assert!(!server.dispatcher.is_running());
        assert!(!echo.echoes().await);
        assert!(slow.receiver.receive().await.unwrap().is_none());
        assert_closed_without_reply(half_open).await;
        drop(server.network.host("server").bind(ADDRESS).await.unwrap());
        server.dispatcher.stop().await;

        server.start().await;
        assert!(server.dispatcher.is_running());
        assert!(server.open("n1", "ECHO").await.echoes().await);
    });
}

#[test]
fn stop_waits_for_a_stuck_handler_up_to_its_deadline() {
    on_paused_time(async |counters| {
        let options = DispatcherOptions {
            stop_timeout: Duration::from_secs(7),
            ..limits()
        };
        let server = Server::started(options, counters).await;
        server.register("STUCK", |connection| async move {
            let _connection = connection;
            pending().await
        });
        let mut stuck = server.open("n1", "STUCK").await;
        stuck.sender.send(Bytes::new()).await.unwrap();
        let mut echo = server.open("n1", "ECHO").await;
        assert!(echo.echoes().await);
        let began = Instant::now();
        server.dispatcher.stop().await;
        assert_eq!(began.elapsed(), Duration::from_secs(7));
        assert!(!stuck.echoes().await);
        assert_eq!(
            server.counters.value("steadfast_handlers_abandoned_total"),
            1
        );
    });
}

#[test]
fn dropping_a_dispatcher_closes_its_connections_and_its_address() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let mut client = server.open("n1", "ECHO").await;
        assert!(client.echoes().await);
        let Server {
            dispatcher,
            network,
            ..
        } = server;
        drop(dispatcher);
        assert!(!client.echoes().await);
        drop(network.host("server").bind(ADDRESS).await.unwrap());
    });
}

#[test]
fn starting_twice_is_an_error_and_leaves_the_first_start_alone() {
    on_paused_time(async |counters| {
        let server = Server::started(DispatcherOptions::default(), counters).await;
        let again = server
            .dispatcher
            .start(server.network.host("server"), "server:7401")
            .await;
        assert!(
            matches!(again, Err(NetError::Configuration { .. })),
            "{again:?}"
        );
        assert!(server.open("n1", "ECHO").await.echoes().await);
    });
}

#[test]
fn an_address_that_is_taken_is_an_error_of_start() {
    on_paused_time(async |counters| {
        let server = Server::new(DispatcherOptions::default(), counters);
        let taken = server.network.host("server").bind(ADDRESS).await.unwrap();
        let failed = server
            .dispatcher
            .start(server.network.host("server"), ADDRESS)
            .await;
        assert!(matches!(failed, Err(NetError::Io { .. })), "{failed:?}");
        assert!(!server.dispatcher.is_running());
        drop(taken);
        server.start().await;
    });
}

#[test]
fn a_name_that_no_client_can_ask_for_is_an_error() {
    on_paused_time(async |counters| {
        let server = Server::new(DispatcherOptions::default(), counters);
        for name in [String::new(), "N".repeat(MAX_SERVICE_NAME_LEN + 1)] {
            let asked = open_service(&*server.network.host("n1"), ADDRESS, &name).await;
            assert!(
                matches!(asked, Err(NetError::Configuration { .. })),
                "{asked:?}"
            );
        }
        server.register("", |_| async { Ok(()) });
        let failed = server
            .dispatcher
            .start(server.network.host("server"), ADDRESS)
            .await;
        assert!(
            matches!(failed, Err(NetError::Configuration { .. })),
            "{failed:?}"
        );
    });
}

fn limits() -> DispatcherOptions {
    DispatcherOptions::default()
}

async fn assert_closed_without_reply(mut stream: Box<dyn ByteStream>) {
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    assert_eq!(reply, b"");
}

/// Runs a test on one thread under paused time, with its counters.
fn on_paused_time(test: impl AsyncFnOnce(Counters)) {
    let counters = Counters::default();
    let recorder = counters.clone();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(test(counters)));
}
