//! Changes to the group, as the master carries them out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use crate::admin::client::{self};
use crate::admin::messages::{AdminAnswer, AdminCall, AdminRequest, AlterRequest, RemoveRequest};
use crate::admin::{AdminCommand, AdminError, PRIORITY_MAX};
use crate::config::access::{Access, Holder};
use crate::config::metadata::check_metadata;
use crate::config::{check_address, check_name, is_unspecified};
use crate::consensus::{Consensus, TransferError};
use crate::error::in_full;
use crate::group::identity::Identity;
use crate::group::{Member, Members};
use crate::ids::NodeId;
use crate::lifecycle::admission;
use crate::lifecycle::changes::{
    Asking, CHANGE_MAX, Done, Undone, candidates, change, done, find, known, refused,
    refused_for_now,
};
use crate::lifecycle::node_ids::with_node_ids;
use crate::lifecycle::quorum::Present;
use crate::lifecycle::transfer::{LOOK_INTERVAL, hand_over, transfer};
use crate::lifecycle::{Lifecycle, enrolment, lock, repair};
use crate::member::{NodeAddress, NodeType};
use crate::node::Node;

/// How long a change that takes a vote away waits for a majority of the others to be up and
/// current, and for the vote to be gone.
const MAJORITY_WAIT: Duration = Duration::from_secs(2);

/// How long a master that is to be removed tries to hand over.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

impl Lifecycle {
    /// See [`crate::ReplicatedEnvironment::administer`].
    ///
    /// # Errors
    /// See [`AdminError`].
    pub(crate) async fn administer(&self, command: &AdminCommand) -> Result<String, AdminError> {
        let identity = self.identity.borrow().clone();
        let addresses = self.addresses_of_all();
        let client = self.admin_client(&identity, &addresses);
        command.send_by(&client).await
    }

    /// Where the nodes of the group may be. This node's own address comes first: another's is asked
    /// when this node is not the master.
    pub(super) fn addresses_of_all(&self) -> Vec<String> {
        let members = self.around.members.borrow().clone();
        let mut addresses = vec![self.listen_address().to_owned()];
        let known = &self.around.addresses;
        let places = |(id, member): (&NodeId, &Member)| known.candidates(*id, &member.address);
        addresses.extend(members.iter().flat_map(places));
        addresses
    }

