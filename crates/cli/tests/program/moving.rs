//! Moving between clusters of the etcd v3 API while they are in use: `steadfast etcd import` and
//! `export`.

mod sides;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::Value;
use steadfast_server::proto::etcdserverpb::request_op::Request;
use steadfast_server::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use super::clients::{Client, Etcd, Serving};
use super::{Node, PATIENCE};

const RECORD: &[u8] = b"steadfast/copy";

/// A copy that runs.
struct Copy {
    process: Node,
}

impl Copy {
    fn start(verb: &str, from: &str, to: &str, more: &[&str]) -> Self {
        let words = [&[verb, "--from", from, "--to", to, "--json"], more].concat();
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        Self {
            process: Node::run("etcd", &words),
        }
    }

    /// Tells it to switch; returns what it reports.
    fn switch(self) -> Value {
        self.process.signal("-INT");
        self.end()
    }

    /// Waits until it has switched by itself.
    fn end(self) -> Value {
        let line = self.process.wait_for(&["revision"]);
        let (status, errors) = self.process.end();
        assert!(status.success(), "{errors}");
        serde_json::from_str(&line).expect("JSON")
    }
}

/// Waits until a condition holds.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// How far a copy is; `None` also while nobody leads the target.
fn record(target: &Client) -> Option<Value> {
    let request = RangeRequest {
        key: RECORD.into(),
        ..Default::default()
    };
    let kv = target.try_range(request).ok()?.kvs.pop()?;
    Some(serde_json::from_slice(&kv.value).expect("JSON"))
}

/// Waits until all of a revision is in the target, and the source is followed.
fn until_at(target: &Client, revision: i64) {
    until("a revision is in the target", || {
        let record = record(target)?;
        let at = record["revision"].as_i64().expect("a number");
        (record["next"].is_null() && at >= revision).then_some(())
    });
}

/// The same keys with the same values and leases, and the same leases.
fn assert_same(source: &Client, revision: i64, target: &Client) {
    // The one was asked before the other.
    assert_same_within(source, revision, target, 1);
}

/// The same where leases may have so many seconds less before them than at the source.
fn assert_same_within(source: &Client, revision: i64, target: &Client, seconds: i64) {
    let rows = |client: &Client, revision| -> BTreeMap<_, _> {
        let all = client.all(revision).into_iter();
        all.map(|kv| (kv.key, (kv.value, kv.lease))).collect()
    };
    let (there, here) = (rows(source, revision), rows(target, 0));
    assert_eq!(here.len(), there.len());
    for (key, row) in &there {
        assert!(here.get(key) == Some(row), "{key:?} differs");
    }
    assert_eq!(target.leases(), source.leases());
    for id in source.leases() {
        let (there, here) = (source.time_to_live(id), target.time_to_live(id));
        assert_eq!(here.granted_ttl, there.granted_ttl, "lease {id}");
        assert!(
            here.ttl >= there.ttl - seconds,
            "lease {id}: {} of {}",
            here.ttl,
            there.ttl
        );
        let sorted = |keys: Vec<_>| {
            let mut keys = keys;
            keys.sort();
            keys
        };
        assert_eq!(sorted(here.keys), sorted(there.keys), "lease {id}");
    }
}

fn put(key: String, value: String) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        })),
    }
}

/// Writes without a pause until it is dropped: pairs that are always equal, keys that come and go,
/// a few hundred keys that go in one revision.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const MANY: usize = 300;

