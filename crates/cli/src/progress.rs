//! Progress of long work, on stderr: one live line with rate and time left on a terminal, otherwise
//! an occasional plain line.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::status::grouped;

const LIVE_INTERVAL: Duration = Duration::from_millis(200);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const MIB: u64 = 1024 * 1024;

/// See the module.
pub(crate) struct Progress {
    what: &'static str,
    /// Approximate total in bytes; 0 if unknown.
    total_bytes: u64,
    is_live: bool,
    began: Instant,
    shown: Instant,
}

impl Progress {
    pub(crate) fn new(what: &'static str, total_bytes: u64) -> Self {
        let now = Instant::now();
        Self {
            what,
            total_bytes,
            is_live: std::io::stderr().is_terminal(),
            began: now,
            shown: now,
        }
    }

    /// Shows the progress, when it is time to.
    pub(crate) fn update(&mut self, bytes: u64) {
        let interval = if self.is_live {
            LIVE_INTERVAL
        } else {
            PLAIN_INTERVAL
        };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let text = line(self.what, bytes, self.total_bytes, self.began.elapsed());
        if self.is_live {
            write(&format!("\r\x1b[K{text}"));
        } else {
            write(&format!("{text}\n"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_live {
            write("\r\x1b[K");
        }
    }
}

fn line(what: &str, bytes: u64, total: u64, took: Duration) -> String {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let per_s = bytes.saturating_mul(1000) / ms;
    let done = format!("{what} {} MiB, {} MiB/s", grouped(bytes / MIB), per_s / MIB);
    let left = total.saturating_sub(bytes);
    match left.checked_div(per_s) {
        Some(seconds) if left > 0 => {
            let percent = bytes.saturating_mul(100) / total;
            let (minutes, seconds) = (seconds / 60, seconds % 60);
            format!("{done}, {percent} %, {minutes}:{seconds:02} left")
        }
        _ => done,
    }
}

fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Progress that nobody can see is no reason to stop.
    stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush())
        .ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_and_the_time_left_follow_from_what_is_done() {
        let half = line("wrote", 50 * MIB, 100 * MIB, Duration::from_secs(100));
        assert_eq!(half, "wrote 50 MiB, 0 MiB/s, 50 %, 1:40 left");
        let unknown = line("wrote", 2048 * MIB, 0, Duration::from_secs(2));
        assert_eq!(unknown, "wrote 2,048 MiB, 1024 MiB/s");
    }
}
