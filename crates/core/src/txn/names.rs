//! Cache from names to databases, and of names that no database has: it saves a read-only snapshot
//! one engine read. Filled by snapshots, and emptied by each catalog change before the change is
//! visible.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;

use crate::ids::{DatabaseId, Vlsn};

/// Maximum number of names. One more clears the cache.
const NAMES_MAX: usize = 1024;

/// What the cache says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Miss,
    /// `None`: there is no such database.
    Hit(Option<DatabaseId>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last transaction that changed the catalog: earlier snapshots see other names.
    since: Vlsn,
    /// `None`: there is no such database.
    ids: BTreeMap<Bytes, Option<DatabaseId>>,
}

impl Names {
    /// The database of this name in the snapshot at `at`.
    pub(crate) fn find(&self, name: &[u8], at: Vlsn) -> Lookup {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let is_valid = at >= known.since;
        match known.ids.get(name).filter(|_| is_valid) {
            None => Lookup::Miss,
            Some(id) => Lookup::Hit(*id),
        }
    }

    /// Remembers what the snapshot at `at` has read.
    pub(crate) fn remember(&self, name: Bytes, id: Option<DatabaseId>, at: Vlsn) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if at < known.since {
            return;
        }
        if known.ids.len() >= NAMES_MAX {
            known.ids.clear();
        }
        known.ids.insert(name, id);
    }

    /// Clears the cache: transaction `by`, which is not visible yet, changes the catalog.
    pub(crate) fn changed(&self, by: Vlsn) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = Known {
            since: by,
            ids: BTreeMap::new(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_finds_only_what_holds_at_its_number() {
        let (names, name) = (Names::default(), Bytes::from("d"));
        let find = |at| names.find(&name, Vlsn(at));
        let id = |id| Some(DatabaseId(id));
        let nothing = Lookup::Miss;
        names.remember(name.clone(), id(1), Vlsn(5));
        assert_eq!([find(5), find(9)], [Lookup::Hit(id(1)); 2]);
        names.changed(Vlsn(7));
        assert_eq!([find(6), find(7)], [nothing; 2]);
        // A snapshot from before the change comes late.
        names.remember(name.clone(), id(1), Vlsn(6));
        assert_eq!([find(6), find(7)], [nothing; 2]);
        names.remember(name.clone(), None, Vlsn(8));
        assert_eq!([find(6), find(7)], [nothing, Lookup::Hit(None)]);
        names.changed(Vlsn(9));
        names.remember(name.clone(), None, Vlsn(8));
        assert_eq!([find(8), find(9)], [nothing; 2]);
        names.remember(name.clone(), id(2), Vlsn(9));
        assert_eq!([find(8), find(9)], [nothing, Lookup::Hit(id(2))]);
    }
}
