//! Processes that die and machines that vanish.

use super::*;

#[tokio::test(start_paused = true)]
async fn peers_of_a_killed_process_get_what_it_sent_and_then_the_end() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.set_link(
        "n2",
        "n1",
        NetFaults {
            bytes_per_ms: Some(1),
            ..NetFaults::default()
        },
    );
    b.write_all(&[9; 40]).await.unwrap();
    let start = Instant::now();
    net.kill_host("n2");
    let mut got = Vec::new();
    a.read_to_end(&mut got).await.unwrap();
    assert_eq!((got.len(), start.elapsed().as_millis()), (40, 40));
    a.write_all(b"into the void").await.unwrap();
    assert_eq!(write_error(&mut a).await, ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn handles_of_a_killed_process_are_reset_for_good() {
    let net = perfect();
    let mut listener = listen(&net, "n2:7400").await;
    let transport = net.host("n2");
    let (_a, mut b) = {
        let dialled = net.host("n1").connect("n2:7400").await.unwrap().stream;
        (dialled, listener.accept().await.unwrap().0)
    };
    let mut waiting = net.host("n2").connect("n2:7400").await.unwrap().stream;
    let waiting = tokio::spawn(async move { read_error(&mut waiting).await });
    tokio::task::yield_now().await;
    net.kill_host("n2");
    assert_eq!(waiting.await.unwrap(), ErrorKind::ConnectionReset);
    for _ in 0..2 {
        assert_eq!(read_error(&mut b).await, ErrorKind::ConnectionReset);
        assert_eq!(write_error(&mut b).await, ErrorKind::ConnectionReset);
        let flushed = b.flush().await.unwrap_err().kind();
        assert_eq!(flushed, ErrorKind::ConnectionReset);
        let shut = b.shutdown().await.unwrap_err().kind();
        assert_eq!(shut, ErrorKind::ConnectionReset);
        assert!(listener.accept().await.is_err());
        assert!(transport.bind("n2:7500").await.is_err());
        assert!(transport.connect("n2:7400").await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_is_refused_until_the_next_one_listens() {
    let net = perfect();
    let dead = listen(&net, "n2:7400").await;
    net.kill_host("n2");
    let refused = dial_error(&net, "n1", "n2:7400").await;
    assert_eq!(refused, ErrorKind::ConnectionRefused);
    let mut alive = listen(&net, "n2:7400").await;
    drop(dead);
    let dialled = net.host("n1").connect("n2:7400").await;
    assert!(
        dialled.is_ok(),
        "the dead listener does not take the new one along"
    );
    alive.accept().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kill_resets_whoever_was_not_accepted() {
    let net = perfect();
    let _listener = listen(&net, "n2:7400").await;
    let mut dialled = net.host("n1").connect("n2:7400").await.unwrap().stream;
    net.kill_host("n2");
    assert_eq!(read_error(&mut dialled).await, ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_off_is_silent_until_the_connection_times_out() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    let start = Instant::now();
    net.power_off("n2");
    assert_eq!(read_error(&mut b).await, ErrorKind::ConnectionReset);
    assert_eq!(fill(&mut a).await, 256 * 1024);
    assert_silent(&mut a, secs(14)).await;
    assert_eq!(read_error(&mut a).await, ErrorKind::TimedOut);
    assert_eq!(start.elapsed(), secs(15));
}

#[tokio::test(start_paused = true)]
async fn what_a_machine_had_under_way_is_lost_when_it_goes_off() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    b.write_all(b"arrived").await.unwrap();
    net.set_faults(NetFaults {
        bytes_per_ms: Some(1),
        ..NetFaults::default()
    });
    b.write_all(b"under way").await.unwrap();
    net.power_off("n2");
    net.power_on("n2");
    let mut got = Vec::new();
    let error = a.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(got, b"arrived");
}

#[tokio::test(start_paused = true)]
async fn a_dial_to_a_machine_that_is_off_times_out_or_is_refused_once_it_is_on() {
    let net = perfect();
    let _listener = listen(&net, "n2:7400").await;
    net.power_off("n2");
    let start = Instant::now();
    let hung = dial_error(&net, "n1", "n2:7400").await;
    assert_eq!(hung, ErrorKind::TimedOut);
    assert!(start.elapsed() >= secs(1));
    let task_net = net.clone();
    let dialling = tokio::spawn(async move { dial_error(&task_net, "n1", "n2:7400").await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    net.power_on("n2");
    assert_eq!(dialling.await.unwrap(), ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_back_resets_what_is_sent_to_it() {
    let net = perfect();
    let (mut idle, _b) = connect(&net).await;
    let (mut writes_later, _d) = connect(&net).await;
    let (mut wrote, _f) = connect(&net).await;
    let off = Instant::now();
    net.power_off("n2");
    wrote.write_all(b"x").await.unwrap();
    tokio::time::sleep(secs(2)).await;
    net.power_on("n2");
    let on = Instant::now();
    writes_later.write_all(b"x").await.unwrap();
    assert_eq!(
        read_error(&mut writes_later).await,
        ErrorKind::ConnectionReset
    );
    assert_eq!(on.elapsed(), Duration::ZERO);
    assert_eq!(read_error(&mut wrote).await, ErrorKind::ConnectionReset);
    assert!(on.elapsed() < Duration::from_millis(500));
    assert_eq!(read_error(&mut idle).await, ErrorKind::ConnectionReset);
    assert_eq!(off.elapsed(), secs(15));
}

#[tokio::test(start_paused = true)]
async fn handles_of_a_machine_that_was_off_stay_reset() {
    let net = perfect();
    let (_a, mut b) = connect(&net).await;
    let transport = net.host("n2");
    net.power_off("n2");
    assert!(net.host("n2").bind("n2:7400").await.is_err());
    net.power_on("n2");
    assert_eq!(read_error(&mut b).await, ErrorKind::ConnectionReset);
    assert!(transport.bind("n2:7400").await.is_err());
    assert!(net.host("n2").bind("n2:7400").await.is_ok());
}
