//! Opening a log: reads and verifies every record, and rebuilds the state that they add up to.
//!
//! The records form a chain through all segments. Where it breaks there are two cases:
//!
//! - **Torn tail.** The last group was being written when the power failed. A disk may have kept
//!   any of its sectors, so intact records can follow broken ones. Nobody was told that it is
//!   durable. It is cut: overwritten with zeros and synced, and the log continues from there.
//! - **Corruption.** Synced bytes are missing. Someone may rely on them. Nothing is changed, and
//!   the error names the place.
//!
//! To tell them apart, each record says how far the log had been synced when it was written. A
//! broken record is corruption if any intact record of its segment says that the break was synced.
//! Anywhere but in the last segment it always is, because a segment is begun only once the one
//! before is synced. `docs/format.md` lists what cannot be told apart.
//!
//! Finally, everything since the last known sync is rewritten with the same bytes and synced: a
//! process that died left them only in the page cache, and after a failed sync the cache may hold
//! bytes that the disk lacks, yet consider them written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::LogPosition;
use crate::planted::{self, Bug};

use super::appender::{Appender, Segments, first_header};
use super::disk::{Disk, DiskFile, DiskLock, OpenMode};
use super::format::{
    Head, Invalid, Parsed, Place, RECORD_ALIGNMENT, RECORDS_START, Record, SegmentHeader, VERSION,
    decode_record,
};
use super::index::{Index, Slot, next};
use super::segment::{Files, Segment, remove_spares, segment_name, segments_in};
use super::{Damage, LogConfig, LogError, LogIdentity};

const LOCK_NAME: &str = "lock";
/// Bytes per write when a torn tail is overwritten.
const CUT_BYTES: usize = 1 << 20;
/// For finding zeros: a comparison with it covers many bytes at a time in every build.
const ZEROS: [u8; 4096] = [0; 4096];

/// An open log.
pub(super) struct Recovered {
    pub(super) appender: Appender,
    pub(super) index: Index,
    pub(super) lock: Box<dyn DiskLock>,
}

pub(super) async fn recover(
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: LogIdentity,
    config: LogConfig,
) -> Result<Recovered, LogError> {
    let lock = lock(&*disk, &dir)?;
    remove_spares(&*disk, &dir).map_err(|error| refused(&dir, error))?;
    let sequences = segments_in(&*disk, &dir).map_err(|error| refused(&dir, error))?;
    let mut files = Files::new(disk, dir, identity, config.segment_bytes);
    let mut replay = Replay::default();
    let mut segments = Segments::new();
    let mut end = RECORDS_START;
    if sequences.is_empty() {
        sync_parent(&files).await?;
        let segment = files
            .create(first_header(identity, 1, Head::default()))
            .await?;
        segments.insert(segment.sequence, Arc::new(segment));
    } else {
        let opened = open_segments(&files, &sequences, OpenMode::ReadWrite)?;
        let ends = opened
            .iter()
            .skip(1)
            .map(|(_, header)| Some(header.previous_end));
        for ((segment, header), end_stated) in opened.iter().zip(ends.chain([None])) {
            end = replay.segment(segment, header, end_stated)?;
        }
        let (oldest, header) = &opened[0];
        replay.check(oldest, header)?;
        let (tail, _) = opened.last().expect("there is a segment");
        if !planted::is(Bug::KeepPageCache) {
            settle(tail, end, replay.synced_in(tail)).await?;
        }
        // The previous process may have ended before it synced the names.
        files.sync_names().await?;
        sync_parent(&files).await?;
        segments.extend(
            opened
                .into_iter()
                .map(|(segment, _)| (segment.sequence, segment.into())),
        );
    }
    let mut appender = Appender::new(files, segments, end, replay.chain, replay.head);
    if let Some(purged) = replay.head.purged {
        // A crash may have come between the purge and this step.
        appender.retire(purged.position).await?;
    }
    Ok(Recovered {
        appender,
        index: replay.index,
        lock,
    })
}

/// Reads and verifies every record of an open log up to `synced`: what is below that never changes,
/// whatever its writer does meanwhile. Returns how many bytes are valid. Changes nothing.
///
/// # Errors
/// As opening it. A log whose oldest files are retired meanwhile may be misread: read it again.
pub(super) fn check(
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: LogIdentity,
    config: LogConfig,
    synced: Place,
) -> Result<u64, LogError> {
    if planted::is(Bug::CheckRemovesSpares) {
        remove_spares(&*disk, &dir).ok();
    }
    let mut sequences = segments_in(&*disk, &dir).map_err(|error| refused(&dir, error))?;
    sequences.retain(|sequence| *sequence <= synced.segment);
    let files = Files::new(disk, dir, identity, config.segment_bytes);
    if sequences.last() != Some(&synced.segment) {
        let path = files.dir.join(segment_name(synced.segment));
        return Err(corrupt(&path, 0, Damage::Sequence));
    }
    let opened = open_segments(&files, &sequences, OpenMode::Read)?;
    let mut replay = Replay::default();
    let mut bytes = 0;
    for (at, (segment, header)) in opened.iter().enumerate() {
        let following = opened.get(at + 1);
        let end = following.map_or(synced.offset, |(_, header)| header.previous_end);
        bytes += u64::from(replay.segment(segment, header, Some(end))?);
    }
    Ok(bytes)
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskLock>, LogError> {
    disk.create_dir_all(dir)
        .map_err(|error| refused(dir, error))?;
    let path = dir.join(LOCK_NAME);
    disk.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LogError::Locked {
            dir: dir.to_owned(),
        },
        _ => refused(&path, error),
    })
}

