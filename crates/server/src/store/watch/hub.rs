//! The hub: hands what happens to the sessions whose watches it concerns, and waits for none of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch as channel};

use super::super::keys::Keys;
use super::decode::{Batch, Happened, News};
use super::index::Index;

/// Bytes of mail that a session may have. Most of it is shared with others.
const MAIL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a letter takes of that by itself.
const LETTER_BYTES: usize = 64;

/// Events for one watch.
pub(super) struct Letter {
    pub(super) watch: i64,
    pub(super) ticket: u64,
    pub(super) batch: Arc<Batch>,
    /// Which of them.
    pub(super) places: Arc<[u32]>,
}

/// What came for a session.
#[derive(Default)]
pub(super) struct Mail {
    pub(super) letters: VecDeque<Letter>,
    /// Watches that get no further letters: each with its ticket.
    pub(super) lost: Vec<(i64, u64)>,
    bytes: usize,
}

/// Where the hub puts the mail of a session.
#[derive(Default)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    pub(super) came: Notify,
}

impl Mailbox {
    pub(super) fn take(&self) -> Mail {
        std::mem::take(&mut *self.lock())
    }

    /// Whether there was room.
    fn put(&self, letter: Letter) -> bool {
        let mut mail = self.lock();
        let is_shared = mail
            .letters
            .back()
            .is_some_and(|last| Arc::ptr_eq(&last.batch, &letter.batch));
        let bytes = LETTER_BYTES + if is_shared { 0 } else { letter.batch.bytes };
        // A batch may be larger than the bound.
        if !mail.letters.is_empty() && mail.bytes + bytes > MAIL_BYTES_MAX {
            mail.lost.push((letter.watch, letter.ticket));
            return false;
        }
        mail.bytes += bytes;
        mail.letters.push_back(letter);
        true
    }

    fn lose(&self, watch: i64, ticket: u64) {
        self.lock().lost.push((watch, ticket));
        self.came.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch of a session.
struct Watcher {
    watch: i64,
    mailbox: Arc<Mailbox>,
}

#[derive(Default)]
struct Registry {
    index: Index<Watcher>,
    /// Everything up to here has been mailed.
    revision: i64,
    next_ticket: u64,
}

/// See the module.
#[derive(Default)]
pub(in crate::store) struct Hub {
    registry: Mutex<Registry>,
    auth: channel::Sender<u64>,
    compacted: channel::Sender<i64>,
    compacted_done: channel::Sender<i64>,
}

impl Hub {
    /// The revision up to which everything has been mailed.
    pub(super) fn revision(&self) -> i64 {
        self.lock().revision
    }

    pub(in crate::store) fn auth_version(&self) -> channel::Receiver<u64> {
        self.auth.subscribe()
    }

    pub(in crate::store) fn compacted(&self) -> channel::Receiver<i64> {
        self.compacted.subscribe()
    }

    pub(in crate::store) fn compacted_done(&self) -> channel::Receiver<i64> {
        self.compacted_done.subscribe()
    }

    /// Registers a watch: what happens after the revision in the answer is mailed to it, with the
    /// ticket in the answer.
    pub(super) fn register(&self, keys: &Keys, watch: i64, mailbox: &Arc<Mailbox>) -> (i64, u64) {
        let mut registry = self.lock();
        let ticket = registry.next_ticket;
        registry.next_ticket += 1;
        let watcher = Watcher {
            watch,
            mailbox: Arc::clone(mailbox),
        };
        registry.index.add(keys, ticket, watcher);
        (registry.revision, ticket)
    }

    pub(super) fn remove(&self, keys: &Keys, ticket: u64) {
        self.lock().index.remove(keys, ticket);
    }

    /// Goes on after a gap, at what was read of the store.
    pub(super) fn resume(&self, revision: i64, compacted: i64, done: i64) {
        let mut registry = self.lock();
        if registry.revision < revision {
            registry.revision = revision;
            for (ticket, watcher) in registry.index.drain() {
                watcher.mailbox.lose(watcher.watch, ticket);
            }
        }
        drop(registry);
        self.auth.send_modify(|version| *version += 1);
        self.compacted.send_replace(compacted);
        self.compacted_done.send_replace(done);
    }

    /// Mails what a transaction brought.
    pub(super) fn take(&self, news: News) {
        for batch in news.batches {
            self.mail(&batch);
        }
        if news.is_of_auth {
            self.auth.send_modify(|version| *version += 1);
        }
        if let Some(compacted) = news.compacted {
            self.compacted.send_replace(compacted);
        }
        if let Some(done) = news.compacted_done {
            self.compacted_done.send_replace(done);
        }
    }

    fn mail(&self, batch: &Arc<Batch>) {
        let mut registry = self.lock();
        // What a snapshot had already.
        if batch.revision <= registry.revision {
            return;
        }
        let keys = batch.events.iter().map(Happened::key);
        registry.index.find(keys, |watchers, places| {
            let places: Arc<[u32]> = places.into();
            watchers.retain(|ticket, watcher| {
                let letter = Letter {
                    watch: watcher.watch,
                    ticket: *ticket,
                    batch: Arc::clone(batch),
                    places: Arc::clone(&places),
                };
                let had_room = watcher.mailbox.put(letter);
                watcher.mailbox.came.notify_one();
                had_room
            });
        });
        registry.revision = batch.revision;
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
