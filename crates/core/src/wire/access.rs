//! What each role may call: the one table.

use crate::config::access::{Access, Holder};
use crate::wire::{
    ADMIN, CALLS, DATA, ELECTION, EVENTS, FEEDER, NODE_STATE, RESTORE, SUBSCRIPTION, WRITES,
};

/// The least access that may call each service. A question to `NODE_STATE` that has the node read its
/// data or its files, and a write through `DATA`, need [`Access::Admin`].
const LEAST: [(&str, Access); 10] = [
    (NODE_STATE, Access::Client),
    (EVENTS, Access::Monitor),
    (SUBSCRIPTION, Access::Subscriber),
    (DATA, Access::Subscriber),
    (ADMIN, Access::Admin),
    (RESTORE, Access::Node),
    (CALLS, Access::Node),
    (WRITES, Access::Node),
    (FEEDER, Access::Node),
    (ELECTION, Access::Node),
];

/// Whether the holder may call this service.
pub(super) fn may_call(holder: &Holder, service: &str) -> bool {
    if holder.access() == Access::Joiner {
        // For one call alone: see `may_ask`.
        return service == ADMIN;
    }
    let row = LEAST.iter().find(|(name, _)| *name == service);
    row.is_some_and(|(_, least)| holder.access() >= *least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(access: Access) -> Holder {
        Holder::new("orders", access, "7").expect("valid")
    }

    #[test]
    fn each_role_may_call_what_the_table_says_and_nothing_that_is_not_in_it() {
        let may = |access: Access| -> Vec<&str> {
            let of = holder(access);
            let services = LEAST.iter().map(|(service, _)| *service);
            services.filter(|service| may_call(&of, service)).collect()
        };
        assert_eq!(may(Access::Client), [NODE_STATE]);
        assert_eq!(may(Access::Monitor), [NODE_STATE, EVENTS]);
        let of_subscriber = [NODE_STATE, EVENTS, SUBSCRIPTION, DATA];
        assert_eq!(may(Access::Subscriber), of_subscriber);
        assert_eq!(may(Access::Admin), [&of_subscriber[..], &[ADMIN]].concat());
        assert_eq!(may(Access::Node).len(), LEAST.len());
        for access in Access::ALL {
            assert!(!may_call(&holder(access), "OTHER"));
            assert_eq!(holder(access).may_have_read(), access >= Access::Admin);
            assert_eq!(holder(access).may_write(), access >= Access::Admin);
        }
    }
}
