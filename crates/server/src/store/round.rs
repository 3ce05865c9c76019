//! One round: commands in the order in which they came, on one transaction.

use bytes::Bytes;
use prost::Message;
use steadfast::{Transaction, TransactionDatabase, WriteError};
use xxhash_rust::xxh3::xxh3_64;

use super::apply::{Change, Changed, Round, lease_row};
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

/// Who does the round, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doer {
    pub(super) owner: u64,
    pub(super) term: u64,
    /// The wall clock, in ms since 1970.
    pub(super) time_ms: u64,
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

/// Does commands on a transaction. `is_due` tells whether a lease is still to be ended.
///
/// # Errors
/// See [`Stopped`]: then the transaction must be given up.
pub(super) fn run<'c>(
    txn: &Transaction,
    doer: Doer,
    commands: impl Iterator<Item = &'c Command>,
    is_due: impl Fn(i64) -> bool,
) -> Result<Done, Stopped> {
    let mut round = Round::new(Tables::of_transaction(txn)?)?;
    let took_over = round.state().owner != doer.owner;
    if took_over || round.state().term < doer.term {
        round.own(doer.owner, doer.term);
    }
    let mut outcomes = Vec::new();
    for (index, command) in commands.enumerate() {
        let mut doing = Doing {
            round: &mut round,
            doer,
            effect: None,
        };
        let is_mine = !matches!(command, Command::Expire(id) if took_over || !is_due(*id));
        let answer = if is_mine {
            doing.run(command)
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
    effect: Option<Effect>,
}

impl<'t> Doing<'_, 't> {
    fn tables(&self) -> &Tables<TransactionDatabase<'t>> {
        self.round.tables()
    }

    fn run(&mut self, command: &Command) -> Result<Answer, Failure> {
        Ok(match command {
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
                self.revoke(*id)?;
                Answer::Revoke(LeaseRevokeResponse::default())
            }
            Command::Expire(id) => match self.revoke(*id) {
                Ok(()) => Answer::Nothing(()),
                Err(Failure::Refused(_)) => {
                    self.effect = Some(Effect::Ended(*id));
                    Answer::Nothing(())
                }
                Err(failure) => return Err(failure),
            },
            Command::KeepAlive(id) => Answer::KeepAlive(self.keep_alive(*id)?),
            Command::Auth(change) => Answer::Auth(self.auth(change)?),
            Command::Own(()) | Command::TimeToLive(_) => Answer::Nothing(()),
        })
    }

    /// Makes a change and keeps it.
    fn change<T>(
        &mut self,
        make: impl FnOnce(&mut Change<'_, 't>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut change = self.round.change();
        let made = make(&mut change)?;
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
        let row = LeaseRow { ttl };
        self.tables()
            .leases
            .put(id.to_be_bytes(), row.encode_to_vec())?;
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
        let row = lease_row(self.tables(), id)?;
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

    fn revoke(&mut self, id: i64) -> Result<(), Failure> {
        if lease_row(self.tables(), id)?.is_none() {
            return Err(Error::LeaseNotFound.into());
        }
        self.change(|change| change.delete_of_lease(id))?;
        self.tables().leases.delete(id.to_be_bytes())?;
        self.tables().lease_times.delete(id.to_be_bytes())?;
        self.effect = Some(Effect::Ended(id));
        self.round.wrote(4, 150);
        Ok(())
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
