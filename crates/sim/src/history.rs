//! What the clients saw: every operation, when it began and ended, and its result.

use bytes::Bytes;

/// Databases that clients use.
pub const DATABASES: [&str; 2] = ["a", "b"];
/// Database in which each transaction leaves its id.
pub const MARKERS: &str = "t";

/// A read and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// One key.
    Get {
        /// Database.
        database: &'static str,
        /// Key.
        key: Bytes,
        /// Value read.
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
        /// Whether it was read in reverse.
        reverse: bool,
        /// How many keys were requested.
        limit: usize,
        /// Pairs read.
        pairs: Vec<(Bytes, Bytes)>,
    },
    /// The names of all databases.
    Databases {
        /// Names read.
        names: Vec<String>,
    },
}

/// What a transaction does to a whole database before it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub database: &'static str,
    /// Whether the database is dropped; otherwise it is truncated.
    pub drops: bool,
}

/// A write within a transaction.
pub type Write = (&'static str, Bytes, Option<Bytes>);

/// How a transaction ended, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Still under way, or no answer came.
    Unknown,
    /// The node said so, and gave the token the transaction has if it was committed.
    UnknownAs {
        /// Term of the token.
        term: u64,
        /// VLSN of the token.
        vlsn: u64,
    },
    /// Acknowledged by the master alone: a failover may lose it.
    Local {
        /// Term of the token.
        term: u64,
        /// VLSN of the token.
        vlsn: u64,
    },
    /// Acknowledged by a majority.
    Committed {
        /// Term of the token.
        term: u64,
        /// VLSN of the token.
        vlsn: u64,
    },
    /// The node said that nothing was or will be written.
    NotCommitted,
}

impl Transaction {
    /// Where and when it ran.
    pub fn span(&self) -> Span {
        Span {
            node: Some(self.node),
            began: self.began,
            ended: self.ended,
        }
    }
}

impl SnapshotRead {
    /// Where and when it ran.
    pub fn span(&self) -> Span {
        Span {
            node: Some(self.node),
            began: self.began,
            ended: self.ended,
        }
    }
}

impl Fate {
    /// Term and VLSN of its token, if it has one.
    pub fn token(self) -> Option<(u64, u64)> {
        match self {
            Self::UnknownAs { term, vlsn }
            | Self::Local { term, vlsn }
            | Self::Committed { term, vlsn } => Some((term, vlsn)),
            Self::Unknown | Self::NotCommitted => None,
        }
    }
}

/// A transaction that writes.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Index of the node that was asked.
    pub node: usize,
    /// When it began, as a count of events of the history.
    pub began: u64,
    /// When its client learned its fate.
    pub ended: u64,
    /// What its client knows.
    pub fate: Fate,
    /// What it read, in its last attempt.
    pub reads: Vec<Read>,
    /// What it dropped and truncated, in order, before it wrote.
    pub changes: Vec<Change>,
    /// What it wrote, in its last attempt.
    pub writes: Vec<Write>,
}

/// A row that became wrong in a running node's engine. Until the node reports it, it cannot know.
#[derive(Clone, Debug)]
pub struct FalseRow {
    /// Index of the node.
    pub node: usize,
    /// Id of its database.
    pub database: u32,
    /// Its key.
    pub key: Bytes,
    /// When it became wrong, as a count of events of the history.
    pub from: u64,
    /// When the node reported it, or ended.
    pub until: u64,
}

/// An operation on a node: which node, if known, and from when until when.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Index of the node.
    pub node: Option<usize>,
    /// When it began, as a count of events of the history.
    pub began: u64,
    /// When it ended.
    pub ended: u64,
}

/// A read-only snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotRead {
    /// Index of the node that was asked.
    pub node: usize,
    /// When it began, as a count of events of the history.
    pub began: u64,
    /// When it ended.
    pub ended: u64,
    /// The VLSN that the read had to include, by its policy.
    pub floor: Option<u64>,
    /// VLSN of the snapshot.
    pub vlsn: u64,
    /// What it saw.
    pub reads: Vec<Read>,
}

