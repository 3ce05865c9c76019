//! One file: what a reader sees, what a power cut leaves, and the sectors that differ.
//!
//! Contents are kept by sector and shared between both views until rewritten, so that preallocated
//! space costs nothing and a sync costs only what it covers.
//!
//! Every change carries a stamp from a counter shared by the whole disk. Stamps give the order of
//! writes, and tell whether a sector was rewritten while a sync of it was under way.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The unit that a disk writes atomically, in bytes.
pub(super) const SECTOR_BYTES: usize = 512;

/// One sector's bytes; `None` means all zeros.
pub(super) type Content = Option<Arc<[u8; SECTOR_BYTES]>>;

/// Order of changes on one disk, from 1.
pub(super) type Stamp = u64;

/// One file, with or without a name.
pub(super) struct File {
    /// The newest name, for messages and traces.
    pub(super) path: Arc<Path>,
    len: Length,
    durable_len: Length,
    /// The shortest length since the durable one, if the file was cut since.
    shrunk_to: Option<usize>,
    /// Bytes of the newest view at or after `len` are zero.
    sectors: BTreeMap<usize, Sector>,
    /// Sectors that the next sync covers.
    unsynced: BTreeSet<usize>,
    /// Sectors given up by a failed sync: no later sync covers them. Disjoint from `unsynced`.
    abandoned: BTreeSet<usize>,
}

#[derive(Clone, Copy, Default)]
struct Length {
    bytes: usize,
    stamp: Stamp,
}

#[derive(Default)]
struct Sector {
    current: Content,
    /// When `current` was written.
    stamp: Stamp,
    durable: Content,
    /// When the durable content was written.
    durable_stamp: Stamp,
    /// What was durable before, if versions are kept.
    previous: Content,
}

/// What a sync covers: the state of the file when the sync began.
#[derive(Default)]
pub(super) struct Snapshot {
    len: Length,
    sectors: Vec<(usize, Stamp, Content)>,
}

impl Snapshot {
    /// How many sectors the sync covers.
    pub(super) fn sectors(&self) -> usize {
        self.sectors.len()
    }
}

