//! Whether the order of the revisions explains what clients saw, piece by piece.
//!
//! A piece ends when all clients rest. Its revisions have no gaps: what no client was told, because
//! the answer was lost or a lease ended, is read from the history of the store, and has to be
//! something that was asked for or the end of a lease. So the state at each revision is known, and
//! nothing of a piece is needed after it but its last state, writes of unknown outcome, and leases.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::{Came, Event, Keys, Record, Said, Write};
use crate::leases::Leases;

/// Lines of the history that a failure shows.
const STORY_LINES: usize = 30;

/// What happened up to a time at which all clients rested.
#[derive(Clone, Default)]
pub(crate) struct Piece {
    pub(crate) records: Vec<Record>,
    /// The last revision, and the keys there.
    pub(crate) last: i64,
    pub(crate) keys: Keys,
    /// Between which times they were read.
    pub(crate) read: (Duration, Duration),
    /// The keys at the revisions that no client was told.
    pub(crate) untold: BTreeMap<i64, Keys>,
    /// When a master was taken away.
    pub(crate) failed: Vec<Duration>,
}

/// What is known after the pieces that were checked.
#[derive(Default)]
pub(crate) struct Checker {
    revision: i64,
    keys: Keys,
    /// Writes that may have happened since, or may still happen.
    unknown: Vec<Record>,
    pub(crate) leases: Leases,
    pub(crate) told: usize,
    pub(crate) untold: usize,
}

/// Between which times a revision happened, by what clients saw.
struct Times {
    /// By revision: the latest time at which something below it was current, and the earliest at
    /// which it was seen.
    began: BTreeMap<i64, Duration>,
    ended: BTreeMap<i64, Duration>,
}

impl Times {
    fn of(records: &[Record], last: i64, read_at: Duration) -> Self {
        let (mut began, mut ended) = (BTreeMap::new(), BTreeMap::from([(last, read_at)]));
        for record in records {
            if let Some(revision) = record.event.revision() {
                let latest = began.entry(revision).or_insert(record.began);
                *latest = record.began.max(*latest);
                let earliest = ended.entry(revision).or_insert(record.ended);
                *earliest = record.ended.min(*earliest);
            }
        }
        let mut latest = Duration::ZERO;
        for began in began.values_mut() {
            latest = latest.max(*began);
            *began = latest;
        }
        let mut earliest = Duration::MAX;
        for ended in ended.values_mut().rev() {
            earliest = earliest.min(*ended);
            *ended = earliest;
        }
        Self { began, ended }
    }

    fn of_revision(&self, revision: i64) -> (Duration, Duration) {
        let began = self.began.range(..revision).next_back();
        let ended = self.ended.range(revision..).next();
        (
            began.map_or(Duration::ZERO, |(_, at)| *at),
            ended.map_or(Duration::MAX, |(_, at)| *at),
        )
    }
}

/// The writes that clients were told of, by revision.
fn told(records: &[Record]) -> Result<BTreeMap<i64, &Write>, (i64, String)> {
    let mut told = BTreeMap::new();
    for record in records {
        // Revoking a lease without keys makes no revision.
        if let Event::Write(write, Came::Done(revision)) = &record.event
            && !matches!(write, Write::Revoke { .. })
            && let Some(other) = told.insert(*revision, write)
        {
            return Err((*revision, format!("it is {other:?} and {write:?}")));
        }
    }
    Ok(told)
}

impl Checker {
    /// Begins with a store of these keys at a revision.
    pub(crate) fn new(revision: i64, keys: Keys) -> Self {
        Self {
            revision,
            keys,
            ..Self::default()
        }
    }

    /// The revisions up to `last` that no client was told.
    pub(crate) fn untold(&self, records: &[Record], last: i64) -> Vec<i64> {
        let told = told(records).unwrap_or_default();
        let revisions = self.revision + 1..=last;
        revisions.filter(|of| !told.contains_key(of)).collect()
    }

