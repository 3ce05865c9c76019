//! Read-only commands change nothing beside a running node or in a stopped one's directory.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use steadfast::log::{
    Disk, DiskFile, DiskFuture, DiskLock, DiskSpace, FileMark, OpenMode, RealDisk,
};
use steadfast::machine::Machine;
use steadfast::quorum_loss::{self, RecoverError};
use steadfast::{
    Comparison, FeedEvent, NodeAddress, NodeStatus, OpenError, RepConfig, StartAt,
    SubscribeOptions, Subscription,
};
use tempfile::TempDir;

use crate::support::{Env, Group, PATIENCE, STEADY, put, runtime};

/// Who has changed what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    thread: String,
    what: &'static str,
    path: PathBuf,
}

/// A disk that records every change and the thread that makes it.
#[derive(Clone)]
struct Watched {
    disk: Arc<dyn Disk>,
    changes: Arc<Mutex<BTreeSet<Change>>>,
}

impl Watched {
    fn over(disk: impl Disk) -> Self {
        Self {
            disk: Arc::new(disk),
            changes: Arc::default(),
        }
    }

    fn note(&self, what: &'static str, path: &Path) {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let path = path.to_owned();
        let change = Change { thread, what, path };
        self.changes.lock().expect("no panic").insert(change);
    }

    fn take(&self) -> BTreeSet<Change> {
        std::mem::take(&mut *self.changes.lock().expect("no panic"))
    }
}

impl Disk for Watched {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.note("creates", path);
        self.disk.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn file_mark(&self, path: &Path) -> io::Result<FileMark> {
        self.disk.file_mark(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        match mode {
            OpenMode::Read => return self.disk.open(path, mode),
            OpenMode::CreateNew => self.note("creates", path),
            OpenMode::ReadWrite => self.note("opens for writing", path),
        }
        Ok(Box::new(WatchedFile {
            file: self.disk.open(path, mode)?,
            path: path.to_owned(),
            disk: self.clone(),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note("renames", from);
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note("removes", path);
        self.disk.remove(path)
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> DiskFuture<'a, ()> {
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.disk.space(path)
    }
}

struct WatchedFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    disk: Watched,
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.note("writes", &self.path);
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.disk.note("allocates", &self.path);
        self.file.allocate(bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.note("sets the length of", &self.path);
        self.file.set_len(bytes)
    }
}

/// A single node with a log in many small files, on an observed real disk, reachable over TCP.
async fn busy_node(dir: &TempDir) -> (Env, Watched) {
    let disk = Watched::over(RealDisk);
    let config = RepConfig::builder("promises", "n1")
        .data_dir(dir.path().join("n1"))
        .listen("127.0.0.1:0")
        .set("log_segment_bytes", 64 * 1024)
        .set("log_keep_bytes", 256 * 1024)
        .set("log_retain_bytes_max", 1024 * 1024)
        .set("flush_interval_ms", 10)
        .build()
        .expect("a configuration");
    let machine = Machine {
        disk: Arc::new(disk.clone()),
        ..Machine::real(16 << 20).expect("entropy")
    };
    let env = Env::open_on(config, machine).await.expect("opened");
    env.wait_ready_async(PATIENCE).await.expect("ready");
    (env, disk)
}

/// Reads the whole state, as a backup does, and some of what follows.
async fn back_up(address: &str) {
    let options = SubscribeOptions::from(StartAt::Start);
    let feed = Subscription::connect_async([address], "promises", options);
    let mut feed = feed.await.expect("connected");
    let mut is_complete = false;
    while !is_complete {
        let event = feed.next_async().await.expect("it goes on");
        is_complete = matches!(event.expect("no error"), FeedEvent::StateComplete { .. });
    }
    feed.close_async().await;
}

#[test]
fn what_reads_changes_nothing_beside_a_node_that_writes() {
    let dir = TempDir::new().expect("a directory");
    let runtime = runtime();
    let (env, disk) = runtime.block_on(busy_node(&dir));
    let (done, address) = (Arc::new(AtomicBool::new(false)), env.listen_address());
    let own = NodeAddress {
        address: address.clone(),
        ..env.status().node
    };
    disk.take();
    let writer = {
        let (env, done) = (env.clone(), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut written = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let value = vec![7; 1_000];
                let put = env.write(|txn| txn.database("d")?.put(written.to_be_bytes(), &value));
                let _token = put.unwrap_or_else(|error| panic!("after {written} writes: {error}"));
                written += 1;
            }
            written
        })
    };
    for _ in 0..8 {
        runtime.block_on(async {
            for _ in 0..4 {
                let compared = Comparison::run(&own, &[], true, |_, _| {}).await;
                let compared = compared.expect("compared");
                assert!(compared.is_clean(), "{compared:?}");
            }
            NodeStatus::ask(&address, true, PATIENCE)
                .await
                .expect("asked");
            NodeStatus::ask_data_bytes(&steadfast::TcpTransport, &address, PATIENCE)
                .await
                .expect("asked");
            back_up(&address).await;
        });
    }
    done.store(true, Ordering::Relaxed);
    let written = writer.join().expect("no panic");
    assert!(
        written > 600,
        "{written} writes are too few to begin segments"
    );
    let own = ["steadfast-log", "steadfast-flush"];
    let changes = disk.take();
    let begun = |change: &&Change| change.what == "renames";
    assert!(changes.iter().filter(begun).count() > 5, "{changes:?}");
    let is_other = |change: &&Change| !own.contains(&&*change.thread);
    let others: Vec<_> = changes.iter().filter(is_other).collect();
    assert!(others.is_empty(), "{others:?}");
    // Its only member is its founder, whom the identity has.
    assert!(!dir.path().join("n1/members").exists());
    env.close().expect("closed");
}

/// The recovery plan for the first of three nodes; its disk and engine stay unchanged.
fn plan(group: &Group, disk: &Watched) -> Result<quorum_loss::RecoveryPlan, RecoverError> {
    let machine = Machine {
        disk: Arc::new(disk.clone()),
        ..group.machine(0)
    };
    let dir = group.storages[0].dir().to_owned();
    group
        .runtime
        .block_on(quorum_loss::plan(&machine, &[dir], &[]))
}

#[test]
fn a_plan_changes_nothing_in_the_directory_that_it_reads() {
    let mut group = Group::in_memory(3, STEADY);
    let token = put(group.master(), "k", b"v").expect("committed");
    group.wait_persisted();
    let memory = group.storages[0].disk().clone();
    let disk = Watched::over(memory.clone());
    assert!(matches!(
        plan(&group, &disk),
        Err(RecoverError::Open(OpenError::InUse { .. }))
    ));
    for at in 0..3 {
        group.close(at);
    }
    // A torn tail, which an open cuts off.
    let log = group.storages[0].dir().join("log");
    let names = memory.list(&log).expect("a log");
    let mut segments = names.iter().filter(|name| !name.starts_with("spare"));
    let last = log.join(segments.rfind(|name| *name != "lock").expect("a segment"));
    let mut bytes = memory.bytes(&last).expect("a segment");
    let torn = bytes.len() - 8;
    bytes[torn] = 9;
    memory.plant(&last, &bytes);

    let before = disk.take();
    let planned = plan(&group, &disk).expect("planned");
    assert_eq!(planned.survivors[0].vlsn, token.vlsn);
    assert_eq!((disk.take(), before), (BTreeSet::new(), BTreeSet::new()));
    assert_eq!(memory.bytes(&last), Some(bytes));
    assert_eq!(plan(&group, &disk).expect("planned again"), planned);
}
