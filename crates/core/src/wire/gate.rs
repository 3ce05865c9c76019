//! Answers hellos for one node: whom it lets in, to which service.

use std::sync::Arc;
use std::time::Duration;

use steadfast_net::Connection;
use tokio::sync::watch;

use crate::config::access::Holder;
use crate::group::identity::Identity;
use crate::group::{Member, Members};
use crate::ids::{GroupEpoch, Incarnation, NodeId};
use crate::planted::{self, Bug};
use crate::wire::access::may_call;
use crate::wire::hello::{DialError, Session, Superseded};
use crate::wire::messages::{
    Hello, HelloReply, Kind, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, Refusal, decode, encode,
};
use crate::wire::{ADMIN, DATA, ELECTION, EVENTS, FEEDER, NODE_STATE, SUBSCRIPTION};

/// Answers hellos for one node.
#[derive(Clone)]
pub(crate) struct Gate {
    identity: watch::Receiver<Arc<Identity>>,
    members: watch::Receiver<Members>,
    timeout: Duration,
    superseded: Superseded,
    given: Arc<dyn GivenIds>,
}

/// The ids that were given to nodes, as far as this node knows.
pub(crate) trait GivenIds: Send + Sync {
    /// The newest one.
    fn newest(&self) -> NodeId;

    /// Whether the node of this id has not been let in yet, or not been removed again.
    fn may_come(&self, id: NodeId) -> bool;
}

/// A refusal with its text for people.
type Refused = (Refusal, String);

impl Gate {
    pub(crate) fn new(
        identity: watch::Receiver<Arc<Identity>>,
        members: watch::Receiver<Members>,
        timeout: Duration,
        superseded: Superseded,
        given: Arc<dyn GivenIds>,
    ) -> Self {
        Self {
            identity,
            members,
            timeout,
            superseded,
            given,
        }
    }

    /// Reads the hello of a connection to `service` and answers it. Returns the calling member;
    /// `None` for a client.
    ///
    /// # Errors
    /// When the hello is refused (the caller has been told) or does not arrive.
    pub(crate) async fn accept(
        &self,
        connection: Connection,
        service: &'static str,
    ) -> Result<(Option<NodeId>, Session), DialError> {
        let peer = connection.peer().to_owned();
        let holder = connection.identity().map(str::parse::<Holder>);
        let (mut sender, mut receiver) = connection.split();
        let first = tokio::time::timeout(self.timeout, receiver.receive()).await;
        let frame = first.map_err(|_| DialError::Timeout(self.timeout))??;
        let hello: Hello = decode(Kind::Hello, frame.ok_or(DialError::Closed)?)?;
        let result = match &holder {
            Some(Err(error)) => Err((Refusal::NotAllowed, error.to_string())),
            Some(Ok(holder)) => self
                .check_holder(&hello, holder, service)
                .and_then(|()| self.check(&hello, service)),
            None => self.check(&hello, service),
        };
        let (version, refusal, text) = match &result {
            Ok(_) => (
                PROTOCOL_VERSION_MAX.min(hello.version_max),
                Refusal::None,
                String::new(),
            ),
            Err((refusal, text)) => (0, *refusal, text.clone()),
        };
        let reply = HelloReply {
            version,
            refusal: refusal.into(),
            text,
            epoch: self.identity.borrow().epoch.0,
        };
        sender.send(encode(Kind::HelloReply, &reply)).await?;
        match result {
            Ok(caller) => {
                let session = Session {
                    sender,
                    receiver,
                    peer,
                    holder: holder.and_then(Result::ok),
                };
                Ok((caller, session))
            }
            Err((refusal, text)) => {
                metrics::counter!("steadfast_hello_refused_total", "reason" => format!("{refusal:?}"))
                    .increment(1);
                Err(DialError::Refused { refusal, text })
            }
        }
    }

