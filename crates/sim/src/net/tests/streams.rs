//! Connections on perfect links.

use super::*;

#[tokio::test(start_paused = true)]
async fn carries_bytes_both_ways_at_once() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    assert_eq!(
        carry(&mut a, &mut b, b"ping").await,
        (b"ping".to_vec(), Duration::ZERO)
    );
    assert_eq!(
        carry(&mut b, &mut a, b"pong").await,
        (b"pong".to_vec(), Duration::ZERO)
    );
    let counts = net.counts();
    assert_eq!((counts["net_chunks"], counts["net_bytes"]), (2, 8));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_reader_is_woken() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    let reading = tokio::spawn(async move {
        let mut got = [0; 4];
        b.read_exact(&mut got).await.unwrap();
        got
    });
    tokio::task::yield_now().await;
    a.write_all(b"wake").await.unwrap();
    assert_eq!(reading.await.unwrap(), *b"wake");
}

#[tokio::test(start_paused = true)]
async fn the_peer_of_a_dialler_is_its_host() {
    let net = perfect();
    let mut listener = listen(&net, "n2:7400").await;
    let _dialled = net.host("n1").connect("n2:7400").await.unwrap().stream;
    assert_eq!(listener.accept().await.unwrap().1, "n1");
}

#[tokio::test(start_paused = true)]
async fn one_vectored_write_is_one_chunk() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    let slices = [
        std::io::IoSlice::new(b"head"),
        std::io::IoSlice::new(b"body"),
    ];
    assert_eq!(a.write_vectored(&slices).await.unwrap(), 8);
    let mut got = [0; 8];
    b.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"headbody");
    assert_eq!(net.counts()["net_chunks"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_window_holds_the_writer_until_someone_reads() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    assert_eq!(fill(&mut a).await, 256 * 1024);
    let writing = tokio::spawn(async move {
        a.write_all(b"more").await.unwrap();
        a
    });
    tokio::task::yield_now().await;
    assert!(!writing.is_finished());
    let mut got = vec![0; 256 * 1024 + 4];
    b.read_exact(&mut got).await.unwrap();
    assert!(got.ends_with(b"\x07more"));
    writing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_side_that_was_shut_down_still_reads() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    a.write_all(b"last").await.unwrap();
    a.shutdown().await.unwrap();
    a.shutdown().await.unwrap();
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    carry(&mut b, &mut a, b"answer").await;
    assert_eq!(write_error(&mut a).await, ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_is_delayed_as_its_bytes_are() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    let faults = NetFaults {
        loss: ALWAYS,
        ..NetFaults::default()
    };
    net.set_faults(faults);
    a.shutdown().await.unwrap();
    assert_silent(&mut b, secs(12)).await;
    assert_eq!(b.read(&mut [0; 4]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_ends_after_its_bytes_and_refuses_more() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    a.write_all(b"last").await.unwrap();
    drop(a);
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    b.write_all(b"into the void").await.unwrap();
    assert_eq!(write_error(&mut b).await, ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn a_writer_with_a_full_window_learns_that_the_reader_is_gone() {
    let net = perfect();
    let (mut a, b) = connect(&net).await;
    fill(&mut a).await;
    let writing = tokio::spawn(async move { write_error(&mut a).await });
    tokio::task::yield_now().await;
    drop(b);
    assert_eq!(writing.await.unwrap(), ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_is_dropped_resets_whoever_was_not_accepted() {
    let net = perfect();
    let listener = listen(&net, "n2:7400").await;
    let mut dialled = net.host("n1").connect("n2:7400").await.unwrap().stream;
    drop(listener);
    assert_eq!(read_error(&mut dialled).await, ErrorKind::ConnectionReset);
    let refused = dial_error(&net, "n1", "n2:7400").await;
    assert_eq!(refused, ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn addresses_are_taken_until_dropped_and_belong_to_their_host() {
    let net = perfect();
    let bind = async |host: &str, address: &str| match net.host(host).bind(address).await {
        Ok(listener) => Ok(listener),
        Err(NetError::Io { source, .. }) => Err(source.kind()),
        Err(error) => panic!("{error}"),
    };
    let first = bind("n1", "n1:0").await.unwrap();
    let second = bind("n1", "n1:0").await.unwrap();
    let address = first.local_address();
    assert_ne!(address, second.local_address());
    assert_eq!(bind("n1", &address).await.err(), Some(ErrorKind::AddrInUse));
    drop(first);
    bind("n1", &address).await.unwrap();
    let foreign = bind("n1", "n2:7400").await.err();
    assert_eq!(foreign, Some(ErrorKind::AddrNotAvailable));
    let nonsense = bind("n1", "n1").await.err();
    assert_eq!(nonsense, Some(ErrorKind::InvalidInput));
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_forgotten_once_both_ends_are_dropped() {
    let net = perfect();
    let (a, b) = connect(&net).await;
    drop(a);
    assert_eq!(net.with(|state| state.connection_count()), 1);
    drop(b);
    assert_eq!(net.with(|state| state.connection_count()), 0);
}