impl Writer {
    fn start(endpoints: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let work = move || {
            let client = Client::to(&endpoints[0]);
            for round in 0_u32.. {
                Self::round(&client, round);
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        };
        Self {
            stop,
            thread: Some(std::thread::spawn(work)),
        }
    }

    fn round(client: &Client, round: u32) {
        for number in 0..5 {
            let value = format!("{round}.{number}");
            client.txn(&TxnRequest {
                success: ["a/pair", "z/pair"]
                    .map(|key| put(key.to_owned(), value.clone()))
                    .into(),
                ..Default::default()
            });
            client.put(b"single", value.as_bytes(), 0);
        }
        client.put(format!("come/{}", round % 7).as_bytes(), b"v", 0);
        client.delete(format!("come/{}", (round + 3) % 7).as_bytes(), b"");
        if round.is_multiple_of(4) {
            let keys = (0..MANY).map(|n| format!("many/{n:03}"));
            let puts: Vec<_> = keys.map(|key| put(key, format!("{round}"))).collect();
            let nested = puts.chunks(60).map(|puts| RequestOp {
                request: Some(Request::RequestTxn(TxnRequest {
                    success: puts.to_vec(),
                    ..Default::default()
                })),
            });
            client.txn(&TxnRequest {
                success: nested.collect(),
                ..Default::default()
            });
        } else if round % 4 == 2 {
            let all = DeleteRangeRequest {
                key: "many/".into(),
                range_end: "many0".into(),
                ..Default::default()
            };
            let request = Some(Request::RequestDeleteRange(all));
            client.txn(&TxnRequest {
                success: vec![RequestOp { request }],
                ..Default::default()
            });
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        // A test that has failed already must not fail twice.
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

/// At every revision of the target, what the source changed in one revision is as it was in one.
fn assert_no_half_revisions(target: &Client, from: i64) {
    let at = |key: &str, range_end: &str, revision| {
        let request = RangeRequest {
            key: key.to_owned().into(),
            range_end: range_end.to_owned().into(),
            revision,
            ..Default::default()
        };
        target.try_range(request).expect("it is kept").kvs
    };
    let value = |key, revision| at(key, "", revision).pop().map(|kv| kv.value);
    for revision in from..=target.revision() {
        let (first, last) = (value("a/pair", revision), value("z/pair", revision));
        assert_eq!(first, last, "revision {revision}");
        let many = at("many/", "many0", revision);
        assert!(
            many.is_empty() || many.len() == MANY,
            "{} at revision {revision}",
            many.len()
        );
        let one = many.iter().all(|kv| kv.value == many[0].value);
        assert!(one, "puts of several revisions at {revision}");
    }
}

/// Many keys, so that copying them takes a while.
fn fill(client: &Client, keys: usize) {
    for from in (0..keys).step_by(100) {
        let key = |n: usize| format!("filled/{n:06}");
        let puts = (from..(from + 100).min(keys)).map(|n| put(key(n), format!("{n}").repeat(100)));
        client.txn(&TxnRequest {
            success: puts.collect(),
            ..Default::default()
        });
    }
}

#[test]
fn a_group_is_copied_into_another_while_it_is_written_to_and_the_target_s_master_dies() {
    let (source, mut target) = (Serving::start(), Serving::start());
    let there = Client::to(&source.endpoints[0]);
    fill(&there, 2000);
    there.grant(77, 600);
    there.put(b"leased", b"v", 77);
    let writer = Writer::start(source.endpoints.clone());
    let copy = Copy::start("import", &source.all(), &target.all(), &[]);
    let copied = there.put(b"mark", b"1", 0);
    let master = target.master();
    let witness = Client::to(&target.endpoints[(master + 1) % 3]);
    until_at(&witness, copied);
    let followed_from = witness.revision();

    target.kill(master);
    let after = there.put(b"mark", b"2", 0);
    until_at(&witness, after);
    drop(writer);
    let last = there.put(b"mark", b"3", 0);
    let report = copy.switch();
    assert_eq!(report["revision"], last, "{report}");
    assert_eq!(report["copied"]["start_overs"], 0, "{report}");
    assert!(witness.get(RECORD).is_none(), "the record is removed");
    assert_same(&there, last, &witness);
    assert_no_half_revisions(&witness, followed_from);
}

/// Kills a copy, and waits until nothing of it is left.
fn kill(copy: Copy) {
    copy.process.signal("-KILL");
    let (status, _) = copy.process.end();
    assert!(!status.success());
}

#[test]
fn a_copy_that_was_killed_goes_on_and_neither_loses_nor_repeats_a_revision() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    fill(&there, 10_000);
    let count = |number: i64| there.put(b"count", format!("{number:04}").as_bytes(), 0);
    let start = || Copy::start("import", &source.all(), &target.all(), &[]);
    let begun = kill_among_keys(start(), &here);
    let first = begun["revision"].as_i64().expect("a number");
    assert!(here.get(b"filled/009999").is_none(), "only a part is there");

    let mut copy = start();
    let mut last = count(0);
    // The last of these come after the last kill: who is told to switch has begun.
    for number in 1..=130 {
        last = count(number);
        // The pauses between kills are as long as some commits take.
        if number % 40 == 0 {
            until_at(&here, last - 20);
            kill(copy);
            copy = start();
        }
    }
    until_at(&here, last);
    let report = copy.switch();
    assert_eq!(report["revision"], last, "{report}");
    assert_eq!(report["copied"]["start_overs"], 0, "{report}");
    assert_eq!(report["copied"]["revisions"], last - first, "{report}");
    assert_same(&there, last, &here);
    // No value comes back.
    let mut seen = Vec::new();
    for revision in 2..=here.revision() {
        let request = RangeRequest {
            key: "count".into(),
            revision,
            ..Default::default()
        };
        let kv = here.try_range(request).expect("it is kept").kvs.pop();
        seen.extend(
            kv.filter(|kv| kv.mod_revision == revision)
                .map(|kv| kv.value),
        );
    }
    assert!(seen.is_sorted(), "{seen:?}");
}

/// Waits until some keys are copied, and kills the copy.
fn kill_among_keys(copy: Copy, target: &Client) -> Value {
    until("a part is copied", || {
        let record = record(target)?;
        let next = record["next"].as_str();
        next.is_some_and(|next| !next.is_empty()).then_some(())
    });
    kill(copy);
    let left = record(target).expect("it is kept");
    assert!(
        left["next"].is_string(),
        "all was copied before it could be killed: {left}"
    );
    left
}

#[test]
fn a_copy_whose_source_was_compacted_compares_everything_again() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    fill(&there, 10_000);
    let start = || Copy::start("import", &source.all(), &target.all(), &[]);
    // Nobody can learn of these changes any more than from comparing.
    let change = |round: u8| {
        let from = format!("filled/00{round}100");
        there.delete(from.as_bytes(), format!("filled/00{round}200").as_bytes());
        there.put(format!("filled/00{round}300").as_bytes(), b"other", 0);
        let last = there.put(b"new", &[round], 0);
        there.compact(last);
        last
    };
    kill_among_keys(start(), &here);
    let copied = change(0);
    let copy = start();
    until_at(&here, copied);
    kill(copy);
    let last = change(1);
    let copy = start();
    until_at(&here, last);
    let report = copy.switch();
    assert_eq!(report["copied"]["start_overs"], 2, "{report}");
    assert_same(&there, last, &here);
}

#[test]
fn leases_go_on_in_the_target_for_as_long_as_at_the_source() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    let (long, kept, ending) = (1 << 60, 12, 13);
    there.grant(long, 6000);
    there.grant(kept, 6);
    there.grant(ending, 5);
    for (key, lease) in [("long", long), ("kept", kept), ("ending", ending)] {
        there.put(key.as_bytes(), b"v", lease);
    }
    let start = || Copy::start("import", &source.all(), &target.all(), &[]);
    let copy = start();
    until("leases are copied", || {
        (here.leases() == [kept, ending, long]).then_some(())
    });
    // It ends at the source; the other is kept alive for longer than its TTL.
    until("a lease ends", || {
        assert!(there.keep_alive(kept) > 0);
        (here.leases() == [kept, long]).then_some(())
    });
    assert!(there.get(b"ending").is_none());
    until("its keys end", || {
        here.get(b"ending").is_none().then_some(())
    });
    let since = Instant::now();
    until("it is kept alive", || {
        assert!(there.keep_alive(kept) > 0);
        assert!(
            here.get(b"kept").is_some_and(|kv| kv.lease == kept),
            "it ended too early"
        );
        (since.elapsed().as_secs() >= 8).then_some(())
    });
    let after = there.put(b"later", b"v", kept);
    until_at(&here, after);
    assert_eq!(here.get(b"later").map(|kv| kv.lease), Some(kept));

    // Nobody keeps it alive in the target meanwhile: its keys end there, and only there.
    kill(copy);
    until("a lease ends in the target alone", || {
        assert!(there.keep_alive(kept) > 0);
        here.get(b"kept").is_none().then_some(())
    });
    let copy = start();
    until("its keys are back", || {
        assert!(there.keep_alive(kept) > 0);
        here.get(b"kept").filter(|kv| kv.lease == kept)
    });
    there.revoke(kept);
    let last = there.put(b"last", b"v", 0);
    until_at(&here, last);
    let report = copy.switch();
    assert_eq!(report["leases"], 1, "{report}");
    assert_same(&there, last, &here);
    assert_eq!(here.leases(), [long]);
}

/// The size of the largest value that fits, less what a copy needs for itself.
fn largest(client: &Client) -> usize {
    let (probe, mut size) = (b"probe", 1536 * 1024);
    while client.try_put(probe, &vec![b'x'; size], 5).is_err() {
        size -= 1;
    }
    client.delete(probe, b"");
    size - 16
}

#[test]
fn the_largest_values_are_copied_with_their_leases() {
    let (source, target) = (Serving::start(), Serving::start());
    let (there, here) = (
        Client::to(&source.endpoints[0]),
        Client::to(&target.endpoints[0]),
    );
    there.grant(5, 600);
    let size = largest(&there);
    let put = |key: &[u8], lease| there.put(key, &vec![b'y'; size], lease);
    put(b"before", 0);
    put(b"leased", 5);
    let copy = Copy::start("import", &source.all(), &target.all(), &[]);
    let mark = there.put(b"mark", b"", 0);
    until_at(&here, mark);
    put(b"after", 0);
    let last = put(b"before", 5);
    until_at(&here, last);
    let report = copy.switch();
    assert_eq!(report["copied"]["start_overs"], 0, "{report}");
    assert_same(&there, last, &here);
}

#[test]
fn an_etcd_is_copied_into_a_group_and_back_while_it_is_written_to() {
    let Some(mut etcd) = Etcd::start(&[]) else {
        return;
    };
    let group = Serving::start();
    let (there, here) = (Client::to(&etcd.endpoint), Client::to(&group.endpoints[0]));
    fill(&there, 3000);
    for id in [8, 9] {
        there.grant(id, 600);
        there.put(format!("leased/{id}").as_bytes(), b"v", id);
    }
    let writer = Writer::start(vec![etcd.endpoint.clone()]);
    let copy = Copy::start("import", &etcd.endpoint, &group.all(), &[]);
    let mark = there.put(b"mark", b"1", 0);
    until_at(&here, mark);
    let followed_from = here.revision();
    there.revoke(9);
    // An etcd takes a few bytes more than a group does.
    there.put(b"largest", &vec![b'y'; 1536 * 1024 - 64], 8);
    drop(writer);
    // The source is gone for a moment, and has compacted when it is back.
    let before = there.put(b"mark", b"2", 0);
    until_at(&here, before);
    etcd.kill();
    etcd.restart(&[]);
    let there = Client::to(&etcd.endpoint);
    let last = there.put(b"mark", b"3", 0);
    until_at(&here, last);
    let report = copy.switch();
    assert_eq!(report["revision"], last, "{report}");
    // An etcd that starts again gives each lease its whole time; in the target it is kept alive by then.
    assert_same_within(&there, last, &here, 60);
    assert_no_half_revisions(&here, followed_from);

    let Some(back) = Etcd::start(&[]) else {
        return;
    };
    let again = Client::to(&back.endpoint);
    let writer = Writer::start(group.endpoints.clone());
    let copy = Copy::start("export", &group.all(), &back.endpoint, &["--follow"]);
    let mark = here.put(b"mark", b"4", 0);
    until_at(&again, mark);
    drop(writer);
    let last = here.put(b"mark", b"5", 0);
    let report = copy.switch();
    assert_eq!(report["revision"], last, "{report}");
    assert_same(&here, last, &again);
}
