//! Which voting nodes are up, for a change of the group that needs a majority of them.

use std::collections::BTreeSet;
use std::fmt;

use crate::admin::client::AdminRefusal;
use crate::consensus::Consensus;
use crate::ids::NodeId;
use crate::lifecycle::changes::Undone;
use crate::plural::plural;

/// Voting nodes, as their master sees them.
pub(super) struct Present {
    count: usize,
    /// Names of those that the master does not hear, or that have not caught up.
    pub(super) missing: Vec<String>,
}

impl Present {
    pub(super) fn of(consensus: &Consensus, voters: &BTreeSet<NodeId>) -> Self {
        let members = consensus.members();
        let missing = voters.iter().filter(|id| !consensus.has_caught_up(**id));
        let name = |id| members.get(id).map(|member| member.name.clone());
        Self {
            count: voters.len(),
            missing: missing.filter_map(name).collect(),
        }
    }

    pub(super) fn is_majority(&self) -> bool {
        (self.count - self.missing.len()) * 2 > self.count
    }
}

impl fmt::Display for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up = self.count - self.missing.len();
        let nodes = plural(self.count, "node", "nodes");
        write!(f, "{up} of {} voting {nodes}", self.count)?;
        if !self.missing.is_empty() {
            write!(f, " (not {})", self.missing.join(", "))?;
        }
        Ok(())
    }
}

/// Why nothing can be decided at present.
pub(super) fn no_majority(consensus: &Consensus) -> Undone {
    let present = Present::of(consensus, &consensus.voters());
    let to_do = match &present.missing[..] {
        [] => "try again".to_owned(),
        missing => format!(
            "start {}; only if their disks are lost for good, see `steadfast recover plan`",
            missing.join(", ")
        ),
    };
    Undone::Refused(AdminRefusal::for_now(
        format!(
            "only {present} are up and current: no majority, which every change to the group needs"
        ),
        to_do,
    ))
}