    /// Whether the hello says what the certificate of the caller proves, and whether its holder may
    /// call this service.
    pub(super) fn check_holder(
        &self,
        hello: &Hello,
        holder: &Holder,
        service: &str,
    ) -> Result<(), Refused> {
        let identity = self.identity.borrow().clone();
        if holder.group() != identity.group_name {
            let text = format!(
                "this node belongs to group {:?}, and the certificate of the caller names {holder}",
                identity.group_name
            );
            return Err((Refusal::WrongGroup, text));
        }
        let proven = holder.node_id().unwrap_or_default();
        if hello.sender != 0 && hello.sender != proven.0 {
            let text = format!(
                "the caller says that it is node {}, and its certificate names {holder}",
                hello.sender
            );
            return Err((Refusal::NotAllowed, text));
        }
        if !may_call(holder, service) {
            let text = format!("{holder} may not call {service}");
            return Err((Refusal::NotAllowed, text));
        }
        if proven == NodeId(0) || identity.group.is_none() {
            return Ok(());
        }
        // Nodes that are none may ask who is there and to be let in, if they are new. What nodes ask
        // of each other is for `check`, which knows of epochs.
        let members = self.members.borrow();
        let (is_member, is_new) = (
            members.contains_key(&proven),
            self.may_be_new(proven, &members),
        );
        let may = match service {
            NODE_STATE | ADMIN => is_member || is_new,
            SUBSCRIPTION | EVENTS | DATA => is_member,
            _ => true,
        };
        if may {
            return Ok(());
        }
        Err(self.no_member(proven))
    }

    pub(super) fn check(&self, hello: &Hello, service: &str) -> Result<Option<NodeId>, Refused> {
        let identity = self.identity.borrow().clone();
        if hello.version_min > PROTOCOL_VERSION_MAX || hello.version_max < PROTOCOL_VERSION_MIN {
            let text = format!(
                "this node speaks protocol versions {PROTOCOL_VERSION_MIN} to \
                 {PROTOCOL_VERSION_MAX}, the caller {} to {}",
                hello.version_min, hello.version_max
            );
            return Err((Refusal::NoCommonVersion, text));
        }
        if hello.purpose != service {
            return Err((
                Refusal::NotAllowed,
                "the hello names another service".to_owned(),
            ));
        }
        // A node shows its state to anyone: an operator looks at it first. Subscribers and
        // operators name their group in the request.
        if [NODE_STATE, SUBSCRIPTION, EVENTS, ADMIN, DATA].contains(&service) {
            return Ok(None);
        }
        let Some(group) = identity.group else {
            return Err((
                Refusal::NotFormed,
                "this node belongs to no group yet".to_owned(),
            ));
        };
        if hello.group != group.to_bytes() {
            let text = format!(
                "this node belongs to group {:?} ({group})",
                identity.group_name
            );
            return Err((Refusal::WrongGroup, text));
        }
        let caller = GroupEpoch::from_number(hello.epoch);
        if caller > identity.epoch && !self.may_supersede(NodeId(hello.sender)) {
            return Err(self.no_member(NodeId(hello.sender)));
        }
        self.check_epoch(caller, identity.epoch)?;
        if hello.receiver != identity.node_id.0 {
            let text = format!("this is node {} ({})", identity.node_id, identity.node_name);
            return Err((Refusal::WrongNode, text));
        }
        self.check_sender(hello, service)
    }

    /// Whether a node may belong to a later epoch of the group, and so end this one: a member that was
    /// recovered, or one that came after all that this node has heard of. A removed one is neither.
    fn may_supersede(&self, sender: NodeId) -> bool {
        let members = self.members.borrow();
        members.contains_key(&sender) || self.may_be_new(sender, &members)
    }

