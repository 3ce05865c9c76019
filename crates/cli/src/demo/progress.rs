//! What the demo shows on stderr while it runs: one live line on a terminal, plain lines otherwise,
//! and a line for each event.

use std::time::Duration;

use tokio::time::Instant;

use crate::output;

/// How often the live line is updated.
const LIVE_INTERVAL: Duration = Duration::from_millis(200);
/// How often a plain line is printed.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Progress {
    is_live: bool,
    start: Instant,
    shown: Instant,
    shown_acked: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            is_live: output::is_watched(),
            start: now,
            shown: now,
            shown_acked: 0,
        }
    }

    /// Shows the progress, when it is time to.
    pub(super) fn update(&mut self, acked: u64, master: &str, term: u64) {
        let since = self.shown.elapsed();
        let interval = if self.is_live {
            LIVE_INTERVAL
        } else {
            PLAIN_INTERVAL
        };
        if since < interval {
            return;
        }
        let rate = u128::from(acked - self.shown_acked) * 1000 / since.as_millis().max(1);
        let seconds = self.start.elapsed().as_secs();
        let text = format!("{seconds:>3} s  acked {acked}  {rate}/s  master {master}  term {term}");
        if self.is_live {
            eprint!("\r\x1b[K{text}");
        } else {
            eprintln!("{text}");
        }
        self.shown += since;
        self.shown_acked = acked;
    }

    /// A line that stays.
    pub(super) fn line(&self, text: &str) {
        let clear = if self.is_live { "\r\x1b[K" } else { "" };
        let seconds = self.start.elapsed().as_secs();
        eprintln!("{clear}{seconds:>3} s  {text}");
    }
}
