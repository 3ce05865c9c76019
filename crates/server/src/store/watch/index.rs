//! Who watches a key: single keys and prefixes are looked up, other ranges gone through.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::super::keys::Keys;

/// Watchers by what they watch; those of the same keys are one group.
pub(super) struct Index<W> {
    keys: HashMap<Bytes, Group<W>>,
    /// By their length.
    prefixes: BTreeMap<usize, HashMap<Bytes, Group<W>>>,
    ranges: HashMap<Keys, Group<W>>,
}

/// Watchers of the same keys, by their tickets.
pub(super) struct Group<W> {
    pub(super) watchers: HashMap<u64, W>,
    /// Where the keys of the group are among those that are looked for.
    places: Vec<u32>,
}

impl<W> Default for Group<W> {
    fn default() -> Self {
        Self {
            watchers: HashMap::new(),
            places: Vec::new(),
        }
    }
}

impl<W> Default for Index<W> {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            prefixes: BTreeMap::new(),
            ranges: HashMap::new(),
        }
    }
}

impl<W> Index<W> {
    pub(super) fn add(&mut self, keys: &Keys, ticket: u64, watcher: W) {
        let group = match (keys, prefix(keys)) {
            (Keys::One(key), _) => self.keys.entry(key.clone()).or_default(),
            (_, Some(prefix)) => {
                let prefixes = self.prefixes.entry(prefix.len()).or_default();
                prefixes.entry(prefix).or_default()
            }
            (keys, None) => self.ranges.entry(keys.clone()).or_default(),
        };
        group.watchers.insert(ticket, watcher);
    }

    pub(super) fn remove(&mut self, keys: &Keys, ticket: u64) {
        match (keys, prefix(keys)) {
            (Keys::One(key), _) => leave(&mut self.keys, key, ticket),
            (_, Some(prefix)) => {
                let len = prefix.len();
                let Some(prefixes) = self.prefixes.get_mut(&len) else {
                    return;
                };
                leave(prefixes, &prefix, ticket);
                if prefixes.is_empty() {
                    self.prefixes.remove(&len);
                }
            }
            (keys, None) => leave(&mut self.ranges, keys, ticket),
        }
    }

    /// All watchers with their tickets, which it has no more.
    pub(super) fn drain(&mut self) -> Vec<(u64, W)> {
        let Self {
            keys,
            prefixes,
            ranges,
        } = std::mem::take(self);
        let prefixes = prefixes.into_values().flat_map(HashMap::into_values);
        let groups = keys.into_values().chain(prefixes);
        let groups = groups.chain(ranges.into_values());
        groups.flat_map(|group| group.watchers).collect()
    }

    /// Hands out the groups that watch any of these keys, each once, with the places of its keys among
    /// them, in order.
    pub(super) fn find<'k>(
        &mut self,
        wanted: impl Iterator<Item = &'k Bytes> + Clone,
        mut found: impl FnMut(&mut HashMap<u64, W>, Vec<u32>),
    ) {
        for (place, key) in (0..).zip(wanted.clone()) {
            self.each(key, |group| group.places.push(place));
        }
        for key in wanted {
            self.each(key, |group| {
                if !group.places.is_empty() {
                    found(&mut group.watchers, std::mem::take(&mut group.places));
                }
            });
        }
    }

    fn each(&mut self, key: &Bytes, mut tell: impl FnMut(&mut Group<W>)) {
        if let Some(group) = self.keys.get_mut(key) {
            tell(group);
        }
        for (len, prefixes) in self.prefixes.range_mut(..=key.len()) {
            if let Some(group) = prefixes.get_mut(&key[..*len]) {
                tell(group);
            }
        }
        for (keys, group) in &mut self.ranges {
            if keys.contains(key) {
                tell(group);
            }
        }
    }
}

fn leave<K: std::hash::Hash + Eq, W>(groups: &mut HashMap<K, Group<W>>, keys: &K, ticket: u64) {
    if let Some(group) = groups.get_mut(keys) {
        group.watchers.remove(&ticket);
        if group.watchers.is_empty() {
            groups.remove(keys);
        }
    }
}

/// What all keys of a range begin with, if those are all keys that do.
fn prefix(keys: &Keys) -> Option<Bytes> {
    let Keys::Range(start, Some(end)) = keys else {
        return None;
    };
    let (last, rest) = end.split_last()?;
    let is_next = start.len() == end.len()
        && start.starts_with(rest)
        && start.last()?.checked_add(1) == Some(*last);
    is_next.then(|| start.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(key: &'static str, end: &'static str) -> Keys {
        Keys::of(&Bytes::from(key), &Bytes::from(end))
    }

    #[test]
    fn every_watcher_of_a_key_is_found_once_with_its_places() {
        let watched = [
            keys("a", ""),
            keys("a", "b"),
            keys("a/", "a0"),
            keys("a", "\0"),
            keys("a", "ab"),
            keys("b", "c"),
        ];
        let mut index = Index::default();
        for (ticket, keys) in (0..).zip(&watched) {
            index.add(keys, ticket, ());
        }
        let events = ["a", "a/1", "ab", "a", "c"].map(Bytes::from);
        let look = |index: &mut Index<()>| {
            let mut found = BTreeMap::new();
            index.find(events.iter(), |watchers, places| {
                for ticket in watchers.keys() {
                    assert!(found.insert(*ticket, places.clone()).is_none());
                }
            });
            found
        };
        let right = (0..).zip(&watched).filter_map(|(ticket, keys)| {
            let places = (0..).zip(&events).filter(|(_, key)| keys.contains(key));
            let places: Vec<u32> = places.map(|(place, _)| place).collect();
            (!places.is_empty()).then_some((ticket, places))
        });
        assert_eq!(look(&mut index), right.collect());
        for (ticket, keys) in (0..).zip(&watched) {
            index.remove(keys, ticket);
            assert!(!look(&mut index).contains_key(&ticket));
        }
        assert!(index.drain().is_empty());
    }
}
