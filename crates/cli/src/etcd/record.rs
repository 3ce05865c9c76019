//! How far a copy has come: one key in the target, which changes in the same transaction as what it
//! speaks of, and is the guard of that transaction.
//!
//! So a transaction whose answer was lost can be sent again: it is done once, or not at all. And a
//! second program that copies into the same target takes over, or is refused; two never mix.

use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Where it is, in the target.
pub(super) const RECORD_KEY: &[u8] = b"steadfast/copy";

const FORMAT: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// The cluster that is copied, as 16 hex digits.
    pub(super) source: String,
    /// The process that copies.
    run: String,
    /// One more with each record: no two are alike.
    step: u64,
    /// What the target holds is of this revision of the source; below [`Self::next`] only, while
    /// there is one.
    pub(super) revision: i64,
    /// The key from which on keys have yet to be compared, in base64; `None`: everything is there.
    next: Option<String>,
    /// A lease of the target that a large value is on its way with.
    pub(super) staging: Option<i64>,
    #[serde(flatten)]
    pub(super) counts: Counts,
}

/// What was done so far, by all processes that worked on this copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Keys that were put or deleted when the two sides were compared.
    pub(super) keys: u64,
    /// Revisions of the source that were applied after that.
    pub(super) revisions: u64,
    /// Puts and deletes in them.
    pub(super) events: u64,
    /// How often all keys were compared again.
    pub(super) start_overs: u64,
}

impl Record {
    /// Of a copy that begins at a revision of a source.
    pub(super) fn begin(source: u64, run: &str, revision: i64) -> Self {
        Self {
            format: FORMAT,
            source: cluster(source),
            run: run.to_owned(),
            step: 1,
            revision,
            next: Some(String::new()),
            staging: None,
            counts: Counts::default(),
        }
    }

    /// # Errors
    /// When the bytes are no record that this program knows.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let parsed = serde_json::from_slice::<Self>(bytes).ok();
        let parsed = parsed.filter(|record| record.format == FORMAT && record.next_key().is_some());
        parsed.ok_or_else(|| {
            Failure::new(
                format!("the target's key {} is no record of a copy", name()),
                "nothing was changed",
                "if it is data of an application, it has to move: this program needs the key; if a \
                 newer version wrote it, go on with that one",
            )
        })
    }

    pub(super) fn bytes(&self) -> Bytes {
        serde_json::to_vec(self).map_or_else(|_| Bytes::new(), Bytes::from)
    }

    /// The one after this, to be changed.
    pub(super) fn following(&self) -> Self {
        Self {
            step: self.step + 1,
            ..self.clone()
        }
    }

    /// The same, as the one after another, with no large value on its way.
    pub(super) fn after(self, other: &Self) -> Self {
        Self {
            step: other.step + 1,
            staging: None,
            ..self
        }
    }

    /// The one after this, of another process.
    pub(super) fn taken_over(&self, run: &str) -> Self {
        Self {
            run: run.to_owned(),
            ..self.following()
        }
    }

    /// The one after this, which compares all keys once more, at a newer revision.
    pub(super) fn started_over_at(&self, revision: i64) -> Self {
        let mut next = self.following();
        next.revision = revision;
        next.next = Some(String::new());
        next.counts.start_overs += 1;
        next
    }

    /// The same, with a source that may be another.
    pub(super) fn started_over(&self, source: u64, revision: i64) -> Self {
        Self {
            source: cluster(source),
            ..self.started_over_at(revision)
        }
    }

    /// Where to go on comparing; empty: at the first key. `None` if there is nothing to compare, or
    /// the text is none.
    fn next_key(&self) -> Option<Bytes> {
        let Some(next) = &self.next else {
            return Some(Bytes::new());
        };
        BASE64.decode(next.as_bytes()).ok().map(Bytes::from)
    }

    /// Where to go on comparing; `None`: everything is there.
    pub(super) fn compare_from(&self) -> Option<Bytes> {
        self.next.as_ref()?;
        self.next_key()
    }

    pub(super) fn compared_below(&mut self, key: &[u8]) {
        self.next = Some(BASE64.encode(key));
    }

    pub(super) fn all_compared(&mut self) {
        self.next = None;
    }
}

/// The name of the key, for people.
pub(super) fn name() -> String {
    String::from_utf8_lossy(RECORD_KEY).into_owned()
}

/// The id of a cluster, for people.
pub(super) fn cluster(id: u64) -> String {
    format!("{id:016x}")
}
