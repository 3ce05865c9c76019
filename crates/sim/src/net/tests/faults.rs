//! Link faults, and that they follow from the seed.

use std::sync::{Arc, Mutex};

use super::*;

/// 400 chunks of 8 bytes from n1 to n2, all intact; returns how long the last one took.
async fn flood(net: &SimNet) -> Duration {
    let (mut a, mut b) = connect(net).await;
    let start = Instant::now();
    let mut sent = Vec::new();
    for number in 0..400_u64 {
        sent.extend(number.to_le_bytes());
        a.write_all(&number.to_le_bytes()).await.unwrap();
    }
    a.shutdown().await.unwrap();
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, sent);
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn delays_keep_the_order_and_the_bound() {
    let net = faulty(NetFaults {
        delay_max_ms: 30,
        ..NetFaults::default()
    });
    let took = flood(&net).await;
    assert!((15..=30).contains(&took.as_millis()), "{took:?}");
    let delayed = net.counts()["net_delay"];
    assert!((100..300).contains(&delayed), "{delayed}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_chunk_comes_with_its_retransmission() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.set_faults(NetFaults {
        loss: ALWAYS / 2,
        ..NetFaults::default()
    });
    let mut seen = Vec::new();
    for _ in 0..100 {
        seen.push(carry(&mut a, &mut b, b"x").await.1.as_millis());
    }
    seen.sort_unstable();
    seen.dedup();
    let doubled = [0, 200, 600, 1400, 3000, 6200, 12_600];
    assert!(seen.iter().all(|took| doubled.contains(took)), "{seen:?}");
    assert!(seen.len() >= 4 && net.counts()["net_loss"] > 50);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_behind_a_lost_one_waits_for_it() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.set_faults(NetFaults {
        loss: ALWAYS,
        ..NetFaults::default()
    });
    a.write_all(b"first").await.unwrap();
    net.set_faults(NetFaults::default());
    a.write_all(b"second").await.unwrap();
    assert_silent(&mut b, secs(12)).await;
    let mut got = [0; 11];
    b.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"firstsecond");
}

#[tokio::test(start_paused = true)]
async fn duplicates_are_counted_and_not_delivered() {
    let net = faulty(NetFaults {
        duplicate: ALWAYS,
        ..NetFaults::default()
    });
    assert_eq!(flood(&net).await, Duration::ZERO);
    assert!(net.counts()["net_duplicate"] >= 400);
}

#[tokio::test(start_paused = true)]
async fn an_overtaken_chunk_is_late_and_in_order() {
    let net = faulty(NetFaults {
        reorder: ALWAYS / 10,
        ..NetFaults::default()
    });
    let took = flood(&net).await;
    assert!((1..=20).contains(&took.as_millis()), "{took:?}");
    assert!(net.counts()["net_reorder"] > 10);
}

#[tokio::test(start_paused = true)]
async fn a_reset_delivers_a_prefix_to_one_end_and_errors_to_both() {
    let mut prefixes = Vec::new();
    for seed in 0..8 {
        let net = SimNet::new(seed, NetFaults::default());
        let (mut a, mut b) = connect(&net).await;
        carry(&mut a, &mut b, b"whole").await;
        net.set_faults(NetFaults {
            reset: ALWAYS,
            ..NetFaults::default()
        });
        let sent: Vec<u8> = (0..100).collect();
        a.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        let error = b.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(sent.starts_with(&got) && got.len() < sent.len());
        assert_eq!(write_error(&mut b).await, ErrorKind::ConnectionReset);
        assert_eq!(read_error(&mut a).await, ErrorKind::ConnectionReset);
        assert_eq!(write_error(&mut a).await, ErrorKind::ConnectionReset);
        assert_eq!(net.counts()["net_reset"], 1);
        prefixes.push(got.len());
    }
    prefixes.dedup();
    assert!(prefixes.len() > 4, "cut at any byte: {prefixes:?}");
}

