//! Whether the indexes of a table agree with its rows, and how they are made to.
//!
//! Both go through the table in parts: a part of the rows, each with its keys in every index, and a
//! part of an index, each of its rows with the row of the table. What is compared belongs together
//! within one snapshot or transaction, so that parts of different ones make a whole. No part is large,
//! however large the table is.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;

use super::codec::Codec;
use super::description::Table;
use super::error::TableError;
use super::index::Declared;
use super::key::TableKey;
use super::rows::Rows;
use super::state::State;
use super::state::sealed::Stored;
use crate::engine::KeyRange;
use crate::env::ReplicatedEnvironment;
use crate::policy::ReadOptions;
use crate::txn::transaction::{Snapshot, Transaction};

/// Reads after which a part ends: of rows, and of the places where they belong in indexes. A
/// transaction of so many is short enough for others to get through beside it.
const PART_READS_MAX: usize = 1_000;

/// Bytes, of rows and of keys in indexes, after which a part ends: far less than a transaction may
/// write.
const PART_BYTES_MAX: usize = 1 << 20;

/// Most findings that a report names. Others are only counted.
const FINDINGS_MAX: usize = 1_000;

/// Something in which a table and its indexes disagree. All keys are as stored, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A row has a key or a value that is none of its type. Its indexes are not known.
    UnreadableRow {
        /// Its key.
        row: Bytes,
        /// What is wrong with it.
        reason: String,
    },
    /// A row is not in an index where it belongs.
    Missing {
        /// The database of the index.
        index: String,
        /// The key that the database lacks.
        key: Bytes,
        /// The key of the row.
        row: Bytes,
    },
    /// A row has a key in a unique index that leads to another row, which has it too.
    NotUnique {
        /// The database of the index.
        index: String,
        /// The key in it.
        key: Bytes,
        /// The key of the row that is not in the index.
        row: Bytes,
        /// The key of the row to which the index leads.
        holder: Bytes,
    },
    /// An index leads to a row by a key that the row does not have.
    Extra {
        /// The database of the index.
        index: String,
        /// The key in it.
        key: Bytes,
        /// The key of the row.
        row: Bytes,
    },
    /// An index leads to a row that does not exist.
    Dangling {
        /// The database of the index.
        index: String,
        /// The key in it.
        key: Bytes,
        /// The key of the row.
        row: Bytes,
    },
    /// A row of an index is none at all.
    UnreadableIndex {
        /// The database of the index.
        index: String,
        /// The key in it.
        key: Bytes,
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnreadableRow { row, reason } => {
                write!(f, "the row {} cannot be read: {reason}", row.escape_ascii())
            }
            Self::Missing { index, key, row } => write!(
                f,
                "{index} lacks {}, for the row {}",
                key.escape_ascii(),
                row.escape_ascii()
            ),
            Self::NotUnique {
                index,
                key,
                row,
                holder,
            } => write!(
                f,
                "{index} leads from {} to the row {}, and the row {} has that key too",
                key.escape_ascii(),
                holder.escape_ascii(),
                row.escape_ascii()
            ),
            Self::Extra { index, key, row } => write!(
                f,
                "{index} has {}, which the row {} does not have",
                key.escape_ascii(),
                row.escape_ascii()
            ),
            Self::Dangling { index, key, row } => write!(
                f,
                "{index} has {}, for the row {}, which does not exist",
                key.escape_ascii(),
                row.escape_ascii()
            ),
            Self::UnreadableIndex { index, key, reason } => {
                write!(f, "{index} has {}: {reason}", key.escape_ascii())
            }
        }
    }
}

/// What [`Table::verify`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Number of rows of the table that were looked at.
    pub rows: u64,
    /// Number of rows of its indexes that were looked at.
    pub index_rows: u64,
    /// Number of findings.
    pub found: u64,
    /// The first thousand of them.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    fn note(&mut self, finding: Finding) {
        self.found += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

/// What [`Table::rebuild`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rebuilt {
    /// Number of rows of the table.
    pub rows: u64,
    /// Number of rows that the indexes lacked, and have now.
    pub added: u64,
    /// Number of rows that were in the indexes and did not belong there.
    pub removed: u64,
}

/// Where the next part begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the rows of the table.
    Rows,
    /// In the index with this number.
    Index(usize),
}

/// A walk through a table and its indexes.
#[derive(Clone)]
struct Walk {
    place: Place,
    after: Option<Bytes>,
}

/// One part of a walk.
#[derive(Default)]
struct Part {
    findings: Vec<Finding>,
    /// Number of rows that were looked at.
    looked_at: u64,
    reads: usize,
    bytes: usize,
    /// The last one, when the part is not the last one of its database.
    more_after: Option<Bytes>,
}

