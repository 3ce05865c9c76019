//! Typed tables over databases, with indexes that are kept in the same transaction; and counters.
//!
//! ```text
//!   Table<K, V, C>, declared once       Index<K, I>
//!        │ of(&txn | &snapshot)              │
//!        ▼                                   ▼
//!   Rows: get, put, range … ── by(&index) ─► IndexRows: get, equal, range …
//!        │                                   │
//!        ▼                                   ▼
//!   database `users`                    database `users/by/email`
//! ```
//!
//! A table is a database whose keys are written by [`TableKey`], in an order-preserving format, and
//! whose values are written by a [`Codec`]. An index is a database of its own. Nothing else is stored,
//! and whoever opens the databases sees the bytes; `docs/tables.md` documents them. This module uses
//! only what applications can use as well.
//!
//! Indexes are kept by [`Rows`], in the transaction of the row. Whoever writes to the database of a
//! table in another way, or without declaring all its indexes, leaves them behind; [`Table::verify`]
//! finds that, and [`Table::rebuild`] puts it right.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use steadfast::table::{Counters, Index, Table, TableError};
//! use steadfast::{ConsistencyPolicy, ReadError, ReplicatedEnvironment, WriteError};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct User {
//!     email: String,
//!     city: String,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let group = ReplicatedEnvironment::in_memory_group(1)?;
//! # let env = &group[0];
//! let mut users = Table::<u64, User>::new("users");
//! let by_email = users.unique_index("email", |_, user| [user.email.clone()]);
//! let by_city = users.index("city", |_, user| [user.city.clone()]);
//! static VISITS: Counters<String> = Counters::count("visits");
//!
//! let ada = User { email: "ada@example.org".into(), city: "London".into() };
//! let _token = env.write(|txn| -> Result<(), WriteError> {
//!     users.of(txn)?.put(&7, &ada)?;
//!     Ok(VISITS.of(txn)?.add("London", 1)?)
//! })?;
//! let taken = env.write(|txn| -> Result<(), WriteError> { Ok(users.of(txn)?.put(&8, &ada)?) });
//! assert!(matches!(taken.map_err(TableError::from), Err(TableError::NotUnique { .. })));
//!
//! let found = env.read(ConsistencyPolicy::Linearizable, |snapshot| -> Result<_, ReadError> {
//!     let users = users.of(snapshot)?;
//!     assert_eq!(users.by(&by_city)?.equal("London").count(), 1);
//!     Ok(users.by(&by_email)?.get("ada@example.org")?)
//! })?;
//! assert_eq!(found, Some((7, ada)));
//! # Ok(())
//! # }
//! ```

mod check;
mod codec;
mod error;
mod index;
mod key;
mod rows;
mod single;
mod state;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::marker::PhantomData;

pub use check::{Finding, Rebuilt, Report};
pub use codec::{Codec, CodecError, Count, Postcard, Raw};
pub use error::TableError;
pub use index::{Index, IndexIter, IndexRows};
pub use key::{EncodeKey, KeyError, PrefixOf, TableKey};
pub use rows::{Rows, RowsIter};
pub use single::TableOn;
pub use state::{Source, State};

use index::Declared;

/// A description of a table: the database that holds it, the types of its rows, their codec and the
/// indexes. Make it once, in a `static` or where the application keeps its environment, and open it
/// with [`Table::of`] in each transaction and snapshot.
///
/// Every program that writes to a table declares the same types and indexes.
pub struct Table<K, V, C = Postcard> {
    database: Cow<'static, str>,
    codec: C,
    indexes: Vec<Declared<K, V>>,
    types: PhantomData<fn() -> (K, V)>,
}

/// Counters by key. [`Rows::add`] adds to them without conflicts.
pub type Counters<K> = Table<K, i64, Count>;

impl<K, V> Table<K, V> {
    /// The table in this database, with values in the format of postcard.
    pub const fn new(database: &'static str) -> Self {
        Self::with_codec(database, Postcard)
    }
}

impl<K> Counters<K> {
    /// The counters in this database.
    pub const fn count(database: &'static str) -> Self {
        Self::with_codec(database, Count)
    }
}

impl<K, V, C> Table<K, V, C> {
    /// The table in this database, with values written by `codec`.
    pub const fn with_codec(database: &'static str, codec: C) -> Self {
        Self {
            database: Cow::Borrowed(database),
            codec,
            indexes: Vec::new(),
            types: PhantomData,
        }
    }

    /// The same description, without its indexes, for the database of this name.
    #[must_use]
    pub fn named(self, database: String) -> Self {
        Self {
            database: Cow::Owned(database),
            indexes: Vec::new(),
            ..self
        }
    }

    /// The name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The table in a transaction or a snapshot.
    ///
    /// # Errors
    /// As `database` of the transaction or snapshot.
    pub fn of<'a, S: Source>(
        &'a self,
        source: &'a S,
    ) -> Result<Rows<'a, K, V, C, S::State>, TableError> {
        Rows::open(self, source.state())
    }
}

impl<K: TableKey, V, C> Table<K, V, C> {
    /// Declares an index: `keys` returns the keys under which a row is found, none, one or several.
    /// They must follow from the row alone, and the same in every version of the program.
    ///
    /// It is kept in the database `TABLE/by/NAME`. An index of a table that has rows already is empty
    /// until [`Table::rebuild`] fills it.
    ///
    /// # Panics
    /// When the table has an index of this name.
    pub fn index<I: TableKey, N: IntoIterator<Item = I>>(
        &mut self,
        name: &str,
        keys: impl Fn(&K, &V) -> N + Send + Sync + 'static,
    ) -> Index<K, I> {
        self.declare(name, false, keys)
    }

    /// Declares an index in which no two rows have the same key: to put such a row is an error,
    /// [`TableError::NotUnique`]. Otherwise as [`Table::index`].
    ///
    /// # Panics
    /// When the table has an index of this name.
    pub fn unique_index<I: TableKey, N: IntoIterator<Item = I>>(
        &mut self,
        name: &str,
        keys: impl Fn(&K, &V) -> N + Send + Sync + 'static,
    ) -> Index<K, I> {
        self.declare(name, true, keys)
    }

    fn declare<I: TableKey, N: IntoIterator<Item = I>>(
        &mut self,
        name: &str,
        is_unique: bool,
        keys: impl Fn(&K, &V) -> N + Send + Sync + 'static,
    ) -> Index<K, I> {
        let database = format!("{}/by/{name}", self.database);
        let is_new = self.indexes.iter().all(|index| index.database != database);
        assert!(is_new, "the table has one index {database}");
        let index = Index::new(&database, is_unique);
        self.indexes.push(Declared {
            database,
            is_unique,
            keys: Box::new(move |key, value| {
                let keys = keys(key, value).into_iter();
                keys.map(|key| key.key_bytes()).collect::<BTreeSet<_>>()
            }),
            row_of: Index::<K, I>::row_of,
        });
        index
    }
}
