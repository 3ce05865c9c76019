//! Power cuts and rot, against a model that knows what was synced.
//!
//! The model is a list of states, one after each record that the log was asked to write. Whatever a
//! cut leaves, opening must yield one of them: not older than the last one reported durable, and
//! never a mixture.

use std::path::Path;

use futures_util::future::{FutureExt, join_all};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::format::{RECORDS_START, record_bytes};
use super::super::{Damage, Disk};
use super::*;

/// What the log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    purged: Option<LogId>,
    entries: Vec<Entry>,
    vote: Option<Vote>,
}

impl Content {
    async fn of(log: &Log) -> Result<Self, LogError> {
        let LogState {
            purged,
            last,
            vote,
            persisted,
            ..
        } = log.state();
        let entries = read_all(log).await?;
        assert_eq!(entries.last().map(Entry::id).or(purged), last);
        assert_eq!(persisted, last, "what was recovered is durable");
        Ok(Self {
            purged,
            entries,
            vote,
        })
    }

    fn term(&self) -> u64 {
        self.vote.map_or(0, |vote| vote.term.0)
    }

    fn next(&self) -> u64 {
        let last = self.entries.last().map(Entry::id).or(self.purged);
        last.map_or(0, |last| last.position.0 + 1)
    }
}

/// One request, drawn without knowing what the log holds at that time.
#[derive(Clone, Debug)]
enum Op {
    Append(Vec<usize>),
    Vote,
    /// Drop this many entries at the end.
    Truncate(usize),
    /// Drop this many entries at the front.
    Purge(usize),
    Committed,
}

fn op() -> impl Strategy<Value = Op> {
    let sizes = || proptest::collection::vec(0_usize..900, 1..5);
    prop_oneof![
        6 => sizes().prop_map(Op::Append),
        1 => Just(Op::Vote),
        2 => (0_usize..6).prop_map(Op::Truncate),
        1 => (0_usize..12).prop_map(Op::Purge),
        1 => Just(Op::Committed),
    ]
}

/// Groups of requests made together; each group is awaited before the next.
type Workload = Vec<Vec<Op>>;

fn workload() -> impl Strategy<Value = Workload> {
    proptest::collection::vec(proptest::collection::vec(op(), 1..5), 1..10)
}

type Success<'a> = Pin<Box<dyn Future<Output = bool> + 'a>>;

/// Lets a request reach the queue before the next one is made.
fn begin<'a>(request: impl Future<Output = bool> + 'a) -> Success<'a> {
    let mut request: Success<'a> = Box::pin(request);
    match request.as_mut().now_or_never() {
        Some(success) => Box::pin(std::future::ready(success)),
        None => request,
    }
}

/// The model beside the log.
#[derive(Debug)]
struct Model {
    /// Every state since the log was opened, oldest first.
    states: Vec<Content>,
    /// The last state that the log has reported durable.
    durable: usize,
    /// Makes each payload different.
    payloads: u8,
    committed: Vec<LogId>,
}

impl Model {
    fn new() -> Self {
        Self {
            states: vec![Content::default()],
            durable: 0,
            payloads: 0,
            committed: Vec::new(),
        }
    }

    fn last(&self) -> &Content {
        self.states.last().unwrap()
    }

    fn push(&mut self, change: impl FnOnce(&mut Content)) {
        let mut content = self.last().clone();
        change(&mut content);
        self.states.push(content);
    }