    /// Goes through a piece.
    ///
    /// # Errors
    /// The first thing that nothing explains, with the part of the history about it.
    pub(crate) fn check(&mut self, piece: &Piece) -> Result<(), String> {
        let first = self.revision;
        self.go_through(piece).map_err(|(revision, what)| {
            let leases: Vec<_> = what.split_whitespace().filter_map(lease_named).collect();
            let records = piece.records.iter().filter(|record| {
                let revisions = revision - 3..=revision + 3;
                let is_near = record
                    .event
                    .revision()
                    .is_some_and(|of| revisions.contains(&of));
                let lease = record.event.lease();
                is_near || lease.is_some_and(|lease| leases.contains(&lease))
            });
            let mut lines: Vec<_> = records.collect();
            lines.sort_by_key(|record| record.began);
            let left_out = lines.len().saturating_sub(STORY_LINES);
            let lines: Vec<_> = lines[left_out..]
                .iter()
                .map(|of| format!("{of:?}"))
                .collect();
            format!(
                "in the piece from {first} to {}, at {revision}: {what}\n{}",
                piece.last,
                lines.join("\n")
            )
        })
    }

    fn go_through(&mut self, piece: &Piece) -> Result<(), (i64, String)> {
        let first = self.revision;
        let unknown = piece.records.iter();
        let unknown = unknown.filter(|of| matches!(of.event, Event::Write(_, Came::Unknown)));
        self.unknown.extend(unknown.cloned());
        self.note_outages(piece);
        let told = told(&piece.records)?;
        let times = Times::of(&piece.records, piece.last, piece.read.1);
        let mut states = BTreeMap::from([(first, self.keys.clone())]);
        for revision in first + 1..=piece.last {
            if let Some(write) = told.get(&revision) {
                self.told += 1;
                self.write(revision, write)
                    .map_err(|what| (revision, what))?;
            } else {
                self.untold += 1;
                let after = piece.untold.get(&revision);
                let after = after.ok_or((revision, "it was not read".to_owned()))?;
                let explained = self.explain(revision, after, piece, &times);
                explained.map_err(|what| (revision, what))?;
                self.keys.clone_from(after);
            }
            states.insert(revision, self.keys.clone());
        }
        if self.keys != piece.keys {
            let what = format!("{:?} was read, not {:?}", piece.keys, self.keys);
            return Err((piece.last, what));
        }
        for record in &piece.records {
            check_read(record, &states)?;
            self.leases.take(record);
        }
        check_real_time(&piece.records, first)?;
        for is in piece.keys.values().filter(|is| is.lease != 0) {
            self.leases.has_keys(is.lease, piece.read.0);
        }
        self.leases.check().map_err(|what| (piece.last, what))?;
        self.revision = piece.last;
        Ok(())
    }

    /// There was no master from its end to the first write that began later.
    fn note_outages(&mut self, piece: &Piece) {
        for failed in &piece.failed {
            let writes = piece.records.iter().filter(|record| {
                let is_done = matches!(record.event, Event::Write(_, Came::Done(_)));
                is_done && record.began > *failed
            });
            let again = writes.map(|record| record.ended).min();
            self.leases
                .note_outage(*failed, again.unwrap_or(piece.read.1));
        }
    }

    /// Makes a write that a client was told of.
    fn write(&mut self, revision: i64, write: &Write) -> Result<(), String> {
        let (key, value, lease) = match *write {
            Write::Put { key, value, lease } => (key, value, lease),
            Write::Swap { key, seen, value } => {
                let was = self.keys.get(&key).map_or(0, |is| is.changed);
                if was != seen {
                    return Err(format!("{write:?}, but the last change was at {was}"));
                }
                (key, value, 0)
            }
            Write::Delete { key } => {
                let was = self.keys.remove(&key);
                return was
                    .map(|_| ())
                    .ok_or(format!("{write:?}, but there was nothing"));
            }
            Write::Revoke { .. } => return Ok(()),
        };
        let is = crate::history::Is {
            value,
            changed: revision,
            lease,
        };
        self.keys.insert(key, is);
        Ok(())
    }

