//! A disk that tells which records of the log it has synced. docs/format.md has their bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use steadfast::log::{
    Disk, DiskFile, DiskFuture, DiskLock, DiskSpace, FileMark, MemoryDisk, OpenMode,
};
use steadfast_net::lock;

use crate::journal::Journal;

const HEADER_BYTES: usize = 48;
const KIND: usize = 10;
const VOTE: u8 = 4;
const TRUNCATION: u8 = 6;
const PURGE: u8 = 7;

/// Outlives the node's crashes. Clones share the disk.
#[derive(Clone)]
pub(crate) struct WatchedDisk {
    pub(crate) disk: MemoryDisk,
    name: String,
    journal: Journal,
    records: Arc<Mutex<Records>>,
}

#[derive(Default)]
struct Records {
    /// Not synced yet, by file.
    waiting: BTreeMap<u64, Vec<Record>>,
    /// Everything below this place was told. A log that is opened writes its end again.
    told_below: u64,
}

#[derive(Clone, Copy)]
struct Record {
    kind: u8,
    flag: bool,
    place: u64,
    term: u64,
    number: u64,
}

impl WatchedDisk {
    pub(crate) fn new(name: &str, journal: &Journal) -> Self {
        Self {
            disk: MemoryDisk::new(),
            name: name.to_owned(),
            journal: journal.clone(),
            records: Arc::default(),
        }
    }

    /// The process ends: the system keeps what it was handed, and nothing says that it is synced.
    pub(crate) fn crash(&self) {
        lock(&self.records).waiting.clear();
        self.disk.crash_keeping(usize::MAX, |_, _| usize::MAX);
    }

    fn synced(&self, file: u64) {
        let records = &mut *lock(&self.records);
        let mut told = records.waiting.remove(&file).unwrap_or_default();
        told.retain(|record| record.place >= records.told_below);
        if let Some(last) = told.last() {
            records.told_below = last.place + 1;
        }
        for run in told.chunk_by(|left, right| left.is_entry() && right.is_entry()) {
            if let Some(what) = describe(run) {
                self.journal.say(&self.name, what);
            }
        }
    }
}

/// What a record, or a run of entries, means; nothing for a mark.
fn describe(run: &[Record]) -> Option<String> {
    let (first, last) = (run[0], run[run.len() - 1]);
    let id = |record: Record| format!("{}/{}", record.term, record.number);
    match first.kind {
        1..=3 if run.len() > 1 => Some(format!("syncs {} to {}", id(first), id(last))),
        1..=3 => {
            let kind = ["blank", "transactions", "membership"][usize::from(first.kind) - 1];
            Some(format!("syncs {} ({kind})", id(first)))
        }
        VOTE if first.flag => Some(format!(
            "notes n{} as master of term {}",
            first.number, first.term
        )),
        VOTE => Some(format!(
            "saves its vote for n{} in term {}",
            first.number, first.term
        )),
        TRUNCATION if first.flag => Some(format!("cuts its log back to {}", id(first))),
        TRUNCATION => Some("cuts all of its log".to_owned()),
        PURGE => Some(format!("purges its log up to {}", id(first))),
        _ => None,
    }
}

impl Record {
    /// The records at the start of what is written at this offset; none where it is something else.
    fn all(mut bytes: &[u8], mut offset: u64) -> Vec<Self> {
        let mut records = Vec::new();
        while bytes.len() >= HEADER_BYTES {
            let u64_at = |at: usize| {
                let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
                u64::from_le_bytes(bytes)
            };
            let length = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
            let record = Self {
                kind: bytes[KIND],
                flag: bytes[KIND + 1] != 0,
                place: u64_at(16),
                term: u64_at(32),
                number: u64_at(40),
            };
            if record.place & u64::from(u32::MAX) != offset {
                break;
            }
            records.push(record);
            let size = (HEADER_BYTES + length as usize).next_multiple_of(8);
            bytes = bytes.get(size..).unwrap_or_default();
            offset += size as u64;
        }
        records
    }

    fn is_entry(self) -> bool {
        matches!(self.kind, 1..=3)
    }
}

impl Disk for WatchedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk.open(path, mode)?;
        if path.parent().is_none_or(|parent| !parent.ends_with("log")) {
            return Ok(file);
        }
        Ok(Box::new(WatchedFile {
            file,
            number: self.disk.file_mark(path)?.number,
            disk: self.clone(),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
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

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
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

/// A segment of the log.
struct WatchedFile {
    file: Box<dyn DiskFile>,
    number: u64,
    disk: WatchedDisk,
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let mut records = lock(&self.disk.records);
        let waiting = records.waiting.entry(self.number).or_default();
        waiting.extend(Record::all(bytes, offset));
        Ok(())
    }

    fn sync_data(&self) -> DiskFuture<'_, ()> {
        Box::pin(async {
            self.file.sync_data().await?;
            self.disk.synced(self.number);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}
