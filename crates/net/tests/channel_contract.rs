//! The contract of `Channel`, checked on each carrier. A new carrier needs one line in
//! `contract_on!` and a function that creates its pairs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: threads, bare sockets"
)]

#[path = "tls/authority.rs"]
mod authority;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use steadfast_net::{
    ByteStream, Channel, Connection, Listener, LocalChannelPair, MAX_FRAME_PAYLOAD, NetError,
    TcpChannel, TcpChannelListener, TcpTransport, TlsTransport, Transport,
};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::authority::Authority;

/// Longer than any successful wait in these tests.
const LONG: Duration = Duration::from_secs(30);

/// Long enough for bytes that are under way to arrive, if there are any.
const SHORT: Duration = Duration::from_millis(20);

type Shared = Arc<dyn Channel>;

/// How to create channels over one kind of stream.
struct Carrier {
    /// Bytes that one end can send before the other receives any; more than fits into the peer's
    /// receive buffer, if there is one.
    queue_bytes: usize,
    /// The two ends of one channel.
    pair: fn() -> (Shared, Shared),
    /// A channel, and the raw stream at its other end.
    raw: fn() -> (Shared, Box<dyn Write + Send>),
}

const LOCAL: Carrier = Carrier {
    queue_bytes: 200_000,
    pair: || {
        let LocalChannelPair {
            channel_a,
            channel_b,
        } = LocalChannelPair::new();
        (Arc::new(channel_a), Arc::new(channel_b))
    },
    raw: || {
        let (ours, theirs) = tokio::io::duplex(1024);
        (
            channel_over(Box::new(ours)),
            Box::new(Raw(Box::new(theirs))),
        )
    },
};

const TCP: Carrier = Carrier {
    queue_bytes: 1_000_000,
    pair: || {
        let listener = TcpChannelListener::bind(any_port()).unwrap();
        let dialled = TcpChannel::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(listener.accept().unwrap()), Arc::new(dialled))
    },
    raw: || {
        let listener = TcpChannelListener::bind(any_port()).unwrap();
        let stream = connect_raw(listener.local_addr().unwrap());
        (Arc::new(listener.accept().unwrap()), Box::new(stream))
    },
};

const TLS: Carrier = Carrier {
    queue_bytes: 1_000_000,
    pair: || {
        let (accepted, dialled) = tls_pair();
        (channel_over(accepted), channel_over(dialled))
    },
    raw: || {
        let (accepted, dialled) = tls_pair();
        (channel_over(accepted), Box::new(Raw(dialled)))
    },
};

/// Drives raw streams, and the handshakes and sockets of those with TLS.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().enable_all().build().unwrap());

static TLS_TRANSPORT: LazyLock<TlsTransport> = LazyLock::new(|| {
    let credentials = Authority::new().credentials("test://node/1");
    TlsTransport::new(Arc::new(TcpTransport), &credentials).unwrap()
});

/// The two ends of a TLS stream on loopback.
fn tls_pair() -> (Box<dyn ByteStream>, Box<dyn ByteStream>) {
    let transport = &*TLS_TRANSPORT;
    let shaking = async {
        let mut listener: Box<dyn Listener> = transport.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_address();
        let accepting = async {
            let (stream, peer) = listener.accept().await.unwrap();
            transport.authenticate(stream, &peer).await.unwrap().stream
        };
        let (accepted, dialled) = tokio::join!(accepting, transport.connect(&address));
        (accepted, dialled.unwrap().stream)
    };
    thread::scope(|scope| {
        let shaken = scope.spawn(|| RUNTIME.block_on(shaking));
        shaken.join().unwrap()
    })
}

fn channel_over(stream: Box<dyn ByteStream>) -> Shared {
    let connection = Connection::new(stream, "test".into());
    connection.into_channel().unwrap().into()
}

macro_rules! contract_on {
    ($($carrier:ident: $value:expr,)*) => {
        const CARRIERS: &[Carrier] = &[$($value),*];

        $(mod $carrier {
        use super::*;

        contract_tests!($value =>
            messages_arrive_whole_and_in_order_both_ways,
            a_message_of_the_greatest_size_arrives,
            send_does_not_wait_for_a_receive_blocked_in_another_thread,
            close_wakes_a_receive_blocked_in_another_thread,
            close_wakes_a_send_blocked_in_another_thread,
            receive_returns_nothing_when_nothing_comes_in_time,
            a_timeout_inside_a_frame_keeps_its_bytes,
            polling_through_a_large_frame_loses_nothing,
            a_zero_timeout_polls,
            closing_twice_is_no_error,
            a_closed_channel_refuses_every_call,
            a_poll_right_after_close_is_refused,
            the_peer_of_a_closed_channel_drains_it_and_then_sees_it_closed,
            the_peer_of_a_dropped_channel_drains_it_and_then_sees_it_closed,
            closing_over_unread_messages_takes_nothing_back_from_the_peer,
            a_message_over_the_limit_is_refused_before_a_byte_leaves,
            a_claim_over_the_limit_closes_the_channel_for_good,
            an_end_inside_a_frame_closes_the_channel_for_good,
            calls_inside_an_async_context_block_and_return,
        );
        })*
    };
}

