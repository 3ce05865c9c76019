//! Who has the most, whether there is a quorum, and what may be lost.
//!
//! Suppose a majority has acknowledged a write. If the missing voters are not a majority, some
//! survivor has it; and the survivor whose last entry has the highest term, and among those the
//! highest position, has everything that any survivor has and a majority acknowledged, by the same
//! argument that restricts votes (Raft, 5.4). If the missing are a majority, they may have
//! acknowledged writes that nobody else has, and nobody can tell.
//!
//! An arbiter acknowledges without a copy. If it knows of more than every survivor with data, a
//! majority may be present that can elect nobody, and the difference is lost.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::group::{Member, MemberRecord};
use crate::ids::{GroupEpoch, LogPosition, NodeId, Term, Vlsn};
use crate::listener::Role;
use crate::log::LogId;
use crate::quorum_loss::survey::{Answer, Directory, Survey};
use crate::quorum_loss::{
    KnownLost, Missing, NextStep, Place, RecoverError, RecoveryPlan, Standing, Survivor,
};

/// # Errors
/// See [`RecoverError`].
pub(super) fn judge(survey: &Survey) -> Result<RecoveryPlan, RecoverError> {
    let best = survey
        .directories
        .iter()
        .max_by_key(|directory| (directory.identity.epoch, directory.held.last.map(rank)))
        .expect("a survey has a directory");
    let epoch = best.identity.epoch;
    refuse_superseded(survey, best)?;
    let members = Members::of(best);
    let (running, silent) = members.sort_answers(&survey.answers, best);
    let directories = survey.directories.iter();
    let mut survivors: Vec<_> = directories
        .map(|directory| of_directory(directory, &members, epoch))
        .chain(running.iter().cloned())
        .collect();
    survivors.sort_by_key(|left| {
        let rank = (left.epoch, left.last.map(rank), left.standing);
        (Reverse(rank), left.place.clone())
    });
    let standing = survivors
        .iter()
        .filter(|left| left.standing == Standing::Member);
    let there: BTreeSet<NodeId> = standing.map(|left| left.node.id).collect();
    if members.can_elect(&survivors) {
        members.refuse_quorum(&there)?;
    } else {
        refuse_master(&survey.answers, &running)?;
    }
    // An arbiter counts as a copy, but holds none.
    let has_data = |left: &Survivor| members.has_data(left.node.id);
    if let Some(first) = survivors.iter().position(has_data) {
        survivors[..=first].rotate_right(1);
    }
    let first = &survivors[0];
    if !members.voters().contains(&first.node.id) || !members.has_data(first.node.id) {
        let name = first.node.name.clone();
        return Err(RecoverError::NoVote { name });
    }
    Ok(RecoveryPlan {
        group_name: best.identity.group_name.clone(),
        group: best.group,
        epoch,
        voters: members.voters().into_iter().collect(),
        may_lose: members.is_majority_away(&there),
        known_lost: known_lost(&survivors),
        missing: members.missing(&survivors, &there, &silent),
        next: next_step(&best.identity.group_name, first),
        survivors,
    })
}

fn next_step(group_name: &str, first: &Survivor) -> NextStep {
    let name = &first.node.name;
    match &first.place {
        Place::Directory(directory) => NextStep::Apply {
            directory: directory.clone(),
            confirm: format!(
                "recover group {group_name} from {name} with {} VLSNs",
                first.vlsn
            ),
        },
        Place::Address(_) => NextStep::Stop { node: name.clone() },
    }
}

/// What others know of and the first survivor lacks. They have no data, or they would be first.
fn known_lost(survivors: &[Survivor]) -> Option<KnownLost> {
    let first = &survivors[0];
    let members = survivors
        .iter()
        .filter(|left| left.standing == Standing::Member && left.epoch == first.epoch);
    let most = members.max_by_key(|left| left.last.map(rank))?;
    let last = most.last?;
    let position = |last: Option<LogId>| last.map_or(0, |last| last.position.0);
    (Some(rank(last)) > first.last.map(rank)).then(|| KnownLost {
        node: most.node.clone(),
        last,
        entries_max: last.position.0.saturating_sub(position(first.last)),
    })
}

