//! Certificates from the group: for new nodes with a join token, and again for members.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use steadfast::credentials::{
    Authority, CertificateRequest, INVITED_FOR, Rotation, VALID_FOR, of_pass, read, read_authority,
    renew, rotate,
};
use steadfast::ids::{GroupEpoch, NodeId};
use steadfast::{
    Access, AdminCommand, AdminError, Holder, JoinToken, NodeType, TlsCredentials, Transport,
};
use tempfile::TempDir;

use crate::support::{Env, PATIENCE, eventually, put};
use crate::tls::{GROUP, World, issued, master, now_ms};

const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A group whose nodes have the authority's key, and a place for the keys of new nodes.
struct Enrolling {
    world: World,
    group: Vec<Env>,
    dir: TempDir,
}

impl Enrolling {
    fn start() -> Self {
        let world = World::new();
        let group = world.open_three();
        let dir = TempDir::new().expect("a directory");
        world
            .authority
            .write(&dir.path().join("authority"))
            .expect("written");
        let enrolling = Self { world, group, dir };
        for node in &enrolling.group {
            let authority = enrolling.authority();
            node.certify_with(Some(authority))
                .expect("that of the group");
        }
        enrolling
    }

    fn authority(&self) -> Authority {
        Authority::read(&self.dir.path().join("authority")).expect("readable")
    }

    fn admin(&self) -> TlsCredentials {
        issued(&self.world.authority, Access::Admin, "someone")
    }

    fn invite(&self, valid_for: Duration) -> Result<JoinToken, AdminError> {
        let token = self.group[0]
            .join_token(NodeType::Electable)
            .expect("a member");
        let network = self.world.seen_by(&self.admin());
        let invited = token.invited(&network, DIAL_TIMEOUT, valid_for);
        self.world.runtime.block_on(invited)
    }