    /// Nodes of different epochs must not communicate: they could disagree about what was
    /// acknowledged. The node of the older epoch stops.
    fn check_epoch(&self, caller: GroupEpoch, own: GroupEpoch) -> Result<(), Refused> {
        if caller == own {
            return Ok(());
        }
        if caller > own {
            (self.superseded)(own, caller);
        }
        let text = format!(
            "the group was recovered after its quorum was lost: the caller is in epoch {caller}, \
             this node in epoch {own}"
        );
        let refusal = if caller < own {
            Refusal::OldEpoch
        } else {
            Refusal::NewerEpoch
        };
        Err((refusal, text))
    }

    /// Whether a node of this id, which is no member, may be one that comes, and not one that was
    /// removed: that has no higher id than the newest that this node knows to be given out.
    fn may_be_new(&self, id: NodeId, members: &Members) -> bool {
        let identity = self.identity.borrow();
        let founders = identity.founders.iter().map(|(id, _)| *id);
        let earlier = identity.epoch.ids_before();
        let known = members.keys().copied().chain(founders).chain([earlier]);
        let newest = known.max().unwrap_or_default().max(self.given.newest());
        // After a recovery, nobody knows who else had an id of before.
        id > newest || (id > earlier && self.given.may_come(id))
    }

    /// Why a node of this id is refused.
    fn no_member(&self, id: NodeId) -> Refused {
        let earlier = self.identity.borrow().epoch.ids_before();
        let newest = self.given.newest().max(earlier);
        let text = format!(
            "node {id} is not a member, and its id may not come any more: a new node needs credentials for \
             one that was never given, above {newest}, or a join token that gives it some"
        );
        (Refusal::NotAMember, text)
    }

    fn check_sender(&self, hello: &Hello, service: &str) -> Result<Option<NodeId>, Refused> {
        let sender = NodeId(hello.sender);
        let members = self.members.borrow();
        let Some(Member {
            name, incarnation, ..
        }) = members.get(&sender)
        else {
            // A sender admitted after everything that this node has heard of may be the very master
            // that has to tell it so. Until then it may do that, and nothing else.
            let may_tell = [FEEDER, ELECTION].contains(&service);
            if may_tell && self.may_be_new(sender, &members) {
                return Ok(Some(sender));
            }
            return Err((
                Refusal::NotAMember,
                format!("node {sender} is not a member"),
            ));
        };
        // A sender that has repaired itself since this node last heard of it may be the very master
        // that has to tell it so: its directory remembers the admitted life. A wiped one does not.
        let mut lives = hello.earlier_incarnations.iter();
        let is_same = *incarnation == Incarnation(hello.sender_incarnation)
            || lives.any(|life| *incarnation == Incarnation(*life));
        if !is_same && !planted::is(Bug::AcceptWiped) {
            let text = format!(
                "node {sender} ({name}) has a data directory other than the one that was admitted: \
                 it could have acknowledged writes that it no longer has"
            );
            return Err((Refusal::FencedIncarnation, text));
        }
        Ok(Some(sender))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ids::GroupUuid;
    use crate::wire::RESTORE;
    use crate::wire::hello::Caller;

    fn identity(node: u64, epoch: u64) -> Identity {
        Identity {
            group: Some(GroupUuid(uuid::Uuid::from_u128(9))),
            node_id: NodeId(node),
            epoch: GroupEpoch(epoch),
            ..Identity::fresh("orders", &format!("n{node}"), Incarnation(node))
        }
    }

    /// The newest id that was given out; only node 5 is awaited.
    struct Newest(u64);

    impl GivenIds for Newest {
        fn newest(&self) -> NodeId {
            NodeId(self.0)
        }

        fn may_come(&self, id: NodeId) -> bool {
            id == NodeId(5)
        }
    }

    /// What node 1 of epoch `own` answers node 2 of epoch `theirs`, and the epochs that ended it.
    fn meet(own: u64, theirs: u64) -> (Option<Refusal>, Vec<(u64, u64)>) {
        meet_as(2, own, theirs, 2)
    }

    /// The same with another caller, when the newest known id is `newest`.
    fn meet_as(
        caller: u64,
        own: u64,
        theirs: u64,
        newest: u64,
    ) -> (Option<Refusal>, Vec<(u64, u64)>) {
        meet_node(identity(caller, theirs), own, newest)
    }

    fn meet_node(caller: Identity, own: u64, newest: u64) -> (Option<Refusal>, Vec<(u64, u64)>) {
        meet_for(caller, own, newest, ELECTION)
    }

    fn meet_for(
        caller: Identity,
        own: u64,
        newest: u64,
        service: &str,
    ) -> (Option<Refusal>, Vec<(u64, u64)>) {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&ended);
        let superseded: Superseded =
            Arc::new(move |own, later| noted.lock().unwrap().push((own.0, later.0)));
        let member = Member {
            incarnation: Incarnation(2),
            ..Member::default()
        };
        let members: Members = Arc::new([(NodeId(2), member)].into());
        let gate = Gate::new(
            watch::Sender::new(Arc::new(identity(1, own))).subscribe(),
            watch::Sender::new(members).subscribe(),
            Duration::ZERO,
            Arc::clone(&superseded),
            Arc::new(Newest(newest)),
        );
        let caller = Caller::Node(Arc::new(caller), superseded);
        let refused = gate.check(&caller.hello(NodeId(1), service), service);
        let ended = ended.lock().unwrap().clone();
        (refused.err().map(|(refusal, _)| refusal), ended)
    }