/// Makes the directory itself durable.
async fn sync_parent(files: &Files) -> Result<(), LogError> {
    match files
        .dir
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => files
            .disk
            .sync_dir(parent)
            .await
            .map_err(|error| refused(parent, error)),
        None => Ok(()),
    }
}

/// Opens the segments and reads their headers, which must belong together.
fn open_segments(
    files: &Files,
    sequences: &[u32],
    mode: OpenMode,
) -> Result<Vec<(Segment, SegmentHeader)>, LogError> {
    let mut opened: Vec<(Segment, SegmentHeader)> = Vec::with_capacity(sequences.len());
    for &sequence in sequences {
        let path = files.dir.join(segment_name(sequence));
        let file = files.disk.open(&path, mode);
        let file = file.map_err(|error| refused(&path, error))?;
        let header = read_header(&*file, &path)?;
        if header.identity != files.identity {
            return Err(LogError::Foreign {
                file: path,
                found: Box::new(header.identity),
                expected: Box::new(files.identity),
            });
        }
        let follows = |(segment, _): &(Segment, _)| segment.sequence + 1 == sequence;
        if header.sequence != sequence || !opened.last().is_none_or(follows) {
            return Err(corrupt(&path, 0, Damage::Sequence));
        }
        let starts_after = header.head.last.map(|id| id.position);
        let segment = Segment {
            sequence,
            path,
            file,
            bytes: header.bytes,
            starts_after,
        };
        // All but the last one are only read, and there may be more of them than descriptors.
        if let Some((before, _)) = opened.last_mut() {
            *before = files.close(before);
        }
        opened.push((segment, header));
    }
    Ok(opened)
}

fn read_header(file: &dyn DiskFile, path: &Path) -> Result<SegmentHeader, LogError> {
    let mut block = vec![0; RECORDS_START as usize];
    let read = file
        .read_at(&mut block, 0)
        .map_err(|error| refused(path, error))?;
    let header = SegmentHeader::decode(&block[..read]).map_err(|invalid| match invalid {
        Invalid::Version(version) if version > VERSION => newer(path, version),
        _ => corrupt(path, 0, Damage::Header),
    })?;
    if !header.head.is_possible() {
        return Err(corrupt(path, 0, Damage::Header));
    }
    let bytes = file.len().map_err(|error| refused(path, error))?;
    if bytes < header.bytes.into() {
        return Err(corrupt(path, bytes, Damage::Short));
    }
    Ok(header)
}

/// The state of the log as far as it has been read.
#[derive(Default)]
struct Replay {
    head: Head,
    chain: u32,
    index: Index,
    /// The furthest point that a record or a header says is synced.
    synced: Option<Place>,
}

impl Replay {
    /// Reads one segment, and returns where its records end. Without a stated end, it is the last
    /// segment.
    fn segment(
        &mut self,
        segment: &Segment,
        header: &SegmentHeader,
        end_stated: Option<u32>,
    ) -> Result<u32, LogError> {
        if self.synced.is_none() {
            (self.head, self.chain) = (header.head, header.previous_checksum);
            self.index.first = header
                .head
                .last
                .map_or(LogPosition(0), |last| next(last.position));
        } else if (self.head, self.chain) != (header.head, header.previous_checksum) {
            return Err(corrupt(&segment.path, 0, Damage::Sequence));
        }
        let start = Place {
            segment: segment.sequence,
            offset: RECORDS_START,
        };
        self.synced = Some(start);
        let mut bytes = vec![0; segment.bytes as usize];
        let read = segment.file.read_at(&mut bytes, 0);
        bytes.truncate(read.map_err(|error| refused(&segment.path, error))?);
        let mut place = start;
        while end_stated != Some(place.offset) {
            match decode_record(&bytes, place.offset as usize, place) {
                Ok(parsed) if parsed.link.previous == self.chain => {
                    self.record(segment, &parsed)?;
                    place.offset += parsed.size;
                }
                Err(Invalid::Version(version)) => return Err(unknown(segment, place, version)),
                _ if end_stated.is_some() => return Err(broken(segment, place)),
                _ => {
                    judge_tail(segment, &bytes, place)?;
                    break;
                }
            }
        }
        Ok(place.offset)
    }

