use std::collections::BTreeMap;

use serde_json::json;
use steadfast::ids::{LogPosition, NodeId, Term, Vlsn};
use steadfast::{Divergence, MemberStatus, NodeAddress, NodeStatus, NodeType, ReplicaStatus};

use super::*;
use crate::status::{Answer, ClockOffset, Unseen, headline};

/// A group of which the tests break parts.
struct Rig {
    nodes: Vec<NodeStatus>,
    unseen: BTreeMap<usize, UnseenKind>,
    clocks: BTreeMap<usize, i64>,
}

fn address(id: usize) -> NodeAddress {
    NodeAddress {
        id: NodeId(id as u64),
        name: format!("n{id}"),
        address: format!("h{id}:7400"),
        metadata: BTreeMap::new(),
    }
}

impl Rig {
    /// Nodes `n1`, `n2`, …, of which the first is master.
    fn new(types: &[NodeType]) -> Self {
        let members = (1..).zip(types).map(|(id, node_type)| MemberStatus {
            node: address(id),
            node_type: *node_type,
            priority: 1,
            votes: node_type.votes(),
        });
        let members: Vec<_> = members.collect();
        let replica = |id: usize| ReplicaStatus {
            node: NodeId(id as u64),
            persisted: None,
            heard_ms_ago: Some(20),
            round_trip_p50_us: Some(300),
            behind_ms: Some(40),
            behind_bytes: 9_000,
        };
        let status = |id: usize| -> NodeStatus {
            let text = json!({
                "group_name": "g", "group": "f9858012-f9cf-4200-91e8-8ecb6b6c023d", "epoch": 1,
                "node": address(id), "members": members, "role": "replica", "term": 3, "master": 1,
                "vlsn": 100_000, "persisted": null, "applied": null, "replicas": [],
                "disk_free_bytes": 1_u64 << 40, "disk_total_bytes": 2_u64 << 40,
                "disk_is_low": false, "read_only": null, "version": "0.1.0", "window_bytes": 0,
                "waiting_for": "", "damage": null, "needs_state": false, "checked": 100_000, "put_right": 0,
                "divergences": [], "sync_p99_us": 900,
                "clock_ms": 0, "restore": null, "copies": 0, "digest": null,
            });
            serde_json::from_value(text).expect("a status")
        };
        let mut nodes: Vec<_> = (1..=types.len()).map(status).collect();
        nodes[0].role = Role::Master;
        nodes[0].replicas = (2..=types.len()).map(replica).collect();
        Self {
            nodes,
            unseen: BTreeMap::new(),
            clocks: BTreeMap::new(),
        }
    }

    fn three() -> Self {
        Self::new(&[NodeType::Electable; 3])
    }

    fn unseen(mut self, id: usize, kind: UnseenKind) -> Self {
        self.unseen.insert(id, kind);
        self
    }

    fn with(mut self, id: usize, change: impl FnOnce(&mut NodeStatus)) -> Self {
        change(&mut self.nodes[id - 1]);
        self
    }

    fn survey(&self) -> Survey {
        let answer = |(id, status): (usize, &NodeStatus)| {
            let unseen = self.unseen.get(&id).map(|kind| Unseen {
                text: "the reason".to_owned(),
                kind: *kind,
            });
            let answer = Answer {
                status: unseen.map_or_else(|| Ok(status.clone()), Err),
                clock: self.clocks.get(&id).map(|ahead_ms| ClockOffset {
                    ahead_ms: *ahead_ms,
                    error_ms: 10,
                }),
            };
            (status.node.address.clone(), answer)
        };
        let answers = (1..).zip(&self.nodes).map(answer).collect();
        let mut seen = (1..).zip(&self.nodes);
        let newest = seen.find(|(id, _)| !self.unseen.contains_key(id));
        Survey::judge(newest.expect("one answers").1, answers)
    }