    /// A client that asks the nodes at these addresses for changes to this group.
    pub(super) fn admin_client<'a>(
        &'a self,
        identity: &'a Identity,
        addresses: &'a [String],
    ) -> client::Client<'a> {
        let name = identity.group_name.as_str();
        client::Client {
            transport: &*self.machine.transport,
            group: identity.group.map(|group| (name, group)),
            addresses,
            dial_timeout: self.config.tuning.dial_timeout,
        }
    }

    /// The answer to an ADMIN request.
    pub(super) async fn answer_admin(
        self: &Arc<Self>,
        request: AdminRequest,
        holder: Option<&Holder>,
        peer: &str,
    ) -> AdminAnswer {
        let checked = self.check_admin(&request);
        let asking = Asking {
            holder,
            authority: lock(&self.authority).clone(),
            now_ms: self.machine.clock.now_ms(),
        };
        let asked = request
            .call
            .as_ref()
            .map(AdminCall::asks_for)
            .unwrap_or_default();
        let is_question = matches!(&request.call, Some(AdminCall::Readmit(it)) if it.is_question);
        let checked = checked.and_then(|node| self.check_caller(&request, holder).map(|()| node));
        let done = match (checked, request.call) {
            (Ok(node), Some(AdminCall::Shutdown(request))) if node.consensus.is_master() => {
                self.shut_group_down(&node, &request).await
            }
            (Ok(node), call) => carry_out(&node, call, &asking).await,
            (Err(undone), _) => Err(undone),
        };
        if !is_question {
            self.note_change(&asked, &done, holder, peer);
        }
        match done {
            Ok(done) => AdminAnswer::Done(done),
            Err(Undone::Refused(refusal)) => {
                tracing::warn!(what = refusal.what, "refused a change to the group");
                AdminAnswer::Refused(refusal.into())
            }
            Err(Undone::NotMaster) => {
                let role = self.around.role.borrow();
                let own = self.identity.borrow().node_id;
                let master = role.master.as_ref().filter(|master| master.id != own);
                let best = |master: &NodeAddress| {
                    let addresses = &self.around.addresses;
                    addresses.best(master.id, &master.address)
                };
                AdminAnswer::NotMaster(master.map(best).unwrap_or_default())
            }
        }
    }

    /// Whoever has a pass may ask for a certificate, and a node that is no member yet to be let in:
    /// nothing else. A node is let in again as nobody but itself.
    fn check_caller(&self, request: &AdminRequest, holder: Option<&Holder>) -> Result<(), Undone> {
        let is_joiner = holder.is_some_and(|holder| holder.access() == Access::Joiner);
        if is_joiner && !matches!(request.call, Some(AdminCall::Certify(_))) {
            return refused(
                "a join token is good for the certificate of a new node alone",
                "use the credentials of an admin",
            );
        }
        let Some(caller) = holder.and_then(Holder::node_id) else {
            return Ok(());
        };
        let is_member = self.around.members.borrow().contains_key(&caller);
        let may = match &request.call {
            Some(AdminCall::Join(_)) => true,
            Some(AdminCall::Readmit(readmit)) => is_member && readmit.node_id == caller.0,
            _ => is_member,
        };
        if may {
            return Ok(());
        }
        refused(
            format!(
                "the certificate of the caller names node {caller}, which may not ask for this"
            ),
            "use the credentials of an admin",
        )
    }

    fn check_admin(&self, request: &AdminRequest) -> Result<Arc<Node>, Undone> {
        let identity = self.identity.borrow().clone();
        let is_named = request.group_name.is_empty() || request.group_name == identity.group_name;
        let group = identity.group.map(crate::ids::GroupUuid::to_bytes);
        let is_same = request.group.is_empty() || group.is_none_or(|group| group == request.group);
        if !is_named || !is_same {
            return refused(
                format!(
                    "this node belongs to another group, {:?}",
                    identity.group_name
                ),
                "use an address, or a token, of the group that you mean",
            );
        }
        match self.running() {
            Ok(node) => Ok(node),
            Err(_) => Err(Undone::NotMaster),
        }
    }
}

/// Carries out a call. Calls a refusal final only if a majority confirms that this node is still
/// the master, and so knows the members.
async fn carry_out(node: &Arc<Node>, call: Option<AdminCall>, asking: &Asking<'_>) -> Done {
    let mut done = decide(node, call, asking).await;
    if let Err(Undone::Refused(refusal)) = &mut done
        && !refusal.passes
    {
        let confirmed = tokio::time::timeout(CHANGE_MAX, node.consensus.confirm_mastership());
        refusal.passes = !matches!(confirmed.await, Ok(Ok(())));
    }
    done
}

async fn decide(node: &Arc<Node>, call: Option<AdminCall>, asking: &Asking<'_>) -> Done {
    if let Some(AdminCall::Join(request)) = &call
        && node.consensus.is_master()
    {
        // Checked before waiting: if it waited behind the removal of its name, it would be
        // admitted. By then it may have stopped, and its successor would be refused.
        check_free_name(&node.consensus, &request.name, request.incarnation)?;
    }
    // A change computed from the current members must not overlap with another change to them.
    let changes_members = !matches!(call, Some(AdminCall::Transfer(_)));
    let _turn = if changes_members {
        Some(turn(&node.consensus).await?)
    } else {
        None
    };
    if !node.consensus.is_in_charge() {
        return Err(Undone::NotMaster);
    }
    check_stand_in(node, call.as_ref())?;
    match call {
        Some(AdminCall::Join(request)) => admission::join(node, request, asking).await,
        Some(AdminCall::Remove(request)) => remove(node, request).await,
        Some(AdminCall::Alter(request)) => alter(&node.consensus, request).await,
        Some(AdminCall::Transfer(request)) => transfer(&node.consensus, request).await,
        Some(AdminCall::Readmit(request)) => repair::readmit(node, request).await,
        Some(AdminCall::Invite(request)) => enrolment::invite(node, request, asking),
        Some(AdminCall::Certify(request)) => enrolment::certify(node, &request, asking).await,
        // Only the master's own handler carries it out.
        Some(AdminCall::Shutdown(_)) => Err(Undone::NotMaster),
        None => refused(
            "this version does not support the call",
            "run the same version on all nodes",
        ),
    }
}