impl<K: TableKey, V, C: Codec<V>> Table<K, V, C> {
    /// Compares all rows of the table with all indexes, in a snapshot.
    ///
    /// A table that takes longer than a snapshot may be open (`snapshot_age_max_ms`) needs
    /// [`Table::verify`].
    ///
    /// # Errors
    /// The errors of a read. Rows that cannot be decoded are findings.
    pub fn verify_in(&self, snapshot: &Snapshot) -> Result<Report, TableError> {
        let mut report = Report::default();
        let mut walk = Some(self.walk());
        while let Some(at) = walk {
            let part = self.of(snapshot)?.part(&at)?;
            walk = self.after(&at, &part);
            report.take(at.place, part);
        }
        Ok(report)
    }

    /// Compares all rows of the table with all indexes, whatever the size, in many short snapshots,
    /// each as fresh as `policy` requires. Writes may go on meanwhile.
    ///
    /// # Errors
    /// As [`Table::verify_in`].
    pub fn verify(
        &self,
        environment: &ReplicatedEnvironment,
        policy: impl Into<ReadOptions>,
    ) -> Result<Report, TableError> {
        environment.block_on(self.verify_async(environment, policy))
    }

    /// As [`Table::verify`].
    ///
    /// # Errors
    /// As [`Table::verify`].
    pub async fn verify_async(
        &self,
        environment: &ReplicatedEnvironment,
        policy: impl Into<ReadOptions>,
    ) -> Result<Report, TableError> {
        let policy = policy.into();
        let mut report = Report::default();
        let mut walk = Some(self.walk());
        while let Some(at) = walk {
            let read = |snapshot: &Snapshot| self.of(snapshot)?.part(&at);
            let part = environment.read_async(policy, read).await?;
            walk = self.after(&at, &part);
            report.take(at.place, part);
        }
        Ok(report)
    }

    /// Makes the indexes agree with the rows: removes what does not belong there, and adds what is
    /// missing. For an index that is declared on existing data, and after a bad [`Table::verify`].
    ///
    /// It works through the table in short transactions. Others may read and write meanwhile, if they
    /// declare the same indexes; what they look up in an index may be missing until this returns. After
    /// an error it can be called again.
    ///
    /// # Errors
    /// [`TableError::NotUnique`] when two rows have the same key in a unique index: change one of them.
    /// [`TableError::Key`] and [`TableError::Value`] for a row that cannot be decoded. The errors of
    /// reads and writes.
    pub fn rebuild(&self, environment: &ReplicatedEnvironment) -> Result<Rebuilt, TableError> {
        environment.block_on(self.rebuild_async(environment))
    }

    /// As [`Table::rebuild`].
    ///
    /// # Errors
    /// As [`Table::rebuild`].
    pub async fn rebuild_async(
        &self,
        environment: &ReplicatedEnvironment,
    ) -> Result<Rebuilt, TableError> {
        let mut done = Rebuilt::default();
        let mut walk = Some(self.walk());
        while let Some(at) = walk {
            let put_right = |txn: &Transaction| -> Result<_, TableError> {
                let rows = self.of(txn)?;
                let part = rows.part(&at)?;
                let mut findings = part.findings.iter();
                findings.try_for_each(|finding| rows.put_right(finding))?;
                Ok(part)
            };
            let part = environment.write_async(put_right).await?.value;
            walk = self.after(&at, &part);
            let found = u64::try_from(part.findings.len()).unwrap_or(u64::MAX);
            match at.place {
                Place::Rows => {
                    done.rows += part.looked_at;
                    done.added += found;
                }
                Place::Index(_) => done.removed += found,
            }
        }
        Ok(done)
    }

    /// The indexes come first: what is wrong in one may stand where a row belongs.
    fn walk(&self) -> Walk {
        Walk {
            place: self.place(0),
            after: None,
        }
    }

    fn place(&self, number: usize) -> Place {
        if number < self.indexes.len() {
            Place::Index(number)
        } else {
            Place::Rows
        }
    }

    /// Where the walk goes on after a part.
    fn after(&self, walk: &Walk, part: &Part) -> Option<Walk> {
        let place = match (walk.place, &part.more_after) {
            (place, Some(_)) => place,
            (Place::Index(number), None) => self.place(number + 1),
            (Place::Rows, None) => return None,
        };
        let after = part.more_after.clone();
        Some(Walk { place, after })
    }
}

impl Part {
    fn count(&mut self, bytes: usize) {
        self.reads += 1;
        self.bytes += bytes;
    }
}

impl Report {
    fn take(&mut self, place: Place, part: Part) {
        match place {
            Place::Rows => self.rows += part.looked_at,
            Place::Index(_) => self.index_rows += part.looked_at,
        }
        for finding in part.findings {
            self.note(finding);
        }
    }
}

