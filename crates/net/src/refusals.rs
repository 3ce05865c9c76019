//! Tells of refusals in the log, in few lines however many there are.
//!
//! The first of each reason within a minute is told at once, with all that is known of it. Those that
//! follow are counted, and told together when the minute is over.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::lock::lock;

/// How long refusals are counted before they are told: short enough for an operator who waits for
/// the next line, long enough for a log that nobody watches.
const INTERVAL: Duration = Duration::from_mins(1);

/// The refusals of one [`Dispatcher`](crate::Dispatcher) and its services. Clones are the same.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Shared>);

#[derive(Default)]
struct Shared {
    counted: Mutex<Counted>,
    begun: Notify,
}

/// What was refused and not told yet.
#[derive(Default)]
struct Counted {
    /// When it is told; `None` while nothing is refused.
    due: Option<Instant>,
    /// How many were counted after the first, by reason.
    untold: BTreeMap<String, u64>,
}

impl Refusals {
    /// Notes a refusal of `peer`. Reasons are few, whatever callers do; `why` may be long.
    pub fn note(&self, reason: &str, peer: &str, why: &dyn Display) {
        let is_first = lock(&self.0.counted).note(reason, Instant::now());
        if is_first {
            self.0.begun.notify_one();
            tracing::warn!(peer, reason, %why, "refused a connection; others are counted for a minute");
        } else {
            tracing::debug!(peer, reason, %why, "refused a connection");
        }
    }

    /// Tells of what was counted, once a minute. May be dropped and called again at any time.
    pub(crate) async fn tell(&self) -> Infallible {
        loop {
            let due = lock(&self.0.counted).due;
            match due {
                Some(due) => {
                    sleep_until(due).await;
                    self.tell_rest();
                }
                None => self.0.begun.notified().await,
            }
        }
    }

    /// Tells of what was counted, now.
    pub(crate) fn tell_rest(&self) {
        let told = lock(&self.0.counted).take(Instant::now());
        if let Some((count, reasons)) = told {
            tracing::warn!(count, reasons, "refused more connections");
        }
    }
}

impl Counted {
    /// Counts a refusal; returns whether it is the first of its reason.
    fn note(&mut self, reason: &str, now: Instant) -> bool {
        self.due.get_or_insert(now + INTERVAL);
        if let Some(count) = self.untold.get_mut(reason) {
            *count += 1;
            return false;
        }
        self.untold.insert(reason.to_owned(), 0);
        true
    }

    /// How many were counted, in all and by reason; `None` if there were none. Another interval
    /// begins for those reasons.
    fn take(&mut self, now: Instant) -> Option<(u64, String)> {
        self.untold.retain(|_, count| *count > 0);
        if self.untold.is_empty() {
            self.due = None;
            return None;
        }
        self.due = Some(now + INTERVAL);
        let mut counts: Vec<_> = self.untold.iter_mut().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let reasons: Vec<_> = counts
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let total = counts
            .iter_mut()
            .map(|(_, count)| std::mem::take(*count))
            .sum();
        Some((total, reasons.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_reason_is_told_at_once_and_the_others_once_a_minute() {
        let mut counted = Counted::default();
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let begin = at(0);
        assert!(counted.note("expired", begin));
        assert!(counted.note("not_tls", begin));
        for _ in 0..300 {
            assert!(!counted.note("not_tls", begin));
        }
        assert!(!counted.note("expired", begin));
        assert_eq!(counted.due, Some(begin + INTERVAL));
        let told = |count, reasons: &str| Some((count, reasons.to_owned()));
        assert_eq!(counted.take(at(60)), told(301, "not_tls 300, expired 1"));

        assert!(!counted.note("expired", at(61)), "it goes on");
        assert_eq!(counted.take(at(120)), told(1, "expired 1"));
        assert!(counted.note("not_tls", at(121)), "it had ended");
        assert_eq!(counted.take(at(180)), None);
        assert_eq!(counted.due, None);
        assert!(counted.note("expired", at(181)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_is_told_although_nothing_follows() {
        let refusals = Refusals::default();
        let telling = refusals.clone();
        let task = tokio::spawn(async move { telling.tell().await });
        for _ in 0..2 {
            refusals.note("not_tls", "127.0.0.1:1", &"no reason");
        }
        tokio::time::sleep(INTERVAL + Duration::from_secs(1)).await;
        let untold = lock(&refusals.0.counted).untold.clone();
        assert_eq!(untold["not_tls"], 0);
        task.abort();
    }
}
