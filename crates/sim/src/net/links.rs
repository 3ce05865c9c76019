//! What happens to traffic between hosts: random faults, and blocked directions.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

/// A direction: the numbers of its source and destination hosts.
pub(super) type Pair = (usize, usize);

/// The unit of probabilities.
const PPM: u32 = 1_000_000;

/// How long TCP waits before it retransmits a lost packet; doubled after each further loss.
const RETRANSMIT_MS: u64 = 200;

/// Consecutive losses of one packet: 12.6 s in all, less than the silence that ends a connection.
const LOSSES_MAX: u32 = 6;

/// Maximum lateness of a packet that another one overtook.
const REORDER_MS_MAX: u64 = 20;

/// Maximum delay, after a partition ends, of what it held.
const HELD_MS_MAX: u64 = 500;

/// How the network treats the chunks of one direction between two hosts. A chunk is the data of one
/// write. The default is a perfect link. Probabilities are in parts per million per chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetFaults {
    /// Half of the chunks are delayed, by 1 ms up to this many.
    pub delay_max_ms: u32,
    /// A chunk is lost: it and what follows arrive after one or more retransmissions.
    pub loss: u32,
    /// A chunk arrives twice. TCP discards the second, so this is counted and has no effect.
    pub duplicate: u32,
    /// A chunk is overtaken: it and what follows arrive up to 20 ms late.
    pub reorder: u32,
    /// The connection is cut within this chunk: part of it arrives, then both ends see a reset.
    pub reset: u32,
    /// One byte of the chunk is flipped.
    pub corrupt: u32,
    /// Bandwidth of the link, in bytes per millisecond, shared by all connections.
    pub bytes_per_ms: Option<u32>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Delay,
    Loss,
    Duplicate,
    Reorder,
    Reset,
    Corrupt,
    SlowLink,
    Full,
    OneWay,
    Hub,
    Constrained,
    Chain,
    Chunks,
    Bytes,
}

/// Public names, indexed by [`Count`].
const COUNT_NAMES: [&str; 14] = [
    "net_delay",
    "net_loss",
    "net_duplicate",
    "net_reorder",
    "net_reset",
    "net_corrupt",
    "net_slow_link",
    "partition_full",
    "partition_one_way",
    "partition_hub",
    "partition_constrained",
    "partition_chain",
    "net_chunks",
    "net_bytes",
];

/// What happens to one chunk.
#[derive(Default)]
pub(super) struct Fate {
    pub(super) delay: Duration,
    /// The byte to flip and the bits to flip in it.
    pub(super) corrupt: Option<(usize, u8)>,
    /// The connection is cut after this many bytes of the chunk.
    pub(super) cut: Option<usize>,
}

/// One partition, as recorded in one of its blocked directions.
struct Block {
    kind: Count,
    /// Number of the partition, shared by all its directions.
    number: u64,
    /// Whether it has held something up, and so was counted.
    fired: bool,
}

/// All links, and the randomness behind their faults.
pub(super) struct Links {
    rng: StdRng,
    faults: NetFaults,
    /// Links whose faults differ from `faults`.
    overrides: BTreeMap<Pair, NetFaults>,
    /// Until when a slow link is busy with the data it was given.
    busy: BTreeMap<Pair, Instant>,
    blocked: BTreeMap<Pair, Block>,
    partitions: u64,
    counts: [u64; COUNT_NAMES.len()],
}

