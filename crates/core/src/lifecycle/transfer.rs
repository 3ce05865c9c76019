//! Transfer of mastership: requested by an operator, or by a node that should not be master.

use std::time::Duration;

use tokio::time::Instant;

use crate::admin::messages::TransferRequest;
use crate::consensus::{Consensus, TransferError};
use crate::group::{Member, Members};
use crate::ids::NodeId;
use crate::lifecycle::changes::{
    Done, Undone, WITHIN_MAX, candidates, done, known, refused, refused_for_now,
};
use crate::member::NodeType;

/// How long writes proceed between two attempts at a transfer.
const TRANSFER_PAUSE: Duration = Duration::from_millis(300);

/// How often to check whether a node has gone, or has caught up.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

pub(super) async fn transfer(consensus: &Consensus, request: TransferRequest) -> Done {
    let members = consensus.members();
    let voters = consensus.voters();
    let mut to = Vec::new();
    for name in &request.to {
        let (id, member) = known(&members, name)?;
        if id == consensus.own_id() {
            return Ok(done(format!("{name} is already the master")));
        }
        if !member.can_lead() || !voters.contains(&id) {
            return refused(
                format!("{name} cannot be master: {}", why_no_master(member)),
                "name an electable node with a priority above 0",
            );
        }
        to.push(id);
    }
    if request.to.is_empty() {
        to = candidates(&members, &voters);
        to.retain(|id| *id != consensus.own_id());
    }
    if to.is_empty() {
        return refused("no other node can be master", "add an electable node first");
    }
    let within = Duration::from_millis(request.timeout_ms).min(WITHIN_MAX);
    let handed = tokio::select! {
        biased;
        handed = hand_over(consensus, &to, Instant::now() + within) => handed,
        why = unreachable(consensus, &members, &to) => return refused_for_now(
            format!("mastership was not transferred: {why}; the master goes on"),
            "name a node that is up, or start it and try again",
        ),
    };
    match handed {
        Ok(master) => {
            let name = members.get(&master).map(|member| member.name.as_str());
            Ok(done(format!("{} is the master", name.unwrap_or_default())))
        }
        Err(TransferError::NotMaster) => Err(Undone::NotMaster),
        Err(error) => refused(
            format!("mastership was not transferred: {error}; the master goes on"),
            "look at `steadfast status` for what holds the candidate back, then try again",
        ),
    }
}

/// Transfers mastership, retrying while there is time: writes are held so briefly that a candidate
/// with a busy disk may miss it. They proceed between two attempts.
pub(super) async fn hand_over(
    consensus: &Consensus,
    to: &[NodeId],
    deadline: Instant,
) -> Result<NodeId, TransferError> {
    loop {
        match consensus.transfer(to, deadline).await {
            Err(TransferError::NotTaken) if Instant::now() + TRANSFER_PAUSE < deadline => {
                tokio::time::sleep(TRANSFER_PAUSE).await;
            }
            transferred => return transferred,
        }
    }
}

fn why_no_master(member: &Member) -> String {
    match (member.node_type, member.priority) {
        (NodeType::Electable, 0) => "its priority is 0".to_owned(),
        (NodeType::Electable, _) => "it has no vote yet".to_owned(),
        (node_type, _) => format!("it is {node_type}"),
    }
}

/// Returns the reason once none of these nodes can take over: they have been silent for as long as
/// a replica waits for its master, or are no longer members.
async fn unreachable(consensus: &Consensus, members: &Members, ids: &[NodeId]) -> String {
    let since = Instant::now();
    loop {
        let (now, progress) = (consensus.members(), consensus.replica_progress());
        let silent = |id: &NodeId| {
            let heard = progress.get(id).and_then(|replica| replica.heard);
            heard.unwrap_or_else(|| since.elapsed()) > consensus.silence_max()
        };
        let is_gone = |id: &&NodeId| !now.contains_key(*id);
        if consensus.is_in_charge() && ids.iter().all(|id| is_gone(&id) || silent(id)) {
            let name = |id: &NodeId| members.get(id).map(|member| member.name.clone());
            let why = |id: &NodeId| {
                let how = if is_gone(&id) {
                    "is no longer a member"
                } else {
                    "does not answer"
                };
                Some(format!("{} {how}", name(id)?))
            };
            return ids.iter().filter_map(why).collect::<Vec<_>>().join(", ");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
