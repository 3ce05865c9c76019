//! Blocked directions, and partitions built from them.

use super::*;

/// Which of `names` reach which, as `ab`: n-a reaches n-b. Judged by what a connection carries.
async fn reach(names: &[&str], shape: impl Fn(&SimNet, &[String])) -> (Vec<String>, SimNet) {
    let net = perfect();
    let mut pairs = Vec::new();
    for (number, to) in names.iter().enumerate() {
        let address = format!("{to}:7400");
        let mut listener = listen(&net, &address).await;
        for from in &names[..number] {
            let dialled = net.host(from).connect(&address).await.unwrap().stream;
            let (accepted, _) = listener.accept().await.unwrap();
            pairs.push((
                format!("{from}{to}"),
                format!("{to}{from}"),
                dialled,
                accepted,
            ));
        }
    }
    shape(&net, &hosts(names));
    let mut reached = Vec::new();
    for (there, back, mut a, mut b) in pairs {
        a.write_all(b"x").await.unwrap();
        b.write_all(b"x").await.unwrap();
        for (direction, reader) in [(there, &mut b), (back, &mut a)] {
            let read = timeout(Duration::from_millis(1), reader.read_u8()).await;
            reached.extend(read.is_ok().then_some(direction));
        }
    }
    reached.sort();
    (reached, net)
}

#[tokio::test(start_paused = true)]
async fn groups_do_not_reach_each_other_and_others_reach_all() {
    let (reached, net) = reach(&["a", "b", "c", "d"], |net, _| {
        net.partition(&[hosts(&["a", "b"]), hosts(&["c"])]);
    })
    .await;
    assert_eq!(reached, ["ab", "ad", "ba", "bd", "cd", "da", "db", "dc"]);
    assert_eq!(net.counts()["partition_full"], 1);
}

#[tokio::test(start_paused = true)]
async fn one_way_leaves_the_other_way() {
    let (reached, net) = reach(&["a", "b", "c"], |net, _| {
        net.one_way(&hosts(&["a"]), &hosts(&["b", "c"]));
    })
    .await;
    assert_eq!(reached, ["ba", "bc", "ca", "cb"]);
    assert_eq!(net.counts()["partition_one_way"], 1);
}

#[tokio::test(start_paused = true)]
async fn quorum_loss_leaves_the_hub() {
    let (reached, net) = reach(&["a", "b", "c", "d"], |net, all| {
        net.quorum_loss_hub(all, "b");
    })
    .await;
    assert_eq!(reached, ["ab", "ba", "bc", "bd", "cb", "db"]);
    assert_eq!(net.counts()["partition_hub"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_constrained_election_leaves_the_outdated_host() {
    let (reached, net) = reach(&["a", "b", "c", "d"], |net, all| {
        net.constrained_election(all, "a", "b");
    })
    .await;
    assert_eq!(reached, ["bc", "bd", "cb", "db"]);
    assert_eq!(net.counts()["partition_constrained"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_chain_leaves_neighbours() {
    let (reached, net) = reach(&["a", "b", "c", "d"], SimNet::chain).await;
    assert_eq!(reached, ["ab", "ba", "bc", "cb", "cd", "dc"]);
    assert_eq!(net.counts()["partition_chain"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_holds_nothing_up_does_not_count() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.block("n1", "n2");
    carry(&mut b, &mut a, b"x").await;
    net.unblock_all();
    assert_eq!(net.counts()["partition_one_way"], 0);
    assert_eq!(carry(&mut a, &mut b, b"x").await.1, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn held_bytes_arrive_in_order_after_the_block() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.block("n1", "n2");
    a.write_all(b"held ").await.unwrap();
    assert_silent(&mut b, secs(10)).await;
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        (got, Instant::now())
    });
    tokio::task::yield_now().await;
    net.unblock("n1", "n2");
    let unblocked = Instant::now();
    a.write_all(b"sent").await.unwrap();
    drop(a);
    let (got, at) = reading.await.unwrap();
    assert_eq!(got, b"held sent");
    let late = at - unblocked;
    assert!(
        !late.is_zero() && late < Duration::from_millis(500),
        "{late:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_block_holds_what_is_under_way() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.set_faults(NetFaults {
        bytes_per_ms: Some(1),
        ..NetFaults::default()
    });
    a.write_all(&[1; 100]).await.unwrap();
    net.block("n1", "n2");
    assert_silent(&mut b, secs(1)).await;
    assert_eq!(net.counts()["partition_one_way"], 1);
    net.unblock("n1", "n2");
    b.read_exact(&mut [0; 100]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fifteen_silent_seconds_end_a_connection_at_both_ends() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.block("n1", "n2");
    let start = Instant::now();
    fill(&mut a).await;
    let (a_error, b_error) = tokio::join!(write_error(&mut a), read_error(&mut b));
    assert_eq!([a_error, b_error], [ErrorKind::TimedOut; 2]);
    assert_eq!(start.elapsed(), secs(15));
    net.unblock_all();
    assert_eq!(read_error(&mut b).await, ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_polled_is_over_after_a_long_block() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.block("n1", "n2");
    tokio::time::sleep(secs(16)).await;
    net.unblock_all();
    assert_eq!(write_error(&mut a).await, ErrorKind::TimedOut);
    assert_eq!(read_error(&mut b).await, ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_dial_hangs_while_either_direction_is_blocked_and_times_out() {
    for (from, to) in [("n1", "n2"), ("n2", "n1")] {
        let net = perfect();
        let _listener = listen(&net, "n2:7400").await;
        net.block(from, to);
        let start = Instant::now();
        let error = dial_error(&net, "n1", "n2:7400").await;
        assert_eq!(error, ErrorKind::TimedOut);
        assert!(start.elapsed() >= secs(1) && start.elapsed() <= secs(3));
        assert_eq!(net.counts()["partition_one_way"], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_goes_on_when_its_block_ends() {
    let net = perfect();
    let mut listener = listen(&net, "n2:7400").await;
    net.block("n2", "n1");
    let host = net.host("n1");
    let dialling = tokio::spawn(async move { host.connect("n2:7400").await.is_ok() });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!dialling.is_finished());
    net.unblock("n2", "n1");
    assert!(dialling.await.unwrap());
    listener.accept().await.unwrap();
}
