//! One round: commands in the order in which they came, on one transaction.

use bytes::Bytes;
use prost::Message;
use steadfast::{Transaction, TransactionDatabase, WriteError};
use xxhash_rust::xxh3::xxh3_64;

use super::apply::{Change, Changed, Round, lease_row, living_lease};
use super::command::{Answer, AuthMessage, Command};
use super::keys::{COMPACTED, Failure, LeaseRow, Rows, StateRow, Tables};
use super::lease::{Effect, TTL_SECONDS_MAX, TTL_SECONDS_MIN, noted_for};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseRevokeResponse, ResponseHeader,
};

/// A round that has written this many bytes takes no further command: as much as the environment
/// commits at a time.
pub(super) const ROUND_BYTES_MAX: usize = 1024 * 1024;

/// The same in rows, which all get their numbers under one lock.
const ROUND_ROWS_MAX: usize = 8192;

/// Most keys of a lease that are deleted at once, as one revision. What is left takes further steps, so
/// that neither other writes nor the watches wait for a large lease.
pub(super) const LEASE_STEP_KEYS_MAX: usize = 10_000;

/// Who does the round, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doer {
    pub(super) owner: u64,
    pub(super) term: u64,
    /// The wall clock, in ms since 1970.
    pub(super) time_ms: u64,
    /// Most keys that a step of ending a lease deletes.
    pub(super) lease_step_keys: usize,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'c> {
    pub(super) command: &'c Command,
    /// A step of it is done and committed.
    pub(super) is_continued: bool,
    /// Longest answer, in bytes; with a longer one it is refused.
    pub(super) answer_bytes_max: Option<usize>,
}

/// What a command came to: its answer, and what it did to a lease.
pub(super) type Outcome = Result<(Answer, Option<Effect>), Error>;

/// What a round has done, once it is committed.
#[derive(Debug)]
pub(super) struct Done {
    /// Of as many commands as there was room for.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) state: StateRow,
    /// Another store was the owner before.
    pub(super) took_over: bool,
}

/// Why a round was given up.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The command of this index is too large, by itself or for the room that is left.
    NoRoom(usize),
    Failed(Failure),
}

impl From<WriteError> for Stopped {
    fn from(error: WriteError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Does orders on a transaction. `is_due` tells whether a lease is still to be ended.
///
/// # Errors
/// See [`Stopped`]: then the transaction must be given up.
pub(super) fn run<'c>(
    txn: &Transaction,
    doer: Doer,
    orders: impl Iterator<Item = Order<'c>>,
    is_due: impl Fn(i64) -> bool,
) -> Result<Done, Stopped> {
    let mut round = Round::new(Tables::of_transaction(txn)?)?;
    let took_over = round.state().owner != doer.owner;
    if took_over || round.state().term < doer.term {
        round.own(doer.owner, doer.term);
    }
    let mut outcomes = Vec::new();
    for (index, order) in orders.enumerate() {
        let mut doing = Doing {
            round: &mut round,
            doer,
            order,
            effect: None,
        };
        let is_mine = !matches!(order.command, Command::Expire(id) if took_over || !is_due(*id));
        let answer = if is_mine {
            doing.run()
        } else {
            Ok(Answer::Nothing(()))
        };
        let effect = doing.effect;
        outcomes.push(match answer {
            Ok(answer) => Ok((filled(answer, round.state()), effect)),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Write(WriteError::TooLarge { .. } | WriteError::TooManyKeys { .. })) => {
                return Err(Stopped::NoRoom(index));
            }
            Err(failure) => return Err(failure.into()),
        });
        if round.bytes >= ROUND_BYTES_MAX || round.rows >= ROUND_ROWS_MAX {
            break;
        }
    }
    let count = outcomes.len();
    let state = match round.end(doer.time_ms) {
        Err(Failure::Write(WriteError::TooLarge { .. } | WriteError::TooManyKeys { .. })) => {
            return Err(Stopped::NoRoom(count.saturating_sub(1)));
        }
        ended => ended?,
    };
    Ok(Done {
        outcomes,
        state,
        took_over,
    })
}

/// The answer with its header, as far as it is the same on every node.
fn filled(mut answer: Answer, state: StateRow) -> Answer {
    if let Some(header) = answer.header() {
        *header = Some(ResponseHeader {
            revision: state.revision,
            raft_term: state.term,
            ..ResponseHeader::default()
        });
    }
    answer
}

/// One command of a round.
struct Doing<'r, 't> {
    round: &'r mut Round<'t>,
    doer: Doer,
    order: Order<'r>,
    effect: Option<Effect>,
}