/// Refuses a call that needs a write, on a node that takes none.
fn check_stand_in(node: &Node, call: Option<&AdminCall>) -> Result<(), Undone> {
    let writes = !matches!(call, Some(AdminCall::Alter(_) | AdminCall::Transfer(_)));
    if !writes || !node.consensus.stands_in() {
        return Ok(());
    }
    refused_for_now(
        format!(
            "{} has priority 0 and only stands in for a master, so nothing can be written",
            node.identity.node_name
        ),
        "start a node that may be master, or give one that is up a priority above 0: `steadfast node \
         priority NODE 1`",
    )
}

/// Waits until no other call is changing the members.
async fn turn(consensus: &Consensus) -> Result<MutexGuard<'_, ()>, Undone> {
    match tokio::time::timeout(CHANGE_MAX, consensus.turns.call.lock()).await {
        Ok(turn) => Ok(turn),
        Err(_) => refused_for_now(
            "another change to the group is in progress, and waits for a majority",
            "look at `steadfast status`, then try again",
        ),
    }
}

async fn remove(node: &Node, request: RemoveRequest) -> Done {
    let consensus = &node.consensus;
    if !request.force {
        wait_for_majority_without(consensus, &request.name).await;
    }
    let members = consensus.members();
    let (id, member) = known(&members, &request.name)?;
    let rest: Members = Arc::new(
        members
            .iter()
            .filter(|(other, _)| **other != id)
            .map(|(id, member)| (*id, member.clone()))
            .collect(),
    );
    check_leader_left(&rest, &format!("without {}", member.name))?;
    let voters = consensus.voters();
    if !request.force {
        check_majority_left(consensus, id, member)?;
    }
    if id == consensus.own_id() {
        return leave(consensus, &members, &candidates(&rest, &voters)).await;
    }
    // Its id must never be reused, and may be the highest that anybody knows of.
    with_node_ids(node, |transaction| {
        let mut awaited = transaction.awaited_nodes()?;
        if awaited.note_removed(id) {
            transaction.set_awaited_nodes(&awaited)?;
        }
        transaction.note_node_id(id)
    })
    .await?;
    change(|| consensus.remove_member(id)).await?;
    Ok(done(format!("{} was removed", member.name)))
}

/// Hands over from this node, which is being removed, to one of `others`, which then removes it.
async fn leave(consensus: &Consensus, members: &Members, others: &[NodeId]) -> Done {
    let id = consensus.own_id();
    let member = &members[&id];
    // Otherwise the new master hands straight back to this node if it is preferred. Not below the
    // others: while it is a member, it may be the only one with all that was written.
    let least = others.iter().map(|other| members[other].priority).min();
    if let Some(priority) = least.filter(|least| *least < member.priority) {
        let leaving = Member {
            priority,
            ..member.clone()
        };
        change(|| consensus.set_member(id, leaving.clone())).await?;
    }
    let deadline = Instant::now() + HAND_OVER_MAX;
    match hand_over(consensus, others, deadline).await {
        Ok(_) | Err(TransferError::NotMaster) => Err(Undone::NotMaster),
        Err(error) => {
            change(|| consensus.set_member(id, member.clone())).await?;
            refused_for_now(
                format!(
                    "{} is the master, and could not hand over: {error}",
                    member.name
                ),
                "nothing was changed; look at `steadfast status`, then try again",
            )
        }
    }
}

