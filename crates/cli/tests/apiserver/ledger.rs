//! What the clients asked for, were answered, listed and saw, and whether one store explains it.
//!
//! ```text
//!  controllers: asked, answered ──►┌────────┐   revision by revision, as far as the watch of
//!  watches: each event ───────────►│ ledger │──► everything has come (the audit): every event has
//!  lists: keys at a revision ─────►└────────┘   a cause, every guard held, every list is the state
//! ```
//!
//! Events come from all watches, and have to be the same at all of them. Revisions have no gaps, so
//! the watch of everything cannot have missed any. What a watch did not see is found at its end, and
//! at the next event of the same key.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Bytes of a value.
const VALUE_BYTES: usize = 512;

/// Changes of a key in the story of a failure.
const STORY_CHANGES: usize = 8;

/// Names what was asked for. It is in the value that a put writes.
pub(crate) type Id = u64;

/// The value of a put.
pub(crate) fn value(id: Id) -> Bytes {
    let mut value = format!("{id:016x}").into_bytes();
    let filler = b'a' + u8::try_from(id % 26).expect("a letter");
    value.resize(VALUE_BYTES, filler);
    value.into()
}

/// What put a value.
pub(crate) fn id_of(bytes: &Bytes) -> Id {
    let text = bytes.get(..16).and_then(|id| std::str::from_utf8(id).ok());
    let id = text.and_then(|text| Id::from_str_radix(text, 16).ok());
    let id = id.unwrap_or_else(|| panic!("a value that nobody put: {bytes:?}"));
    assert!(*bytes == value(id), "a value that nobody put: {bytes:?}");
    id
}

/// A version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) changed: i64,
    pub(crate) created: i64,
    pub(crate) number: i64,
    pub(crate) lease: i64,
    pub(crate) id: Id,
}

/// Keys and their versions.
pub(crate) type State = BTreeMap<Bytes, Version>;

/// Which keys a list or a watch is of.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) start: Bytes,
    /// Empty: the one key.
    pub(crate) end: Bytes,
}

impl Keys {
    pub(crate) fn has(&self, key: &Bytes) -> bool {
        match &*self.end {
            b"" => *key == self.start,
            b"\0" => *key >= self.start,
            end => *key >= self.start && **key < *end,
        }
    }
}

/// What has to hold for a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard {
    /// Its last change; 0: it is not there.
    Changed(i64),
    /// The number of its version; 0: it is not there.
    Number(i64),
}

impl Guard {
    pub(crate) fn holds(self, was: Option<&Version>) -> bool {
        match self {
            Self::Changed(changed) => changed == was.map_or(0, |was| was.changed),
            Self::Number(number) => number == was.map_or(0, |was| was.number),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Not known, or not yet.
    Open,
    Done(i64),
    /// It certainly did not happen.
    Refused,
}

/// A write that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) key: Bytes,
    pub(crate) guard: Guard,
    pub(crate) lease: i64,
    pub(crate) is_delete: bool,
}

impl Asked {
    /// What a deletion deletes.
    fn deleted(&self) -> (Bytes, i64) {
        let Guard::Changed(changed) = self.guard else {
            panic!("a deletion is guarded by the last change: {self:?}");
        };
        (self.key.clone(), changed)
    }
}

/// A write that may still happen, or be found to have happened.
#[derive(Debug)]
struct Write {
    asked: Asked,
    /// The revision that its client was told.
    done: Option<i64>,
    /// The revision at which the audit found it.
    happened: Option<i64>,
}

/// What was asked for to delete one version of a key. Which of several did it cannot be seen.
#[derive(Debug, Default)]
struct Deletion {
    /// How many were not refused.
    not_refused: usize,
    done: Option<i64>,
    happened: Option<i64>,
}

/// A change as a watch saw it; `None`: the key was deleted.
pub(crate) type Change = Option<Version>;

#[derive(Debug)]
struct Entry {
    change: Change,
    seen_at: Instant,
    is_audited: bool,
    /// What was before, once it is audited.
    before: Change,
}

/// The keys at a revision, as they were listed in pages.
pub(crate) struct List {
    pub(crate) keys: Keys,
    pub(crate) revision: i64,
    pub(crate) found: State,
}

#[derive(Debug)]
struct Lease {
    asked_at: Instant,
    ttl: Duration,
}

/// What has been counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) puts: usize,
    pub(crate) deletes: usize,
    pub(crate) conflicts: usize,
    pub(crate) unknown: usize,
    pub(crate) lists: usize,
    pub(crate) compactions: usize,
    pub(crate) expired_leases: usize,
    pub(crate) expired_keys: usize,
    /// The longest time in which no write was acknowledged.
    pub(crate) pause_max: Duration,
}