impl<'t> Doing<'_, 't> {
    fn tables(&self) -> &Tables<TransactionDatabase<'t>> {
        self.round.tables()
    }

    fn run(&mut self) -> Result<Answer, Failure> {
        Ok(match self.order.command {
            Command::Put(request) => {
                Answer::Put(self.change(|change| change.put(request.clone()))?)
            }
            Command::DeleteRange(request) => {
                Answer::DeleteRange(self.change(|change| change.delete_range(request))?)
            }
            Command::Txn(request) => {
                Answer::Txn(self.change(|change| change.txn(request.clone()))?)
            }
            Command::Compact(request) => Answer::Compact(self.compact(request)?),
            Command::Grant(request) => Answer::Grant(self.grant(request)?),
            Command::Revoke(id) => {
                let is_there = self.end_lease(*id)?;
                if !is_there && !self.order.is_continued {
                    return Err(Error::LeaseNotFound.into());
                }
                Answer::Revoke(LeaseRevokeResponse::default())
            }
            Command::Expire(id) => {
                self.end_lease(*id)?;
                Answer::Nothing(())
            }
            Command::KeepAlive(id) => Answer::KeepAlive(self.keep_alive(*id)?),
            Command::Auth(change) => Answer::Auth(self.auth(change)?),
            Command::Own(()) | Command::TimeToLive(_) => Answer::Nothing(()),
        })
    }

    /// Makes a change and keeps it, if its answer is not too long.
    fn change<T: Message>(
        &mut self,
        make: impl FnOnce(&mut Change<'_, 't>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut change = self.round.change();
        let made = make(&mut change)?;
        let bytes_max = self.order.answer_bytes_max;
        if bytes_max.is_some_and(|bytes_max| made.encoded_len() > bytes_max) {
            return Err(Error::AnswerTooLarge.into());
        }
        let changed: Changed = change.done();
        self.round.keep(changed)?;
        Ok(made)
    }

    fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, Failure> {
        if request.revision <= self.tables().compacted()? {
            return Err(Error::Compacted.into());
        }
        if request.revision > self.round.state().revision {
            return Err(Error::FutureRevision.into());
        }
        let row = request.revision.to_be_bytes();
        self.tables().meta.put(COMPACTED, row)?;
        Ok(CompactionResponse::default())
    }

    fn grant(&mut self, request: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Failure> {
        if request.ttl > TTL_SECONDS_MAX {
            return Err(Error::LeaseTtlTooLarge.into());
        }
        let id = match request.id {
            0 => self.free_id()?,
            id if lease_row(self.tables(), id)?.is_some() => return Err(Error::LeaseExists.into()),
            id => id,
        };
        let ttl = request.ttl.max(TTL_SECONDS_MIN);
        self.put_lease(id, ttl, false)?;
        self.note(id, ttl)?;
        Ok(LeaseGrantResponse {
            id,
            ttl,
            ..LeaseGrantResponse::default()
        })
    }

    /// An id that no lease has.
    fn free_id(&self) -> Result<i64, Failure> {
        let state = self.round.state();
        let mut seed = [
            self.doer.owner,
            self.doer.time_ms,
            state.revision.cast_unsigned(),
            self.round.rows as u64,
        ];
        loop {
            let hash = xxh3_64(&seed.map(u64::to_be_bytes).concat());
            let id = (hash & i64::MAX.cast_unsigned()).cast_signed();
            if id != 0 && lease_row(self.tables(), id)?.is_none() {
                return Ok(id);
            }
            seed[3] = hash;
        }
    }

    fn keep_alive(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Failure> {
        let row = living_lease(self.tables(), id)?;
        if let Some(row) = row {
            self.note(id, row.ttl)?;
        }
        Ok(LeaseKeepAliveResponse {
            header: None,
            id,
            ttl: row.map_or(0, |row| row.ttl),
        })
    }

    /// Notes that a lease has its whole time.
    fn note(&mut self, id: i64, ttl: i64) -> Result<(), Failure> {
        let times = &self.tables().lease_times;
        times.put_with_ttl(id.to_be_bytes(), [], noted_for(ttl))?;
        self.effect = Some(Effect::Noted(id, ttl));
        self.round.wrote(5, 200);
        Ok(())
    }

    fn put_lease(&self, id: i64, ttl: i64, is_ending: bool) -> Result<(), Failure> {
        let row = LeaseRow { ttl, is_ending };
        let leases = &self.tables().leases;
        Ok(leases.put(id.to_be_bytes(), row.encode_to_vec())?)
    }

    /// Deletes the keys of a lease and the lease; or some of its keys, and the lease is not for
    /// clients any more. Returns whether there was one.
    fn end_lease(&mut self, id: i64) -> Result<bool, Failure> {
        let row = lease_row(self.tables(), id)?;
        let Some(row) = row else {
            self.effect = Some(Effect::Ended(id));
            return Ok(false);
        };
        let mut change = self.round.change();
        let are_all = change.delete_of_lease(id, self.doer.lease_step_keys)?;
        let changed = change.done();
        self.round.keep(changed)?;
        self.effect = Some(if are_all {
            self.tables().leases.delete(id.to_be_bytes())?;
            self.tables().lease_times.delete(id.to_be_bytes())?;
            Effect::Ended(id)
        } else {
            if !row.is_ending {
                self.put_lease(id, row.ttl, true)?;
            }
            Effect::Begun(id, row.ttl)
        });
        self.round.wrote(4, 150);
        Ok(true)
    }

    fn auth(&mut self, change: &AuthMessage) -> Result<bool, Failure> {
        for row in &change.expect {
            if self.tables().auth.row(&row.key)? != row.value {
                return Ok(false);
            }
        }
        let mut bytes = 0;
        for row in &change.set {
            bytes += row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
            match &row.value {
                Some(value) => self.tables().auth.put(&row.key, value)?,
                None => self.tables().auth.delete(&row.key)?,
            }
        }
        self.round.wrote(change.set.len(), bytes);
        Ok(true)
    }
}