impl File {
    /// An empty file of this name. Its length, zero, is durable with the name.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: Arc::from(path),
            len: Length::default(),
            durable_len: Length::default(),
            shrunk_to: None,
            sectors: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            abandoned: BTreeSet::new(),
        }
    }

    /// A new file with what a reader sees of this one, all of it durable.
    pub(super) fn copy(&self, path: &Path) -> Self {
        let sector = |(&index, sector): (&usize, &Sector)| {
            let content = || sector.current.clone();
            let copied = Sector {
                current: content(),
                durable: content(),
                ..Sector::default()
            };
            (index, copied)
        };
        let bytes = Length {
            bytes: self.len.bytes,
            ..Length::default()
        };
        Self {
            len: bytes,
            durable_len: bytes,
            sectors: self.sectors.iter().map(sector).collect(),
            ..Self::new(path)
        }
    }

    /// The length that a reader sees, in bytes.
    pub(super) fn len(&self) -> usize {
        self.len.bytes
    }

    /// Copies bytes to a reader; returns how many.
    pub(super) fn read(&self, buffer: &mut [u8], offset: usize) -> usize {
        let start = offset.min(self.len.bytes);
        let bytes = buffer.len().min(self.len.bytes - start);
        copy_out(&self.sectors, &mut buffer[..bytes], start, |sector| {
            &sector.current
        });
        bytes
    }

    /// Writes bytes, growing the file where they extend past its end.
    pub(super) fn write(&mut self, bytes: &[u8], offset: usize, stamp: Stamp) {
        let end = offset + bytes.len();
        if end > self.len.bytes && !bytes.is_empty() {
            self.len = Length { bytes: end, stamp };
        }
        for (index, within) in pieces(offset..end) {
            let sector = self.sectors.entry(index).or_default();
            let from = index * SECTOR_BYTES + within.start - offset;
            let source = &bytes[from..from + within.len()];
            if source.len() == SECTOR_BYTES && is_zero(source) {
                sector.current = None;
            } else {
                writable(&mut sector.current)[within].copy_from_slice(source);
            }
            sector.stamp = stamp;
            self.unsynced.insert(index);
            self.abandoned.remove(&index);
        }
    }

    /// Cuts the file, or extends it with zeros.
    pub(super) fn set_len(&mut self, bytes: usize, stamp: Stamp) {
        if bytes < self.len.bytes {
            for (&index, sector) in self.sectors.range_mut(bytes / SECTOR_BYTES..) {
                if sector.current.is_some() && clear_from(&mut sector.current, index, bytes) {
                    sector.stamp = stamp;
                    self.unsynced.insert(index);
                    self.abandoned.remove(&index);
                }
            }
            self.shrunk_to = Some(self.shrunk_to.map_or(bytes, |old| old.min(bytes)));
        }
        self.len = Length { bytes, stamp };
    }

    /// What a sync that begins now covers.
    pub(super) fn begin_sync(&self) -> Snapshot {
        let sectors = self.unsynced.iter().filter_map(|&index| {
            let sector = self.sectors.get(&index)?;
            Some((index, sector.stamp, sector.current.clone()))
        });
        Snapshot {
            len: self.len,
            sectors: sectors.collect(),
        }
    }

    /// Makes durable what the sync covers; what was rewritten since stays unsynced.
    pub(super) fn finish_sync(&mut self, snapshot: Snapshot, keep_previous: bool) {
        for (index, stamp, content) in snapshot.sectors {
            let Some(sector) = self.sectors.get_mut(&index) else {
                continue;
            };
            // A sync that began later may have ended earlier.
            if stamp > sector.durable_stamp {
                let old = std::mem::replace(&mut sector.durable, content);
                sector.durable_stamp = stamp;
                if keep_previous {
                    sector.previous = old;
                }
            }
            if sector.stamp == stamp {
                self.unsynced.remove(&index);
                self.abandoned.remove(&index);
            }
        }
        if snapshot.len.stamp > self.durable_len.stamp {
            self.durable_len = snapshot.len;
        }
        if self.len.stamp == self.durable_len.stamp {
            self.shrunk_to = None;
        }
    }

    /// Gives up what the sync covers, as Linux does: the cache keeps the bytes but considers them
    /// written. A changed length stays unsynced.
    pub(super) fn fail_sync(&mut self, snapshot: &Snapshot) {
        for (index, stamp, _) in &snapshot.sectors {
            let Some(sector) = self.sectors.get(index) else {
                continue;
            };
            if sector.stamp == *stamp && sector.durable_stamp < *stamp {
                self.unsynced.remove(index);
                self.abandoned.insert(*index);
            }
        }
    }

    /// Stamps of everything that waits for a sync.
    pub(super) fn unsynced_stamps(&self) -> impl Iterator<Item = Stamp> {
        let sectors = self.unsynced.iter().filter_map(|index| {
            let sector = self.sectors.get(index)?;
            Some(sector.stamp)
        });
        sectors.chain(self.unsynced_len())
    }

    /// When the length changed, if the change waits for a sync.
    pub(super) fn unsynced_len(&self) -> Option<Stamp> {
        (self.len.stamp != self.durable_len.stamp).then_some(self.len.stamp)
    }

    /// Cuts the power: `kept` gives how many leading bytes of an unsynced sector survive. Both
    /// views are equal afterwards. Returns how many sectors lost something.
    pub(super) fn crash(&mut self, keep_len: bool, mut kept: impl FnMut(Stamp) -> usize) -> u64 {
        let mut lost = 0;
        for index in std::mem::take(&mut self.abandoned) {
            if let Some(sector) = self.sectors.get_mut(&index) {
                lost += sector.settle(0);
            }
        }
        let cut = self.shrunk_to.take().unwrap_or(usize::MAX);
        for index in std::mem::take(&mut self.unsynced) {
            let Some(sector) = self.sectors.get_mut(&index) else {
                continue;
            };
            let mut bytes = kept(sector.stamp);
            if cut < (index + 1) * SECTOR_BYTES {
                // A file system truncates a file atomically: if the cut is lost, all that lay after
                // it is back; if it survives, none of it is ever seen again.
                if keep_len {
                    clear_from(&mut sector.durable, index, cut);
                } else {
                    bytes = 0;
                }
            }
            lost += sector.settle(bytes);
        }
        if keep_len {
            self.durable_len = self.len;
        } else {
            self.len = self.durable_len;
        }
        self.trim();
        lost
    }

    /// The bytes left when nothing unsynced survives.
    pub(super) fn durable_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.durable_len.bytes];
        copy_out(&self.sectors, &mut bytes, 0, |sector| &sector.durable);
        bytes
    }

    /// Whether everything in the file is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.unsynced.is_empty() && self.abandoned.is_empty() && self.unsynced_len().is_none()
    }

    /// The durable sectors that hold anything but zeros and have nothing unsynced.
    pub(super) fn written_sectors(&self) -> impl Iterator<Item = usize> {
        let settled = self.sectors.iter().filter(|(index, sector)| {
            let waits = self.unsynced.contains(index) || self.abandoned.contains(index);
            !waits && **index * SECTOR_BYTES < self.durable_len.bytes && !sector.is_zero()
        });
        settled.map(|(&index, _)| index)
    }

    /// The durable contents of a sector.
    pub(super) fn sector(&self, index: usize) -> Content {
        self.sectors.get(&index)?.durable.clone()
    }

    /// A sector's previous durable contents, if kept and different.
    pub(super) fn previous(&self, index: usize) -> Content {
        let sector = self.sectors.get(&index)?;
        sector
            .previous
            .clone()
            .filter(|_| sector.previous != sector.durable)
    }

    /// The byte range of a sector that lies within the file.
    pub(super) fn sector_range(&self, index: usize) -> Range<usize> {
        let start = index * SECTOR_BYTES;
        start..(start + SECTOR_BYTES).min(self.len.bytes)
    }

    /// Replaces a sector in both views, as rot does.
    pub(super) fn rot(&mut self, index: usize, content: Content) {
        let end = self.durable_len.bytes;
        let Some(sector) = self.sectors.get_mut(&index) else {
            return;
        };
        sector.durable = content;
        clear_from(&mut sector.durable, index, end);
        sector.current.clone_from(&sector.durable);
    }

    /// Cuts a settled file in both views, as rot does.
    pub(super) fn rot_len(&mut self, bytes: usize) {
        self.len.bytes = bytes;
        self.durable_len.bytes = bytes;
        self.trim();
    }

    /// Clears both views past the end of the file. For a file whose views are equal.
    fn trim(&mut self) {
        let end = self.len.bytes;
        self.sectors.split_off(&end.div_ceil(SECTOR_BYTES));
        if let Some((&index, sector)) = self.sectors.last_key_value()
            && (index + 1) * SECTOR_BYTES > end
            && sector.durable.is_some()
        {
            self.rot(index, self.sector(index));
        }
    }
}