/// A master that some node hears is not lost, even if it cannot be reached from here.
fn refuse_master(answers: &[Answer], running: &[Survivor]) -> Result<(), RecoverError> {
    for left in running {
        let is_of = |answer: &&Answer| left.place == Place::Address(answer.address.clone());
        let said = answers.iter().find(is_of);
        let state = said.and_then(|answer| answer.said.as_ref().ok());
        let roles = [Role::Master, Role::Replica].map(|role| role.to_string());
        if state.is_some_and(|state| roles.contains(&state.role)) {
            let name = left.node.name.clone();
            return Err(RecoverError::Works { name });
        }
    }
    Ok(())
}

/// The group goes on wherever a node runs in a later epoch.
fn refuse_superseded(survey: &Survey, best: &Directory) -> Result<(), RecoverError> {
    let later = survey.answers.iter().find_map(|answer| {
        let epoch = answer.epoch_in(best.group)?;
        (epoch > best.identity.epoch).then(|| (answer.address.clone(), epoch))
    });
    match later {
        Some((address, epoch)) => Err(RecoverError::Superseded { address, epoch }),
        None => Ok(()),
    }
}

/// The order of survivors.
fn rank(last: LogId) -> (Term, LogPosition) {
    (last.term, last.position)
}

fn of_directory(directory: &Directory, members: &Members, newest: GroupEpoch) -> Survivor {
    let Directory { identity, held, .. } = directory;
    let is_whole =
        directory.is_original && identity.epoch == newest && identity.superseded_by.is_none();
    let record = members
        .all
        .iter()
        .find(|member| member.id == identity.node_id.0);
    let node = record.map_or_else(
        || {
            let member = Member {
                name: identity.node_name.clone(),
                ..Member::default()
            };
            member.node_address(identity.node_id)
        },
        Members::address,
    );
    Survivor {
        node,
        place: Place::Directory(directory.path.clone()),
        epoch: identity.epoch,
        last: held.last,
        vlsn: held.vlsn,
        standing: if is_whole {
            Standing::Member
        } else {
            Standing::Fenced
        },
    }
}

/// The members according to the best directory.
struct Members {
    all: Vec<MemberRecord>,
    /// Each of these sets needs a majority.
    sets: Vec<BTreeSet<NodeId>>,
}

impl Members {
    fn of(directory: &Directory) -> Self {
        let membership = &directory.held.membership;
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Self {
            all: membership.members.clone(),
            sets: membership
                .voters
                .iter()
                .map(|voters| set(&voters.ids))
                .collect(),
        }
    }

    fn address(record: &MemberRecord) -> crate::member::NodeAddress {
        let (id, member) = record.clone().into_member();
        member.node_address(id)
    }

    fn has_data(&self, id: NodeId) -> bool {
        let mut all = self.all.iter().cloned().map(MemberRecord::into_member);
        all.any(|(other, member)| other == id && member.node_type.has_data())
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.sets.iter().flatten().copied().collect()
    }