    /// Requests `op` from the log; the returned future says whether it became durable.
    async fn start<'a>(&mut self, log: &'a Log, op: &Op) -> Success<'a> {
        match op {
            Op::Append(sizes) => {
                let entries = sizes.iter().map(|&bytes| self.entry(bytes)).collect();
                match queue(log, entries).await {
                    Ok(durable) => Box::pin(async { durable.await.is_ok() }),
                    Err(_) => Box::pin(async { false }),
                }
            }
            Op::Vote => {
                let vote = vote(self.last().term() + 1);
                self.push(|content| content.vote = Some(vote));
                begin(async move { log.save_vote(vote).await.is_ok() })
            }
            Op::Truncate(count) => {
                self.push(|content| {
                    content
                        .entries
                        .truncate(content.entries.len().saturating_sub(*count));
                });
                let last = self
                    .last()
                    .entries
                    .last()
                    .map(Entry::id)
                    .or(self.last().purged);
                begin(async move { log.truncate_after(last).await.is_ok() })
            }
            Op::Purge(count) => {
                let count = self.last().entries.len().min(*count);
                if count == 0 {
                    return Box::pin(async { false });
                }
                let upto = self.last().entries[count - 1].id();
                self.push(|content| {
                    content.purged = Some(upto);
                    content.entries.drain(..count);
                });
                begin(async move { log.purge(upto).await.is_ok() })
            }
            Op::Committed => {
                if let Some(last) = self.last().entries.last().map(Entry::id)
                    && log.save_committed(last).is_ok()
                {
                    self.committed.push(last);
                }
                Box::pin(async { false })
            }
        }
    }

    fn entry(&mut self, bytes: usize) -> Entry {
        self.payloads = self.payloads.wrapping_add(1);
        let entry = entry(
            self.last().term(),
            self.last().next(),
            &vec![self.payloads; bytes],
        );
        self.push(|content| content.entries.push(entry.clone()));
        entry
    }

    /// Runs the workload as far as the disk lets it.
    async fn run(&mut self, log: &Log, workload: &[Vec<Op>]) {
        for together in workload {
            let mut waits = Vec::new();
            for op in together {
                let durable = self.start(log, op).await;
                let after = self.states.len() - 1;
                waits.push(async move { durable.await.then_some(after) });
            }
            for durable in join_all(waits).await.into_iter().flatten() {
                self.durable = self.durable.max(durable);
            }
        }
    }

    /// Checks the recovered state, and continues from there.
    async fn recovered(&mut self, log: &Log) {
        let content = Content::of(log)
            .await
            .expect("what was recovered can be read");
        let possible = &self.states[self.durable..];
        assert!(
            possible.contains(&content),
            "recovered {content:?}\nwhich is none of the states since the durable {:?}",
            possible.first()
        );
        let committed = log.state().committed;
        assert!(committed.is_none_or(|id| self.committed.contains(&id)));
        self.states = vec![content];
        self.durable = 0;
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// A power cut that keeps any leading part of any unsynced sector, and any number of name changes.
fn cut(disk: &MemoryDisk, rng: &mut StdRng) {
    let names = rng.random_range(0..6);
    // Some cuts lose most, some keep most: a fair coin for each sector would rarely do either.
    let kept = rng.random_range(0..=10);
    disk.crash_keeping(names, |_, _| match rng.random_range(0..10) {
        partly if partly == kept => rng.random_range(0..512),
        low if low < kept => 512,
        _ => 0,
    });
}

/// Runs a workload until a power cut, the end of the process, or a failing sync and then the end of
/// the process. Only a power cut loses what is not synced.
async fn end_life(
    disk: &MemoryDisk,
    model: &mut Model,
    node: Node,
    workload: &Workload,
    rng: &mut StdRng,
) {
    match rng.random_range(0..4) {
        0 => {
            disk.fail_after(u64::MAX);
            let healthy = rng.random_range(0..workload.len());
            model.run(&node.log, &workload[..healthy]).await;
            disk.fail_syncs(true);
            model.run(&node.log, &workload[healthy..]).await;
            disk.fail_syncs(false);
        }
        1 => {
            model.run(&node.log, workload).await;
            disk.fail_after(u64::MAX);
        }
        _ => {
            model.run(&node.log, workload).await;
            cut(disk, rng);
        }
    }
    node.writer.abort();
    // Cancelled, or already finished: both release the lock.
    node.writer.await.ok();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_end_loses_what_is_durable_or_invents_anything(
        lives in proptest::collection::vec((workload(), 0_u64..120), 1..5),
        seed: u64,
    ) {
        block_on(async {
            let (disk, mut rng) = (MemoryDisk::new(), StdRng::seed_from_u64(seed));
            let mut model = Model::new();
            for (workload, steps) in &lives {
                let node = loop {
                    // Opening is interrupted too, sometimes.
                    disk.fail_after(rng.random_range(0..40));
                    match Node::open(&disk, TINY).await {
                        Ok(node) => break node,
                        Err(LogError::Io { .. } | LogError::Failed { .. }) => cut(&disk, &mut rng),
                        Err(error) => panic!("a cut is not corruption: {error}"),
                    }
                };
                model.recovered(&node.log).await;
                disk.fail_after(*steps);
                end_life(&disk, &mut model, node, workload, &mut rng).await;
            }
            let node = Node::open(&disk, TINY).await.expect("a cut is not corruption");
            model.recovered(&node.log).await;
        });
    }

    #[test]
    fn rot_is_told_or_does_no_harm(
        first in workload(),
        second in workload(),
        seed: u64,
        harm in 0_u8..4,
        blocks in 2_u32..12,
    ) {
        block_on(async {
            let (disk, mut rng) = (MemoryDisk::new(), StdRng::seed_from_u64(seed));
            let config = LogConfig { segment_bytes: blocks * RECORDS_START, ..TINY };
            let mut model = Model::new();
            let node = Node::open(&disk, config).await.unwrap();
            disk.fail_after(rng.random_range(5..100));
            model.run(&node.log, &first).await;
            cut(&disk, &mut rng);
            let node = Node::open(&disk, config).await.unwrap();
            model.recovered(&node.log).await;
            model.run(&node.log, &second).await;
            // Every request succeeded, so this is the only right answer.
            prop_assert_eq!(&Content::of(&node.log).await.unwrap(), model.last());
            node.close().await;

            let names = disk.list(&dir()).unwrap();
            let path = dir().join(&names[rng.random_range(0..names.len())]);
            let mut bytes = disk.bytes(&path).unwrap();
            let at = rng.random_range(0..bytes.len());
            match harm {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes[at / 512 * 512..][..512].fill(0),
                2 => bytes.truncate(at),
                _ => {
                    // A misdirected write.
                    let from = rng.random_range(0..bytes.len()) / 512 * 512;
                    bytes.copy_within(from..from + 512, at / 512 * 512);
                }
            }
            disk.plant(&path, &bytes);
            match Node::open(&disk, config).await {
                Ok(node) => {
                    prop_assert_eq!(&Content::of(&node.log).await.unwrap(), model.last());
                }
                Err(LogError::Corrupt { file, .. }) => {
                    prop_assert!(dir() == file.parent().unwrap());
                    prop_assert_eq!(disk.bytes(&path).unwrap(), bytes, "nothing is changed");
                }
                Err(error) => panic!("not what rot looks like: {error}"),
            }
            Ok(())
        })?;
    }

    #[test]
    fn rot_under_an_open_log_is_never_served(workload in workload(), seed: u64) {
        block_on(async {
            let (disk, mut rng) = (MemoryDisk::new(), StdRng::seed_from_u64(seed));
            let mut model = Model::new();
            let node = Node::open(&disk, TINY).await.unwrap();
            model.run(&node.log, &workload).await;
            for name in disk.list(&dir()).unwrap() {
                let mut bytes = disk.bytes(&dir().join(&name)).unwrap();
                let at = rng.random_range(RECORDS_START as usize..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
                disk.plant(&dir().join(&name), &bytes);
            }
            match read_all(&node.log).await {
                Ok(entries) => prop_assert_eq!(&entries, &model.last().entries),
                Err(LogError::Corrupt { .. }) => {}
                Err(error) => panic!("not what rot looks like: {error}"),
            }
            Ok(())
        })?;
    }
}

/// Cuts the power after each disk step of a workload, in three ways.
fn at_every_step(workload: &[Vec<Op>]) {
    let mut finished = false;
    for steps in 0.. {
        for kept in [0, 512, 13] {
            finished = block_on(async {
                let disk = MemoryDisk::new();
                let mut model = Model::new();
                let node = Node::open(&disk, TINY).await.unwrap();
                disk.fail_after(steps);
                model.run(&node.log, workload).await;
                let finished = node.log.close().await.is_ok();
                disk.crash_keeping(if kept == 0 { 0 } else { usize::MAX }, |_, _| kept);
                let node = Node::open(&disk, TINY)
                    .await
                    .expect("a cut is not corruption");
                model.recovered(&node.log).await;
                model.run(&node.log, &[vec![Op::Append(vec![10])]]).await;
                finished
            });
        }
        if finished {
            return;
        }
    }
}

#[test]
fn a_cut_truncation_leaves_the_old_log_or_the_new_one() {
    at_every_step(&[
        vec![Op::Append(vec![100, 700, 200])],
        vec![Op::Vote],
        vec![Op::Truncate(2), Op::Append(vec![300, 300])],
        vec![Op::Append(vec![10])],
    ]);
}

#[test]
fn a_cut_change_of_segments_leaves_a_whole_log() {
    at_every_step(&[
        vec![Op::Vote, Op::Append(vec![800; 4])],
        vec![Op::Append(vec![800; 6])],
        vec![Op::Truncate(5), Op::Append(vec![800; 6])],
        vec![Op::Purge(6), Op::Append(vec![800; 3])],
        vec![Op::Append(vec![800; 6])],
        vec![Op::Purge(12)],
    ]);
}

/// A log with one synced group and a second one, of three records, that is only written.
async fn half_written(disk: &MemoryDisk) -> Node {
    let node = Node::open(disk, TINY).await.unwrap();
    append(&node.log, vec![entry(0, 0, &[1; 452])])
        .await
        .unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let group = (1..4)
        .map(|position| entry(0, position, &[2; 464]))
        .collect();
    drop(queue(&node.log, group).await.unwrap());
    until(|| disk.syncs() > before).await;
    node
}

#[tokio::test]
async fn whole_records_after_a_lost_one_of_the_same_group_are_a_torn_tail() {
    let disk = MemoryDisk::new();
    drop(half_written(&disk).await);
    // The group's first sectors are lost, its later ones survive.
    let second = u64::from(RECORDS_START) + 1024;
    disk.crash_keeping(0, |_, offset| if offset < second { 0 } else { 512 });
    let node = Node::open(&disk, TINY).await.unwrap();
    assert_eq!(node.log.state().persisted, Some(id(0, 0)));
    let bytes = disk.bytes(&segment_path(1)).unwrap();
    assert!(
        bytes[RECORDS_START as usize + 1024..]
            .iter()
            .all(|&byte| byte == 0),
        "leftovers are gone"
    );
}

#[tokio::test]
async fn a_group_in_flight_vouches_for_the_one_before() {
    let disk = MemoryDisk::new();
    drop(half_written(&disk).await);
    // The next group's first sectors are lost as well, which alone would be a torn tail.
    let second = u64::from(RECORDS_START) + 1024;
    disk.crash_keeping(0, |_, offset| if offset < second { 0 } else { 512 });
    let path = segment_path(1);
    let mut bytes = disk.bytes(&path).unwrap();
    let rotten = RECORDS_START as usize + 100;
    bytes[rotten] ^= 1;
    disk.plant(&path, &bytes);
    match Node::open(&disk, TINY).await.err().unwrap() {
        LogError::Corrupt {
            file,
            offset,
            damage,
        } => {
            assert_eq!((file, offset), (path.clone(), u64::from(RECORDS_START)));
            assert_eq!(damage, Damage::Record);
        }
        other => panic!("{other}"),
    }
    assert_eq!(disk.bytes(&path).unwrap(), bytes, "corruption is not cut");
}

#[tokio::test]
async fn the_last_group_is_vouched_for_without_a_next_one() {
    let disk = MemoryDisk::new();
    let node = Node::open(&disk, TINY).await.unwrap();
    append(&node.log, vec![entry(0, 0, &[1; 100])])
        .await
        .unwrap();
    let end = RECORDS_START as usize + record_bytes(100);
    let path: &Path = &segment_path(1);
    until(|| {
        disk.bytes(path).unwrap()[end..]
            .iter()
            .any(|&byte| byte != 0)
    })
    .await;
    node.kill().await;
    let mut bytes = disk.bytes(path).unwrap();
    bytes[RECORDS_START as usize + 60] ^= 1;
    disk.plant(path, &bytes);
    let error = Node::open(&disk, TINY).await.err().unwrap();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
}

/// Two logs of the same shape with different payloads: what one holds is well-formed in the other.
async fn two_histories() -> [MemoryDisk; 2] {
    let disks = [MemoryDisk::new(), MemoryDisk::new()];
    for (disk, byte) in disks.iter().zip(1..) {
        let node = Node::open(disk, TINY).await.unwrap();
        append(
            &node.log,
            (0..12).map(|p| entry(0, p, &[byte; 464])).collect(),
        )
        .await
        .unwrap();
        node.close().await;
    }
    disks
}

#[tokio::test]
async fn a_segment_of_another_history_does_not_fit_in() {
    let [disk, other] = two_histories().await;
    disk.plant(&segment_path(2), &other.bytes(&segment_path(2)).unwrap());
    let error = Node::open(&disk, TINY).await.err().unwrap();
    assert!(
        matches!(
            error,
            LogError::Corrupt {
                damage: Damage::Sequence,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_record_of_another_history_does_not_fit_in() {
    let [disk, other] = two_histories().await;
    let mut bytes = disk.bytes(&segment_path(1)).unwrap();
    let second = RECORDS_START as usize + record_bytes(464);
    let record = second..second + record_bytes(464);
    bytes[record.clone()].copy_from_slice(&other.bytes(&segment_path(1)).unwrap()[record]);
    disk.plant(&segment_path(1), &bytes);
    match Node::open(&disk, TINY).await.err().unwrap() {
        LogError::Corrupt { offset, .. } => assert_eq!(offset, second as u64),
        other => panic!("{other}"),
    }
}
