//! A sequence of lives from a seed: what is written, how nodes end, and in which order they start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::group::{End, Group, NODES};
use crate::protocol::{Stream, Write};

/// Number of lives in a sequence.
const LIVES: std::ops::RangeInclusive<u64> = 3..=6;
/// Number of streams in a load.
const STREAMS: usize = 8;
/// Flush intervals of the engine, in milliseconds.
const FLUSH_INTERVALS_MS: [u64; 4] = [20, 100, 400, 800];
/// Longest rest before an end: with most of the intervals, a flush has happened after it.
const REST_MAX: Duration = Duration::from_secs(1);

/// Runs a seed's sequence; returns its number of lives.
pub(crate) fn run(seed: u64) -> u64 {
    let mut plan = Plan::new(seed);
    let begun = Instant::now();
    let mut order = plan.order();
    plan.group.start(&order);
    let lives = plan.chance.random_range(LIVES);
    for _ in 0..lives {
        order = plan.order();
        plan.live(&order);
    }
    let rows: usize = plan.group.model.rows.values().map(BTreeMap::len).sum();
    println!(
        "seed {seed}: {lives} lives, {} writes, {rows} rows in {:?}",
        plan.group.model.acknowledged,
        begun.elapsed()
    );
    lives
}

struct Plan {
    chance: StdRng,
    group: Group,
    databases: Vec<String>,
    /// Keys of each stream in each database.
    keys: u64,
    value_bytes_max: usize,
    /// The next key of a sequential load, before wrapping around.
    next: u64,
    /// Number of the last write.
    writes: u64,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let interval = FLUSH_INTERVALS_MS[chance.random_range(0..FLUSH_INTERVALS_MS.len())];
        let mut group = Group::new(&[("flush_interval_ms", interval)]);
        let databases = chance.random_range(1..=4);
        let keys = chance.random_range(300..=1_500) / databases;
        let value_bytes_max = [20, 100, 300][chance.random_range(0..3)];
        group.note(&format!(
            "seed {seed}: flushes every {interval} ms, {databases} databases, {keys} keys for each \
             stream in each, values up to {value_bytes_max} bytes"
        ));
        Self {
            chance,
            group,
            databases: (0..databases).map(|n| format!("d{n}")).collect(),
            keys,
            value_bytes_max,
            next: 0,
            writes: 0,
        }
    }

    fn order(&mut self) -> Vec<usize> {
        let mut order: Vec<_> = (0..NODES).collect();
        order.shuffle(&mut self.chance);
        order
    }

    /// Writes, ends some nodes, under load or after a rest, and starts them again.
    fn live(&mut self, order: &[usize]) {
        let load = self.load();
        let count: usize = load.iter().map(|stream| stream.writes.len()).sum();
        if self.chance.random_bool(0.5) {
            self.group.write(load);
            let rest = REST_MAX.mul_f64(self.chance.random());
            self.group.note(&format!("rest for {rest:?}"));
            self.group.wait_for(rest, |_| false);
        } else {
            self.group.note(&format!("begin to write {count}"));
            self.group.begin_load(load);
            let count = u64::try_from(count).expect("small");
            let before = self.chance.random_range(0..=count);
            self.group.wait_acknowledged(before);
        }
        match self.chance.random_range(0..10) {
            0..=2 => self.end_together(order, End::Stop),
            3..=6 => self.end_together(order, End::Kill),
            7 => self.end_in_turn(order),
            8 => self.roll(order),
            _ => self.mix(order),
        }
        let missing: Vec<_> = (0..NODES)
            .filter(|at| !self.group.is_running(*at))
            .collect();
        let mut order = missing;
        order.shuffle(&mut self.chance);
        self.group.start(&order);
        self.group.end_load();
        let by_token = self.chance.random_bool(0.5);
        self.group.verify(by_token);
        self.group.check_engines_were_right();
    }

    /// One, two or all nodes end at once.
    fn end_together(&mut self, order: &[usize], end: End) {
        let count = [1, 2, 3, 3, 3][self.chance.random_range(0..5)];
        let ends: Vec<_> = order[..count].iter().map(|at| (*at, end)).collect();
        self.group.end(&ends);
        if count == 1 && self.chance.random_bool(0.5) {
            self.go_on();
        }
    }

    /// The others go on without those that have ended.
    fn go_on(&mut self) {
        self.group.end_load();
        if !self.group.model.has_unknown() {
            let load = self.load();
            self.group.write(load);
        }
    }

    /// All nodes end, one after another.
    fn end_in_turn(&mut self, order: &[usize]) {
        for at in order {
            self.group.end(&[(*at, End::Stop)]);
        }
    }

    /// Each node is stopped and restarted before the next one.
    fn roll(&mut self, order: &[usize]) {
        for at in order {
            self.group.end(&[(*at, End::Stop)]);
            self.group.start(&[*at]);
        }
    }

    /// Some are stopped and some killed, at once.
    fn mix(&mut self, order: &[usize]) {
        let mut ends = Vec::new();
        for at in order {
            match self.chance.random_range(0..5) {
                0 | 1 => ends.push((*at, End::Stop)),
                2 | 3 => ends.push((*at, End::Kill)),
                _ => {}
            }
        }
        self.group.end(&ends);
    }

    /// Writes for every stream.
    fn load(&mut self) -> Vec<Stream> {
        let each = [10, 40, 120][self.chance.random_range(0..3)];
        let in_order = self.chance.random_bool(0.5);
        let stream = |number| Stream {
            number,
            writes: Vec::new(),
        };
        let mut load: Vec<_> = (0..STREAMS).map(stream).collect();
        for stream in &mut load {
            for _ in 0..each {
                let from = in_order.then_some(self.next);
                let write = self.one_write(stream.number, from);
                self.next += u64::try_from(write.changes.len()).expect("small");
                stream.writes.push(write);
            }
        }
        load
    }

    /// A write of one row or several, consecutive from a key on or anywhere.
    fn one_write(&mut self, stream: usize, from: Option<u64>) -> Write {
        self.writes += 1;
        let rows = match self.chance.random_range(0..10) {
            0 => 100,
            1..=3 => self.chance.random_range(2..=12),
            _ => 1,
        };
        let mut changes = BTreeMap::new();
        for row in 0..rows {
            let anywhere = self.chance.random_range(0..self.keys);
            let key = from.map_or(anywhere, |from| (from + row) % self.keys);
            let database = self.chance.random_range(0..self.databases.len());
            let key = format!("{stream}-{key:05}");
            let value = self.chance.random_bool(0.75).then(|| {
                let length = self.chance.random_range(0..self.value_bytes_max);
                format!("{}-{row}-{}", self.writes, ".".repeat(length))
            });
            changes.insert((self.databases[database].clone(), key), value);
        }
        let changes = changes.into_iter();
        Write {
            number: self.writes,
            changes: changes
                .map(|((database, key), value)| (database, key, value))
                .collect(),
        }
    }
}
