//! The end of the log: records go into a buffer, the buffer goes into the last segment.
//!
//! Knows the chain, the place of the next record and how far the disk is synced; knows nothing of
//! the queue or of callbacks. After an error it must not be used again: what the disk holds is
//! unknown.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::LogPosition;
use crate::planted::{self, Bug};

use super::format::{
    Head, Link, Place, RECORD_HEADER_BYTES, RECORDS_START, Record, SegmentHeader, encode_record,
    record_bytes,
};
use super::segment::{Files, Segment, failed};
use super::{LogError, LogIdentity};

/// The segments of a log by sequence number: no gaps, the last one is written to.
pub(super) type Segments = BTreeMap<u32, Arc<Segment>>;

/// Appends records, and syncs them in groups.
pub(super) struct Appender {
    files: Files,
    segments: Segments,
    tail: Arc<Segment>,
    /// Records not yet written; they belong at `buffer_start` of the tail.
    buffer: Vec<u8>,
    buffer_start: u32,
    synced: Place,
    /// Checksum of the last record.
    chain: u32,
    /// State of the log after the last record.
    head: Head,
}

impl Appender {
    /// Continues at the end of what recovery found, all of which is synced.
    ///
    /// # Panics
    /// When there is no segment.
    pub(super) fn new(
        files: Files,
        segments: Segments,
        offset: u32,
        chain: u32,
        head: Head,
    ) -> Self {
        let tail = Arc::clone(segments.values().next_back().expect("a log has a segment"));
        let synced = Place {
            segment: tail.sequence,
            offset,
        };
        let buffer = Vec::new();
        Self {
            files,
            segments,
            tail,
            buffer,
            buffer_start: offset,
            synced,
            chain,
            head,
        }
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Everything below this is synced.
    pub(super) fn synced(&self) -> Place {
        self.synced
    }

    pub(super) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Adds a record, and returns its future place and its size there. Starts a new segment when
    /// this one is full, after writing and syncing what was added before.
    pub(super) async fn put(
        &mut self,
        record: &Record,
        payload: &[u8],
    ) -> Result<(Place, u32), LogError> {
        let bytes = record_bytes(payload.len());
        if !self.fits(bytes) {
            if planted::is(Bug::RollWithoutSync) {
                self.write()?;
                self.synced = self.end();
            } else {
                self.sync().await?;
            }
            self.roll().await?;
            assert!(
                self.fits(bytes),
                "the log refuses entries larger than a segment"
            );
        }
        let place = self.end();
        let link = Link {
            place,
            previous: self.chain,
            synced_below: self.synced,
        };
        self.chain = encode_record(&mut self.buffer, &link, record, payload);
        self.head.apply(record);
        Ok((place, in_segment(bytes)))
    }

    /// Writes and syncs what was added.
    pub(super) async fn sync(&mut self) -> Result<(), LogError> {
        self.write()?;
        let synced = self.tail.file.sync_data().await;
        if !planted::is(Bug::IgnoreFailedSync) {
            synced.map_err(|error| failed(&self.tail.path, error))?;
        }
        self.synced = self.end();
        Ok(())
    }

    /// Writes a mark that vouches for everything synced so far. It costs no sync: the next one
    /// covers it. A full segment gets none, because its successor's header says the same.
    pub(super) async fn mark(&mut self) -> Result<(), LogError> {
        if self.fits(record_bytes(0)) {
            self.put(&Record::Mark(self.head.committed), &[]).await?;
            self.write()?;
        }
        Ok(())
    }

    /// Syncs what was added and then, in its own block, a mark that vouches for it: the loss of any
    /// one block of a closed log is detected.
    pub(super) async fn seal(&mut self) -> Result<(), LogError> {
        self.sync().await?;
        let mark = Record::Mark(self.head.committed);
        let rest = (RECORDS_START - self.end().offset % RECORDS_START) as usize;
        let padding = if rest < RECORD_HEADER_BYTES {
            rest + RECORDS_START as usize
        } else {
            rest
        };
        // At the end of a segment, the mark itself goes into the next.
        if self.fits(padding) {
            self.put(&mark, &vec![0; padding - RECORD_HEADER_BYTES])
                .await?;
        }
        self.put(&mark, &[]).await?;
        self.sync().await
    }

    /// Retires the segments that hold no entry after `purged`.
    pub(super) async fn retire(&mut self, purged: LogPosition) -> Result<(), LogError> {
        let unneeded = |next: &Segment| next.starts_after.is_none_or(|last| last <= purged);
        while self
            .segments
            .values()
            .nth(1)
            .is_some_and(|next| unneeded(next))
        {
            let (_, oldest) = self.segments.pop_first().expect("there are two");
            self.files.retire(&oldest).await?;
        }
        Ok(())
    }

    /// Prepares the next segment once this one is half full, by twice what was just written, so
    /// that it is ready when this one ends.
    pub(super) async fn prepare(&mut self, written: usize) {
        if self.buffer_start > self.tail.bytes / 2 {
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            self.files.prepare(written.saturating_mul(2)).await;
        }
    }

    /// Releases memory that one very large group took.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        self.buffer.shrink_to(bytes_max);
    }

    /// Hands what was added to the operating system, without a sync.
    pub(super) fn write(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self
            .tail
            .file
            .write_all_at(&self.buffer, self.buffer_start.into());
        written.map_err(|error| failed(&self.tail.path, error))?;
        self.buffer_start = self.end().offset;
        self.buffer.clear();
        Ok(())
    }

    async fn roll(&mut self) -> Result<(), LogError> {
        assert_eq!(self.synced, self.end(), "a segment ends when it is synced");
        let header = SegmentHeader {
            previous_end: self.synced.offset,
            previous_checksum: self.chain,
            ..first_header(self.files.identity, self.tail.sequence + 1, self.head)
        };
        let whole = self.files.close(&self.tail);
        self.tail = Arc::new(self.files.create(header).await?);
        self.segments.insert(whole.sequence, Arc::new(whole));
        self.segments
            .insert(self.tail.sequence, Arc::clone(&self.tail));
        self.buffer_start = RECORDS_START;
        self.synced = self.end();
        Ok(())
    }

    fn end(&self) -> Place {
        let offset = self.buffer_start + in_segment(self.buffer.len());
        Place {
            segment: self.tail.sequence,
            offset,
        }
    }

    fn fits(&self, bytes: usize) -> bool {
        self.end().offset as usize + bytes <= self.tail.bytes as usize
    }
}

/// The header of a segment without a predecessor.
pub(super) fn first_header(identity: LogIdentity, sequence: u32, head: Head) -> SegmentHeader {
    SegmentHeader {
        identity,
        sequence,
        bytes: 0,
        previous_end: 0,
        previous_checksum: 0,
        head,
    }
}

fn in_segment(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a segment is shorter than 4 GiB")
}