    #[test]
    fn only_a_node_that_may_have_been_let_in_since_is_no_stranger() {
        let refusal = |caller, newest| meet_as(caller, 1, 1, newest).0;
        assert_eq!(
            refusal(3, 2),
            None,
            "it was let in since, for all that is known"
        );
        assert_eq!(refusal(3, 3), Some(Refusal::NotAMember), "it was removed");
        assert_eq!(refusal(3, 7), Some(Refusal::NotAMember));
        assert_eq!(
            refusal(5, 7),
            None,
            "it was given that id, and may be the master by now"
        );
        assert_eq!(
            refusal(1, 0),
            Some(Refusal::NotAMember),
            "not above a member"
        );
        let copies = meet_for(identity(3, 1), 1, 2, RESTORE).0;
        assert_eq!(copies, Some(Refusal::NotAMember), "it copies nothing yet");
    }

    #[test]
    fn a_node_that_repaired_itself_is_known_by_an_earlier_life_and_a_wiped_one_by_none() {
        let refusal = |lives: &[u64]| {
            let mut caller = identity(2, 1);
            caller.incarnation = Incarnation(lives[0]);
            caller.earlier = lives[1..].iter().copied().map(Incarnation).collect();
            meet_node(caller, 1, 2).0
        };
        assert_eq!(refusal(&[2]), None);
        assert_eq!(refusal(&[8, 2]), None);
        assert_eq!(refusal(&[9, 2, 8]), None);
        assert_eq!(refusal(&[8]), Some(Refusal::FencedIncarnation));
        assert_eq!(refusal(&[9, 7, 8]), Some(Refusal::FencedIncarnation));
        assert_eq!(
            refusal(&[1]),
            Some(Refusal::FencedIncarnation),
            "a life before"
        );
    }

    #[test]
    fn nodes_of_different_epochs_are_kept_apart_and_the_older_one_ends() {
        assert_eq!(meet(1, 1), (None, vec![]));
        assert_eq!(meet(1, 0), (None, vec![]), "nothing stands for the first");
        assert_eq!(meet(2, 2), (None, vec![]));
        assert_eq!(meet(2, 1), (Some(Refusal::OldEpoch), vec![]));
        assert_eq!(meet(1, 2), (Some(Refusal::NewerEpoch), vec![(1, 2)]));
        let removed = meet_as(3, 1, 2, 7);
        assert_eq!(
            removed,
            (Some(Refusal::NotAMember), vec![]),
            "it may say so"
        );
        let joined_there = meet_as(8, 1, 2, 7);
        assert_eq!(joined_there, (Some(Refusal::NewerEpoch), vec![(1, 2)]));
    }

