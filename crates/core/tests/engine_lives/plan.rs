//! What a seed determines: sizes, keys, and the lives of an engine.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::NoxuSizes;

const LIVES: [usize; 7] = [2, 3, 4, 5, 6, 8, 12];
const STEPS_MAX: usize = 8;
/// Fraction of the sequences that write enough for files to be cleaned.
const HEAVY: f64 = 0.05;
/// One in this many sequences keeps its files on a disk whose power can be cut.
const SEEDS_PER_DISK: u64 = 100;
const MIB: u64 = 1024 * 1024;

pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Databases in use at a time.
    pub(crate) slots: u32,
    /// The keys that a database may hold.
    pub(crate) keys: Vec<Bytes>,
    /// Most changes in a batch.
    pub(crate) batch_max: usize,
    /// Most bytes in a value, with a few exceptions.
    pub(crate) value_max: u32,
    /// Whether the files are on their own disk.
    pub(crate) has_disk: bool,
    pub(crate) lives: Vec<Life>,
}

pub(crate) struct Life {
    pub(crate) sizes: NoxuSizes,
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
    /// Whether the next life, after a clean end, runs in the same process.
    pub(crate) shares_process: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum Step {
    Apply {
        batches: u64,
    },
    Sync,
    /// Reclaims keys of databases no longer in use.
    Reclaim {
        keys: usize,
        rounds: usize,
    },
    Check,
    /// Reads everything.
    Read,
    /// Gives Noxu's own threads time.
    Idle {
        ms: u64,
    },
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    Close,
    Drop,
    /// After this many reports, or when all steps are done, whichever is first.
    Kill {
        reports: usize,
        delay_us: u64,
    },
    /// During close.
    KillAtClose {
        delay_us: u64,
    },
    /// Like `Kill`, but what was not synced is lost.
    PowerCut {
        reports: usize,
        delay_us: u64,
    },
}

impl End {
    pub(crate) fn is_orderly(self) -> bool {
        matches!(self, Self::Close | Self::Drop)
    }
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let manner = Manner {
            has_disk: seed % SEEDS_PER_DISK == SEEDS_PER_DISK / 2,
            is_heavy: chance.random_bool(HEAVY),
            // Noxu underflows when files become smaller.
            file_bytes: one_of(&mut chance, &[1, 1, 2, 10]) * MIB,
        };
        let (keys, batch_max, value_max) = if manner.is_heavy {
            (600, 300, 2_048)
        } else {
            (
                one_of(&mut chance, &[30, 300, 300, 600, 600, 1_000, 2_500]),
                one_of(&mut chance, &[3, 30, 100, 100, 300, 300, 1_500]),
                one_of(&mut chance, &[16, 100, 400, 2_048]),
            )
        };
        let is_scrambled = chance.random();
        let long_keys = one_of(&mut chance, &[0.0, 0.01, 0.1]);
        let keys = (0..keys).map(|index| key(index, is_scrambled, long_keys, &mut chance));
        let keys = keys.collect();
        let lives = one_of(&mut chance, &LIVES);
        let lives = (0..lives).map(|_| Life::random(&manner, &mut chance));
        let mut lives: Vec<_> = lives.collect();
        lives.push(Life::of_reading());
        Self {
            seed,
            slots: one_of(&mut chance, &[1, 1, 2, 4]),
            keys,
            batch_max,
            value_max,
            has_disk: manner.has_disk,
            lives,
        }
    }
}

/// What all lives of a sequence share.
struct Manner {
    has_disk: bool,
    is_heavy: bool,
    file_bytes: u64,
}

impl Life {
    fn random(manner: &Manner, chance: &mut StdRng) -> Self {
        let steps = chance.random_range(0..=STEPS_MAX);
        let steps: Vec<_> = (0..steps).map(|_| Step::random(manner, chance)).collect();
        Self {
            sizes: NoxuSizes {
                cache_bytes: one_of(chance, &[1, 2, 4, 16]) * MIB,
                file_bytes: manner.file_bytes,
                checkpoint_bytes: one_of(chance, &[128 << 10, 512 << 10, 4 * MIB, 128 * MIB]),
                checkpoint_wakeup_ms: one_of(chance, &[5, 50, 10_000]),
            },
            end: End::random(&steps, manner.has_disk, chance),
            steps,
            shares_process: chance.random_bool(0.3),
        }
    }

    fn of_reading() -> Self {
        Self {
            sizes: NoxuSizes::with_cache(MIB),
            steps: Vec::new(),
            end: End::Drop,
            shares_process: false,
        }
    }
}

impl Step {
    fn random(manner: &Manner, chance: &mut StdRng) -> Self {
        match chance.random_range(0..20) {
            0..12 if manner.is_heavy => Self::Apply { batches: 80 },
            0..12 => Self::Apply {
                batches: one_of(chance, &[1, 2, 5, 10, 20]),
            },
            12..15 => Self::Sync,
            15..17 => Self::Reclaim {
                keys: one_of(chance, &[10, 100, 1_000]),
                rounds: chance.random_range(1..20),
            },
            17 => Self::Check,
            18 => Self::Read,
            _ => Self::Idle {
                ms: chance.random_range(0..30),
            },
        }
    }
}

impl End {
    fn random(steps: &[Step], has_disk: bool, chance: &mut StdRng) -> Self {
        let reports = steps.iter().map(|step| match step {
            Step::Apply { batches } => usize::try_from(*batches).unwrap(),
            _ => 1,
        });
        let reports = chance.random_range(0..=reports.sum::<usize>() + 1);
        let delay_us = one_of(chance, &[0, 300, 3_000, 30_000]);
        let delay_us = chance.random_range(0..=delay_us);
        match chance.random_range(0..12) {
            0..4 => Self::Close,
            4 => Self::Drop,
            5..7 => Self::KillAtClose { delay_us },
            _ if has_disk => Self::PowerCut { reports, delay_us },
            _ => Self::Kill { reports, delay_us },
        }
    }
}

/// Key number `index`: all keys differ, and the first is empty.
fn key(index: u32, is_scrambled: bool, long: f64, chance: &mut StdRng) -> Bytes {
    if index == 0 {
        return Bytes::new();
    }
    let place = if is_scrambled {
        index.wrapping_mul(0x9e37_79b1)
    } else {
        index
    };
    let bytes = if chance.random_bool(long) {
        chance.random_range(4..500)
    } else {
        chance.random_range(4..24)
    };
    let mut key = place.to_be_bytes().to_vec();
    key.resize(bytes, b'k');
    key.into()
}

pub(crate) fn one_of<T: Copy>(chance: &mut StdRng, these: &[T]) -> T {
    these[chance.random_range(0..these.len())]
}
