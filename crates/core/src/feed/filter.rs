//! Which changes a subscriber wants: databases by name, and keys by prefix.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::engine::KeyRange;
use crate::error::FeedError;
use crate::feed::event::Change;
use crate::limits::{DATABASE_NAME_BYTES_MAX, KEY_BYTES_MAX, SUBSCRIPTION_FILTERS_MAX};

/// Prefixes by database, none of which begins with another; an empty filter matches everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    prefixes: BTreeMap<String, Vec<Bytes>>,
}

impl Filter {
    pub(crate) fn add(&mut self, database: String, prefix: Bytes) {
        let prefixes = self.prefixes.entry(database).or_default();
        if prefixes.iter().any(|wider| prefix.starts_with(wider)) {
            return;
        }
        prefixes.retain(|narrower| !narrower.starts_with(&prefix));
        prefixes.push(prefix);
        prefixes.sort_unstable();
    }

    /// # Errors
    /// [`FeedError::Filter`].
    pub(crate) fn check(&self) -> Result<(), FeedError> {
        let refuse = |reason: String| Err(FeedError::Filter { reason });
        let count = self.iter().count();
        if count > SUBSCRIPTION_FILTERS_MAX {
            return refuse(format!(
                "it has {count} prefixes, which exceeds the limit of {SUBSCRIPTION_FILTERS_MAX}"
            ));
        }
        for (database, prefix) in self.iter() {
            let is_name = (1..=DATABASE_NAME_BYTES_MAX).contains(&database.len());
            if !is_name || database.chars().any(char::is_control) {
                return refuse(format!("{database:?} is not a valid database name"));
            }
            if prefix.len() > KEY_BYTES_MAX {
                return refuse(format!(
                    "a prefix of {} bytes is longer than any key",
                    prefix.len()
                ));
            }
        }
        Ok(())
    }

    /// Whether nothing is left out.
    pub(super) fn is_all(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// Databases and prefixes, sorted.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.prefixes
            .iter()
            .flat_map(|(database, prefixes)| prefixes.iter().map(|prefix| (&**database, prefix)))
    }

    pub(super) fn has_database(&self, database: &str) -> bool {
        self.is_all() || self.prefixes.contains_key(database)
    }

    pub(super) fn has_key(&self, database: &str, key: &[u8]) -> bool {
        let begins = |prefixes: &Vec<Bytes>| prefixes.iter().any(|prefix| key.starts_with(prefix));
        self.is_all() || self.prefixes.get(database).is_some_and(begins)
    }

    pub(super) fn has_change(&self, change: &Change) -> bool {
        match change {
            Change::Put { database, key, .. }
            | Change::Delete { database, key }
            | Change::Expired { database, key } => self.has_key(database, key),
            Change::Created { database } | Change::Dropped { database } => {
                self.has_database(database)
            }
        }
    }

    /// The key ranges of a database that match, ascending and disjoint.
    pub(super) fn ranges(&self, database: &str) -> Vec<KeyRange> {
        if self.is_all() {
            return vec![KeyRange::all()];
        }
        let prefixes = self.prefixes.get(database).into_iter().flatten();
        prefixes.map(|prefix| KeyRange::prefix(prefix)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_within_another_adds_no_second_range() {
        let mut filter = Filter::default();
        for prefix in ["ab", "b", "a", "aa"] {
            filter.add("d".into(), Bytes::from_static(prefix.as_bytes()));
        }
        assert_eq!(filter.ranges("d").len(), 2);
        assert!(filter.has_key("d", b"ax") && !filter.has_key("d", b"c"));
        assert!(!filter.has_key("e", b"a") && filter.ranges("e").is_empty());
    }

    #[test]
    fn an_impossible_filter_is_refused() {
        let mut filter = Filter::default();
        for n in 0..=SUBSCRIPTION_FILTERS_MAX {
            assert!(filter.check().is_ok());
            filter.add(format!("d{n}"), Bytes::new());
        }
        assert!(matches!(filter.check(), Err(FeedError::Filter { .. })));
        let mut filter = Filter::default();
        filter.add(String::new(), Bytes::new());
        assert!(matches!(filter.check(), Err(FeedError::Filter { .. })));
    }
}