async fn alter(consensus: &Consensus, request: AlterRequest) -> Done {
    if takes_the_vote(&request) {
        wait_for_majority_without(consensus, &request.name).await;
    }
    let members = consensus.members();
    let (id, member) = known(&members, &request.name)?;
    let mut altered = member.clone();
    let mut what = Vec::new();
    if let Some(node_type) = request.node_type {
        altered.node_type = known_type(node_type)?;
        if altered.node_type != member.node_type
            && !(altered.node_type.has_data() && member.node_type.has_data())
        {
            return refused(
                "an arbiter has no data, so it cannot become a node of another type, and no other \
                 node can become an arbiter",
                "remove it, and add a new node of the type that you want",
            );
        }
        what.push(format!("{} is {}", member.name, altered.node_type));
    }
    if let Some(priority) = request.priority {
        if !member.node_type.has_data() {
            return refused(
                format!(
                    "{} is an arbiter, which is never master, so it has no priority",
                    member.name
                ),
                "name a node with data",
            );
        }
        altered.priority = priority;
        what.push(format!("{} has priority {priority}", member.name));
    }
    if let Some(address) = request.address {
        check_given_address(&member.name, &address)?;
        check_free_address(&members, &address, Some(id))?;
        altered.address = address;
        what.push(format!("{} is reached at {}", member.name, altered.address));
    }
    if let Some(metadata) = request.metadata {
        altered.metadata = metadata.entries;
        what.push(format!("the metadata of {} is set", member.name));
    }
    check_member(&altered)?;
    if !altered.node_type.votes() {
        check_majority_left(consensus, id, member)?;
    }
    let mut after = (*members).clone();
    after.insert(id, altered.clone());
    check_leader_left(&Arc::new(after), "after this change")?;
    if altered.address != member.address && !request.untried {
        check_reached(consensus, id, &altered).await?;
    }
    if altered != *member {
        change(|| consensus.set_member(id, altered.clone())).await?;
    }
    if !altered.node_type.votes() && !is_without_vote(consensus, id).await {
        what.push("it keeps its vote until a majority accepts the change".to_owned());
    }
    Ok(done(what.join(", ")))
}

/// Whether the member loses its vote in time: only then may the next node be stopped.
async fn is_without_vote(consensus: &Consensus, id: NodeId) -> bool {
    let deadline = Instant::now() + MAJORITY_WAIT;
    let votes = || consensus.voters().contains(&id);
    while votes() && consensus.is_master() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    !votes()
}

pub(super) fn known_type(number: u32) -> Result<NodeType, Undone> {
    match NodeType::from_number(number) {
        Some(node_type) => Ok(node_type),
        None => refused(
            "this version does not know this type of node",
            "run the same version on all nodes",
        ),
    }
}

pub(super) fn check_member(member: &Member) -> Result<(), Undone> {
    let checked = check_name("node", &member.name)
        .and(check_address("address", &member.address))
        .and(check_metadata(&member.metadata));
    if let Err(error) = checked {
        return refused(error.to_string(), "correct it");
    }
    if member.priority > PRIORITY_MAX {
        return refused(
            format!(
                "priority {} exceeds the maximum of {PRIORITY_MAX}",
                member.priority
            ),
            "choose a lower one",
        );
    }
    Ok(())
}

pub(super) fn check_given_address(name: &str, address: &str) -> Result<(), Undone> {
    if !is_unspecified(address) {
        return Ok(());
    }
    refused(
        format!(
            "{address} stands for every address of a machine: other nodes cannot reach {name} \
             there"
        ),
        format!(
            "give the address at which the others reach it: steadfast node address {name} \
             HOST:PORT; it may still listen on {address}"
        ),
    )
}