    fn token(&self) -> JoinToken {
        self.invite(INVITED_FOR).expect("a token")
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The credentials that a node with its key in the directory of this name gets with a token.
    fn enrol(&self, token: &JoinToken, name: &str) -> Result<TlsCredentials, AdminError> {
        let dir = self.dir(name);
        let request = CertificateRequest::begin(&dir).expect("a key");
        let network: Arc<dyn Transport> = self.world.network.host(name);
        let certified = token.certify(&request, network, DIAL_TIMEOUT);
        let certified = self.world.runtime.block_on(certified)?;
        certified.install(&dir).expect("written");
        Ok(read(&dir, now_ms()).expect("usable"))
    }

    /// Writes the credentials of the nodes and an admin; returns the names of their directories.
    fn issue_all(&self) -> [&'static str; 4] {
        let names = ["n1", "n2", "n3", "admin"];
        for (id, name) in (1..).zip(names) {
            let (access, holder) = match name {
                "admin" => (Access::Admin, "admin".to_owned()),
                _ => (Access::Node, id.to_string()),
            };
            let holder = Holder::new(GROUP, access, &holder).expect("a holder");
            let issued = self.world.authority.issue(&holder, VALID_FOR, now_ms());
            let issued = issued.expect("signed");
            issued.write(&self.dir(name)).expect("written");
        }
        names
    }

    /// Renews the credentials of this name, and has the node use them, if they are a node's.
    fn renew(&self, at: usize, name: &str, authority: &Authority) {
        let dir = self.dir(name);
        renew(&dir, authority, VALID_FOR, now_ms()).expect("renewed");
        let credentials = read(&dir, now_ms()).expect("usable");
        if let Some(node) = self.group.get(at) {
            node.replace_credentials(&credentials).expect("its own");
            node.certify_with(Some(self.authority()))
                .expect("that of the group");
        }
    }

    fn remove(&self, node: &str) {
        let node = node.to_owned();
        let removing = AdminCommand::Remove { node, force: false };
        master(&self.group).administer(&removing).expect("removed");
    }
}

fn refused<T>(asked: Result<T, AdminError>) -> String {
    match asked {
        Err(AdminError::Refused { what, .. }) => what,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

#[test]
fn a_token_gives_one_new_node_its_credentials() {
    let group = Enrolling::start();
    let token = group.token();
    let credentials = group.enrol(&token, "n4").expect("certified");
    assert_eq!(credentials.identity(), "steadfast://orders/node/4");
    let again = group.enrol(&token, "n4").expect("the same key");
    assert_eq!(again.identity(), credentials.identity(), "the same node");
    let what = refused(group.enrol(&token, "thief"));
    assert!(what.contains("works once"), "{what}");

    let fourth = group.world.join(4, &token, credentials);
    fourth.wait_ready(PATIENCE).expect("let in");
    assert_eq!(fourth.status().node.id, NodeId(4));
    let what = refused(group.enrol(&token, "another thief"));
    assert!(what.contains("works once"), "{what}");
}

#[test]
fn new_nodes_come_in_any_order_and_a_removed_one_never_again() {
    let group = Enrolling::start();
    let tokens = [4, 5].map(|_| group.token());
    let [fourth, fifth] = [4, 5].map(|id| {
        let name = format!("n{id}");
        group.enrol(&tokens[id - 4], &name).expect("certified")
    });
    assert_eq!(fifth.identity(), "steadfast://orders/node/5");
    let fifth = group.world.join(5, &tokens[1], fifth);
    fifth.wait_ready(PATIENCE).expect("let in");
    assert!(
        group.world.ask(&fourth, false).is_some(),
        "it may still come"
    );
    let fourth = group.world.join(4, &tokens[0], fourth);
    fourth.wait_ready(PATIENCE).expect("let in");

    group.remove("n4");
    let gone = read(&group.dir("n4"), now_ms()).expect("still there");
    eventually("all know", || group.world.ask(&gone, false).is_none());
    let what = refused(group.enrol(&tokens[0], "n4"));
    assert!(what.contains("works once"), "{what}");
}

#[test]
fn a_token_is_good_for_nothing_but_a_certificate_and_ends_with_its_time() {
    let group = Enrolling::start();
    let token = group.invite(Duration::from_secs(1)).expect("a token");
    let holder = of_pass(token.pass.as_ref().expect("a pass")).expect("usable");
    assert!(holder.identity().starts_with("steadfast://orders/joiner/"));
    assert!(group.world.ask(&holder, false).is_none());
    assert!(group.world.subscribe(&holder).is_err());
    assert!(!group.world.set_priority(&holder));
    let network = group.world.seen_by(&holder);
    let invited = token.clone().invited(&network, DIAL_TIMEOUT, INVITED_FOR);
    let what = refused(group.world.runtime.block_on(invited));
    assert!(what.contains("good for the certificate"), "{what}");

    // After a recovery, nobody may know who has used it.
    let of_another_epoch = group
        .authority()
        .invite(GroupEpoch(2), INVITED_FOR, now_ms());
    let voided = token.clone().with_pass(of_another_epoch.expect("a pass"));
    let what = refused(group.enrol(&voided, "voided"));
    assert!(what.contains("older than the recovery"), "{what}");

    let mut last = Ok(());
    eventually("it has expired", || {
        last = group.enrol(&token, "late").map(drop);
        last.is_err()
    });
    assert!(
        matches!(last, Err(AdminError::NotAllowed { .. })),
        "{last:?}"
    );
    for valid_for in [Duration::ZERO, Duration::from_hours(24 * 8)] {
        let what = refused(group.invite(valid_for));
        assert!(what.contains("7 days"), "{what}");
    }
}

#[test]
fn a_group_without_the_key_of_its_authority_certifies_nobody_and_says_so() {
    let group = Enrolling::start();
    let token = group.token();
    for node in &group.group {
        node.certify_with(None).expect("it may");
    }
    for what in [
        refused(group.invite(INVITED_FOR)),
        refused(group.enrol(&token, "n4")),
    ] {
        assert!(what.contains("does not have the key"), "{what}");
    }
    let other = Authority::create("other", now_ms()).expect("an authority");
    assert!(group.group[0].certify_with(Some(other)).is_err());
}

#[test]
fn a_member_gets_its_own_certificate_again_and_nobody_elses() {
    let group = Enrolling::start();
    let request = |name: &str| CertificateRequest::begin(&group.dir(name)).expect("a key");
    for (id, node) in (1..).zip(&group.group) {
        let is_master = node.state().role == steadfast::Role::Master;
        // The master signs for those that have no key of the authority.
        node.certify_with(is_master.then(|| group.authority()))
            .expect("that of the group");
        let name = format!("again {id}");
        let request = request(&name);
        let renewing = node.renew_certificate_async(&request);
        let certified = group.world.runtime.block_on(renewing).expect("certified");
        certified.install(&group.dir(&name)).expect("written");
        let credentials = read(&group.dir(&name), now_ms()).expect("usable");
        assert_eq!(
            credentials.identity(),
            format!("steadfast://orders/node/{id}")
        );
        node.replace_credentials(&credentials).expect("its own");
    }
}

#[test]
fn the_authority_changes_under_load_without_a_failed_write() {
    let group = Enrolling::start();
    let names = group.issue_all();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = written.load(Ordering::Relaxed).to_string();
                let _token = put(master(&group.group), "k", &number).expect("no write fails");
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for step in [Rotation::Announced, Rotation::Switched, Rotation::Finished] {
            assert_eq!(
                rotate(&group.dir("authority"), now_ms()).expect("taken"),
                step
            );
            let authority = group.authority();
            for (at, name) in names.into_iter().enumerate() {
                group.renew(at, name, &authority);
                // Whoever has got that far meets all those that have not.
                let admin = read(&group.dir("admin"), now_ms()).expect("usable");
                assert!(
                    group.world.ask(&admin, false).is_some(),
                    "{step:?} at {name}"
                );
                let before = written.load(Ordering::Relaxed);
                eventually("writes go on", || {
                    written.load(Ordering::Relaxed) > before + 5
                });
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        group.world.ask(&group.admin(), false).is_none(),
        "the old authority opens nothing"
    );
    let token = {
        let admin = read(&group.dir("admin"), now_ms()).expect("usable");
        let network = group.world.seen_by(&admin);
        let token = group.group[0]
            .join_token(NodeType::Electable)
            .expect("a member");
        let invited = token.invited(&network, DIAL_TIMEOUT, INVITED_FOR);
        group
            .world
            .runtime
            .block_on(invited)
            .expect("of the new authority")
    };
    let fourth = group.enrol(&token, "n4").expect("certified");
    let fourth = group.world.join(4, &token, fourth);
    fourth.wait_ready(PATIENCE).expect("let in");
    assert!(
        read_authority(&group.dir("n4"))
            .expect("readable")
            .is_none()
    );
}
