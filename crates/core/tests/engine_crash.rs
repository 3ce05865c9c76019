//! What a crash leaves of an engine: a prefix of whole batches, never less than the last sync.
//!
//! For Noxu, a child process writes batches and is killed; the memory engine is asked for every
//! prefix. Batch `k` of a seed is a function of both, so the state after any prefix is known.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a file system image is not behind the disk trait"
)]

mod engine_disk;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use bytes::Bytes;
use engine_disk::{Mount, run};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::{
    Applied, Change, Direction, EngineBatch, EngineError, EngineFactory, KeyRange, MemoryStore,
    NoxuEngine, NoxuFactory, NoxuSizes, ScanLimit, StorageEngine,
};
use steadfast::ids::{DatabaseId, LogPosition, Term, Vlsn};
use tempfile::TempDir;

const DATABASES: u32 = 3;
const KEYS: u32 = 2_000;
const KILLS: u64 = 12;
const POWER_CUTS: u64 = 4;
/// Set in the writing process: the directory and the seed.
const CHILD: &str = "STEADFAST_ENGINE_CRASH_CHILD";
/// Set in the process that lives one life: its last batch, its end and the directory.
const LIFE: &str = "STEADFAST_ENGINE_CRASH_LIFE";
/// Engines in which one database is written and another, with `IDLE_ROWS` rows, is not.
const IDLE_ROUNDS: u64 = 8;
const IDLE_ROWS: u64 = 1_000;
/// New keys per batch of such a life.
const LIFE_BATCH: usize = 40;

type State = BTreeMap<(DatabaseId, Bytes), Bytes>;

fn factory() -> NoxuFactory {
    NoxuFactory {
        cache_bytes: 16 << 20,
    }
}