impl<K: TableKey, V, C: Codec<V>, S: State> Rows<'_, K, V, C, S> {
    fn part(&self, walk: &Walk) -> Result<Part, TableError> {
        let index = match walk.place {
            Place::Rows => None,
            Place::Index(number) => Some(&self.table.indexes[number]),
        };
        let range = KeyRange {
            start: walk.after.clone().map_or(Bound::Unbounded, Bound::Excluded),
            end: Bound::Unbounded,
        };
        let scan = match index {
            None => self.stored.scan(range),
            Some(index) => self.state.open(&index.database)?.scan(range),
        };
        let mut part = Part::default();
        for stored in scan {
            let (key, value) = stored?;
            part.looked_at += 1;
            part.count(key.len() + value.len());
            match index {
                None => self.check_row(&key, &value, &mut part)?,
                Some(index) => part.findings.extend(self.check_entry(index, &key, &value)?),
            }
            if part.reads >= PART_READS_MAX || part.bytes >= PART_BYTES_MAX {
                part.more_after = Some(key);
                break;
            }
        }
        Ok(part)
    }

    /// Looks for a row of the table in all indexes.
    fn check_row(&self, row: &Bytes, value: &Bytes, part: &mut Part) -> Result<(), TableError> {
        let table = self.table;
        let (key, value) = match table.decode_row(row, value) {
            Ok(row) => row,
            Err(error) => {
                part.findings.push(Finding::UnreadableRow {
                    row: row.clone(),
                    reason: error.to_string(),
                });
                return Ok(());
            }
        };
        for index in &table.indexes {
            let stored = self.state.open(&index.database)?;
            for of_index in (index.keys)(&key, &value) {
                let (key, expected) = index.entry(&of_index, row);
                part.count(key.len());
                let (index, key, row) = (index.database.clone(), Bytes::from(key), row.clone());
                part.findings.extend(match stored.value(&key)? {
                    Some(found) if found == expected => None,
                    Some(holder) => Some(Finding::NotUnique {
                        index,
                        key,
                        row,
                        holder,
                    }),
                    None => Some(Finding::Missing { index, key, row }),
                });
            }
        }
        Ok(())
    }

    /// Looks for the row of the table to which a row of an index leads.
    fn check_entry(
        &self,
        index: &Declared<K, V>,
        key: &Bytes,
        value: &Bytes,
    ) -> Result<Option<Finding>, TableError> {
        let (name, key) = (index.database.clone(), key.clone());
        let row = match (index.row_of)(index.is_unique, &key, value) {
            Ok(row) => row,
            Err(error) => {
                let reason = error.to_string();
                return Ok(Some(Finding::UnreadableIndex {
                    index: name,
                    key,
                    reason,
                }));
            }
        };
        let Some(stored) = self.stored.value(&row)? else {
            return Ok(Some(Finding::Dangling {
                index: name,
                key,
                row,
            }));
        };
        // A row that cannot be decoded is a finding of its own, and keeps its place in the index.
        let Ok(value) = self.table.decode(&row, &stored) else {
            return Ok(None);
        };
        let keys = (index.keys)(&self.table.decode_key(&row)?, &value);
        let belongs = keys.iter().any(|of_row| index.entry(of_row, &row).0 == key);
        Ok((!belongs).then_some(Finding::Extra {
            index: name,
            key,
            row,
        }))
    }
}

impl<K: TableKey, V, C: Codec<V>> Rows<'_, K, V, C, Transaction> {
    /// Removes from an index what does not belong there, or adds what is missing.
    fn put_right(&self, finding: &Finding) -> Result<(), TableError> {
        match finding {
            Finding::UnreadableRow { row, .. } => {
                self.table.decode_key(row)?;
                self.value(row)?;
                Ok(())
            }
            Finding::NotUnique {
                index, key, holder, ..
            } => Err(TableError::NotUnique {
                index: index.clone(),
                key: key.clone(),
                row: holder.clone(),
            }),
            Finding::Missing { index, key, row } => {
                let mut indexes = self.table.indexes.iter();
                let declared = indexes.find(|declared| declared.database == *index);
                let declared = declared.expect("found by the same table");
                let database = self.state.database(index)?;
                // Another row of this part may have the same key.
                declared.check_free(&database, key, row)?;
                let value = if declared.is_unique {
                    row.clone()
                } else {
                    Bytes::new()
                };
                Ok(database.put(key, value)?)
            }
            Finding::Extra { index, key, .. }
            | Finding::Dangling { index, key, .. }
            | Finding::UnreadableIndex { index, key, .. } => {
                Ok(self.state.database(index)?.delete(key)?)
            }
        }
    }
}