    fn findings(&self) -> Vec<Finding> {
        diagnose(&self.survey())
    }

    /// The only finding.
    fn only(&self) -> Finding {
        let mut findings = self.findings();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        findings.remove(0)
    }
}

fn assert_says(finding: &Finding, kind: &str, words: &[&str]) {
    assert_eq!(finding.kind, kind, "{finding:#?}");
    let text = format!("{} {} {}", finding.what, finding.data, finding.to_do);
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

fn gone(reason: Unreachable) -> UnseenKind {
    UnseenKind::Unreachable(reason)
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(Rig::three().findings(), []);
}

#[test]
fn a_node_without_protection_is_found() {
    let open = Rig::three().with(2, |status| status.insecure_plaintext = true);
    let words = ["n2", "are not protected", "steadfast init"];
    assert_says(&open.only(), "plaintext", &words);
    let problems = Rig::three().with(2, |status| status.insecure_plaintext = true);
    let problems = problems.survey().problems;
    assert!(
        problems[0].what.contains("insecure_plaintext"),
        "{}",
        problems[0].what
    );
}

#[test]
fn a_certificate_that_ends_soon_is_found() {
    let day_ms = 24 * 60 * 60 * 1_000;
    let ends_in = |days: u64| {
        let ends = |status: &mut NodeStatus| {
            status.certificate_ends_ms = Some(status.clock_ms + days * day_ms + 1);
        };
        Rig::three().with(3, ends)
    };
    assert_eq!(ends_in(31).findings(), []);
    assert_says(
        &ends_in(29).only(),
        "certificate",
        &["n3", "in 29 days", "certs issue"],
    );
    let ended = |status: &mut NodeStatus| {
        status.certificate_ends_ms = Some(status.clock_ms);
    };
    assert_says(
        &Rig::three().with(3, ended).only(),
        "certificate",
        &["n3", "has expired"],
    );
}

#[test]
fn few_descriptors_are_found_also_on_a_node_that_has_stopped() {
    let few = |status: &mut NodeStatus| {
        status.descriptors_left = Some(250);
        status.descriptors_max = Some(1024);
        status.descriptors_are_few = true;
    };
    let words = ["n2", "250 more files", "of 1,024", "LimitNOFILE"];
    assert_says(&Rig::three().with(2, few).only(), "descriptors", &words);
    let stopped = Rig::three().with(2, |status| {
        few(status);
        status.role = Role::Detached;
    });
    let findings = stopped.findings();
    assert!(
        findings.iter().any(|it| it.kind == "descriptors"),
        "{findings:#?}"
    );
}

#[test]
fn a_member_at_an_address_that_nobody_reaches_is_found() {
    let mut rig = Rig::three();
    let everywhere = "0.0.0.0:7400";
    everywhere.clone_into(&mut rig.nodes[0].node.address);
    for status in &mut rig.nodes {
        everywhere.clone_into(&mut status.members[0].node.address);
    }
    assert_says(
        &rig.only(),
        "address",
        &["n1", everywhere, "node address n1"],
    );
}

#[test]
fn a_node_that_is_not_reached_is_found_with_its_cause_and_what_is_left() {
    let causes = [
        (gone(Unreachable::Refused), "refused", "no process listens"),
        (
            gone(Unreachable::NotResolved),
            "not_resolved",
            "name service",
        ),
        (gone(Unreachable::Silent), "silent", "firewall"),
        (gone(Unreachable::Nonsense), "nonsense", "one version"),
        (gone(Unreachable::Other), "unreachable", "the reason"),
        (UnseenKind::WrongGroup, "wrong_group", "another group"),
        (UnseenKind::WrongNode, "wrong_node", "another node"),
    ];
    for (cause, kind, word) in causes {
        let finding = Rig::three().unseen(3, cause).only();
        assert_says(&finding, kind, &["n3", "h3:7400", word, "one more failure"]);
    }
}

#[test]
fn the_cause_of_a_lack_of_a_master_is_found() {
    let follows = |status: &mut NodeStatus| {
        status.role = Role::Unknown;
        status.master = None;
    };
    let down = gone(Unreachable::Refused);
    let two_down = Rig::three()
        .unseen(1, down)
        .unseen(2, down)
        .with(3, follows);
    let findings = two_down.findings();
    assert_says(
        &findings[0],
        "no_master",
        &[
            "1 of 3",
            "it takes 2",
            "n1, n2",
            "recover plan",
            "node address --data-dir",
        ],
    );
    assert_eq!(findings[0].severity, Severity::Critical);

    let masterless = || {
        Rig::three()
            .unseen(1, down)
            .with(2, follows)
            .with(3, follows)
    };
    assert_says(&masterless().findings()[0], "no_master", &["ask again"]);
    let full = |status: &mut NodeStatus| status.read_only = Some("full".to_owned());
    let all_full = masterless().with(2, full).with(3, full);
    assert_says(&all_full.findings()[0], "no_master", &["n2, n3", "no room"]);
    let unable = |status: &mut NodeStatus| {
        for member in &mut status.members {
            member.priority = 0;
        }
    };
    let none_may = masterless().with(2, unable).with(3, unable);
    let words = [
        "n2, n3",
        "none of them may be master",
        "start",
        "node priority n2 1",
    ];
    assert_says(&none_may.findings()[0], "no_master", &words);
    let stands_in = none_may.with(3, |status| status.role = Role::StandIn);
    let words = ["n3 stands in, and takes no writes", "node priority n2 1"];
    assert_says(&stands_in.findings()[0], "no_master", &words);
    let alone = Rig::three().unseen(2, down).unseen(3, down);
    let words = ["the master has no majority: 1 of 3", "n2, n3"];
    assert_says(&alone.findings()[0], "no_master", &words);
}

#[test]
fn a_data_node_that_lacks_what_only_the_arbiter_knows_of_is_named_with_the_way_out() {
    use NodeType::{Arbiter, Electable};
    let at = |position| {
        move |status: &mut NodeStatus| {
            status.role = Role::Unknown;
            status.persisted = Some(LogPosition(position));
        }
    };
    let left = |of_n2| {
        let group = Rig::new(&[Electable, Electable, Arbiter]);
        let group = group.unseen(1, gone(Unreachable::Refused));
        group.with(2, at(of_n2)).with(3, at(9)).findings()
    };
    let words = [
        "n2 lacks the newest writes",
        "of which n3 knows",
        "start n1",
        "recover plan",
    ];
    assert_says(&left(8)[0], "no_master", &words);
    assert_says(&left(9)[0], "no_master", &["ask again"]);
}

#[test]
fn nodes_that_answer_and_do_not_work_are_found() {
    let stopped = Rig::three().with(2, |status| {
        status.role = Role::Detached;
        "the log failed".clone_into(&mut status.waiting_for);
    });
    assert_says(
        &stopped.only(),
        "stopped",
        &["n2", "the log failed", "re-reads"],
    );
    let refused = Rig::three().with(2, |status| {
        status.group = None;
        "n2 is a member already".clone_into(&mut status.waiting_for);
    });
    assert_says(&refused.only(), "not_let_in", &["n2", "node replace n2"]);
    let alone = Rig::three().with(2, |status| status.role = Role::Unknown);
    assert_says(
        &alone.only(),
        "masterless",
        &["n2", "between n2 and the master"],
    );
    let mut new = Rig::three();
    for status in &mut new.nodes {
        status.members[2].votes = false;
    }
    let findings = new.findings();
    assert!(findings.iter().any(|finding| finding.kind == "no_vote_yet"));
}

#[test]
fn slow_disks_and_slow_ways_are_found_with_whose_they_are() {
    let disk = Rig::three().with(2, |status| status.sync_p99_us = Some(180_000));
    assert_says(&disk.only(), "slow_disk", &["n2", "180 ms"]);
    let disk = Rig::three().with(1, |status| status.sync_p99_us = Some(180_000));
    assert_says(&disk.only(), "slow_disk", &["n1", "transfer` away"]);
    let way = Rig::three().with(1, |status| {
        status.replicas[1].round_trip_p50_us = Some(120_000);
    });
    assert_says(&way.only(), "slow_network", &["n1 and n3", "120 ms"]);
    let cut = Rig::three().with(1, |status| status.replicas[1].heard_ms_ago = Some(9_000));
    assert_says(&cut.only(), "unheard", &["n3", "n1", "h3:7400"]);
}

#[test]
fn a_disk_that_hangs_is_found_and_its_node_counts_for_nothing() {
    let hang = |status: &mut NodeStatus| status.disk_hangs_ms = Some(12_345);
    let one = Rig::three().with(1, hang);
    assert_says(&one.only(), "disk_hangs", &["n1", "12 s"]);
    assert_eq!(one.survey().health, Health::Degraded);
    assert_eq!(one.survey().survives, 0);
    let two = Rig::three().with(1, hang).with(2, hang);
    assert_eq!(two.survey().health, Health::NoQuorum);
}

#[test]
fn a_member_that_lags_is_found_and_one_a_little_behind_is_not() {
    let behind = |behind_ms| {
        let lags = |status: &mut NodeStatus| {
            status.replicas[1].behind_ms = behind_ms;
            status.replicas[1].behind_bytes = 700 << 20;
        };
        // However few transactions that is.
        Rig::three()
            .with(1, lags)
            .with(3, |status| status.vlsn = Vlsn(99_990))
    };
    assert_eq!(behind(Some(4_000)).findings(), []);
    let words = ["n3", "8 s ago", "10 transactions", "700 MiB"];
    assert_says(&behind(Some(8_300)).only(), "lag", &words);
    assert_says(
        &behind(None).only(),
        "lag",
        &["n3", "before its master was started"],
    );
}

#[test]
fn disks_that_fill_up_are_found_and_weigh_more_on_the_master() {
    let low = Rig::three().with(2, |status| {
        status.disk_is_low = true;
        status.disk_free_bytes = 900 << 20;
    });
    assert_says(&low.only(), "low_disk", &["n2", "900 MiB"]);
    let full = |id| {
        let full = |status: &mut NodeStatus| status.read_only = Some("5 MiB are free".to_owned());
        Rig::three().with(id, full).only()
    };
    assert_says(&full(2), "read_only", &["n2", "5 MiB", "not made master"]);
    assert_eq!(full(2).severity, Severity::Warning);
    assert_says(&full(1), "read_only", &["n1", "no write is possible"]);
    assert_eq!(full(1).severity, Severity::Critical);
}

#[test]
fn a_group_whose_master_has_no_room_takes_no_writes_and_says_so() {
    let full = |status: &mut NodeStatus| status.read_only = Some("5 MiB are free".to_owned());
    let all = Rig::three().with(1, full).with(2, full).with(3, full);
    assert_eq!(all.survey().health, Health::ReadOnly);
    let headline = headline(&all.survey());
    let words = ["READ-ONLY", "3 of 3 nodes", "no writes"];
    assert!(
        words.iter().all(|word| headline.contains(word)),
        "{headline}"
    );
    let replica = Rig::three().with(2, full);
    assert_eq!(replica.survey().health, Health::Degraded);
}

#[test]
fn damage_is_found_and_named_also_without_a_master() {
    let unknown = |status: &mut NodeStatus| status.role = Role::Unknown;
    let down = gone(Unreachable::Refused);
    let waits = Rig::three()
        .unseen(1, down)
        .with(3, unknown)
        .with(2, |status| {
            unknown(status);
            status.damage = Some("rot at byte 9".to_owned());
            "the others to readmit it; its data is damaged: rot at byte 9"
                .clone_into(&mut status.waiting_for);
        });
    let findings = waits.findings();
    let damage = findings.iter().find(|finding| finding.kind == "damage");
    let words = ["n2", "rot at byte 9", "readmit", "serves nothing"];
    assert_says(damage.expect("it is known"), "damage", &words);
    assert!(findings.iter().any(|finding| finding.kind == "no_master"));
}

#[test]
fn a_node_that_is_up_with_damage_or_a_disk_that_hangs_is_named_and_not_called_down() {
    let rotten = |status: &mut NodeStatus| status.damage = Some("rot at byte 9".to_owned());
    let damaged = headline(&Rig::three().with(2, rotten).survey());
    for word in ["DEGRADED", "n2", "rot at byte 9", "survives 1 more failure"] {
        assert!(damaged.contains(word), "{word:?} is not in: {damaged}");
    }
    assert!(!damaged.contains(" down"), "{damaged}");
    let hangs = Rig::three().with(2, |status| status.disk_hangs_ms = Some(4_000));
    let hangs = headline(&hangs.survey());
    assert!(hangs.contains("n2") && !hangs.contains(" down"), "{hangs}");
}

#[test]
fn data_that_differs_or_is_damaged_is_found() {
    let damaged = Rig::three().with(2, |status| status.damage = Some("rot".to_owned()));
    assert_says(&damaged.only(), "damage", &["n2", "rot", "node replace n2"]);
    let diverged = Rig::three().with(1, |status| {
        status.divergences.push(Divergence {
            database: "orders".to_owned(),
            from: b"a".to_vec(),
            to: None,
            vlsn: Vlsn(7),
            nodes: vec!["n3".to_owned()],
        });
    });
    assert_says(&diverged.only(), "divergence", &["n3", "orders", "VLSN 7"]);
}

#[test]
fn an_arbiter_that_stands_in_for_a_copy_is_found() {
    use NodeType::{Arbiter, Electable};
    let group = Rig::new(&[Electable, Electable, Arbiter]);
    assert_eq!(group.findings(), []);
    let findings = group.unseen(2, gone(Unreachable::Refused)).findings();
    let kinds: Vec<_> = findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, ["refused", "one_copy"]);
    assert_says(
        &findings[1],
        "one_copy",
        &["DEGRADED", "n1 alone", "one disk"],
    );
}