    fn record(&mut self, segment: &Segment, parsed: &Parsed) -> Result<(), LogError> {
        let place = parsed.link.place;
        let order = || corrupt(&segment.path, place.offset.into(), Damage::Order);
        let mut head = self.head;
        head.apply(&parsed.record);
        // A record vouches for what is before it, and for no more.
        if !head.is_possible() || parsed.link.synced_below > place {
            return Err(order());
        }
        match parsed.record {
            Record::Entry(_, id) => {
                if self
                    .head
                    .last
                    .is_some_and(|last| next(last.position) != id.position)
                {
                    return Err(order());
                }
                if self.index.next().is_some_and(|next| next != id.position) {
                    return Err(order());
                }
                self.index.push(
                    id.position,
                    Slot {
                        place,
                        bytes: parsed.size,
                    },
                );
            }
            Record::Truncation(last) => self.index.truncate(last.map(|id| id.position)),
            Record::Purge(upto) => self.index.purge(upto.position),
            Record::Vote(_) | Record::Mark(_) => {}
        }
        self.head = head;
        self.chain = parsed.checksum;
        self.synced = self.synced.max(Some(parsed.link.synced_below));
        Ok(())
    }

    /// Checks that everything the records refer to is there.
    fn check(&self, oldest: &Segment, header: &SegmentHeader) -> Result<(), LogError> {
        let Head {
            purged, last, vote, ..
        } = self.head;
        let position = |id: Option<super::LogId>| id.map(|id| id.position);
        let complete = if last == purged {
            self.index.next().is_none()
        } else {
            self.index.next() == position(last).map(next)
        };
        // Entries before the oldest segment are in no file: all of them must be purged.
        if !complete || position(header.head.last) > position(purged) {
            return Err(corrupt(&oldest.path, 0, Damage::Sequence));
        }
        match last {
            // A restored node has only purged entries at first, and no vote yet.
            Some(last)
                if self.head.last != purged
                    && last.term > vote.map(|vote| vote.term).unwrap_or_default() =>
            {
                Err(LogError::VoteMissing { last, vote })
            }
            _ => Ok(()),
        }
    }

    /// Bytes of the last segment that are known to be synced.
    fn synced_in(&self, tail: &Segment) -> u32 {
        let synced = self.synced.filter(|synced| synced.segment == tail.sequence);
        synced.map_or(RECORDS_START, |synced| synced.offset)
    }
}

/// Decides whether the first invalid record of the last segment is a torn tail or corruption.
fn judge_tail(segment: &Segment, bytes: &[u8], end: Place) -> Result<(), LogError> {
    let blocks = bytes.rchunks(ZEROS.len());
    let zeros: usize = blocks
        .take_while(|block| is_zero(block))
        .map(<[u8]>::len)
        .sum();
    for at in (end.offset as usize..bytes.len() - zeros).step_by(RECORD_ALIGNMENT) {
        let offset = u32::try_from(at).expect("a segment is shorter than 4 GiB");
        match decode_record(bytes, at, Place { offset, ..end }) {
            Ok(later) if later.link.synced_below > end => return Err(broken(segment, end)),
            Err(Invalid::Version(version)) => {
                return Err(unknown(segment, Place { offset, ..end }, version));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_zero(block: &[u8]) -> bool {
    *block == ZEROS[..block.len()]
}

/// Makes what was recovered durable, and zeroes everything after it.
async fn settle(tail: &Segment, end: u32, synced: u32) -> Result<(), LogError> {
    let settled = async {
        let mut recent = vec![0; (end - synced) as usize];
        read_whole(tail, &mut recent, synced)?;
        // Even when it is empty: the sync covers what a process that died had written.
        tail.file.write_all_at(&recent, synced.into())?;
        tail.file.sync_data().await?;

        let mut cut = false;
        let mut offset = end;
        while offset < tail.bytes {
            let bytes = ((tail.bytes - offset) as usize).min(CUT_BYTES);
            let mut rest = vec![0; bytes];
            read_whole(tail, &mut rest, offset)?;
            if !rest.chunks(ZEROS.len()).all(is_zero) {
                rest.fill(0);
                tail.file.write_all_at(&rest, offset.into())?;
                cut = true;
            }
            offset += u32::try_from(bytes).map_err(io::Error::other)?;
        }
        if cut {
            tail.file.sync_data().await?;
            tracing::info!(file = %tail.path.display(), offset = end, "cleared the end of the log");
        }
        io::Result::Ok(())
    };
    settled.await.map_err(|error| refused(&tail.path, error))
}

fn read_whole(segment: &Segment, buffer: &mut [u8], offset: u32) -> io::Result<()> {
    let read = segment.file.read_at(buffer, offset.into())?;
    if read == buffer.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn broken(segment: &Segment, place: Place) -> LogError {
    corrupt(&segment.path, place.offset.into(), Damage::Record)
}

/// An intact record of a version or kind that this program does not write.
fn unknown(segment: &Segment, place: Place, version: u16) -> LogError {
    if version > VERSION {
        newer(&segment.path, version)
    } else {
        broken(segment, place)
    }
}

fn newer(path: &Path, version: u16) -> LogError {
    LogError::NewerVersion {
        file: path.to_owned(),
        version,
    }
}

fn corrupt(path: &Path, offset: u64, damage: Damage) -> LogError {
    LogError::Corrupt {
        file: path.to_owned(),
        offset,
        damage,
    }
}

fn refused(path: &Path, error: io::Error) -> LogError {
    LogError::Io {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}
