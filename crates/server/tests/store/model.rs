//! Random requests, and a naive model that says what must come of them.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast_server::error::Error;
use steadfast_server::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use steadfast_server::proto::etcdserverpb::*;
use steadfast_server::proto::mvccpb::KeyValue;
use steadfast_server::store::Store;

use crate::group::*;

type State = BTreeMap<String, KeyValue>;

/// All states there ever were, and what happened.
struct Model {
    /// By revision; the first is of revision 1, and there is one before it.
    states: Vec<State>,
    events: Vec<String>,
    leases: BTreeSet<i64>,
    compacted: i64,
}

impl Model {
    fn new() -> Self {
        Self {
            states: vec![State::new(), State::new()],
            events: Vec::new(),
            leases: BTreeSet::new(),
            compacted: -1,
        }
    }

    fn revision(&self) -> i64 {
        i64::try_from(self.states.len()).unwrap() - 1
    }

    fn now(&self) -> &State {
        self.states.last().unwrap()
    }

    fn put(&mut self, state: &mut State, key: &str, value: &str, lease: i64) {
        let at = self.revision() + 1;
        let old = state.get(key);
        let kv = KeyValue {
            key: bytes(key),
            value: bytes(value),
            create_revision: old.map_or(at, |old| old.create_revision),
            mod_revision: at,
            version: old.map_or(0, |old| old.version) + 1,
            lease,
        };
        self.events.push(format!("+{key}={value}@{at}"));
        state.insert(key.to_owned(), kv);
    }

    fn delete(&mut self, state: &mut State, keys: &[String]) -> i64 {
        let at = self.revision() + 1;
        let found = keys.iter().filter(|key| state.remove(*key).is_some());
        let found: Vec<_> = found.map(|key| format!("-{key}@{at}")).collect();
        let count = found.len();
        self.events.extend(found);
        i64::try_from(count).unwrap()
    }

    /// Takes the next state, if something has happened in it.
    fn keep(&mut self, state: State, events: usize) {
        if self.events.len() > events {
            self.states.push(state);
        }
    }
}

struct Run {
    rng: StdRng,
    model: Model,
    stores: Vec<Store>,
}

impl Run {
    fn store(&mut self) -> Store {
        let store = self.rng.random_range(0..self.stores.len());
        self.stores[store].clone()
    }

    /// Few keys, some of which begin with others or have zeros in them.
    fn key(&mut self) -> String {
        let all = [
            "a", "a\0", "a\0b", "a/1", "a/2", "ab", "b", "b/\u{7f}", "c", "c/x/y",
        ];
        all[self.rng.random_range(0..all.len())].to_owned()
    }

