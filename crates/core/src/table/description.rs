//! What a program declares of a table: its database, types, codec and indexes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::marker::PhantomData;

use super::codec::{Count, Postcard};
use super::error::TableError;
use super::index::{Declared, Index};
use super::key::TableKey;
use super::rows::Rows;
use super::state::Source;

/// A description of a table: the database that holds it, the types of its rows, their codec and the
/// indexes. Make it once, in a `static` or where the application keeps its environment, and open it
/// with [`Table::of`] in each transaction and snapshot.
///
/// Every program that writes to a table declares the same types and indexes.
pub struct Table<K, V, C = Postcard> {
    pub(super) database: Cow<'static, str>,
    pub(super) codec: C,
    pub(super) indexes: Vec<Declared<K, V>>,
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