#[derive(Default)]
struct Books {
    history: BTreeMap<i64, BTreeMap<Bytes, Entry>>,
    writes: HashMap<Id, Write>,
    /// By the key and its last change.
    deletions: HashMap<(Bytes, i64), Deletion>,
    next_id: Id,
    /// Everything up to here is explained, and this is the state there.
    audited: i64,
    state: State,
    /// Lists of revisions that are not yet audited.
    lists: BTreeMap<i64, Vec<List>>,
    leases: HashMap<i64, Lease>,
    /// The newest revision that anybody was told.
    known: i64,
    /// The highest revision to which a compaction was asked for, and acknowledged.
    compacting: i64,
    compacted: i64,
    last_done: Option<Instant>,
    counts: Counts,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Books>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Books> {
        // The panic that poisoned it has said why.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with an empty store at this revision.
    pub(crate) fn begin(&self, revision: i64) {
        self.lock().audited = revision;
    }

    /// A write is about to be asked for.
    pub(crate) fn ask(&self, asked: Asked) -> Id {
        let mut books = self.lock();
        books.next_id += 1;
        let id = books.next_id;
        if asked.is_delete {
            let deletion = books.deletions.entry(asked.deleted()).or_default();
            deletion.not_refused += 1;
        }
        let write = Write {
            asked,
            done: None,
            happened: None,
        };
        books.writes.insert(id, write);
        id
    }

    /// What came of a write.
    pub(crate) fn answered(&self, id: Id, fate: Fate) {
        self.lock().answered(id, fate);
    }

    /// A write was refused as its guard did not hold, and `found` is what is there.
    pub(crate) fn conflicted(&self, id: Id, found: Option<&Version>) {
        let mut books = self.lock();
        let write = &books.writes[&id];
        assert!(
            !write.asked.guard.holds(found),
            "{write:?} was refused, though {found:?} was found"
        );
        books.counts.conflicts += 1;
        books.answered(id, Fate::Refused);
    }

    /// A watch saw a change. Returns how long after the first one that was.
    pub(crate) fn saw(&self, watch: usize, revision: i64, key: &Bytes, change: Change) -> Duration {
        self.lock().saw(watch, revision, key, change)
    }

    /// The watch of everything has come to this revision.
    pub(crate) fn audit(&self, upto: i64) {
        self.lock().audit(upto);
    }

    pub(crate) fn audited(&self) -> i64 {
        self.lock().audited
    }

    /// Keys were listed.
    pub(crate) fn listed(&self, list: List) {
        let mut books = self.lock();
        books.counts.lists += 1;
        if list.revision <= books.audited {
            books.check_list(&list);
        } else {
            books.lists.entry(list.revision).or_default().push(list);
        }
    }

    pub(crate) fn granted(&self, lease: i64, asked_at: Instant, ttl: Duration) {
        let lease_of = Lease { asked_at, ttl };
        self.lock().leases.insert(lease, lease_of);
    }

    /// Somebody was told of a revision.
    pub(crate) fn told(&self, revision: i64) {
        let mut books = self.lock();
        books.known = books.known.max(revision);
    }

    /// What is asked from now on must not be answered from below this revision.
    pub(crate) fn known(&self) -> i64 {
        self.lock().known
    }

    pub(crate) fn compact(&self, revision: i64, is_done: bool) {
        let mut books = self.lock();
        books.compacting = books.compacting.max(revision);
        if is_done {
            books.compacted = books.compacted.max(revision);
            books.counts.compactions += 1;
        }
    }

    pub(crate) fn compacting(&self) -> i64 {
        self.lock().compacting
    }

    pub(crate) fn compacted(&self) -> i64 {
        self.lock().compacted
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// The revisions above `after` and up to `upto` at which one of the keys changed, once for each
    /// change.
    pub(crate) fn changes(&self, keys: &Keys, after: i64, upto: i64) -> Vec<i64> {
        let books = self.lock();
        let revisions = books
            .history
            .range((Excluded(after), Included(upto.max(after))));
        let changes = revisions.flat_map(|(revision, changes)| {
            let own = changes.keys().filter(|key| keys.has(key));
            own.map(|_| *revision)
        });
        changes.collect()
    }

    /// Panics if something was acknowledged, or listed, that never came to be.
    pub(crate) fn finish(&self) {
        let books = self.lock();
        let audited = books.audited;
        for write in books.writes.values() {
            assert!(
                write.done.is_none_or(|at| at > audited),
                "{write:?} did not happen\n{}",
                books.story(&write.asked.key)
            );
        }
        for ((key, changed), deletion) in &books.deletions {
            let done = deletion.done.filter(|done| *done <= audited);
            assert!(
                done.is_none() || deletion.happened.is_some(),
                "deleting {changed} did not happen\n{}",
                books.story(key)
            );
        }
        let ahead = books.lists.keys().next();
        assert!(ahead.is_none(), "{ahead:?} was listed, above {audited}");
    }
}

impl Deletion {
    /// Whether that may be.
    fn answered(&mut self, fate: Fate, audited: i64) -> bool {
        match fate {
            Fate::Open => true,
            Fate::Refused => {
                self.not_refused -= 1;
                self.not_refused > 0 || self.happened.is_none()
            }
            Fate::Done(at) => {
                let is_only = self.done.replace(at).is_none();
                is_only
                    && self
                        .happened
                        .map_or(at > audited, |happened| happened == at)
            }
        }
    }
}

impl Books {
    fn answered(&mut self, id: Id, fate: Fate) {
        let now = Instant::now();
        match fate {
            Fate::Open => self.counts.unknown += 1,
            Fate::Done(revision) => {
                self.known = self.known.max(revision);
                let pause = self.last_done.map(|last| now - last);
                self.counts.pause_max = self.counts.pause_max.max(pause.unwrap_or_default());
                self.last_done = Some(now);
            }
            Fate::Refused => {}
        }
        if fate == Fate::Open {
            return;
        }
        let audited = self.audited;
        let mut write = self.writes.remove(&id).expect("it is answered once");
        let (key, is_right) = (
            write.asked.key.clone(),
            match fate {
                Fate::Open => true,
                _ if write.asked.is_delete => {
                    let deletion = self.deletions.get_mut(&write.asked.deleted());
                    deletion.expect("it was asked for").answered(fate, audited)
                }
                Fate::Refused => write.happened.is_none(),
                Fate::Done(at) => write
                    .happened
                    .map_or(at > audited, |happened| happened == at),
            },
        );
        assert!(is_right, "{write:?} became {fate:?}\n{}", self.story(&key));
        if let (Fate::Done(at), None, false) = (fate, write.happened, write.asked.is_delete) {
            write.done = Some(at);
            self.writes.insert(id, write);
        }
    }

    fn saw(&mut self, watch: usize, revision: i64, key: &Bytes, change: Change) -> Duration {
        let now = Instant::now();
        let changes = self.history.entry(revision).or_default();
        let is_known = changes.contains_key(key);
        let entry = changes.entry(key.clone()).or_insert(Entry {
            change,
            seen_at: now,
            is_audited: false,
            before: None,
        });
        entry.is_audited |= watch == 0;
        let later = now - entry.seen_at;
        let is_same = entry.change == change;
        assert!(
            is_same && (is_known || revision > self.audited),
            "watch {watch} saw {change:?} of {key:?} at {revision}, as no other\n{}",
            self.story(key)
        );
        later
    }

    fn audit(&mut self, upto: i64) {
        while self.audited < upto {
            let revision = self.audited + 1;
            let mut changes = self.history.remove(&revision).unwrap_or_default();
            assert!(
                !changes.is_empty(),
                "there is no event of revision {revision}, but later ones"
            );
            for (key, entry) in &mut changes {
                assert!(
                    entry.is_audited,
                    "{revision} of {key:?} was not told to the watch of everything"
                );
                entry.before = self.state.get(key).copied();
            }
            self.history.insert(revision, changes);
            self.explain(revision);
            self.audited = revision;
            for list in self.lists.remove(&revision).unwrap_or_default() {
                self.check_list(&list);
            }
        }
    }

    /// Finds what made each change of a revision, and makes it in the state.
    fn explain(&mut self, revision: i64) {
        let changes = self.history[&revision].iter();
        let changes: Vec<_> = changes
            .map(|(key, entry)| (key.clone(), entry.change, entry.before))
            .collect();
        // Clients delete one key at a time.
        let is_one = changes.len() == 1;
        let mut expired = BTreeMap::<i64, usize>::new();
        for (key, change, before) in &changes {
            match (change, before) {
                (Some(version), _) => self.was_put(revision, key, *version, *before),
                (None, Some(before)) if is_one && self.was_deleted(revision, key, *before) => {}
                (None, Some(before)) => *expired.entry(before.lease).or_default() += 1,
                (None, None) => panic!("{key:?} was not there\n{}", self.story(key)),
            }
        }
        for (lease, count) in expired {
            self.expired(revision, lease, count);
        }
        for (key, change, _) in changes {
            match change {
                Some(version) => self.state.insert(key, version),
                None => self.state.remove(&key),
            };
        }
    }

    /// Finds the put of a version.
    fn was_put(&mut self, at: i64, key: &Bytes, is: Version, was: Change) {
        let fail = |books: &Self, what: &str| {
            let write = books.writes.get(&is.id);
            panic!("{write:?} {what} at {at}\n{}", books.story(key))
        };
        let Some(write) = self.writes.get_mut(&is.id) else {
            return fail(self, "was not to happen");
        };
        let asked = &write.asked;
        let may_be = write.done.is_none_or(|done| done == at) && write.happened.is_none();
        let is_right = is.lease == asked.lease
            && is.changed == at
            && is.number == was.map_or(0, |was| was.number) + 1
            && is.created == was.map_or(at, |was| was.created);
        if !may_be || asked.key != *key || asked.is_delete {
            fail(self, "was not to happen");
        } else if !asked.guard.holds(was.as_ref()) {
            fail(self, "happened though its guard did not hold");
        } else if !is_right {
            fail(self, "became something else");
        } else {
            self.counts.puts += 1;
            write.happened = Some(at);
            if write.done.is_some() {
                self.writes.remove(&is.id);
            }
        }
    }

    /// Whether a client may have deleted this version.
    fn was_deleted(&mut self, at: i64, key: &Bytes, was: Version) -> bool {
        let deletion = self.deletions.get_mut(&(key.clone(), was.changed));
        let Some(deletion) = deletion.filter(|deletion| deletion.not_refused > 0) else {
            return false;
        };
        deletion.happened = Some(at);
        let may_be = deletion.done.is_none_or(|done| done == at);
        assert!(may_be, "deleted at {at}\n{}", self.story(key));
        self.counts.deletes += 1;
        true
    }

    /// Keys of a lease are gone without anybody having deleted them.
    fn expired(&mut self, revision: i64, lease: i64, count: usize) {
        let changes = &self.history[&revision];
        let seen_at = changes.values().map(|entry| entry.seen_at).min();
        let keys: Vec<_> = changes.keys().collect();
        let Some(granted) = self.leases.get(&lease) else {
            panic!(
                "{keys:?} were deleted at {revision} by nobody\n{}",
                self.story(keys[0])
            );
        };
        let attached = self.state.values().filter(|at| at.lease == lease).count();
        assert!(
            attached == count && keys.len() == count,
            "lease {lease:x} ended at {revision} with {keys:?}, of {attached} keys"
        );
        let lived = seen_at.expect("there are some") - granted.asked_at;
        assert!(
            lived >= granted.ttl,
            "lease {lease:x} of {:?} ended after {lived:?}",
            granted.ttl
        );
        self.counts.expired_leases += 1;
        self.counts.expired_keys += count;
    }

    fn check_list(&self, list: &List) {
        let mut state = self.state.clone();
        state.retain(|key, _| list.keys.has(key));
        for (_, changes) in self
            .history
            .range((Excluded(list.revision), Included(self.audited)))
            .rev()
        {
            for (key, entry) in changes.iter().filter(|(key, _)| list.keys.has(key)) {
                match entry.before {
                    Some(before) => state.insert(key.clone(), before),
                    None => state.remove(key),
                };
            }
        }
        let differs = |of: &State, other: &State| {
            let wrong = of.iter().find(|(key, is)| other.get(*key) != Some(is));
            wrong.map(|(key, _)| key.clone())
        };
        let wrong = differs(&state, &list.found).or_else(|| differs(&list.found, &state));
        if let Some(key) = wrong {
            panic!(
                "at {} there was {:?} of {key:?}, listed was {:?}\n{}",
                list.revision,
                state.get(&key),
                list.found.get(&key),
                self.story(&key)
            );
        }
    }

    /// The newest changes of a key, and what was asked of it.
    fn story(&self, key: &Bytes) -> String {
        let changes = self.history.iter().rev();
        let changes = changes.filter_map(|(at, changes)| Some((at, changes.get(key)?)));
        let lines = changes.take(STORY_CHANGES);
        let mut lines: Vec<_> = lines
            .map(|(at, entry)| format!("{at}: {entry:?}"))
            .collect();
        lines.reverse();
        let asked = self
            .writes
            .iter()
            .filter(|(_, write)| write.asked.key == key);
        lines.extend(asked.map(|(id, write)| format!("{id}: {write:?}")));
        format!("{key:?}:\n{}", lines.join("\n"))
    }
}