/// Seeds with single-change batches: so many commits that what reaches the file before a kill often
/// ends between two of them. With other seeds the cut mostly falls inside a batch.
fn is_tiny(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// Batches between two syncs.
fn sync_interval(seed: u64) -> u64 {
    if is_tiny(seed) { 4_000 } else { 40 }
}

/// Batch `number`, which overlaps earlier batches. Each value says which batch put it there.
fn batch(seed: u64, number: u64) -> EngineBatch {
    let mut chance = StdRng::seed_from_u64(seed << 32 | number);
    let size = if is_tiny(seed) {
        1
    } else {
        [1, 30, 300, 1_500][chance.random_range(0..4)]
    };
    let mut changes = BTreeMap::new();
    for _ in 0..size {
        let database = DatabaseId(chance.random_range(0..DATABASES));
        let key = Bytes::copy_from_slice(&chance.random_range(0..KEYS).to_be_bytes());
        let change = if chance.random_bool(0.75) {
            let mut value = number.to_be_bytes().to_vec();
            value.resize(chance.random_range(8..400), b'.');
            Change::Put(value.into())
        } else {
            Change::Delete
        };
        changes.insert((database, key), change);
    }
    let changes = changes
        .into_iter()
        .map(|((database, key), change)| (database, key, change));
    let applied = Applied {
        term: Term(seed),
        position: LogPosition(number),
        vlsn: Vlsn(number),
        membership: Bytes::from(number.to_string()),
    };
    EngineBatch {
        applied,
        changes: changes.collect(),
    }
}

/// The state after the first `count` batches.
fn state_after(seed: u64, count: u64) -> State {
    let mut state = State::new();
    for number in 1..=count {
        for (database, key, change) in batch(seed, number).changes {
            match change {
                Change::Put(value) => state.insert((database, key), value),
                Change::Delete => state.remove(&(database, key)),
            };
        }
    }
    state
}

fn state_of(engine: &dyn StorageEngine) -> State {
    let mut state = State::new();
    for database in (0..DATABASES).map(DatabaseId) {
        let pairs = engine
            .scan(
                database,
                KeyRange::all(),
                Direction::Forward,
                ScanLimit::NONE,
            )
            .unwrap();
        state.extend(
            pairs
                .into_iter()
                .map(|(key, value)| ((database, key), value)),
        );
    }
    state
}

/// Checks that the engine holds a prefix of whole batches; returns its length.
fn check_prefix(engine: &dyn StorageEngine, seed: u64) -> u64 {
    let applied = engine.applied().unwrap();
    let count = applied.as_ref().map_or(0, |applied| applied.vlsn.0);
    assert_eq!(applied, (count > 0).then(|| batch(seed, count).applied));
    assert_eq!(engine.durable(), applied);
    assert!(
        state_of(engine) == state_after(seed, count),
        "not the state after {count} batches"
    );
    count
}

#[test]
fn memory_keeps_the_prefix_that_the_crash_leaves() {
    let (seed, batches, synced) = (1, 12, 5);
    for kept in 0..=8 {
        let store = MemoryStore::new();
        let engine = store.open(Path::new("")).unwrap();
        for number in 1..=batches {
            engine.apply(&batch(seed, number)).unwrap();
            if number == synced {
                engine.sync().unwrap();
            }
        }
        assert_eq!(store.unsynced_steps(), 7);
        store.crash(kept);
        assert!(engine.applied().is_err() && engine.sync().is_err());
        let engine = store.open(Path::new("")).unwrap();
        assert_eq!(
            check_prefix(&*engine, seed),
            batches.min(synced + kept as u64)
        );
    }
}

#[test]
fn noxu_keeps_a_prefix_of_whole_batches_when_killed() {
    let dir = TempDir::new().unwrap();
    let mut chance = StdRng::seed_from_u64(7);
    let (mut kills_past_a_sync, mut batches) = (0, 0);
    for life in 0..KILLS {
        // Every third life begins in its own directory; the others continue after a kill.
        let home = dir.path().join((life / 3).to_string());
        let seed = life / 3;
        let mut writer = Writer::start(&home, seed);
        let reports = chance.random_range(1..4 * usize::try_from(sync_interval(seed)).unwrap());
        let synced = writer.kill_after(reports);
        let engine = factory().open(&home).unwrap();
        let count = check_prefix(&*engine, seed);
        assert!(
            count >= synced,
            "batch {synced} was synced, {count} are left"
        );
        kills_past_a_sync += u64::from(synced > 0);
        batches += count;
        println!("killed: batch {synced} was synced, {count} are left");
    }
    assert!(
        kills_past_a_sync >= KILLS / 2 && batches > 100,
        "the child hardly wrote"
    );
}

/// A copy of the file that backs a mounted file system, taken while the writer is stopped, holds
/// what had been handed to the disk: what a power cut leaves.
#[test]
fn noxu_keeps_a_prefix_of_whole_batches_when_the_power_is_cut() {
    let dir = TempDir::new().unwrap();
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    let mut chance = StdRng::seed_from_u64(11);
    for seed in 100..100 + POWER_CUTS {
        let Some(mounted) = Mount::new_file_system(&image, dir.path()) else {
            println!("skipped: this test needs root, mkfs.ext4 and loop devices");
            return;
        };
        let mut writer = Writer::start(&mounted.path.join("engine"), seed);
        let reports = chance.random_range(1..4 * usize::try_from(sync_interval(seed)).unwrap());
        let (synced, lines) = writer.stop_after(reports);
        run(
            "cp",
            &[
                "--sparse=always".as_ref(),
                image.as_os_str(),
                copy.as_os_str(),
            ],
        )
        .unwrap();
        // Reports still in the pipe were sent before the copy was taken.
        let synced = writer.kill_and_drain(lines, synced);
        drop(mounted);
        let mounted = Mount::new(&copy, dir.path()).unwrap();
        let engine = factory().open(&mounted.path.join("engine")).unwrap();
        let count = check_prefix(&*engine, seed);
        assert!(
            count >= synced,
            "batch {synced} was synced, {count} are left"
        );
        println!("power cut: batch {synced} was synced, {count} are left");
        drop(engine);
    }
}

/// Noxu numbers its tree nodes anew in each process, so each of these lives has its own.
#[test]
fn noxu_keeps_every_record_when_an_open_splits_nodes_and_the_next_one_reads_them() {
    let dir = TempDir::new().unwrap();
    live_in_a_process(dir.path(), 40, "close");
    live_in_a_process(dir.path(), 50, "be killed");
    live_in_a_process(dir.path(), 50, "close");
    let engine = factory().open(dir.path()).unwrap();
    let rows = engine.scan(
        DatabaseId(1),
        KeyRange::all(),
        Direction::Forward,
        ScanLimit::NONE,
    );
    let batches = engine.applied().unwrap().unwrap().vlsn.0;
    assert_eq!((batches, rows.unwrap().len()), (50, 50 * LIFE_BATCH));
}

/// Makes another process open the engine in `home`, apply batches of new keys up to number `last`,
/// sync, and end as told.
fn live_in_a_process(home: &Path, last: u64, end: &str) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_lives_one_life", "--nocapture"])
        .env(LIFE, format!("{last},{end},{}", home.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let is_synced = lines.any(|line| line.unwrap() == "synced");
    if end == "be killed" {
        process.kill().unwrap();
    }
    lines.for_each(|line| drop(line.unwrap()));
    let status = process.wait().unwrap();
    assert!(
        is_synced && status.success() == (end == "close"),
        "{status}"
    );
}

/// Not a test in itself: `live_in_a_process` starts it.
#[test]
fn child_lives_one_life() {
    let Ok(arguments) = std::env::var(LIFE) else {
        return;
    };
    let mut arguments = arguments.splitn(3, ',');
    let last: u64 = arguments.next().unwrap().parse().unwrap();
    let end = arguments.next().unwrap();
    let engine = factory()
        .open(Path::new(arguments.next().unwrap()))
        .unwrap();
    let done = engine
        .applied()
        .unwrap()
        .map_or(0, |applied| applied.vlsn.0);
    for number in done + 1..=last {
        // Between the keys of earlier batches.
        let keys = (0..LIFE_BATCH as u64).map(|key| (key << 32 | number).to_be_bytes());
        let put = |key: [u8; 8]| Change::Put(Bytes::copy_from_slice(&key));
        let changes = keys.map(|key| (DatabaseId(1), Bytes::copy_from_slice(&key), put(key)));
        let batch = EngineBatch {
            changes: changes.collect(),
            ..batch(0, number)
        };
        engine.apply(&batch).unwrap();
    }
    engine.sync().unwrap();
    println!("\nsynced");
    if end == "close" {
        engine.close().unwrap();
    } else {
        std::thread::park();
    }
}

#[test]
fn noxu_keeps_a_database_that_nobody_writes_when_files_are_cleaned() {
    let seed = 301;
    let sizes = NoxuSizes {
        file_bytes: 1 << 20,
        checkpoint_bytes: 3 << 20,
        checkpoint_wakeup_ms: 5,
        ..NoxuSizes::with_cache(1 << 20)
    };
    let put = |database: u32, key: u64| {
        let value = vec![b'.'; 500];
        let key = Bytes::copy_from_slice(&key.to_be_bytes());
        (DatabaseId(database), key, Change::Put(value.into()))
    };
    for round in 0..IDLE_ROUNDS {
        let (dir, mut number) = (TempDir::new().unwrap(), 0);
        let engine = NoxuEngine::open_with(dir.path(), sizes).unwrap();
        let mut apply = |changes: Vec<_>| {
            number += 1;
            let batch = EngineBatch {
                changes,
                ..batch(seed, number)
            };
            engine.apply(&batch).unwrap();
        };
        // Its nodes are evicted, and so written, long before the root above them.
        apply((0..IDLE_ROWS).map(|key| put(1, key)).collect());
        for nth in 0..150 {
            let first = nth % 30 * 100;
            apply((first..first + 100).map(|key| put(2, key)).collect());
        }
        engine.close().unwrap();
        let engine = NoxuEngine::open_with(dir.path(), sizes).unwrap();
        let rows = engine.scan(
            DatabaseId(1),
            KeyRange::all(),
            Direction::Forward,
            ScanLimit::NONE,
        );
        assert_eq!(rows.unwrap().len() as u64, IDLE_ROWS, "in round {round}");
    }
}

#[test]
fn noxu_takes_no_batch_on_a_full_disk_and_goes_on_when_there_is_space() {
    let (dir, seed) = (TempDir::new().unwrap(), 201);
    let Some(mounted) = Mount::new_file_system(&dir.path().join("image"), dir.path()) else {
        println!("skipped: this test needs root, mkfs.ext4 and loop devices");
        return;
    };
    let ballast = mounted.path.join("ballast");
    run(
        "fallocate",
        &["-l".as_ref(), "300M".as_ref(), ballast.as_os_str()],
    )
    .unwrap();
    let engine = factory().open(&mounted.path.join("engine")).unwrap();
    let mut number = 0;
    let refused = loop {
        number += 1;
        if let Err(error) = engine.apply(&batch(seed, number)) {
            break error;
        }
        engine.sync().unwrap();
    };
    assert!(
        matches!(refused, EngineError::DiskFull { .. }),
        "{refused:?}"
    );
    assert_eq!(check_prefix(&*engine, seed), number - 1);
    std::fs::remove_file(ballast).unwrap();
    engine.apply(&batch(seed, number)).unwrap();
    engine.sync().unwrap();
    assert_eq!(check_prefix(&*engine, seed), number);
}

/// The writing process. It reports `applied <number>` and `synced <number>`, one per line.
struct Writer {
    process: Child,
}

impl Writer {
    fn start(home: &Path, seed: u64) -> Self {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, format!("{seed} {}", home.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process }
    }

    /// Kills the process after that many reports; returns the last batch reported as synced.
    /// Reports in flight when it died count.
    fn kill_after(&mut self, reports: usize) -> u64 {
        let mut lines = BufReader::new(self.process.stdout.take().unwrap()).lines();
        let synced = Self::read_reports(&mut lines, reports);
        self.kill_and_drain(lines, synced)
    }

    /// Stops the process, for good, after that many reports.
    fn stop_after(&mut self, reports: usize) -> (u64, Reports) {
        let mut lines = BufReader::new(self.process.stdout.take().unwrap()).lines();
        let synced = Self::read_reports(&mut lines, reports);
        run(
            "kill",
            &["-STOP".as_ref(), self.process.id().to_string().as_ref()],
        )
        .unwrap();
        (synced, lines)
    }

    fn kill_and_drain(&mut self, mut lines: Reports, synced: u64) -> u64 {
        self.process.kill().unwrap();
        let synced = synced.max(Self::read_reports(&mut lines, usize::MAX));
        let status = self.process.wait().unwrap();
        assert!(
            status.code().is_none(),
            "the child ended by itself: {status}"
        );
        synced
    }

    /// Reads that many reports, or all there are; returns the last batch reported as synced.
    fn read_reports(lines: &mut Reports, count: usize) -> u64 {
        let is_report = |line: &String| line.starts_with("synced ") || line.starts_with("applied ");
        let reports = lines.map(Result::unwrap).filter(is_report).take(count);
        let synced = reports.filter_map(|line| line.strip_prefix("synced ")?.parse().ok());
        synced.last().unwrap_or(0)
    }
}

type Reports = Lines<BufReader<ChildStdout>>;

impl Drop for Writer {
    fn drop(&mut self) {
        // Already gone unless the test failed.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Not a test in itself: `Writer` starts it in another process.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let (seed, home) = arguments.split_once(' ').unwrap();
    let seed = seed.parse().unwrap();
    let engine = factory().open(Path::new(home)).unwrap();
    let done = engine
        .applied()
        .unwrap()
        .map_or(0, |applied| applied.vlsn.0);
    let mut reports = std::io::stdout().lock();
    // The harness has already printed this test's name on the current line.
    writeln!(reports).unwrap();
    for number in done + 1.. {
        engine.apply(&batch(seed, number)).unwrap();
        writeln!(reports, "applied {number}").unwrap();
        if number.is_multiple_of(sync_interval(seed)) {
            engine.sync().unwrap();
            writeln!(reports, "synced {number}").unwrap();
        }
        reports.flush().unwrap();
    }
}