macro_rules! contract_tests {
    ($carrier:expr => $($test:ident,)*) => { $(
        #[test]
        fn $test() {
            super::$test(&$carrier);
        }
    )* };
}

contract_on! {
    local: LOCAL,
    tcp: TCP,
    tls: TLS,
}

/// In parallel, since each of them waits for the full deadline.
#[test]
fn stuck_channels_are_given_up_at_a_deadline_on_every_carrier() {
    thread::scope(|scope| {
        for carrier in CARRIERS {
            scope.spawn(|| a_peer_that_takes_nothing_is_given_up_at_a_deadline(carrier));
            scope.spawn(|| a_frame_that_does_not_go_on_is_given_up_at_a_deadline(carrier));
        }
    });
}

fn messages_arrive_whole_and_in_order_both_ways(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let sizes = [0, 1, 3, 16 * 1024, 16 * 1024 + 1, 300_000, 7, 2_000_000, 0];
    let message = |size: usize, seed: u8| -> Vec<u8> {
        (0..size)
            .map(|at| at.to_le_bytes()[0].wrapping_mul(31).wrapping_add(seed))
            .collect()
    };
    thread::scope(|scope| {
        for (end, sent, expected) in [(&a, 1, 2), (&b, 2, 1)] {
            scope.spawn(move || {
                for size in sizes {
                    end.send(&message(size, sent)).unwrap();
                }
            });
            scope.spawn(move || {
                for size in sizes {
                    assert_eq!(end.receive(LONG).unwrap(), Some(message(size, expected)));
                }
            });
        }
    });
}

fn a_message_of_the_greatest_size_arrives(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let sending = thread::spawn(move || a.send(&vec![7; MAX_FRAME_PAYLOAD]));
    let received = b.receive(LONG).unwrap().unwrap();
    assert_eq!(received.len(), MAX_FRAME_PAYLOAD);
    assert!(received.iter().all(|byte| *byte == 7));
    sending.join().unwrap().unwrap();
}

fn send_does_not_wait_for_a_receive_blocked_in_another_thread(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let began = Instant::now();
    let receiving = {
        let a = Arc::clone(&a);
        thread::spawn(move || a.receive(LONG))
    };
    // By then at the latest the receiver blocks during most of these.
    for round in 0..1000_u32 {
        a.send(&round.to_le_bytes()).unwrap();
        assert_eq!(b.receive(LONG).unwrap(), Some(round.to_le_bytes().to_vec()));
    }
    b.send(b"done").unwrap();
    assert_eq!(receiving.join().unwrap().unwrap(), Some(b"done".to_vec()));
    assert!(began.elapsed() < LONG / 2, "took {:?}", began.elapsed());
}

fn close_wakes_a_receive_blocked_in_another_thread(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let began = Instant::now();
    let receiving = {
        let a = Arc::clone(&a);
        thread::spawn(move || (a.receive(LONG), a.receive(LONG)))
    };
    b.send(b"the receiver is there").unwrap();
    // It may or may not be waiting again when the close comes; both calls must end.
    while b.is_open() && !receiving.is_finished() && began.elapsed() < SHORT {
        thread::yield_now();
    }
    a.close().unwrap();
    let (first, second) = receiving.join().unwrap();
    assert!(
        matches!(first, Ok(Some(_)) | Err(NetError::ChannelClosed)),
        "{first:?}"
    );
    assert!(matches!(second, Err(NetError::ChannelClosed)), "{second:?}");
    assert!(began.elapsed() < LONG / 2, "took {:?}", began.elapsed());
}

fn close_wakes_a_send_blocked_in_another_thread(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let began = Instant::now();
    let sending = {
        let a = Arc::clone(&a);
        thread::spawn(move || {
            loop {
                if let Err(error) = a.send(&vec![0; 1 << 20]) {
                    return error;
                }
            }
        })
    };
    assert!(b.receive(LONG).unwrap().is_some());
    a.close().unwrap();
    assert!(matches!(sending.join().unwrap(), NetError::ChannelClosed));
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "took {:?}",
        began.elapsed()
    );
}

