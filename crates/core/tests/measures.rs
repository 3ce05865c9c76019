//! The table of metrics is what the code records, and the documentation is made from it.

#![expect(
    clippy::disallowed_methods,
    reason = "reads the sources and the documentation"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use steadfast::{METRICS, Metric, MetricKind};

const HEAD: &str = "# Metrics

Recorded with the [`metrics`](https://docs.rs/metrics) facade: an application installs the recorder of its choice, and the library forces none.
A gauge that a node sets has its name as the label `node`; the others are those of the process, and add up over its nodes.
`steadfast::describe_metrics()` gives it units and meanings, and `steadfast::METRICS` is this table as data. This page is made from it:
`STEADFAST_BLESS=1 cargo test -p steadfast --test measures` writes it anew.

| metric | kind | unit | labels | meaning |
| --- | --- | --- | --- | --- |
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn kind(metric: &Metric) -> &'static str {
    match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
        _ => "another kind",
    }
}

/// What the code records: kind and labels by name.
fn recorded() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![
        root().join("crates/core/src"),
        root().join("crates/net/src"),
    ];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|of| of == "rs") {
                let text = std::fs::read_to_string(path).expect("a source");
                calls(&text, &mut found);
            }
        }
    }
    found
}

/// The calls `metrics::KIND!("NAME", "LABEL" => …)` of a source.
fn calls(text: &str, found: &mut BTreeMap<String, (String, BTreeSet<String>)>) {
    for call in text.split("metrics::").skip(1) {
        let Some((kind, rest)) = call.split_once("!(") else {
            continue;
        };
        if !["counter", "gauge", "histogram"].contains(&kind) {
            continue;
        }
        let statement = rest
            .split_once(';')
            .map_or(rest, |(statement, _)| statement);
        let mut quoted = statement.split('"').skip(1).step_by(2);
        let name = quoted.next().expect("a name").to_owned();
        let mut labels = BTreeSet::new();
        for label in quoted {
            if statement.contains(&format!("\"{label}\" =>")) {
                labels.insert(label.to_owned());
            }
        }
        found.insert(name, (kind.to_owned(), labels));
    }
}

#[test]
fn the_table_has_every_metric_that_is_recorded_and_no_other() {
    let table = METRICS.iter().map(|metric| {
        let labels = metric.labels.iter().map(|label| (*label).to_owned());
        let recorded = (kind(metric).to_owned(), labels.collect());
        (metric.name.to_owned(), recorded)
    });
    assert_eq!(recorded(), table.collect());
}

#[test]
fn the_page_of_metrics_is_made_from_the_table() {
    let mut page = HEAD.to_owned();
    for metric in METRICS {
        let labels = metric.labels.iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let (name, unit, meaning) = (metric.name, metric.unit.as_str(), metric.meaning);
        writeln!(
            page,
            "| `{name}` | {} | {unit} | {labels} | {meaning} |",
            kind(metric)
        )
        .expect("a string takes everything");
    }
    let path = root().join("docs/metrics.md");
    if std::env::var_os("STEADFAST_BLESS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let written = std::fs::read_to_string(&path).expect("docs/metrics.md");
    assert_eq!(written, page);
}
