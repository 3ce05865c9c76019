//! What is wrong with a group as a whole, for `status`.

use steadfast::{Divergence, plural};

use crate::status::survey::Problem;
use crate::status::{Health, Survey};

impl Survey {
    /// Where the master has found nodes that differ from the others.
    pub(super) fn diverging(&self) -> Vec<Problem> {
        let found = self.master.iter().flat_map(|master| &master.divergences);
        let problem = |divergence: &Divergence| Problem {
            what: format!(
                "{} holds different data from the others: {divergence}",
                divergence.nodes.join(" or ")
            ),
            remedy: "run `steadfast verify --deep`; nothing that the others hold is lost"
                .to_owned(),
        };
        found.map(problem).collect()
    }

    /// The nodes whose connections are not protected although other machines reach them.
    pub(super) fn unprotected(&self) -> Option<Problem> {
        let open = self.working().filter(|status| status.insecure_plaintext);
        let names: Vec<&str> = open.map(|status| &*status.node.name).collect();
        (!names.is_empty()).then(|| Problem {
            what: format!(
                "{}: whoever reaches the port reads and changes everything (insecure_plaintext)",
                names.join(", ")
            ),
            remedy: "give all nodes credentials (steadfast init), node by node, as docs/security.md says".to_owned(),
        })
    }

    /// An even number of voting nodes costs one node more and survives no more failures.
    pub(super) fn too_even(&self) -> Option<Problem> {
        let voters = self.nodes.iter().filter(|node| node.member.votes).count();
        let is_even = self.health != Health::Forming && voters > 0 && voters.is_multiple_of(2);
        let survived = voters.saturating_sub(1) / 2;
        is_even.then(|| Problem {
            what: format!(
                "{voters} voting nodes survive {survived} {}, no more than {} would",
                plural(survived, "failure", "failures"),
                voters - 1
            ),
            remedy: "add an electable node or an arbiter, or make one a secondary".to_owned(),
        })
    }
}