fn receive_returns_nothing_when_nothing_comes_in_time(carrier: &Carrier) {
    let (a, _b) = (carrier.pair)();
    let began = Instant::now();
    assert_eq!(a.receive(SHORT).unwrap(), None);
    assert!(began.elapsed() >= SHORT);
    assert!(a.is_open());
}

fn a_timeout_inside_a_frame_keeps_its_bytes(carrier: &Carrier) {
    let (channel, mut raw) = (carrier.raw)();
    let bytes = [&framed(b"first")[..], &framed(b"second")[..]].concat();
    let mut received = Vec::new();
    for byte in bytes {
        raw.write_all(&[byte]).unwrap();
        received.extend(channel.receive(Duration::from_millis(2)).unwrap());
    }
    while received.len() < 2 {
        received.push(channel.receive(LONG).unwrap().unwrap());
    }
    assert_eq!(received, [b"first".to_vec(), b"second".to_vec()]);
}

fn polling_through_a_large_frame_loses_nothing(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let message: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let sending = {
        let message = message.clone();
        thread::spawn(move || a.send(&message))
    };
    let received = poll_until_received(&*b);
    assert!(
        received == message,
        "{} bytes came, not those sent",
        received.len()
    );
    sending.join().unwrap().unwrap();
}

fn a_zero_timeout_polls(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    assert_eq!(b.receive(Duration::ZERO).unwrap(), None);
    assert!(b.is_open());
    a.send(b"there").unwrap();
    assert_eq!(poll_until_received(&*b), b"there");
    assert_eq!(b.receive(Duration::ZERO).unwrap(), None);
}

fn closing_twice_is_no_error(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    a.close().unwrap();
    a.close().unwrap();
    assert!(matches!(b.receive(LONG), Err(NetError::ChannelClosed)));
    b.close().unwrap();
    a.close().unwrap();
}

fn a_closed_channel_refuses_every_call(carrier: &Carrier) {
    let (a, _b) = (carrier.pair)();
    assert!(a.is_open());
    a.close().unwrap();
    assert!(!a.is_open());
    assert!(matches!(a.send(b"late"), Err(NetError::ChannelClosed)));
    assert!(matches!(a.receive(LONG), Err(NetError::ChannelClosed)));
    assert!(matches!(
        a.receive(Duration::ZERO),
        Err(NetError::ChannelClosed)
    ));
}

/// Closing continues briefly in the background, and holds the connection's halves meanwhile.
fn a_poll_right_after_close_is_refused(carrier: &Carrier) {
    for round in 0..200 {
        let (a, _b) = (carrier.pair)();
        a.close().unwrap();
        for _ in 0..100 {
            let polled = a.receive(Duration::ZERO);
            assert!(
                matches!(polled, Err(NetError::ChannelClosed)),
                "{polled:?} in round {round}"
            );
        }
    }
}

fn the_peer_of_a_closed_channel_drains_it_and_then_sees_it_closed(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    a.send(b"one").unwrap();
    a.send(&vec![2; 100_000]).unwrap();
    a.close().unwrap();
    assert_drained_then_closed(&*b, &[b"one", &vec![2; 100_000]]);
}

fn the_peer_of_a_dropped_channel_drains_it_and_then_sees_it_closed(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    a.send(b"one").unwrap();
    a.send(&vec![2; 100_000]).unwrap();
    drop(a);
    assert_drained_then_closed(&*b, &[b"one", &vec![2; 100_000]]);
}

fn closing_over_unread_messages_takes_nothing_back_from_the_peer(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    b.send(b"never received").unwrap();
    let message = vec![1; carrier.queue_bytes];
    a.send(&message).unwrap();
    drop(a);
    assert_drained_then_closed(&*b, &[&message]);
}

fn a_message_over_the_limit_is_refused_before_a_byte_leaves(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let refused = a.send(&vec![0; MAX_FRAME_PAYLOAD + 1]);
    assert!(
        matches!(refused, Err(NetError::Protocol { .. })),
        "{refused:?}"
    );
    assert!(a.is_open());
    a.send(b"next").unwrap();
    assert_eq!(b.receive(LONG).unwrap(), Some(b"next".to_vec()));
}

