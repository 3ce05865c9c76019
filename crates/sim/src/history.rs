//! What the clients saw: every operation, when it began and ended, and what came back.

use bytes::Bytes;

/// Databases that clients work in.
pub const DATABASES: [&str; 2] = ["a", "b"];
/// Database in which each transaction leaves its id.
pub const MARKERS: &str = "t";

/// Something that was read, and what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// One key.
    Get {
        /// Database.
        database: &'static str,
        /// Key.
        key: Bytes,
        /// What was there.
        value: Option<Bytes>,
    },
    /// A range of keys.
    Range {
        /// Database.
        database: &'static str,
        /// First key, inclusive.
        from: Bytes,
        /// End of the range, exclusive.
        to: Bytes,
        /// Whether it was read from its end.
        reverse: bool,
        /// How many keys were asked for.
        limit: usize,
        /// What was there.
        pairs: Vec<(Bytes, Bytes)>,
    },
}

/// A write within a transaction.
pub type Write = (&'static str, Bytes, Option<Bytes>);

/// How a transaction ended, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Under way, or nobody was left to say.
    Unknown,
    /// The node said so, and named the number that it has if it was committed.
    UnknownAs {
        /// Term of the token.
        term: u64,
        /// VLSN of the token.
        vlsn: u64,
    },
    /// Acknowledged.
    Committed {
        /// Term of the token.
        term: u64,
        /// VLSN of the token.
        vlsn: u64,
    },
    /// The node said that nothing was written, and nothing will be.
    NotCommitted,
}

/// A transaction that writes.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Index of the node that was asked.
    pub node: usize,
    /// When it began, as a count of events of the history.
    pub began: u64,
    /// When its client learnt its fate.
    pub ended: u64,
    /// What its client knows.
    pub fate: Fate,
    /// What it read, in its last run.
    pub reads: Vec<Read>,
    /// What it wrote, in its last run.
    pub writes: Vec<Write>,
}

/// A read-only snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotRead {
    /// Index of the node that was asked.
    pub node: usize,
    /// Newest VLSN that was acknowledged when the read began, for one that must see it.
    pub floor: Option<u64>,
    /// VLSN of the snapshot.
    pub vlsn: u64,
    /// What it saw.
    pub reads: Vec<Read>,
}

/// Database, key and value, as a subscriber saw them in a state.
pub type SeenRow = (String, Bytes, Bytes);

/// A change as a subscriber saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenChange {
    /// Database, key, and the value or `None` for a deletion.
    Key(String, Bytes, Option<Bytes>),
    /// A database that begins empty.
    Created(String),
    /// Something that no client asks for.
    Other(String),
}

/// A transaction as a subscriber saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenTransaction {
    /// VLSN of its token.
    pub vlsn: u64,
    /// Term of its token.
    pub term: u64,
    /// What it changed.
    pub changes: Vec<SeenChange>,
}

/// What one subscriber was told from one beginning on, over any number of subscriptions.
#[derive(Clone, Debug, Default)]
pub struct FeedRecord {
    /// Whether it read over the network.
    pub is_remote: bool,
    /// Database and prefix, for one that does not want everything.
    pub filter: Option<(&'static str, Bytes)>,
    /// VLSN of the state with which it began, and its rows, once it is complete.
    pub state: Option<(u64, Vec<SeenRow>)>,
    /// The transactions after that, as they came.
    pub seen: Vec<SeenTransaction>,
    /// The VLSN up to which it was told everything.
    pub passed: u64,
}

/// Everything that clients did. Transactions are known by their index.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: u64,
    /// By id.
    pub transactions: Vec<Transaction>,
    /// In the order in which they ended.
    pub snapshots: Vec<SnapshotRead>,
    /// In the order in which they began.
    pub feeds: Vec<FeedRecord>,
    /// Newest VLSN that was acknowledged.
    pub acknowledged: u64,
}

impl History {
    /// A moment later than all before.
    fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Begins a transaction on a node and returns its id.
    pub fn begin(&mut self, node: usize) -> usize {
        let began = self.tick();
        self.transactions.push(Transaction {
            node,
            began,
            ended: u64::MAX,
            fate: Fate::Unknown,
            reads: Vec::new(),
            writes: Vec::new(),
        });
        self.transactions.len() - 1
    }

    /// Ends a transaction.
    pub fn end(&mut self, id: usize, fate: Fate) {
        let ended = self.tick();
        if let Fate::Committed { vlsn, .. } = fate {
            self.acknowledged = self.acknowledged.max(vlsn);
        }
        let transaction = &mut self.transactions[id];
        (transaction.ended, transaction.fate) = (ended, fate);
    }

    /// Number of transactions that were acknowledged.
    pub fn committed(&self) -> usize {
        let committed = |t: &&Transaction| matches!(t.fate, Fate::Committed { .. });
        self.transactions.iter().filter(committed).count()
    }
}
