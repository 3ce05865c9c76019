//! Whether what was said about a lease, and seen of its keys, is what one lease could be.
//!
//! ```text
//!  granted   kept alive            no end before              no sign of life after
//!  ├─────────├──┤─────────────────►│ began + TTL      ended + TTL + allowance │◄───
//!            began, ended
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::{Came, Event, Record, Said, Write};

/// How late a master that works may be to end a lease.
const LATE: Duration = Duration::from_secs(3);

/// What a failover may add to a lease, besides the time without a master.
fn allowance(ttl: Duration) -> Duration {
    (ttl / 10).max(Duration::from_secs(5))
}

/// How long the server may still try to do what its client has given up.
const REQUEST_MAX: Duration = Duration::from_secs(7);

/// What is known at some time between two times.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sign {
    /// It has its whole time.
    Renewed,
    /// It may have.
    MayBeRenewed,
    Alive,
    /// So many whole seconds are left.
    Left(u64),
    Gone,
    /// A client ended it.
    Revoked,
    /// A client may have ended it.
    MayBeRevoked,
}

impl Sign {
    fn is_of_life(self) -> bool {
        matches!(self, Self::Renewed | Self::Alive | Self::Left(_))
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    began: Duration,
    ended: Duration,
    sign: Sign,
}

#[derive(Debug, Default)]
struct Lease {
    /// Unknown until it is known to be granted.
    ttl: Duration,
    seen: Vec<Seen>,
}

/// All leases that are not known to be gone for long, and when there was no master.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    outages: Vec<(Duration, Duration)>,
    /// How many ended by themselves.
    pub(crate) expired: usize,
}

impl Leases {
    pub(crate) fn note_outage(&mut self, from: Duration, to: Duration) {
        self.outages.push((from, to));
    }

    /// Takes what a client was told.
    pub(crate) fn take(&mut self, record: &Record) {
        let (lease, sign) = match &record.event {
            Event::Lease(lease, said) => {
                let sign = match said {
                    Said::Granted(ttl) | Said::MayBeGranted(ttl) => {
                        self.by_id.entry(*lease).or_default().ttl = *ttl;
                        match said {
                            Said::Granted(_) => Sign::Renewed,
                            _ => Sign::MayBeRenewed,
                        }
                    }
                    Said::KeptAlive => Sign::Renewed,
                    Said::MayBeKeptAlive => Sign::MayBeRenewed,
                    Said::Gone => Sign::Gone,
                    Said::Left { seconds, .. } => Sign::Left(*seconds),
                };
                (*lease, sign)
            }
            Event::Write(Write::Put { lease, .. }, came) if *lease != 0 => match came {
                Came::Done(_) => (*lease, Sign::Alive),
                Came::NoLease => (*lease, Sign::Gone),
                _ => return,
            },
            Event::Write(Write::Revoke { lease }, came) => match came {
                Came::Done(_) => (*lease, Sign::Revoked),
                _ => (*lease, Sign::MayBeRevoked),
            },
            _ => return,
        };
        self.see(lease, record.began, record.ended, sign);
    }

    fn see(&mut self, lease: i64, began: Duration, ended: Duration, sign: Sign) {
        let seen = Seen { began, ended, sign };
        self.by_id.entry(lease).or_default().seen.push(seen);
    }

    /// The keys of a lease went, at some time between these, and it was not revoked.
    pub(crate) fn expired(&mut self, lease: i64, began: Duration, ended: Duration) {
        self.expired += 1;
        // Until then they were there.
        self.see(lease, began, began, Sign::Alive);
        self.see(lease, began, ended, Sign::Gone);
    }

    /// It had keys at this time.
    pub(crate) fn has_keys(&mut self, lease: i64, at: Duration) {
        self.see(lease, at, at, Sign::Alive);
    }