    /// What node 1 of group "orders", whose only other member is node 2, answers to a hello that
    /// says to come from `sender`, with a certificate of this identity.
    fn proving(identity_text: &str, sender: u64, service: &str) -> Option<Refusal> {
        proving_in(1, identity_text, sender, service)
    }

    /// The same in a later epoch of the group.
    fn proving_in(epoch: u64, identity_text: &str, sender: u64, service: &str) -> Option<Refusal> {
        let superseded: Superseded = Arc::new(|_, _| {});
        let members = [(NodeId(2), Member::default())];
        let gate = Gate::new(
            watch::Sender::new(Arc::new(identity(1, epoch))).subscribe(),
            watch::Sender::new(Arc::new(members.into())).subscribe(),
            Duration::ZERO,
            Arc::clone(&superseded),
            Arc::new(Newest(5)),
        );
        let caller = match sender {
            0 => Caller::Client,
            id => Caller::Node(Arc::new(identity(id, epoch)), superseded),
        };
        let hello = caller.hello(NodeId(1), service);
        let holder = identity_text.parse().expect("an identity");
        let refused = gate.check_holder(&hello, &holder, service).err();
        refused.map(|(refusal, _)| refusal)
    }

    const SERVICES: [&str; 8] = [
        NODE_STATE,
        EVENTS,
        SUBSCRIPTION,
        DATA,
        ADMIN,
        RESTORE,
        FEEDER,
        ELECTION,
    ];

    #[test]
    fn each_service_is_called_by_the_roles_that_may_and_by_no_others() {
        let allowed = |who: &str, sender: u64| -> Vec<&str> {
            let who = format!("steadfast://orders/{who}");
            let services = SERVICES.into_iter();
            services
                .filter(|service| proving(&who, sender, service).is_none())
                .collect()
        };
        assert_eq!(allowed("client/c", 0), SERVICES[..1]);
        assert_eq!(allowed("monitor/m", 0), SERVICES[..2]);
        assert_eq!(allowed("subscriber/s", 0), SERVICES[..4]);
        assert_eq!(allowed("admin/a", 0), SERVICES[..5]);
        assert_eq!(allowed("node/2", 2), SERVICES);
        let nobody: [&str; 0] = [];
        for who in ["client/2", "monitor/2", "subscriber/2", "admin/2"] {
            assert_eq!(allowed(who, 2), nobody, "{who} says that it is node 2");
        }
    }

    #[test]
    fn a_certificate_speaks_for_its_node_alone_and_only_while_that_is_a_member() {
        let refusal = |who: &str, sender| {
            SERVICES.map(|service| proving(&format!("steadfast://{who}"), sender, service))
        };
        assert_eq!(refusal("orders/node/2", 2), [None; 8]);
        assert_eq!(refusal("orders/node/2", 1), [Some(Refusal::NotAllowed); 8]);
        assert_eq!(refusal("orders/node/4", 2), [Some(Refusal::NotAllowed); 8]);
        let none = Some(Refusal::NotAMember);
        // What nodes ask of each other is refused with the epoch in mind, by `check`.
        let removed = [none, none, none, none, none, None, None, None];
        assert_eq!(refusal("orders/node/4", 4), removed);
        assert_eq!(refusal("orders/node/4", 0), removed, "nor as a client");
        let new = [None, none, none, none, None, None, None, None];
        assert_eq!(refusal("orders/node/6", 6), new, "it asks to be let in");
        assert_eq!(refusal("orders/node/5", 5), new, "it was given that id");
        let recovered = proving_in(2, "steadfast://orders/node/5", 5, NODE_STATE);
        assert_eq!(recovered, none, "before the group was recovered");
        assert_eq!(refusal("other/node/2", 2), [Some(Refusal::WrongGroup); 8]);
        assert_eq!(refusal("other/admin/a", 0), [Some(Refusal::WrongGroup); 8]);
    }
}
