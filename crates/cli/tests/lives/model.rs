//! What the rows must be: kept outside the nodes, from acknowledgements alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use steadfast::CommitToken;

use crate::protocol::{Found, Keys, Rows, Write};

/// Maximum number of differences shown individually.
const SHOWN_MAX: usize = 5;

/// All rows, and the writes whose outcome nobody knows.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) rows: Rows,
    /// All keys ever written.
    pub(crate) keys: Keys,
    /// The newest one.
    pub(crate) token: Option<CommitToken>,
    pub(crate) acknowledged: u64,
    unknown: Vec<Write>,
}

impl Model {
    pub(crate) fn acknowledge(&mut self, write: &Write, token: CommitToken) {
        self.note_keys(write);
        self.apply(write);
        self.token = self.token.max(Some(token));
        self.acknowledged += 1;
    }

    /// Nothing else is written to the rows of the write until it is [settled](Self::settle).
    pub(crate) fn leave_unknown(&mut self, write: Write) {
        self.note_keys(&write);
        self.unknown.push(write);
    }

    pub(crate) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    fn note_keys(&mut self, write: &Write) {
        for (database, key, _) in &write.changes {
            let keys = self.keys.entry(database.clone()).or_default();
            keys.insert(key.clone());
            self.rows.entry(database.clone()).or_default();
        }
    }

    fn apply(&mut self, write: &Write) {
        for (database, key, value) in &write.changes {
            let rows = self.rows.entry(database.clone()).or_default();
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
    }

    /// Considers writes of unknown outcome done if a current read shows them. One shown in part is
    /// neither done nor not done, and [`Self::check`] then finds it.
    pub(crate) fn settle(&mut self, found: &Rows) {
        for write in std::mem::take(&mut self.unknown) {
            let is_shown = |(database, key, value): &(String, String, Option<String>)| {
                let rows = found.get(database);
                rows.and_then(|rows| rows.get(key)) == value.as_ref()
            };
            if write.changes.iter().all(is_shown) {
                self.apply(&write);
            }
        }
    }

    /// How a node's data differs from what it must hold, over all rows of these databases.
    ///
    /// # Errors
    /// When it does.
    pub(crate) fn check(&self, keys: &Keys, found: &Found) -> Result<(), String> {
        let scanned = self.check_rows(keys, &found.scanned);
        scanned.map_err(|what| format!("by a scan: {what}"))?;
        let got = found.got.as_ref().unwrap_or(&found.scanned);
        self.check_rows(keys, got)
            .map_err(|what| format!("by gets: {what}"))
    }

    /// The same for rows found in one way.
    ///
    /// # Errors
    /// When they differ.
    pub(crate) fn check_rows(&self, keys: &Keys, found: &Rows) -> Result<(), String> {
        let (mut missing, mut wrong, mut extra) = (0, 0, 0);
        let mut shown = String::new();
        let none = BTreeMap::new();
        for (database, keys) in keys {
            let rows = &self.rows[database];
            let found = found.get(database).unwrap_or(&none);
            let stray = found.keys().filter(|key| !keys.contains(*key));
            for key in keys.iter().chain(stray) {
                let (due, is) = (rows.get(key), found.get(key));
                match (due, is) {
                    _ if due == is => continue,
                    (_, None) => missing += 1,
                    (None, _) => extra += 1,
                    _ => wrong += 1,
                }
                if missing + wrong + extra <= SHOWN_MAX {
                    let (due, is) = (short(due), short(is));
                    write!(shown, "; {database}/{key} must be {due}, is {is}").expect("a text");
                }
            }
        }
        if missing + wrong + extra == 0 {
            return Ok(());
        }
        let due: usize = keys.keys().map(|database| self.rows[database].len()).sum();
        Err(format!(
            "of {due} rows {missing} are missing and {wrong} wrong, and {extra} are there that must \
             not be{shown}"
        ))
    }
}

fn short(value: Option<&String>) -> String {
    value.map_or("nothing".to_owned(), |value| {
        let length = value.len();
        let begin: String = value.chars().take(24).collect();
        format!("{begin:?} of {length} bytes")
    })
}

#[test]
fn a_write_that_is_shown_in_part_is_found() {
    let put = |key: &str| ("d".to_owned(), key.to_owned(), Some("v".to_owned()));
    let write = Write {
        number: 1,
        changes: vec![put("a"), put("b")],
    };
    let rows = |keys: &[&str]| {
        let rows = keys.iter().map(|key| ((*key).to_owned(), "v".to_owned()));
        Rows::from([("d".to_owned(), rows.collect())])
    };
    for (found, is_right) in [
        (&[][..], true),
        (&["a"], false),
        (&["a", "b"], true),
        (&["a", "b", "c"], false),
    ] {
        let mut model = Model::default();
        model.leave_unknown(write.clone());
        model.settle(&rows(found));
        assert_eq!(
            model.check_rows(&model.keys, &rows(found)).is_ok(),
            is_right,
            "{found:?}"
        );
    }
}