impl Sector {
    /// Lets the first `bytes` unsynced bytes survive. Returns 1 if bytes were lost.
    fn settle(&mut self, bytes: usize) -> u64 {
        let lost = bytes < SECTOR_BYTES && self.current != self.durable;
        if bytes >= SECTOR_BYTES {
            self.durable.clone_from(&self.current);
        } else if bytes > 0 {
            let new = self.current.as_deref().unwrap_or(&[0; SECTOR_BYTES]);
            writable(&mut self.durable)[..bytes].copy_from_slice(&new[..bytes]);
        }
        self.current.clone_from(&self.durable);
        self.durable_stamp = self.stamp;
        u64::from(lost)
    }

    fn is_zero(&self) -> bool {
        self.durable
            .as_ref()
            .is_none_or(|bytes| is_zero(&bytes[..]))
    }
}

/// Most of what a log writes is preallocated space.
fn is_zero(sector: &[u8]) -> bool {
    *sector == [0; SECTOR_BYTES][..sector.len()]
}

/// The bytes, unshared from any other view.
pub(super) fn writable(content: &mut Content) -> &mut [u8; SECTOR_BYTES] {
    Arc::make_mut(content.get_or_insert_with(|| Arc::new([0; SECTOR_BYTES])))
}

/// Zeroes a sector from this file offset on. Returns whether it reaches there.
fn clear_from(content: &mut Content, index: usize, offset: usize) -> bool {
    let start = index * SECTOR_BYTES;
    if offset >= start + SECTOR_BYTES {
        return false;
    }
    if offset <= start {
        *content = None;
    } else if content.is_some() {
        writable(content)[offset - start..].fill(0);
    }
    true
}

/// Fills the buffer with the bytes from `offset` on.
fn copy_out(
    sectors: &BTreeMap<usize, Sector>,
    buffer: &mut [u8],
    offset: usize,
    view: impl Fn(&Sector) -> &Content,
) {
    let end = offset + buffer.len();
    let range = offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES).max(offset / SECTOR_BYTES);
    let mut filled = 0;
    for (&index, sector) in sectors.range(range) {
        let Some(content) = view(sector) else {
            continue;
        };
        let start = index * SECTOR_BYTES;
        let from = offset.max(start);
        let to = end.min(start + SECTOR_BYTES);
        if from < to {
            buffer[filled..from - offset].fill(0);
            filled = to - offset;
            buffer[from - offset..filled].copy_from_slice(&content[from - start..to - start]);
        }
    }
    buffer[filled..].fill(0);
}

/// The sectors of a range, each with the part of it that lies in the range.
fn pieces(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let sectors = if range.is_empty() {
        0..0
    } else {
        range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES)
    };
    sectors.map(move |index| {
        let start = index * SECTOR_BYTES;
        let from = range.start.max(start) - start;
        let to = range.end.min(start + SECTOR_BYTES) - start;
        (index, from..to)
    })
}