/// What a node said of a token.
#[derive(Clone, Copy, Debug)]
pub struct OutcomeRead {
    /// Index of the node that was asked.
    pub node: usize,
    /// The transaction the token belongs to.
    pub id: usize,
    /// Whether the node said that it is committed (or that it never will be).
    pub is_committed: bool,
}

/// Database, key and value, as a subscriber saw them in a state.
pub type SeenRow = (String, Bytes, Bytes);

/// A change as a subscriber saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenChange {
    /// Database, key, and the value or `None` for a deletion.
    Key(String, Bytes, Option<Bytes>),
    /// A database created, empty.
    Created(String),
    /// A database dropped.
    Dropped(String),
    /// Something no client asks for.
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

/// What one subscriber received from one starting point on, over any number of subscriptions.
#[derive(Clone, Debug, Default)]
pub struct FeedRecord {
    /// Whether it read over the network.
    pub is_remote: bool,
    /// Where and when its state was read.
    pub span: Option<Span>,
    /// Database and prefix, for a filtered subscriber.
    pub filter: Option<(&'static str, Bytes)>,
    /// VLSN and rows of the state it began with, once that is complete.
    pub state: Option<(u64, Vec<SeenRow>)>,
    /// The transactions after that, in the order received.
    pub seen: Vec<SeenTransaction>,
    /// The VLSN up to which it has received everything.
    pub passed: u64,
}

/// Everything that clients did. A transaction's id is its index.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Whether nodes that are not master acknowledge too.
    pub anywhere: bool,
    events: u64,
    /// By id.
    pub transactions: Vec<Transaction>,
    /// In the order in which they ended.
    pub snapshots: Vec<SnapshotRead>,
    /// In the order in which they ended.
    pub outcomes: Vec<OutcomeRead>,
    /// In the order in which they became wrong.
    pub false_rows: Vec<FalseRow>,
    /// In the order in which they began.
    pub feeds: Vec<FeedRecord>,
    /// Newest VLSN acknowledged by a majority.
    pub acknowledged: u64,
    /// When each such VLSN was acknowledged, in microseconds.
    acknowledged_at: Vec<(u64, u64)>,
}

impl History {
    /// An empty one.
    pub fn new(anywhere: bool) -> Self {
        Self {
            anywhere,
            ..Self::default()
        }
    }

    /// A moment later than all before.
    pub fn tick(&mut self) -> u64 {
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

    /// Ends a transaction, at `now_us`.
    pub fn end(&mut self, id: usize, fate: Fate, now_us: u64) {
        let ended = self.tick();
        if let Fate::Committed { vlsn, .. } = fate
            && vlsn > self.acknowledged
        {
            self.acknowledged = vlsn;
            self.acknowledged_at.push((now_us, vlsn));
        }
        let transaction = &mut self.transactions[id];
        (transaction.ended, transaction.fate) = (ended, fate);
    }

    /// Newest VLSN that a majority had acknowledged before `at_us`.
    pub fn acknowledged_before(&self, at_us: u64) -> u64 {
        let later = self.acknowledged_at.partition_point(|(at, _)| *at < at_us);
        later
            .checked_sub(1)
            .map_or(0, |last| self.acknowledged_at[last].1)
    }

    /// Rows, by database and key, that a node could not know to be wrong during `span`.
    pub fn excused(&self, span: Span) -> Vec<(u32, &Bytes)> {
        let meets = |row: &&FalseRow| {
            span.node.is_none_or(|node| node == row.node)
                && span.began <= row.until
                && span.ended >= row.from
        };
        let rows = self.false_rows.iter().filter(meets);
        rows.map(|row| (row.database, &row.key)).collect()
    }

    /// Number of transactions acknowledged by a majority.
    pub fn committed(&self) -> usize {
        let committed = |t: &&Transaction| matches!(t.fate, Fate::Committed { .. });
        self.transactions.iter().filter(committed).count()
    }
}
