//! This node's view of its group, for watchers.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use crate::config::access::Holder;
use crate::events::service::{self, DamagedMessage, ViewMessage};
use crate::events::{GroupChange, GroupEvents};
use crate::group::MemberRecord;
use crate::ids::GroupUuid;
use crate::lifecycle::changes::{Done, Undone};
use crate::lifecycle::{Lifecycle, lock};
use crate::runtime::Ground;
use crate::wire::hello::{DialError, Session};

/// Number of `election_timeout_max` periods for which an unheard member still counts as up.
const SILENT_ROUNDS_MAX: u32 = 4;

impl Lifecycle {
    /// Serves one EVENTS connection, which takes a slot among the subscriptions.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(super) async fn serve_events(self: Arc<Self>, session: Session) -> Result<(), DialError> {
        let Ok(_place) = Arc::clone(&self.subscriptions).try_acquire_owned() else {
            return Err(DialError::Closed);
        };
        let (phase, role) = (self.phase.subscribe(), self.role());
        let weak = Arc::downgrade(&self);
        // A connection must not keep a dropped environment alive.
        drop(self);
        let master_since = std::sync::Mutex::new(None);
        let look = || Some(Weak::upgrade(&weak)?.view(&mut lock(&master_since)));
        service::serve(session, phase, role, look).await
    }

    /// See [`crate::ReplicatedEnvironment::group_events`].
    pub(crate) fn group_events(&self, ground: Ground) -> GroupEvents {
        let transport = Arc::clone(&self.machine.transport);
        let given = vec![self.listen_address().to_owned()];
        GroupEvents::unconnected(transport, given, &self.config.group, ground)
            .until(self.phase.subscribe())
    }

    /// The changes that this node was asked for as master, after the one of this number.
    pub(crate) fn changes_after(&self, number: u64) -> Vec<GroupChange> {
        self.changes.borrow().after(number).cloned().collect()
    }

    /// Waits until there is such a change.
    pub(crate) async fn changed_after(&self, number: u64) {
        let mut changes = self.changes.subscribe();
        let has_come = changes.wait_for(|changes| changes.after(number).next().is_some());
        // It ends with the node, and so does whoever waits.
        has_come.await.map(drop).ok();
    }

    /// Notes what a caller was answered, unless it will ask again.
    pub(super) fn note_change(
        &self,
        asked: &str,
        done: &Done,
        holder: Option<&Holder>,
        peer: &str,
    ) {
        let (what, is_done) = match done {
            Ok(done) => (&done.text, true),
            Err(Undone::Refused(refusal)) if !refusal.passes => (&refusal.what, false),
            Err(_) => return,
        };
        let change = GroupChange {
            term: self.around.role.borrow().term,
            number: 0,
            at_ms: self.machine.clock.now_ms(),
            by: holder.map(Holder::to_string),
            from: peer.to_owned(),
            asked: asked.to_owned(),
            what: what.clone(),
            is_done,
        };
        self.changes.send_modify(|changes| changes.add(change));
    }

    /// `master_since` is when the caller first saw this node as master, if it is.
    fn view(&self, master_since: &mut Option<Instant>) -> ViewMessage {
        let identity = self.identity.borrow().clone();
        let members = self.around.members.borrow().clone();
        let role = self.around.role.borrow().clone();
        let mut view = ViewMessage {
            group_name: identity.group_name.clone(),
            group: identity.group.map(GroupUuid::to_bytes).unwrap_or_default(),
            term: role.term.0,
            master: role.master.map(|master| master.id.0),
            members: members
                .iter()
                .map(|(id, member)| MemberRecord::new(*id, member))
                .collect(),
            changes: self.changes_after(0).into_iter().map(Into::into).collect(),
            ..ViewMessage::default()
        };
        let damage = self.around.notices.damage.borrow().why().cloned();
        view.damaged.extend(damage.map(|what| DamagedMessage {
            node: identity.node_id.0,
            what,
        }));
        let Ok(node) = self.running() else {
            return view;
        };
        view.voters = node.consensus.voters().iter().map(|id| id.0).collect();
        if !node.consensus.is_master() {
            *master_since = None;
            return view;
        }
        view.is_from_master = true;
        let damaged = self.damaged_others().into_iter();
        view.damaged
            .extend(damaged.map(|(id, what)| DamagedMessage { node: id.0, what }));
        let silence_max = self.config.tuning.election_timeout_max * SILENT_ROUNDS_MAX;
        let progress = node.consensus.replica_progress();
        let is_up = |id| {
            let heard = progress.get(id).and_then(|replica| replica.heard);
            *id == identity.node_id || heard.is_some_and(|ago| ago <= silence_max)
        };
        view.down = members
            .keys()
            .filter(|id| !is_up(*id))
            .map(|id| id.0)
            .collect();
        // A new master has not heard everybody yet.
        let since = *master_since.get_or_insert_with(Instant::now);
        view.sees_nodes = view.down.is_empty() || since.elapsed() > silence_max;
        if !view.sees_nodes {
            view.down.clear();
        }
        view
    }
}
