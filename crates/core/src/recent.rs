//! Recent durations of something.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use steadfast_net::lock;

/// How many durations are kept: with one sync per heartbeat, the last few seconds.
const KEPT: usize = 256;

/// The last durations, for a look at their tail.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<VecDeque<Duration>>);

impl Recent {
    pub(crate) fn note(&self, took: Duration) {
        let mut times = lock(&self.0);
        if times.len() == KEPT {
            times.pop_front();
        }
        times.push_back(took);
    }

    /// The duration at this percentile; `None` before the first.
    pub(crate) fn within(&self, percent: usize) -> Option<Duration> {
        let times = lock(&self.0);
        let mut sorted: Vec<_> = times.iter().copied().collect();
        drop(times);
        sorted.sort_unstable();
        sorted.get(sorted.len() * percent / 100).copied()
    }
}

/// In whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// In whole microseconds.
pub(crate) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_a_hundred_shows_and_leaves_when_newer_times_have_come() {
        let recent = Recent::default();
        assert_eq!(recent.within(99), None);
        let ms = Duration::from_millis;
        (0..99).for_each(|_| recent.note(ms(1)));
        recent.note(ms(900));
        assert_eq!(recent.within(99), Some(ms(900)));
        assert_eq!(recent.within(50), Some(ms(1)));
        (0..KEPT).for_each(|_| recent.note(ms(2)));
        assert_eq!(recent.within(99), Some(ms(2)));
    }
}