fn a_claim_over_the_limit_closes_the_channel_for_good(carrier: &Carrier) {
    let (channel, mut raw) = (carrier.raw)();
    let claim = u32::try_from(MAX_FRAME_PAYLOAD + 1).unwrap();
    raw.write_all(&framed(b"good")).unwrap();
    raw.write_all(&claim.to_le_bytes()).unwrap();
    raw.write_all(&framed(b"after")).unwrap();
    assert_eq!(channel.receive(LONG).unwrap(), Some(b"good".to_vec()));
    let failed = channel.receive(LONG);
    assert!(
        matches!(failed, Err(NetError::Protocol { .. })),
        "{failed:?}"
    );
    assert_closed_for_good(&*channel);
}

fn an_end_inside_a_frame_closes_the_channel_for_good(carrier: &Carrier) {
    let (channel, mut raw) = (carrier.raw)();
    raw.write_all(&framed(b"cut short")[..6]).unwrap();
    drop(raw);
    let failed = channel.receive(LONG);
    assert!(
        matches!(failed, Err(NetError::Protocol { .. })),
        "{failed:?}"
    );
    assert_closed_for_good(&*channel);
}

fn a_peer_that_takes_nothing_is_given_up_at_a_deadline(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let began = Instant::now();
    let mut sent_bytes = 0;
    let failed = loop {
        match a.send(&vec![0; 1 << 20]) {
            Ok(()) => sent_bytes += 1 << 20,
            Err(error) => break error,
        }
        assert!(
            sent_bytes < 256 << 20,
            "what was not received is not bounded"
        );
    };
    assert!(
        matches!(failed, NetError::DeadlineExceeded { .. }),
        "{failed:?}"
    );
    assert!(began.elapsed() < LONG, "took {:?}", began.elapsed());
    assert_closed_for_good(&*a);
    assert!(b.is_open());
}

fn a_frame_that_does_not_go_on_is_given_up_at_a_deadline(carrier: &Carrier) {
    let (channel, mut raw) = (carrier.raw)();
    raw.write_all(&framed(b"never complete")[..6]).unwrap();
    let began = Instant::now();
    let failed = loop {
        // Short timeouts must not postpone the deadline.
        match channel.receive(Duration::from_millis(100)) {
            Ok(None) => assert!(began.elapsed() < LONG, "waits for ever"),
            other => break other,
        }
    };
    assert!(
        matches!(failed, Err(NetError::DeadlineExceeded { .. })),
        "{failed:?}"
    );
    assert_closed_for_good(&*channel);
}

fn calls_inside_an_async_context_block_and_return(carrier: &Carrier) {
    let (a, b) = (carrier.pair)();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // More rounds than tokio's per-task budget between two awaits.
        for _ in 0..500 {
            a.send(b"ping").unwrap();
            assert_eq!(b.receive(LONG).unwrap(), Some(b"ping".to_vec()));
        }
        assert_eq!(b.receive(SHORT).unwrap(), None);
        a.close().unwrap();
        assert!(matches!(b.receive(LONG), Err(NetError::ChannelClosed)));
    });
}

fn assert_drained_then_closed(channel: &dyn Channel, messages: &[&[u8]]) {
    for message in messages {
        assert_eq!(channel.receive(LONG).unwrap().as_deref(), Some(*message));
    }
    assert!(matches!(
        channel.receive(LONG),
        Err(NetError::ChannelClosed)
    ));
    assert_closed_for_good(channel);
}

fn assert_closed_for_good(channel: &dyn Channel) {
    for _ in 0..2 {
        assert!(!channel.is_open());
        assert!(matches!(
            channel.receive(LONG),
            Err(NetError::ChannelClosed)
        ));
        assert!(matches!(
            channel.send(b"late"),
            Err(NetError::ChannelClosed)
        ));
    }
}

fn poll_until_received(channel: &dyn Channel) -> Vec<u8> {
    let began = Instant::now();
    loop {
        if let Some(message) = channel.receive(Duration::ZERO).unwrap() {
            return message;
        }
        assert!(began.elapsed() < LONG, "nothing came");
        thread::yield_now();
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(payload.len()).unwrap().to_le_bytes(),
        payload,
    ]
    .concat()
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn connect_raw(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).unwrap()
}

/// The raw end of an async stream, as a blocking writer.
struct Raw(Box<dyn ByteStream>);

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        RUNTIME.block_on(async {
            let written = self.0.write(bytes).await?;
            // TLS keeps what it has sealed until it is flushed.
            self.0.flush().await?;
            Ok(written)
        })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        RUNTIME.block_on(self.0.flush())
    }
}