#[tokio::test(start_paused = true)]
async fn corruption_changes_one_byte() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    net.set_faults(NetFaults {
        corrupt: ALWAYS,
        ..NetFaults::default()
    });
    for _ in 0..50 {
        let (got, _) = carry(&mut a, &mut b, &[0x55; 20]).await;
        assert_eq!(got.iter().filter(|&&byte| byte != 0x55).count(), 1);
    }
    assert_eq!(net.counts()["net_corrupt"], 50);
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_takes_its_time_for_the_bytes_of_all_connections() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    let (mut c, mut d) = connect(&net).await;
    net.set_faults(NetFaults {
        bytes_per_ms: Some(100),
        ..NetFaults::default()
    });
    let start = Instant::now();
    a.write_all(&[1; 10_000]).await.unwrap();
    c.write_all(&[1; 5_000]).await.unwrap();
    d.read_exact(&mut [0; 5_000]).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(150));
    b.read_exact(&mut [0; 10_000]).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(150));
    assert_eq!(net.counts()["net_slow_link"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_link_has_faults_of_its_own_until_cleared() {
    let net = perfect();
    let (mut a, mut b) = connect(&net).await;
    let slow = NetFaults {
        bytes_per_ms: Some(1),
        ..NetFaults::default()
    };
    net.set_link("n1", "n2", slow);
    assert_eq!(carry(&mut a, &mut b, &[0; 50]).await.1.as_millis(), 50);
    assert_eq!(carry(&mut b, &mut a, &[0; 50]).await.1, Duration::ZERO);
    net.clear_links();
    assert_eq!(carry(&mut a, &mut b, &[0; 50]).await.1, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_dial_takes_the_time_of_both_ways() {
    let net = perfect();
    let _listener = listen(&net, "n2:7400").await;
    let lossy = NetFaults {
        loss: ALWAYS,
        ..NetFaults::default()
    };
    net.set_link("n2", "n1", lossy);
    let start = Instant::now();
    let error = dial_error(&net, "n1", "n2:7400").await;
    assert_eq!(error, ErrorKind::TimedOut);
    assert!(start.elapsed() >= secs(1) && start.elapsed() <= secs(3));
    net.set_faults(lossy);
    let local = net.host("n2").connect("n2:7400").await;
    assert!(local.is_ok(), "a host reaches itself on a perfect link");
}

/// The events of a fixed scenario, each with its time.
async fn story(seed: u64) -> Vec<String> {
    let events = Arc::new(Mutex::new(Vec::new()));
    let everything = NetFaults {
        delay_max_ms: 9,
        loss: 50_000,
        duplicate: 50_000,
        reorder: 50_000,
        reset: 3_000,
        corrupt: 20_000,
        bytes_per_ms: Some(50),
    };
    let net = SimNet::new(seed, everything);
    let start = Instant::now();
    let sink = Arc::clone(&events);
    net.set_tap(Box::new(move |what, from, to, bytes| {
        let at = start.elapsed().as_millis();
        let event = format!("{at} {what} {from} {to} {bytes:?}");
        sink.lock().unwrap().push(event);
    }));
    let mut listener = listen(&net, "n2:7400").await;
    let echo = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    for round in 0..6_u8 {
        if round == 3 {
            net.block("n2", "n1");
            net.unblock("n2", "n1");
        }
        let Ok(connected) = net.host("n1").connect("n2:7400").await else {
            continue;
        };
        let mut stream = connected.stream;
        for number in 0..40 {
            let mut answer = [0; 2];
            let sent = stream.write_all(&[round, number]).await;
            if sent.is_err() || stream.read_exact(&mut answer).await.is_err() {
                break;
            }
        }
    }
    echo.abort();
    let mut events = std::mem::take(&mut *events.lock().unwrap());
    events.push(format!("{:?} {:?}", start.elapsed(), net.counts()));
    events
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_one_story() {
    let first = story(7).await;
    for what in [
        "dial n1 n2",
        "accept n1 n2",
        "send n1 n2",
        "send n2 n1",
        "close n1 n2",
    ] {
        assert!(first.iter().any(|event| event.contains(what)), "{what}");
    }
    assert!(first.len() > 100, "{}", first.len());
    assert_eq!(first, story(7).await);
    assert_ne!(first, story(8).await);
}