    /// Whether these nodes are a majority of every voter set.
    fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let mut sets = self.sets.iter();
        sets.all(|set| 2 * set.intersection(nodes).count() > set.len())
    }

    fn is_majority_away(&self, there: &BTreeSet<NodeId>) -> bool {
        let away = self.voters().difference(there).copied().collect();
        self.is_majority(&away)
    }

    /// Whether those that take part include a majority that would elect one of them with data.
    fn can_elect(&self, survivors: &[Survivor]) -> bool {
        let takes_part = |left: &&Survivor| left.standing == Standing::Member;
        let electorate = self.voters();
        let may_lead = |id: NodeId| electorate.contains(&id) && self.has_data(id);
        let mut candidates = survivors
            .iter()
            .filter(takes_part)
            .filter(|left| may_lead(left.node.id));
        candidates.any(|candidate| {
            let would_vote = |left: &&Survivor| left.last.map(rank) <= candidate.last.map(rank);
            let voters = survivors.iter().filter(takes_part).filter(would_vote);
            self.is_majority(&voters.map(|left| left.node.id).collect())
        })
    }

    fn refuse_quorum(&self, there: &BTreeSet<NodeId>) -> Result<(), RecoverError> {
        if self.sets.is_empty() || !self.is_majority(there) {
            return Ok(());
        }
        let voters = self.voters();
        let counted = |member: &&MemberRecord| {
            let id = NodeId(member.id);
            voters.contains(&id) && there.contains(&id)
        };
        let names = self.all.iter().filter(counted);
        let names: Vec<_> = names.map(|member| member.name.clone()).collect();
        Err(RecoverError::NotNeeded {
            there: names.len(),
            voters: voters.len(),
            names,
        })
    }

    /// The members that do not take part, each with the reason.
    fn missing(
        &self,
        survivors: &[Survivor],
        there: &BTreeSet<NodeId>,
        silent: &[(String, String)],
    ) -> Vec<Missing> {
        let why = |member: &MemberRecord| {
            let heard = silent
                .iter()
                .find(|(address, _)| *address == member.address);
            let is_fenced = survivors.iter().any(|left| left.node.id.0 == member.id);
            match heard {
                Some((_, why)) => why.clone(),
                None if is_fenced => "what is left of it cannot take part".to_owned(),
                None => "its directory was not named".to_owned(),
            }
        };
        let members = self.all.iter();
        let missing = members.filter(|member| !there.contains(&NodeId(member.id)));
        missing
            .map(|member| Missing {
                node: Self::address(member),
                why: why(member),
            })
            .collect()
    }

    /// The members that answer and take part, each once; the other addresses, each with the reason.
    fn sort_answers(
        &self,
        answers: &[Answer],
        best: &Directory,
    ) -> (Vec<Survivor>, Vec<(String, String)>) {
        let (mut running, mut silent) = (Vec::<Survivor>::new(), Vec::new());
        for answer in answers {
            match self.running(answer, best) {
                Ok(found) if running.iter().any(|known| known.node == found.node) => {}
                Ok(found) => running.push(found),
                Err(why) => silent.push((answer.address.clone(), why)),
            }
        }
        (running, silent)
    }

    /// The member that answered, if it takes part; otherwise the reason.
    fn running(&self, answer: &Answer, best: &Directory) -> Result<Survivor, String> {
        let state = answer.said.as_ref().map_err(Clone::clone)?;
        let address = &answer.address;
        let epoch = answer
            .epoch_in(best.group)
            .ok_or_else(|| format!("another group answers at {address}"))?;
        let own = state.node.clone().unwrap_or_default();
        let record = self
            .all
            .iter()
            .find(|member| (member.id, member.incarnation) == (own.id, own.incarnation));
        let record = record.ok_or_else(|| format!("{} answers at {address}", own.name))?;
        // A node whose log is damaged waits without a log until a majority readmits it.
        let is_without_log = state.persisted.is_none() && !state.waiting_for.is_empty();
        let is_detached = state.role == Role::Detached.to_string();
        if is_detached || is_without_log || epoch < best.identity.epoch {
            return Err(format!(
                "it answers, but takes no part: {}",
                state.waiting_for
            ));
        }
        let last = state.persisted.map(LogId::try_from).transpose();
        let last = last.map_err(|error| error.to_string())?;
        Ok(Survivor {
            node: Self::address(record),
            place: Place::Address(address.clone()),
            epoch,
            last,
            vlsn: Vlsn(state.vlsn),
            standing: Standing::Member,
        })
    }
}
