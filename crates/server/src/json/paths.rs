//! Which path calls what.

use std::collections::HashMap;
use std::sync::Arc;

use prost_reflect::{DescriptorPool, MethodDescriptor};

use crate::proto::DESCRIPTORS;

/// What the paths begin with.
const BASES: [&str; 2] = ["/v3", "/v3beta"];

/// Each path behind a base, and the service and method that it calls.
const TABLE: &[(&str, &str, &str)] = &[
    ("/kv/range", KV, "Range"),
    ("/kv/put", KV, "Put"),
    ("/kv/deleterange", KV, "DeleteRange"),
    ("/kv/txn", KV, "Txn"),
    ("/kv/compaction", KV, "Compact"),
    ("/watch", "etcdserverpb.Watch", "Watch"),
    ("/lease/grant", LEASE, "LeaseGrant"),
    ("/lease/revoke", LEASE, "LeaseRevoke"),
    ("/kv/lease/revoke", LEASE, "LeaseRevoke"),
    ("/lease/keepalive", LEASE, "LeaseKeepAlive"),
    ("/lease/timetolive", LEASE, "LeaseTimeToLive"),
    ("/kv/lease/timetolive", LEASE, "LeaseTimeToLive"),
    ("/lease/leases", LEASE, "LeaseLeases"),
    ("/kv/lease/leases", LEASE, "LeaseLeases"),
    ("/cluster/member/add", CLUSTER, "MemberAdd"),
    ("/cluster/member/remove", CLUSTER, "MemberRemove"),
    ("/cluster/member/update", CLUSTER, "MemberUpdate"),
    ("/cluster/member/list", CLUSTER, "MemberList"),
    ("/cluster/member/promote", CLUSTER, "MemberPromote"),
    ("/maintenance/alarm", MAINTENANCE, "Alarm"),
    ("/maintenance/status", MAINTENANCE, "Status"),
    ("/maintenance/defragment", MAINTENANCE, "Defragment"),
    ("/maintenance/hash", MAINTENANCE, "Hash"),
    ("/maintenance/hashkv", MAINTENANCE, "HashKV"),
    ("/maintenance/snapshot", MAINTENANCE, "Snapshot"),
    (
        "/maintenance/transfer-leadership",
        MAINTENANCE,
        "MoveLeader",
    ),
    ("/maintenance/downgrade", MAINTENANCE, "Downgrade"),
    ("/auth/enable", AUTH, "AuthEnable"),
    ("/auth/disable", AUTH, "AuthDisable"),
    ("/auth/status", AUTH, "AuthStatus"),
    ("/auth/authenticate", AUTH, "Authenticate"),
    ("/auth/user/add", AUTH, "UserAdd"),
    ("/auth/user/get", AUTH, "UserGet"),
    ("/auth/user/list", AUTH, "UserList"),
    ("/auth/user/delete", AUTH, "UserDelete"),
    ("/auth/user/changepw", AUTH, "UserChangePassword"),
    ("/auth/user/grant", AUTH, "UserGrantRole"),
    ("/auth/user/revoke", AUTH, "UserRevokeRole"),
    ("/auth/role/add", AUTH, "RoleAdd"),
    ("/auth/role/get", AUTH, "RoleGet"),
    ("/auth/role/list", AUTH, "RoleList"),
    ("/auth/role/delete", AUTH, "RoleDelete"),
    ("/auth/role/grant", AUTH, "RoleGrantPermission"),
    ("/auth/role/revoke", AUTH, "RoleRevokePermission"),
    ("/lock/lock", LOCK, "Lock"),
    ("/lock/unlock", LOCK, "Unlock"),
    ("/election/campaign", ELECTION, "Campaign"),
    ("/election/proclaim", ELECTION, "Proclaim"),
    ("/election/leader", ELECTION, "Leader"),
    ("/election/observe", ELECTION, "Observe"),
    ("/election/resign", ELECTION, "Resign"),
];

const KV: &str = "etcdserverpb.KV";
const LEASE: &str = "etcdserverpb.Lease";
const CLUSTER: &str = "etcdserverpb.Cluster";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const AUTH: &str = "etcdserverpb.Auth";
const LOCK: &str = "v3lockpb.Lock";
const ELECTION: &str = "v3electionpb.Election";

/// The methods by path.
#[derive(Clone)]
pub(super) struct Paths(Arc<HashMap<&'static str, MethodDescriptor>>);

impl Paths {
    pub(super) fn new() -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("the build has made them");
        let method = |(path, service, method): &(&'static str, &str, &str)| {
            let service = pool.get_service_by_name(service)?;
            let found = service.methods().find(|known| known.name() == *method);
            Some((*path, found?))
        };
        Self(Arc::new(TABLE.iter().filter_map(method).collect()))
    }

    /// A method for each number: those of the table, over and over.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn nth(&self, number: usize) -> &MethodDescriptor {
        let (path, ..) = TABLE[number % TABLE.len()];
        &self.0[path]
    }

    /// What is called at this path.
    pub(super) fn find(&self, path: &str) -> Option<&MethodDescriptor> {
        let behind = |base: &&str| {
            path.strip_prefix(*base)
                .filter(|rest| rest.starts_with('/'))
        };
        self.0.get(BASES.iter().find_map(behind)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{BASES, Paths, TABLE};

    #[test]
    fn every_path_of_the_table_calls_a_method_that_exists() {
        let paths = Paths::new();
        for (path, service, method) in TABLE {
            for base in BASES {
                let found = paths.find(&format!("{base}{path}")).expect(path);
                assert_eq!(found.parent_service().full_name(), *service);
                assert_eq!(found.name(), *method);
            }
            assert!(paths.find(&format!("/v3alpha{path}")).is_none());
        }
    }
}
