//! How far a copy of a log up to some position is behind, in time and in bytes. A number of entries
//! tells neither.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::LogPosition;

/// Resolution: entries appended within this time are not told apart.
const STEP: Duration = Duration::from_millis(100);

/// Steps that are remembered: some seconds of a log under constant writes.
const STEPS_MAX: usize = 128;

/// What is missing at the end of a log. Both are lower bounds, because memory is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Age of the first missing entry; `None` if it is older than the opening of the log.
    pub(crate) time: Option<Duration>,
    /// Bytes of payload.
    pub(crate) bytes: u64,
}

impl Lag {
    const NONE: Self = Self {
        time: Some(Duration::ZERO),
        bytes: 0,
    };

    /// Whether every missing entry is younger than this.
    pub(crate) fn is_within(self, time: Duration) -> bool {
        self.time.is_some_and(|missing| missing < time)
    }
}

/// When the last entries of a log were appended.
#[derive(Debug)]
pub(super) struct Appended {
    /// The last entry when the log was opened.
    opened_with: Option<LogPosition>,
    steps: VecDeque<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    began: Instant,
    upto: LogPosition,
    bytes: u64,
}

impl Appended {
    pub(super) fn new(opened_with: Option<LogPosition>) -> Self {
        Self {
            opened_with,
            steps: VecDeque::new(),
        }
    }

    pub(super) fn note(&mut self, now: Instant, upto: LogPosition, bytes: u64) {
        match self.steps.back_mut() {
            Some(step) if now.duration_since(step.began) < STEP => {
                step.upto = upto;
                step.bytes += bytes;
            }
            _ => {
                if self.steps.len() == STEPS_MAX {
                    self.steps.pop_front();
                }
                self.steps.push_back(Step {
                    began: now,
                    upto,
                    bytes,
                });
            }
        }
    }

    pub(super) fn truncate(&mut self, last: Option<LogPosition>) {
        self.opened_with = self.opened_with.min(last);
        self.steps.retain(|step| Some(step.upto) <= last);
    }

    /// What a copy up to `has` lacks of a log that ends with `last`.
    pub(super) fn lag(
        &self,
        now: Instant,
        has: Option<LogPosition>,
        last: Option<LogPosition>,
    ) -> Lag {
        if has >= last {
            return Lag::NONE;
        }
        let missing = self.steps.iter().filter(|step| Some(step.upto) > has);
        let bytes = missing.clone().map(|step| step.bytes).sum();
        let is_older = has < self.opened_with;
        let first = missing.map(|step| step.began).next();
        let time = first
            .filter(|_| !is_older)
            .map(|began| now.duration_since(began));
        Lag { time, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_as_old_as_its_first_entry_and_as_large_as_all_of_it() {
        let at = |position: u64| Some(LogPosition(position));
        let start = Instant::now();
        let mut appended = Appended::new(at(10));
        let after = |ms: u64| start + Duration::from_millis(ms);
        for (ms, upto, bytes) in [
            (0, 11, 100),
            (50, 12, 200),
            (1_000, 13, 4_000_000),
            (2_000, 14, 1),
        ] {
            appended.note(after(ms), LogPosition(upto), bytes);
        }
        let lag = |has| appended.lag(after(2_500), at(has), at(14));
        let is = |ms, bytes| Lag {
            time: Some(Duration::from_millis(ms)),
            bytes,
        };
        assert_eq!(lag(14), Lag::NONE);
        assert_eq!(lag(13), is(500, 1));
        assert_eq!(lag(12), is(1_500, 4_000_001));
        // Entries of one step are not told apart.
        assert_eq!(lag(11), is(2_500, 4_000_301));
        assert_eq!(lag(10), is(2_500, 4_000_301));
        assert_eq!(lag(9).time, None, "it was there when the log was opened");
        assert_eq!(appended.lag(after(2_500), None, at(14)).time, None);
        assert_eq!(appended.lag(after(2_500), None, None), Lag::NONE);

        appended.truncate(at(12));
        assert_eq!(appended.lag(after(2_500), at(12), at(12)), Lag::NONE);
        appended.note(after(2_400), LogPosition(13), 7);
        assert_eq!(appended.lag(after(2_500), at(12), at(13)), is(100, 7));
    }

    #[test]
    fn what_is_not_remembered_any_more_is_at_least_as_old_as_what_is() {
        let start = Instant::now();
        let mut appended = Appended::new(None);
        for n in 0..1_000 {
            appended.note(start + STEP * n, LogPosition(u64::from(n) + 1), 1);
        }
        let lag = appended.lag(
            start + STEP * 1_000,
            Some(LogPosition(1)),
            Some(LogPosition(1_000)),
        );
        let steps = u32::try_from(STEPS_MAX).expect("small");
        assert_eq!(lag.time, Some(STEP * steps));
        assert_eq!(lag.bytes, u64::from(steps));
    }
}