    /// Finds what may have made a revision that nobody was told.
    fn explain(
        &mut self,
        revision: i64,
        after: &Keys,
        piece: &Piece,
        times: &Times,
    ) -> Result<(), String> {
        let (began, ended) = times.of_revision(revision);
        let before = &self.keys;
        let gone: Vec<_> = before
            .iter()
            .filter(|(key, _)| !after.contains_key(*key))
            .collect();
        let new: Vec<_> = after
            .iter()
            .filter(|(key, is)| before.get(*key) != Some(is))
            .collect();
        let fits = |record: &Record| {
            let Event::Write(write, _) = &record.event else {
                return false;
            };
            let one = (gone.first(), new.first());
            record.began < ended
                && match (*write, one) {
                    (Write::Put { key, value, lease }, (None, Some((at, is)))) => {
                        (key, value, lease) == (**at, is.value, is.lease)
                    }
                    (Write::Swap { key, seen, value }, (None, Some((at, is)))) => {
                        let was = before.get(&key).map_or(0, |is| is.changed);
                        (key, value, seen) == (**at, is.value, was)
                    }
                    (Write::Delete { key }, (Some((at, _)), None)) => {
                        key == **at && gone.len() == 1
                    }
                    (Write::Revoke { lease }, (Some((_, is)), None)) => lease == is.lease,
                    _ => false,
                }
        };
        let what = || format!("nobody asked for what became of {before:?}: {after:?}");
        if let [(_, is)] = new[..] {
            let place = self.unknown.iter().position(fits);
            let is_right = gone.is_empty() && is.changed == revision;
            let place = place.filter(|_| is_right).ok_or_else(what)?;
            self.unknown.remove(place);
            return Ok(());
        }
        if !new.is_empty() || gone.is_empty() {
            return Err(what());
        }
        // What may have been a client's deletion says nothing about a lease.
        if let Some(place) = self.unknown.iter().position(fits) {
            self.unknown.remove(place);
            return Ok(());
        }
        let lease = gone[0].1.lease;
        let of_lease = before.values().filter(|is| is.lease == lease).count();
        let is_whole = gone.iter().all(|(_, is)| is.lease == lease) && gone.len() == of_lease;
        if lease == 0 || !is_whole {
            return Err(what());
        }
        let is_revoked = piece.records.iter().any(|record| {
            let revoke = Event::Write(Write::Revoke { lease }, Came::Done(revision));
            record.event == revoke
        });
        if !is_revoked {
            self.leases.expired(lease, began, ended);
        }
        Ok(())
    }
}

/// The lease in a word of a message.
fn lease_named(word: &str) -> Option<i64> {
    word.trim_end_matches(':').parse().ok()
}

/// What was read, or refused, has to be so at the revision that was told.
fn check_read(record: &Record, states: &BTreeMap<i64, Keys>) -> Result<(), (i64, String)> {
    let Some(revision) = record.event.revision() else {
        return Ok(());
    };
    let Some(state) = states.get(&revision) else {
        return Err((revision, format!("{record:?} is of another piece")));
    };
    let is_right = match &record.event {
        Event::Read(keys, _) => keys == state,
        Event::Write(Write::Swap { key, seen, .. }, Came::Nothing(_)) => {
            state.get(key).map_or(0, |is| is.changed) != *seen
        }
        Event::Write(Write::Delete { key }, Came::Nothing(_)) => !state.contains_key(key),
        Event::Write(Write::Revoke { lease }, Came::Done(_)) => {
            state.values().all(|is| is.lease != *lease)
        }
        Event::Lease(lease, Said::Left { keys, .. }) => {
            let own = state.iter().filter(|(_, is)| is.lease == *lease);
            own.map(|(key, _)| *key).eq(keys.iter().copied())
        }
        _ => true,
    };
    if is_right {
        Ok(())
    } else {
        Err((revision, format!("{record:?}, but it was {state:?}")))
    }
}

/// Nothing sees or becomes an earlier revision than what had ended before it began.
fn check_real_time(records: &[Record], first: i64) -> Result<(), (i64, String)> {
    let ends = records.iter();
    let ends = ends.filter_map(|record| Some((record.ended, record.event.revision()?)));
    let mut ends: Vec<_> = ends.collect();
    ends.sort_unstable();
    let mut newest = first;
    for (_, revision) in &mut ends {
        newest = newest.max(*revision);
        *revision = newest;
    }
    for record in records {
        let before = ends.partition_point(|(ended, _)| *ended < record.began);
        let known = before.checked_sub(1).map_or(first, |last| ends[last].1);
        let Some(own) = record.event.revision() else {
            continue;
        };
        // A lease without keys is revoked without a revision.
        let is_new = matches!(record.event, Event::Write(_, Came::Done(_)))
            && !matches!(record.event, Event::Write(Write::Revoke { .. }, _));
        if own < known || (own == known && is_new) {
            return Err((own, format!("{record:?} began when {known} was known")));
        }
    }
    Ok(())
}
