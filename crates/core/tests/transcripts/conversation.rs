//! One connection in words.

use std::collections::{BTreeMap, VecDeque};

use prost::Message;

use crate::journal::Journal;
use crate::messages::{
    AdminReply, AdminRequest, Append, AppendReply, ElectionReply, ElectionRequest, Entry,
    HelloReply, LogId, Membership, RestoreReply, RestoreRequest, VoteReply, VoteRequest, decode,
    or_nothing,
};

/// Kinds of frames.
const HELLO_REPLY: u8 = 2;
const APPEND: u8 = 3;
const APPEND_REPLY: u8 = 4;
const ELECTION_REQUEST: u8 = 5;
const ELECTION_REPLY: u8 = 6;
const ADMIN_REQUEST: u8 = 9;
const ADMIN_REPLY: u8 = 10;
const RESTORE_REQUEST: u8 = 30;
const RESTORE_REPLY: u8 = 31;

/// Refusals of a hello.
const ACCEPTED: u32 = 0;
const NOT_FORMED: u32 = 7;

pub(crate) struct Conversation {
    /// Who dialled, and whom.
    from: String,
    to: String,
    journal: Journal,
    service: Option<String>,
    /// For each append that is not answered yet: whether it had entries.
    appends: VecDeque<bool>,
    /// What each question on ELECTION without an answer was about.
    questions: BTreeMap<u64, &'static str>,
}

impl Conversation {
    pub(crate) fn new(from: &str, to: &str, journal: &Journal) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            journal: journal.clone(),
            service: None,
            appends: VecDeque::new(),
            questions: BTreeMap::new(),
        }
    }

    /// The service open comes first.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        if self.service.is_none() {
            self.service = Some(String::from_utf8_lossy(frame).into_owned());
            return;
        }
        let said = match frame[0] {
            APPEND => self.append(&decode(frame)),
            ELECTION_REQUEST => self.question(&decode(frame)),
            ADMIN_REQUEST => admin_request(&decode(frame)),
            RESTORE_REQUEST => restore_request(&decode(frame)),
            _ => None,
        };
        if let Some(said) = said {
            self.journal.say_to(&self.from, &self.to, said);
        }
    }

    pub(crate) fn receive(&mut self, frame: &[u8]) {
        let said = match frame[0] {
            HELLO_REPLY => self.hello_reply(&decode(frame)),
            APPEND_REPLY => {
                let had_entries = self.appends.pop_front().expect("it answers an append");
                append_reply(decode(frame), had_entries)
            }
            ELECTION_REPLY => self.answer(&decode(frame)),
            ADMIN_REPLY => admin_reply(decode(frame)),
            RESTORE_REPLY => restore_reply(&decode(frame)),
            _ => None,
        };
        if let Some(said) = said {
            self.journal.say_to(&self.to, &self.from, said);
        }
    }

    fn hello_reply(&self, reply: &HelloReply) -> Option<String> {
        let service = self.service.as_deref().unwrap_or_default();
        let is_shown = ![ACCEPTED, NOT_FORMED].contains(&reply.refusal);
        is_shown.then(|| format!("refuses {service}: {}", reply.text))
    }

    fn append(&mut self, append: &Append) -> Option<String> {
        let is_shown = !append.entries.is_empty();
        self.appends.push_back(is_shown);
        is_shown.then(|| {
            let entries = entries(&append.entries);
            let previous = or_nothing(append.prev);
            let committed = or_nothing(append.committed);
            let term = append.vote.map_or(0, |vote| vote.term);
            format!("append in term {term}, after {previous}: {entries}; committed {committed}")
        })
    }

    fn question(&mut self, request: &ElectionRequest) -> Option<String> {
        let (about, said) = if let Some(vote) = &request.vote {
            ("vote", vote_request("vote", vote))
        } else if let Some(vote) = &request.pre_vote {
            ("pre-vote", vote_request("pre-vote", vote))
        } else if let Some(gone) = &request.master_gone {
            let (master, term, last) = (gone.master, gone.term, or_nothing(gone.last));
            let said = format!("is master n{master} of term {term} gone? my last entry is {last}");
            ("master gone", said)
        } else if request.barrier.is_some() {
            ("barrier", "barrier?".to_owned())
        } else if let Some(take_over) = &request.take_over {
            let last = or_nothing(take_over.entry);
            ("take over", format!("take over, if you have {last}"))
        } else if let Some(removed) = &request.removed {
            let said = format!("you were removed, says the master of term {}", removed.term);
            ("removed", said)
        } else if let Some(reach) = &request.reach {
            let entry = or_nothing(reach.entry);
            (
                "reach",
                format!("my log begins after {entry}: have you that?"),
            )
        } else {
            return None;
        };
        self.questions.insert(request.id, about);
        Some(said)
    }

    fn answer(&mut self, reply: &ElectionReply) -> Option<String> {
        if let Some(append) = reply.append {
            return append_reply(append, false);
        }
        let about = self.questions.remove(&reply.id)?;
        if let Some(vote) = &reply.vote {
            return Some(vote_reply(about, vote));
        }
        if let Some(barrier) = reply.barrier {
            let position = barrier.position;
            let known = |position: u64| format!("barrier at position {position}");
            return Some(position.map_or_else(|| "no barrier".to_owned(), known));
        }
        let yes = reply.agrees.or(reply.reached.map(|reached| reached.has));
        Some(format!("{about}: {}", if yes? { "yes" } else { "no" }))
    }
}