/// Whether this master reaches the member at its new address.
async fn check_reached(consensus: &Consensus, id: NodeId, altered: &Member) -> Result<(), Undone> {
    let Member { name, address, .. } = altered;
    match consensus.prove_address(address, id).await {
        Ok(()) => Ok(()),
        Err(error) => refused(
            format!(
                "the master cannot reach {name} at {address}: {}",
                in_full(&error)
            ),
            format!(
                "start {name} there first, or correct the address; `--force` accepts it without a \
                 test: steadfast node address {name} {address} --force"
            ),
        ),
    }
}

pub(super) fn check_free_address(
    members: &Members,
    address: &str,
    own: Option<NodeId>,
) -> Result<(), Undone> {
    let mut others = members.iter().filter(|(id, _)| Some(**id) != own);
    match others.find(|(_, member)| member.address == address) {
        Some((_, member)) => refused(
            format!("{address} is the address of {}", member.name),
            "give each node an address of its own",
        ),
        None => Ok(()),
    }
}

fn takes_the_vote(request: &AlterRequest) -> bool {
    let to = request.node_type.and_then(NodeType::from_number);
    to.is_some_and(|node_type| !node_type.votes())
}

/// The voting nodes once this one has lost its vote; `None` if it has none now.
fn voters_without(consensus: &Consensus, id: NodeId) -> Option<BTreeSet<NodeId>> {
    let mut voters = consensus.voters();
    voters.remove(&id).then_some(voters)
}

/// Waits for a moment in which a majority without this member is up and current: a busy node
/// briefly falls behind, which is no reason to refuse.
async fn wait_for_majority_without(consensus: &Consensus, name: &str) {
    let is_there = || {
        let members = consensus.members();
        let left = find(&members, name).and_then(|(id, _)| voters_without(consensus, id));
        let is_there = |left: &BTreeSet<NodeId>| Present::of(consensus, left).is_majority();
        !consensus.is_master() || left.is_none_or(|left| left.is_empty() || is_there(&left))
    };
    let deadline = Instant::now() + MAJORITY_WAIT;
    while !is_there() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether enough of the others answer once a member has lost its vote.
fn check_majority_left(consensus: &Consensus, id: NodeId, member: &Member) -> Result<(), Undone> {
    let Some(left) = voters_without(consensus, id) else {
        return Ok(());
    };
    if left.is_empty() {
        return refused(
            format!(
                "{} has the only vote: without it nothing could be decided",
                member.name
            ),
            "promote another node, or add one (`steadfast token create`), and try again when it \
             has its vote",
        );
    }
    let present = Present::of(consensus, &left);
    if present.is_majority() {
        return Ok(());
    }
    refused(
        format!(
            "without {} only {present} would be up and current: no majority, so the group would stop",
            member.name
        ),
        format!(
            "bring {} back first, or, if a disk is lost for good, remove or replace that node \
             instead; `steadfast node remove --force` removes a node anyway",
            present.missing.join(", ")
        ),
    )
}

/// Whether no member of this name has another data directory.
pub(super) fn check_free_name(
    consensus: &Consensus,
    name: &str,
    incarnation: u64,
) -> Result<(), Undone> {
    let members = consensus.members();
    if find(&members, name).is_none_or(|(_, member)| member.incarnation.0 == incarnation) {
        return Ok(());
    }
    refused(
        format!(
            "{name:?} is already a member, with a data directory other than this one: it could \
             have acknowledged writes that this one does not have"
        ),
        format!("give it its old directory back, or replace it: `steadfast node replace {name}`"),
    )
}

fn check_leader_left(members: &Members, when: &str) -> Result<(), Undone> {
    if members.values().any(Member::can_lead) {
        return Ok(());
    }
    refused(
        format!("{when} no node is left that can be master"),
        "add another electable node with a priority above 0 first",
    )
}
