//! The in-memory network, as tests of whole groups use it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use bytes::Bytes;
use steadfast_net::{
    AsyncServiceHandler, BoxFuture, Connection, Dispatcher, DispatcherOptions, MemoryNetwork,
    NetError, Result, open_service,
};

/// Answers each frame with the peer's address and the frame.
struct Echo;

impl AsyncServiceHandler for Echo {
    fn service_name(&self) -> &'static str {
        "ECHO"
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let peer = connection.peer().to_owned();
            let (mut sender, mut receiver) = connection.split();
            while let Some(frame) = receiver.receive().await? {
                sender
                    .send([peer.as_bytes(), b":", &frame].concat().into())
                    .await?;
            }
            Ok(())
        })
    }
}

async fn echo_on(network: &MemoryNetwork, host: &str) -> Dispatcher {
    let dispatcher = Dispatcher::new(DispatcherOptions::default());
    dispatcher.register_async(Arc::new(Echo));
    dispatcher
        .start(network.host(host), &format!("{host}:7400"))
        .await
        .unwrap();
    dispatcher
}

#[tokio::test(start_paused = true)]
async fn hosts_reach_each_other_and_see_the_name_of_the_host_that_dialled() {
    let network = MemoryNetwork::new();
    let _echo = echo_on(&network, "n1").await;
    let connection = open_service(&*network.host("n2"), "n1:7400", "ECHO")
        .await
        .unwrap();
    let (mut sender, mut receiver) = connection.split();
    sender.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(
        receiver.receive().await.unwrap().as_deref(),
        Some(&b"n2:hello"[..])
    );
}

#[tokio::test(start_paused = true)]
async fn isolating_a_host_cuts_its_connections_at_both_ends_and_no_other() {
    let network = MemoryNetwork::new();
    let mut listener = network.host("n1").bind("n1:7400").await.unwrap();
    let dial = async |from: &str| {
        let stream = network.host(from).connect("n1:7400").await.unwrap().stream;
        Connection::new(stream, "n1:7400".into()).split()
    };
    let (mut cut_sender, mut cut_receiver) = dial("n2").await;
    let (mut kept_sender, _kept_receiver) = dial("n3").await;
    let (stream, peer) = listener.accept().await.unwrap();
    let (_sender, mut cut_end) = Connection::new(stream, peer).split();
    let (stream, peer) = listener.accept().await.unwrap();
    let (_sender, mut kept_end) = Connection::new(stream, peer).split();

    // One end is already waiting when the cut comes.
    let waiting = tokio::spawn(async move { cut_end.receive().await });
    tokio::task::yield_now().await;
    network.isolate("n2");
    assert!(matches!(
        waiting.await.unwrap(),
        Err(NetError::ChannelClosed)
    ));
    assert!(matches!(
        cut_receiver.receive().await,
        Err(NetError::ChannelClosed)
    ));
    assert!(matches!(
        cut_sender.send(Bytes::new()).await,
        Err(NetError::ChannelClosed)
    ));

    kept_sender
        .send(Bytes::from_static(b"still here"))
        .await
        .unwrap();
    assert_eq!(
        kept_end.receive().await.unwrap().as_deref(),
        Some(&b"still here"[..])
    );
}

#[tokio::test(start_paused = true)]
async fn an_isolated_host_neither_reaches_nor_is_reached_until_it_is_healed() {
    let network = MemoryNetwork::new();
    let _n1 = echo_on(&network, "n1").await;
    let _n2 = echo_on(&network, "n2").await;
    network.isolate("n1");
    for (from, to) in [("n1", "n2:7400"), ("n2", "n1:7400")] {
        let refused = open_service(&*network.host(from), to, "ECHO").await;
        assert!(matches!(refused, Err(NetError::Io { .. })), "{refused:?}");
    }
    open_service(&*network.host("n3"), "n2:7400", "ECHO")
        .await
        .unwrap();
    network.heal("n1");
    for (from, to) in [("n1", "n2:7400"), ("n2", "n1:7400")] {
        open_service(&*network.host(from), to, "ECHO")
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_are_taken_while_someone_listens_and_free_afterwards() {
    let network = MemoryNetwork::new();
    let host = network.host("n1");
    let listener = host.bind("n1:7400").await.unwrap();
    assert!(matches!(
        host.bind("n1:7400").await,
        Err(NetError::Io { .. })
    ));
    assert!(matches!(
        host.bind("n2:7400").await,
        Err(NetError::Io { .. })
    ));
    drop(listener);
    assert!(matches!(
        host.connect("n1:7400").await,
        Err(NetError::Io { .. })
    ));
    let _listener = host.bind("n1:7400").await.unwrap();
    let picked = [
        host.bind("n1:0").await.unwrap(),
        host.bind("n1:0").await.unwrap(),
    ];
    assert_ne!(picked[0].local_address(), picked[1].local_address());
}