fn vote_request(what: &str, request: &VoteRequest) -> String {
    let term = request.vote.map_or(0, |vote| vote.term);
    let last = or_nothing(request.last);
    let lease = if request.lease_is_over {
        ", whatever the lease"
    } else {
        ""
    };
    format!("{what} for me in term {term}? my last entry is {last}{lease}")
}

fn vote_reply(what: &str, reply: &VoteReply) -> String {
    if reply.granted {
        return format!("{what} granted");
    }
    let vote = reply.vote.unwrap_or_default();
    let last = or_nothing(reply.last);
    format!(
        "{what} refused: my vote is n{} in term {}, my last entry {last}",
        vote.node, vote.term
    )
}

fn entries(entries: &[Entry]) -> String {
    let id = |entry: &Entry| LogId {
        term: entry.term,
        position: entry.position,
    };
    match entries {
        [] => "no entries".to_owned(),
        [one] => {
            let kind = match one.kind {
                0 => "blank".to_owned(),
                1 => "transactions".to_owned(),
                _ => membership(&one.payload),
            };
            format!("{} ({kind})", id(one))
        }
        [first, .., last] => format!("{} to {}", id(first), id(last)),
    }
}

fn membership(payload: &[u8]) -> String {
    let membership = Membership::decode(payload).expect("a membership as docs/format.md has it");
    let names = |ids: Vec<u64>| {
        let names: Vec<_> = ids.iter().map(|id| format!("n{id}")).collect();
        names.join(" ")
    };
    let members = names(membership.members.iter().map(|member| member.id).collect());
    let voters = membership.voters.into_iter().map(|set| names(set.ids));
    let voters: Vec<_> = voters.collect();
    format!("members {members}; voters {}", voters.join(" and "))
}

/// An answer to an append without entries tells something only if it is not the usual one.
fn append_reply(reply: AppendReply, had_entries: bool) -> Option<String> {
    if let Some(vote) = reply.higher_vote {
        return Some(format!(
            "refused: n{} stands in term {}",
            vote.node, vote.term
        ));
    }
    if let Some(conflict) = reply.conflict {
        return Some(format!("conflict at {conflict}"));
    }
    had_entries.then(|| format!("has all up to {}", or_nothing(reply.matched)))
}

fn admin_request(request: &AdminRequest) -> Option<String> {
    let join = request.join.as_ref()?;
    let node_type = ["electable", "secondary", "arbiter"][join.node_type as usize];
    Some(format!("let {} in, an {node_type} node", join.name))
}

/// What an operator is told is shown as the answer to the command.
fn admin_reply(reply: AdminReply) -> Option<String> {
    if let Some(master) = reply.not_master {
        return Some(format!("ask the master at {master:?}"));
    }
    let joined = reply.done?.joined?;
    Some(format!("you are in, and your id is {}", joined.node_id))
}

fn restore_request(request: &RestoreRequest) -> Option<String> {
    if let Some(begin) = &request.begin {
        let entry = or_nothing(begin.entry);
        return Some(format!("begin a copy of the state, at or after {entry}"));
    }
    if let Some(place) = &request.chunk {
        return Some(format!("rows of database {}?", place.database));
    }
    if let Some(next) = request.entries {
        return Some(format!("entries from position {} on?", next.number));
    }
    let finish = request.finish?;
    Some(format!("what should I have, at VLSN {}?", finish.number))
}

fn restore_reply(reply: &RestoreReply) -> Option<String> {
    if let Some(begun) = reply.begun {
        let entry = or_nothing(begun.entry);
        return Some(format!("the copy begins at {entry}, VLSN {}", begun.vlsn));
    }
    if let Some(chunk) = &reply.chunk {
        return Some(format!(
            "{} rows, as of VLSN {}",
            chunk.rows.len(),
            chunk.vlsn
        ));
    }
    if let Some(sent) = &reply.entries {
        return Some(entries(&sent.entries));
    }
    if let Some(manifest) = reply.manifest {
        let state = manifest.state?;
        let rows = state.rows.map_or(0, |rows| rows.rows);
        return Some(format!("{rows} rows at VLSN {}", state.vlsn));
    }
    reply.refused.as_ref().map(|why| format!("refused: {why}"))
}
