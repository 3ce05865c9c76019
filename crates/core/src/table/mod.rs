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
//! use steadfast::{ConsistencyPolicy, ReplicatedEnvironment};
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
//! env.write(|txn| {
//!     users.of(txn)?.put(&7, &ada)?;
//!     VISITS.of(txn)?.add("London", 1)
//! })?;
//! let taken = env.write(|txn| users.of(txn)?.put(&8, &ada));
//! assert!(matches!(taken, Err(TableError::NotUnique { .. })));
//!
//! let found = env.read(ConsistencyPolicy::Linearizable, |snapshot| {
//!     let users = users.of(snapshot)?;
//!     assert_eq!(users.by(&by_city)?.equal("London").count(), 1);
//!     users.by(&by_email)?.get("ada@example.org")
//! })?;
//! assert_eq!(found, Some((7, ada)));
//! # Ok(())
//! # }
//! ```

mod check;
mod codec;
mod description;
mod error;
mod index;
mod key;
mod rows;
mod single;
mod state;

pub use check::{Finding, Rebuilt, Report};
pub use codec::{Codec, CodecError, Count, Postcard, Raw};
pub use description::{Counters, Table};
pub use error::TableError;
pub use index::{Index, IndexIter, IndexRows};
pub use key::{EncodeKey, KeyError, PrefixOf, TableKey};
pub use rows::{Rows, RowsIter};
pub use single::TableOn;
pub use state::{Source, State};
