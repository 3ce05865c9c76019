//! Seeds that once found something in the library. `--found` runs them all.

/// Seeds, and what each found. A seed stays here even if what it draws has changed since; then a
/// test beside the code guards the fix.
pub(crate) const FOUND: &[(u64, &str)] = &[
    (
        50,
        "a leader that had lost its majority refused a batch and took the next one: every node \
         stopped at the gap between their numbers",
    ),
    (
        1,
        "consensus panicked over a log that ended before what the engine held",
    ),
    (
        1225,
        "a power cut took back an identity whose rename had not been synced, and the node removed \
         its log as that of a group that had not formed",
    ),
    (
        3392,
        "a replica noted as committed what was still queued for its own disk, was killed, and did not \
         open any more: the note was there without the entry",
    ),
    (
        9743,
        "a remote subscriber that asked with short timeouts never noticed that the node had fallen \
         silent, behind the damaged length of a frame",
    ),
    (
        245,
        "a node that was behind refused the master, which had joined since, and never caught up",
    ),
    (
        335,
        "a master that was to be removed had the highest priority, and got mastership back each time",
    ),
    (
        353,
        "a node that came with a token was refused for good, because the group could not answer then",
    ),
    (
        1136,
        "a node that was away while another one repaired itself and became master refused that one as a \
         wiped directory, and never caught up",
    ),
    (
        2271,
        "a member was removed and came back: another change of it had been decided before, and was made \
         after",
    ),
    (2751, "the same, with a change of its type"),
    (3498, "the same, with the repair of its data"),
    (
        3955,
        "the check itself: what the others had got by copies was in no log any more but in the one that \
         was damaged",
    ),
    (
        198,
        "the check itself: a segment was kept for it as it had been before a power cut, after which it was \
         written further",
    ),
    (
        840,
        "a master asked for a purge, then for a shorter one, and told a replica without end to reach the \
         shorter one, at one moment of time",
    ),
    (
        3935,
        "the log was purged through the last transaction: no subscription could begin until the next one was \
         committed, for none could tell where it stood",
    ),
    (
        5120,
        "the simulator itself: the operator asked once for the vote of a node back, of one that ended \
         meanwhile, and the end of the run waited for that vote",
    ),
    (
        432,
        "the simulator itself: a wiped node that still ran was let in when its name was free, and then its \
         disk was replaced, as that of a node that was gone",
    ),
    (
        10110,
        "a node that had just been let in copied its state from one that did not know it yet: it got what an \
         arbiter gets, no data, and passed over all that was written",
    ),
    (
        7941,
        "a master lost its mastership between the two steps that take a node its vote; the removal of another \
         node completed them, and took out both",
    ),
    (
        7758,
        "the simulator itself: with the power going at the naming of a segment, the one before was missing in \
         its archive",
    ),
    (
        10926,
        "the simulator itself: it took an entry of a deposed master for committed, because its term is later",
    ),
    (
        9367,
        "the simulator itself: an operator's mark was in the log and not in the record of what was asked for, \
         when its node lost its power before it answered",
    ),
    (
        600_480,
        "a flipped bit in the length of a frame: a subscriber waited for 16 MiB, and was content as long as \
         heartbeats of the feed came in",
    ),
    (
        610_497,
        "the simulator itself: it counted transactions from the start of the log to find one, and five entries \
         in between were on no disk any more, purged by all nodes",
    ),
    (
        613_964,
        "a log that was verified while a truncation of it was not yet synced: the node was said to be damaged",
    ),
    (
        613_942,
        "the simulator itself: a node that had just opened on a copy, and had not counted its rows yet, was \
         held to what its log had purged before",
    ),
    (
        620_673,
        "the engine's account of its rows, wrong for one database and with one of a database that is gone: \
         its correction was not in order, and the audit panicked",
    ),
    (
        632_243,
        "a row of a dropped database in the engine's account of its rows made all of the account worthless \
         when the power failed before it was put right",
    ),
    (
        631_624,
        "a node with a wrong engine and an outdated record of the members gave up, because the only other \
         node that it knew was wrong too, and did not ask the one that had just been let in",
    ),
    (
        644_975,
        "a node with a wrong engine held a partial copy of the state that reached one transaction further \
         than the other node of two, back from a power cut, knew to be committed: each waited for the other",
    ),
    (
        660_131,
        "a node that had copied the state of a later term followed the master of an earlier one, which had \
         not heard of its end, and got an entry of it behind the copy",
    ),
];