#[test]
fn an_even_group_says_what_it_survives_here_and_in_the_status() {
    let group = Rig::new(&[NodeType::Electable; 4]);
    assert_says(
        &group.only(),
        "even",
        &["4", "survives 1 failure,", "3 would"],
    );
    let problems = group.survey().problems;
    assert!(
        problems[0]
            .what
            .contains("4 voting nodes survive 1 failure,")
    );
    let degraded = group.unseen(4, gone(Unreachable::Refused)).survey();
    let says = |what: &str| degraded.problems.iter().any(|of| of.what.contains(what));
    assert!(says(
        "4 voting nodes survive 1 failure, no more than 3 would"
    ));
}

#[test]
fn versions_and_clocks_that_differ_are_noted() {
    let versions = Rig::three().with(3, |status| "0.2.0".clone_into(&mut status.version));
    let note = versions.only();
    assert_says(&note, "versions", &["0.1.0 on n1, n2", "0.2.0 on n3"]);
    assert_eq!(note.severity, Severity::Information);
    let mut clocks = Rig::three();
    clocks.clocks.insert(2, 900);
    assert_eq!(clocks.findings(), []);
    clocks.clocks.insert(2, -5_000);
    assert_says(&clocks.only(), "clock", &["n2", "5 s behind"]);
    clocks.clocks.insert(2, 5_000);
    assert_says(&clocks.only(), "clock", &["5 s ahead"]);
    assert_eq!(clocks.nodes[0].term, Term(3));
}