impl Links {
    pub(super) fn new(seed: u64, faults: NetFaults) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            faults,
            overrides: BTreeMap::new(),
            busy: BTreeMap::new(),
            blocked: BTreeMap::new(),
            partitions: 0,
            counts: [0; COUNT_NAMES.len()],
        }
    }

    pub(super) fn set_faults(&mut self, faults: NetFaults) {
        self.faults = faults;
    }

    pub(super) fn set_link(&mut self, pair: Pair, faults: NetFaults) {
        self.overrides.insert(pair, faults);
    }

    pub(super) fn clear_links(&mut self) {
        self.overrides.clear();
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        COUNT_NAMES.into_iter().zip(self.counts).collect()
    }

    pub(super) fn count(&mut self, what: Count, times: u64) {
        self.counts[what as usize] += times;
    }

    /// Blocks these directions as one partition.
    pub(super) fn block(&mut self, kind: Count, pairs: impl IntoIterator<Item = Pair>) {
        self.partitions += 1;
        let number = self.partitions;
        for pair in pairs {
            let block = Block {
                kind,
                number,
                fired: false,
            };
            self.blocked.insert(pair, block);
        }
    }

    pub(super) fn unblock(&mut self, pair: Pair) {
        self.blocked.remove(&pair);
    }

    pub(super) fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    pub(super) fn is_blocked(&self, pair: Pair) -> bool {
        self.blocked.contains_key(&pair)
    }

    /// Notes that the block of this direction, if there is one, has held something up.
    pub(super) fn fired(&mut self, pair: Pair) {
        let Some(&Block {
            kind,
            number,
            fired: false,
        }) = self.blocked.get(&pair)
        else {
            return;
        };
        self.count(kind, 1);
        for block in self.blocked.values_mut() {
            block.fired |= block.number == number;
        }
    }

    /// What happens to a chunk of `len` bytes sent now. With 0 bytes it is an empty packet, which
    /// is never cut or corrupted.
    pub(super) fn fate(&mut self, pair: Pair, len: usize, now: Instant) -> Fate {
        let faults = *self.overrides.get(&pair).unwrap_or(&self.faults);
        if pair.0 == pair.1 || faults == NetFaults::default() {
            return Fate::default();
        }
        let mut delay_ms = self.packet_delay_ms(faults);
        if let Some(bytes_per_ms) = faults.bytes_per_ms {
            delay_ms += self.transmission_ms(pair, len, bytes_per_ms, now);
        }
        self.happens(faults.duplicate, Count::Duplicate);
        let corrupt = len > 0 && self.happens(faults.corrupt, Count::Corrupt);
        let cut = len > 0 && self.happens(faults.reset, Count::Reset);
        Fate {
            delay: Duration::from_millis(delay_ms),
            corrupt: corrupt.then(|| {
                (
                    self.rng.random_range(0..len),
                    self.rng.random_range(1..=u8::MAX),
                )
            }),
            cut: cut.then(|| self.rng.random_range(0..len)),
        }
    }

    /// Delay, after a partition ends, of what it held.
    pub(super) fn held_delay(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(0..HELD_MS_MAX))
    }

    /// A random whole number of milliseconds, bounds included.
    pub(super) fn millis(&mut self, min: u64, max: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(min..=max))
    }

    fn happens(&mut self, ppm: u32, what: Count) -> bool {
        let happens = ppm > 0 && self.rng.random_range(0..PPM) < ppm;
        self.counts[what as usize] += u64::from(happens);
        happens
    }

    fn packet_delay_ms(&mut self, faults: NetFaults) -> u64 {
        let mut delay_ms = 0;
        if faults.delay_max_ms > 0 && self.rng.random() {
            delay_ms += u64::from(self.rng.random_range(1..=faults.delay_max_ms));
            self.count(Count::Delay, 1);
        }
        for losses in 0..LOSSES_MAX {
            if !self.happens(faults.loss, Count::Loss) {
                break;
            }
            delay_ms += RETRANSMIT_MS << losses;
        }
        if self.happens(faults.reorder, Count::Reorder) {
            delay_ms += self.rng.random_range(1..=REORDER_MS_MAX);
        }
        delay_ms
    }

    /// How long a slow link takes to finish carrying `len` more bytes.
    fn transmission_ms(&mut self, pair: Pair, len: usize, bytes_per_ms: u32, now: Instant) -> u64 {
        let micros = len as u64 * 1000 / u64::from(bytes_per_ms.max(1));
        let busy = self.busy.entry(pair).or_insert(now);
        *busy = (*busy).max(now) + Duration::from_micros(micros);
        let takes = busy.saturating_duration_since(now).as_micros();
        let takes_ms = u64::try_from(takes.div_ceil(1000)).unwrap_or(u64::MAX);
        self.count(Count::SlowLink, u64::from(takes_ms > 0));
        takes_ms
    }
}
