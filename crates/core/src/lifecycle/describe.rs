//! What a node reports about itself, in every phase of its life.

use std::sync::atomic::Ordering;

use steadfast_net::Descriptors;

use crate::compare::digest;
use crate::consensus;
use crate::error::ReadError;
use crate::group::identity::Identity;
use crate::group::{Member, MemberRecord};
use crate::ids::{GroupUuid, NodeId, Vlsn};
use crate::lifecycle::room::Standing;
use crate::lifecycle::{Lifecycle, formation, lock};
use crate::listener::Role;
use crate::node::Node;
use crate::node::health::NodePhase;
use crate::recent::{micros, millis};
use crate::state_copy::fetch::Progress;
use crate::wire::node_state::{
    NodeStateMessage, NodeStateRequest, ReplicaProgress, RestoreProgressMessage,
};

impl Lifecycle {
    /// The answer to `NODE_STATE`.
    pub(super) fn describe(&self) -> NodeStateMessage {
        let identity = self.identity.borrow().clone();
        let members = self.around.members.borrow().clone();
        let role = self.role_now();
        let room = self.room_now();
        let descriptors = self.machine.transport.descriptors();
        let damage = self.around.notices.damage.borrow().clone();
        let mut message = NodeStateMessage {
            group_name: identity.group_name.clone(),
            group: identity.group.map(GroupUuid::to_bytes).unwrap_or_default(),
            node: Some(self.own_record(&identity)),
            expects: formation::digest(&identity.group_name, &self.config.expected),
            members: members
                .iter()
                .map(|(id, member)| MemberRecord::new(*id, member))
                .collect(),
            role: role.role.to_string(),
            phase: NodePhase::from(&*self.phase.borrow()).to_string(),
            term: role.term.0,
            master: role.master.map(|master| master.id.0),
            disk_free_bytes: room.space.free_bytes,
            disk_total_bytes: room.space.total_bytes,
            disk_is_low: room.standing != Standing::Enough,
            read_only: room.why_read_only(&self.config).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            waiting_for: self.waiting_for(),
            damage: damage.why().cloned().unwrap_or_default(),
            needs_state: damage.differs().is_some_and(|differs| differs.needs_state),
            divergences: self.divergences(),
            clock_ms: self.machine.clock.now_ms(),
            epoch: identity.epoch.0,
            descriptors_left: descriptors.map(|of| of.left() as u64),
            descriptors_max: descriptors.map(|of| of.max as u64),
            descriptors_are_few: descriptors.is_some_and(Descriptors::are_few),
            put_right: self.put_right_before.load(Ordering::Relaxed),
            restore: self.restore.borrow().map(Into::into),
            certificate_ends_ms: *lock(&self.certificate_ends_ms),
            insecure_plaintext: self.config.security.is_insecure(),
            copies: u32::try_from(self.copies.count()).unwrap_or(u32::MAX),
            ..NodeStateMessage::default()
        };
        if let Some(node) = self.node() {
            describe_node(&node, &mut message);
        }
        message
    }

    /// The same, with whatever else is asked for, if the node has it.
    pub(super) async fn describe_for(&self, request: NodeStateRequest) -> NodeStateMessage {
        let digest = if request.digest {
            self.shared_digest().await.ok()
        } else {
            None
        };
        let range = match request.range {
            Some(range) => Some(self.range_digest(range).await),
            None => None,
        };
        let check = if request.check {
            Some(self.check_files().await)
        } else {
            None
        };
        let mut message = self.describe();
        if let Some((vlsn, digest)) = digest {
            message.vlsn = vlsn.0;
            message.digest = format!("{digest:032x}");
        }
        let node = self.node().filter(|_| request.size);
        NodeStateMessage {
            range,
            check,
            data_bytes: node.map(|node| node.engine.stats().bytes_on_disk),
            ..message
        }
    }

    async fn shared_digest(&self) -> Result<(Vlsn, u128), ReadError> {
        let node = self.with_data()?;
        let vlsn = node.sequencer.visible();
        let compute = move || digest::digest(&node.snapshot());
        self.digest.get(&self.machine, vlsn, compute).await
    }

    fn own_record(&self, identity: &Identity) -> MemberRecord {
        let members = self.around.members.borrow();
        let member = members.get(&identity.node_id).cloned();
        let member = member.unwrap_or_else(|| {
            let mut listed = self.config.expected.iter();
            let listed = listed.find(|node| node.name == identity.node_name);
            Member {
                name: identity.node_name.clone(),
                address: listed.map(|node| node.address.clone()).unwrap_or_default(),
                incarnation: identity.incarnation,
                ..Member::default()
            }
        });
        MemberRecord::new(identity.node_id, &member)
    }
}

impl From<Progress> for RestoreProgressMessage {
    fn from(progress: Progress) -> Self {
        Self {
            source: progress.source.0,
            bytes: progress.bytes,
            bytes_total: progress.bytes_total,
            bytes_per_s: progress.bytes_per_s,
        }
    }
}

fn describe_node(node: &Node, message: &mut NodeStateMessage) {
    message.vlsn = node.sequencer.visible().0;
    message.persisted = node.log.state().persisted.map(Into::into);
    message.sync_p99_us = node.log.sync_p99().map(micros);
    message.disk_hangs_ms = node.hangs_for().map(millis);
    if message.role != Role::Master.to_string() {
        message.master_heard_ms_ago = node.consensus.heard_master().map(millis);
    }
    message.applied = node.consensus.applied().borrow().map(Into::into);
    let voters = node.consensus.voters();
    message.voters = voters.into_iter().map(|id| id.0).collect();
    message.window_bytes = node.window.bytes() as u64;
    let found = node.audit.findings().borrow().clone();
    message.checked = found.checked.map(|checked| checked.vlsn.0);
    message.put_right += found.put_right;
    let replicas = node.consensus.replica_progress().into_iter();
    let replica = |(id, progress): (NodeId, consensus::Progress)| {
        let lag = node.log.lag(progress.persisted.map(|last| last.position));
        ReplicaProgress {
            node: id.0,
            persisted: progress.persisted.map(Into::into),
            heard_ms_ago: progress.heard.map(millis),
            round_trip_p50_us: node.consensus.round_trip_p50(id).map(micros),
            behind_ms: lag.time.map(millis),
            behind_bytes: lag.bytes,
        }
    };
    message.replicas = replicas.map(replica).collect();
}