    /// A range, and its keys in a state.
    fn range(&mut self) -> (bytes::Bytes, bytes::Bytes) {
        let (a, b) = (self.key(), self.key());
        match self.rng.random_range(0..4) {
            0 => (bytes(&a), bytes("")),
            1 => (bytes(&a), end_of(&a)),
            2 => (bytes(&a), bytes("\0")),
            _ => (bytes(&a), bytes(&b)),
        }
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..30 => self.put().await,
            30..45 => self.delete().await,
            45..60 => self.txn().await,
            60..62 => self.compact().await,
            62..66 => self.lease().await,
            _ => self.read().await,
        }
    }

    async fn put(&mut self) {
        let (store, key) = (self.store(), self.key());
        let value = self.rng.random_range(0..10).to_string();
        let lease = self.rng.random_range(0..4);
        let request = PutRequest {
            lease,
            prev_kv: true,
            ..put(&key, &value)
        };
        let answer = store.put(request).await;
        if lease != 0 && !self.model.leases.contains(&lease) {
            assert_eq!(refused(answer), Error::LeaseNotFound);
            return;
        }
        let answer = answer.expect("put");
        let (mut state, events) = (self.model.now().clone(), self.model.events.len());
        assert_eq!(answer.prev_kv.as_ref(), state.get(&key));
        self.model.put(&mut state, &key, &value, lease);
        self.model.keep(state, events);
        assert_eq!(revision(answer.header.as_ref()), self.model.revision());
    }

    async fn delete(&mut self) {
        let (store, (key, range_end)) = (self.store(), self.range());
        let (mut state, events) = (self.model.now().clone(), self.model.events.len());
        let keys: Vec<_> = within(&state, &key, &range_end)
            .into_iter()
            .map(|kv| text(&kv.key))
            .collect();
        let prev = within(&state, &key, &range_end);
        let request = DeleteRangeRequest {
            key,
            range_end,
            prev_kv: true,
        };
        let answer = store.delete_range(request).await.expect("deleted");
        assert_eq!(answer.prev_kvs, prev);
        assert_eq!(answer.deleted, self.model.delete(&mut state, &keys));
        self.model.keep(state, events);
        assert_eq!(revision(answer.header.as_ref()), self.model.revision());
    }

    /// A guard, and some puts and deletions of different keys, the deletions nested after them.
    async fn txn(&mut self) {
        let store = self.store();
        let guarded = self.key();
        let wanted = self.rng.random_range(0..3);
        let guard = Compare {
            key: bytes(&guarded),
            target: CompareTarget::Version as i32,
            result: CompareResult::Less as i32,
            target_union: Some(TargetUnion::Version(wanted)),
            ..Compare::default()
        };
        let mut puts = BTreeMap::new();
        for _ in 0..self.rng.random_range(0..4) {
            puts.insert(self.key(), self.rng.random_range(0..10).to_string());
        }
        let (key, range_end) = self.range();
        let deletion = DeleteRangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            prev_kv: false,
        };
        let mut ops: Vec<_> = puts
            .iter()
            .map(|(key, value)| op(txn(vec![op(put(key, value))])))
            .collect();
        ops.push(op(txn(vec![op(deletion)])));
        let request = TxnRequest {
            compare: vec![guard],
            success: ops,
            failure: vec![op(get(&guarded))],
        };
        let answer = store.txn(request).await.expect("a transaction");
        let (mut state, events) = (self.model.now().clone(), self.model.events.len());
        let holds = state.get(&guarded).map_or(0, |kv| kv.version) < wanted;
        assert_eq!(answer.succeeded, holds);
        if holds {
            for (key, value) in &puts {
                self.model.put(&mut state, key, value, 0);
            }
            let keys: Vec<_> = within(&state, &key, &range_end)
                .into_iter()
                .map(|kv| text(&kv.key))
                .collect();
            self.model.delete(&mut state, &keys);
            self.model.keep(state, events);
        }
        assert_eq!(revision(answer.header.as_ref()), self.model.revision());
    }

    async fn compact(&mut self) {
        let store = self.store();
        let revision = self
            .rng
            .random_range(self.model.compacted - 1..=self.model.revision() + 1);
        let physical = self.rng.random_bool(0.5);
        let answer = store
            .compact(CompactionRequest { revision, physical })
            .await;
        if revision <= self.model.compacted {
            assert_eq!(refused(answer), Error::Compacted);
        } else if revision > self.model.revision() {
            assert_eq!(refused(answer), Error::FutureRevision);
        } else {
            answer.expect("compacted");
            self.model.compacted = revision;
        }
    }

    async fn lease(&mut self) {
        let (store, id) = (self.store(), self.rng.random_range(1..4));
        if self.model.leases.remove(&id) {
            let answer = store.lease_revoke(id).await.expect("revoked");
            let (mut state, events) = (self.model.now().clone(), self.model.events.len());
            let keys = state
                .values()
                .filter(|kv| kv.lease == id)
                .map(|kv| text(&kv.key));
            let keys: Vec<_> = keys.collect();
            self.model.delete(&mut state, &keys);
            self.model.keep(state, events);
            assert_eq!(revision(answer.header.as_ref()), self.model.revision());
        } else {
            let request = LeaseGrantRequest { ttl: 1_000_000, id };
            store.lease_grant(request).await.expect("granted");
            self.model.leases.insert(id);
        }
    }

    async fn read(&mut self) {
        let (store, (key, range_end)) = (self.store(), self.range());
        let limit = self.rng.random_range(-1..5);
        let newest = self.model.revision();
        let at = if self.rng.random_bool(0.5) {
            0
        } else {
            self.rng.random_range(0..=newest + 1)
        };
        let min_mod_revision = if self.rng.random_bool(0.2) {
            newest - 5
        } else {
            0
        };
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit,
            revision: at,
            min_mod_revision,
            ..RangeRequest::default()
        };
        let answer = store.range(request).await;
        if at > newest {
            assert_eq!(refused(answer), Error::FutureRevision);
        } else if at > 0 && at < self.model.compacted {
            assert_eq!(refused(answer), Error::Compacted);
        } else {
            let answer = answer.expect("a range");
            let state = if at == 0 { newest } else { at };
            let all = within(
                &self.model.states[usize::try_from(state).unwrap()],
                &key,
                &range_end,
            );
            assert_eq!(answer.count, i64::try_from(all.len()).unwrap());
            let mut right: Vec<_> = all
                .into_iter()
                .filter(|kv| kv.mod_revision >= min_mod_revision)
                .collect();
            let limit = if limit <= 0 {
                usize::MAX
            } else {
                usize::try_from(limit).unwrap()
            };
            assert_eq!(answer.more, right.len() > limit);
            right.truncate(limit);
            assert_eq!(answer.kvs, right);
            assert_eq!(revision(answer.header.as_ref()), newest);
        }
    }

    /// Every node replays what happened since the compaction, and all agree on what there is.
    async fn compare(&mut self) {
        let from = self.model.compacted.max(1);
        let right = self.model.events.iter().filter(|event| {
            let at = event.rsplit('@').next().unwrap();
            at.parse::<i64>().unwrap() >= from
        });
        let right: Vec<_> = right.cloned().collect();
        let mut hashes = Vec::new();
        for store in &self.stores {
            store.linearize().await.expect("current");
            let mut watches = Watches::new(store);
            let all = WatchCreateRequest {
                range_end: bytes("\0"),
                ..watch("\0", from)
            };
            watches.create(all).await;
            assert!(watches.next().await.created);
            assert_eq!(shorts(&watches.events(right.len()).await), right);
            let hash = store.hash_kv(0).await.expect("a hash");
            assert_eq!(hash.compact_revision, self.model.compacted);
            hashes.push(hash.hash);
        }
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    }
}

/// The keys of a range.
fn within(state: &State, key: &[u8], range_end: &[u8]) -> Vec<KeyValue> {
    let is_within = |kv: &&KeyValue| match range_end {
        [] => kv.key == key,
        [0] => kv.key[..] >= *key,
        end => kv.key[..] >= *key && kv.key[..] < *end,
    };
    let mut found: Vec<_> = state.values().filter(is_within).cloned().collect();
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

async fn run(seed: u64, nodes: usize, steps: usize) {
    let group = Group::new(nodes).await;
    let mut run = Run {
        rng: StdRng::seed_from_u64(seed),
        model: Model::new(),
        stores: group.stores(),
    };
    for step in 1..=steps {
        run.step().await;
        if step % 250 == 0 {
            run.compare().await;
        }
    }
    drop(run);
    group.close().await;
}

#[tokio::test(start_paused = true)]
async fn one_node_does_what_the_model_does() {
    for seed in 0..4 {
        run(seed, 1, 500).await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_nodes_do_what_the_model_does() {
    run(7, 3, 750).await;
}
