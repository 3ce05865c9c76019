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
    /// The names of all databases.
    Databases {
        /// What was there.
        names: Vec<String>,
    },
}

/// What a transaction does to a whole database, before it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub database: &'static str,
    /// Whether the database goes, or what it holds alone.
    pub drops: bool,
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
    /// What it dropped and truncated, in order, before it wrote.
    pub changes: Vec<Change>,
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

/// Everything that clients did. Transactions are known by their index.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: u64,
    /// By id.
    pub transactions: Vec<Transaction>,
    /// In the order in which they ended.
    pub snapshots: Vec<SnapshotRead>,
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
            changes: Vec::new(),
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
