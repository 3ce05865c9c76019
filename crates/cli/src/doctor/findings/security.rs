//! What is wrong with how connections are protected.

use steadfast::{NodeStatus, credentials, plural};

use super::{Finding, Severity};
use crate::status::Survey;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// A certificate that ends sooner has to be renewed.
const LEFT_MIN_MS: u64 = 30 * DAY_MS;

/// Nodes whose connections are not protected although other machines reach them.
pub(super) fn unprotected(survey: &Survey) -> Option<Finding> {
    let open = survey.working().filter(|status| status.insecure_plaintext);
    let names: Vec<&str> = open.map(|status| &*status.node.name).collect();
    (!names.is_empty()).then(|| {
        Finding::new(
            Severity::Warning,
            "plaintext",
            format!("connections to {} are not protected", names.join(", ")),
            "whoever reaches their ports reads everything, changes everything and stops the group",
            "give all nodes credentials (steadfast init), node by node, as docs/security.md says, and then start \
             them without insecure_plaintext",
        )
    })
}

/// Certificates that have ended, or will soon, by the clocks of their nodes.
pub(super) fn certificates(survey: &Survey) -> Vec<Finding> {
    let find = |status: &NodeStatus| {
        let ends_ms = status.certificate_ends_ms?;
        let left_ms = ends_ms.saturating_sub(status.clock_ms);
        let is_soon = left_ms < LEFT_MIN_MS;
        let (name, end) = (&status.node.name, credentials::date(ends_ms));
        let days = left_ms / DAY_MS;
        let what = if left_ms == 0 {
            format!("the certificate of {name} has expired: {end}")
        } else {
            format!(
                "the certificate of {name} ends in {days} {}: {end}",
                plural(days, "day", "days")
            )
        };
        is_soon.then(|| {
            Finding::new(
                Severity::Warning,
                "certificate",
                what,
                "nothing is lost; from then on no other node talks to it over new connections",
                "issue new credentials to it (steadfast certs issue), and copy the files over the old ones",
            )
        })
    };
    survey.working().filter_map(find).collect()
}
