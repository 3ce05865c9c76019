//! Reports writes that wait for long, while they wait.

use std::sync::Mutex;
use std::time::Duration;

use steadfast_net::lock;

use tokio::time::{Instant, timeout};

/// A write that waits longer than this is reported.
const SLOW: Duration = Duration::from_secs(1);

/// How often the log reports such waits. The metric counts each.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The long waits of a node's writes.
#[derive(Debug, Default)]
pub(crate) struct SlowWrites {
    report: Mutex<Report>,
}

#[derive(Debug, Default)]
struct Report {
    last: Option<Instant>,
    /// Waits not reported yet.
    waits: u64,
}

impl SlowWrites {
    /// Returns what `wait` returns. `what_for` says what it waits for, as metrics have it.
    pub(super) async fn watch<T>(
        &self,
        what_for: &'static str,
        wait: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(wait);
        if let Ok(done) = timeout(SLOW, &mut wait).await {
            return done;
        }
        metrics::counter!("steadfast_slow_writes_total", "waits_for" => what_for).increment(1);
        if let Some(writes) = self.note() {
            tracing::warn!(
                writes,
                waits_for = what_for,
                "writes wait for more than {SLOW:?}; if nothing else is wrong, fewer concurrent \
                 writers or larger transactions wait less"
            );
        }
        wait.await
    }

    /// Counts a long wait; returns the number since the last report, when another one is due.
    fn note(&self) -> Option<u64> {
        let mut report = lock(&self.report);
        report.waits += 1;
        let is_time = report.last.is_none_or(|last| last.elapsed() >= TELL_EVERY);
        is_time.then(|| {
            report.last = Some(Instant::now());
            std::mem::take(&mut report.waits)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_long_wait_is_counted_and_the_log_tells_of_them_now_and_then() {
        let slow = SlowWrites::default();
        let wait = |for_ms| {
            timeout(
                Duration::from_millis(for_ms),
                slow.watch("a test", pending::<()>()),
            )
        };
        assert!(wait(900).await.is_err());
        assert_eq!(slow.report.lock().unwrap().last, None, "it was short");
        for _ in 0..3 {
            assert!(wait(1_100).await.is_err());
        }
        assert_eq!(
            slow.report.lock().unwrap().waits,
            2,
            "the first was told of"
        );
        tokio::time::advance(TELL_EVERY).await;
        assert!(wait(1_100).await.is_err());
        assert_eq!(slow.report.lock().unwrap().waits, 0);
    }
}