    /// Checks all, and forgets those of which no more is to come.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let outages = &self.outages;
        for (id, lease) in &mut self.by_id {
            lease.seen.sort_by_key(|seen| seen.began);
            lease
                .check(outages)
                .map_err(|what| format!("lease {id}: {what}"))?;
        }
        self.by_id.retain(|_, lease| {
            // Late witnesses are few, and are compared with the one that is left.
            let gone = lease.gone();
            lease
                .seen
                .retain(|seen| gone.is_none() || Some(seen.ended) == gone);
            true
        });
        Ok(())
    }
}

impl Lease {
    /// When it was gone at the latest.
    fn gone(&self) -> Option<Duration> {
        let gone = self.seen.iter();
        let gone = gone.filter(|seen| matches!(seen.sign, Sign::Gone | Sign::Revoked));
        gone.map(|seen| seen.ended).min()
    }

    fn check(&self, outages: &[(Duration, Duration)]) -> Result<(), String> {
        let gone = self.gone();
        let may_be_revoked = self
            .seen
            .iter()
            .filter(|seen| matches!(seen.sign, Sign::MayBeRevoked | Sign::Revoked));
        let revoking = may_be_revoked.map(|seen| seen.began).min();
        // Until when it lives at most.
        let mut until = None::<Duration>;
        for seen in &self.seen {
            if seen.sign.is_of_life() {
                if let Some(gone) = gone.filter(|gone| seen.began > *gone) {
                    return Err(format!("{seen:?}, but it was gone at {gone:?}"));
                }
                if let Some(until) = until.filter(|until| seen.began > *until) {
                    return Err(format!("{seen:?}, but it was to end by {until:?}"));
                }
            }
            match seen.sign {
                Sign::Gone => self.check_early(seen, revoking)?,
                Sign::Left(seconds) => self.check_left(seen, seconds)?,
                _ => {}
            }
            let lives_from = match seen.sign {
                Sign::Renewed => seen.ended,
                Sign::MayBeRenewed => seen.ended + REQUEST_MAX,
                _ => continue,
            };
            until = until.max(Some(self.latest_end(lives_from, outages)));
        }
        Ok(())
    }

    /// When the last renewal began of those that are meant.
    fn renewed(&self, is_meant: impl Fn(&Seen) -> bool) -> Option<Duration> {
        let renewals = self.seen.iter();
        let renewals = renewals.filter(|seen| seen.sign == Sign::Renewed && is_meant(seen));
        renewals.map(|seen| seen.began).max()
    }

    /// It is not gone before its time, unless a client may have ended it.
    fn check_early(&self, seen: &Seen, revoking: Option<Duration>) -> Result<(), String> {
        let is_revoked = revoking.is_some_and(|began| began < seen.ended);
        let renewed = self.renewed(|_| true);
        if !is_revoked && renewed.is_some_and(|renewed| seen.ended < renewed + self.ttl) {
            return Err(format!(
                "{seen:?}, but renewed at {renewed:?} for {:?}",
                self.ttl
            ));
        }
        Ok(())
    }

    /// What is said to be left is not less than that, and not more than the whole.
    fn check_left(&self, seen: &Seen, seconds: u64) -> Result<(), String> {
        let left = Duration::from_secs(seconds);
        let renewed = self.renewed(|renewal| renewal.ended <= seen.began);
        let least = renewed.map(|at| (at + self.ttl).saturating_sub(seen.ended));
        // It is rounded down.
        let is_less = least.is_some_and(|least| left + Duration::from_secs(1) <= least);
        if left > self.ttl || is_less {
            return Err(format!(
                "{seen:?}, but {least:?} of {:?} were left",
                self.ttl
            ));
        }
        Ok(())
    }

    /// When a lease is gone at the latest that was renewed by `renewed`.
    fn latest_end(&self, renewed: Duration, outages: &[(Duration, Duration)]) -> Duration {
        let mut until = renewed + self.ttl + LATE;
        let mut was_failover = false;
        for (from, to) in outages {
            if *to >= renewed && *from <= until {
                if !was_failover {
                    until += allowance(self.ttl);
                }
                was_failover = true;
                until += to.saturating_sub(*from);
            }
        }
        until
    }
}
