//! Single reads and writes from other processes: what the program's verbs use.
//!
//! Any node answers. A call goes to one node after the other, until one has answered it or the time
//! is up; a write only as long as it certainly did not happen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steadfast_net::Transport;
use tokio::time::{Instant, timeout_at};

use crate::data::messages::{
    DataAnswer, DataCall, DataRefused, DataReply, DataRequest, FoundMessage, GetCall, OneWrite,
    WriteCall,
};
use crate::database::WriteBatch;
use crate::error::{ClientError, in_full};
use crate::policy::ConsistencyPolicy;
use crate::recent::millis;
use crate::token::CommitToken;
use crate::wire::DATA;
use crate::wire::hello::{Callee, Caller, DialError};
use crate::wire::messages::{Kind, decode, encode};

/// How long connecting to one node may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a node may take to answer before another one is tried.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after every node has been tried.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Reads and writes single keys of a group of nodes in other processes.
///
/// Each call connects anew, so it suits tools. An application that writes much has a node of its
/// own.
pub struct GroupClient {
    transport: Arc<dyn Transport>,
    addresses: Vec<String>,
    group_name: String,
    timeout: Duration,
}

/// Why a node has not answered.
enum Trouble {
    /// It has not got the request.
    NotAsked(DialError),
    /// It may have done what it was asked for.
    Unanswered(String),
}

impl GroupClient {
    /// A client of the group whose nodes listen at `addresses` (`host:port`), some of them at least.
    /// An empty `group` means whichever group answers. Its calls take up to `timeout`.
    pub fn new(
        transport: Arc<dyn Transport>,
        addresses: Vec<String>,
        group: &str,
        timeout: Duration,
    ) -> Self {
        Self {
            transport,
            addresses,
            group_name: group.to_owned(),
            timeout,
        }
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_async(
        &self,
        database: &str,
        key: impl Into<Bytes>,
        policy: ConsistencyPolicy,
    ) -> Result<Option<Bytes>, ClientError> {
        let call = DataCall::Get(GetCall {
            database: database.to_owned(),
            key: key.into(),
            freshness: Some(policy.into()),
        });
        match self.call(call).await? {
            (_, DataAnswer::Found(FoundMessage { value })) => Ok(value),
            (node, _) => Err(nonsense(&node)),
        }
    }

    /// The names of all databases, in order, and the address of the node that said so: it has
    /// everything that the policy asks for from then on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn databases_async(
        &self,
        policy: ConsistencyPolicy,
    ) -> Result<(Vec<String>, String), ClientError> {
        match self.call(DataCall::Databases(policy.into())).await? {
            (node, DataAnswer::Databases(list)) => Ok((list.names, node)),
            (node, _) => Err(nonsense(&node)),
        }
    }

    /// Commits the batch with the durability that is configured at the node that answers. One that
    /// writes a database of the etcd API
    /// ([`RESERVED_DATABASES_PREFIX`](crate::limits::RESERVED_DATABASES_PREFIX)) is refused.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn write_async(&self, batch: &WriteBatch) -> Result<CommitToken, ClientError> {
        match self.call(DataCall::Write(batch.into())).await? {
            (node, DataAnswer::Written(token)) => {
                // It is committed, whatever its token is.
                CommitToken::try_from(token).map_err(|_| unknown(&node))
            }
            (node, _) => Err(unknown(&node)),
        }
    }

    /// The answer of the first node that gives one, and its address.
    async fn call(&self, call: DataCall) -> Result<(String, DataAnswer), ClientError> {
        let deadline = Instant::now() + self.timeout;
        let is_write = matches!(call, DataCall::Write(_));
        let request = encode(
            Kind::DataRequest,
            &DataRequest {
                group_name: self.group_name.clone(),
                call: Some(call),
            },
        );
        loop {
            let mut last = ClientError::Unreachable {
                reason: "there is no address to ask".to_owned(),
            };
            let mut denied = 0;
            for address in &self.addresses {
                let until = deadline.min(Instant::now() + ANSWER_TIMEOUT);
                let in_words = |why: &str| format!("{address}: {why}");
                last = match self.ask(address, &request, until).await {
                    Ok(DataAnswer::Refused(refused)) => {
                        let error = refusal(address, refused);
                        let ClientError::Refused {
                            is_retryable: true, ..
                        } = error
                        else {
                            return Err(error);
                        };
                        error
                    }
                    Ok(answer) => return Ok((address.clone(), answer)),
                    Err(Trouble::Unanswered(why)) if is_write => {
                        let reason = in_words(&why);
                        return Err(ClientError::OutcomeUnknown { reason });
                    }
                    Err(Trouble::Unanswered(why)) => ClientError::Unreachable {
                        reason: in_words(&why),
                    },
                    Err(Trouble::NotAsked(error)) => {
                        let reason = in_words(&in_full(&error));
                        denied += usize::from(error.is_denied());
                        if error.is_denied() {
                            ClientError::Denied { reason }
                        } else {
                            ClientError::Unreachable { reason }
                        }
                    }
                };
            }
            let is_over = Instant::now() + ROUND_PAUSE >= deadline;
            if is_over || self.addresses.is_empty() || denied == self.addresses.len() {
                return Err(last);
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn ask(
        &self,
        address: &str,
        request: &Bytes,
        until: Instant,
    ) -> Result<DataAnswer, Trouble> {
        let anyone = Callee::any(address);
        let dialling = Caller::Client.dial(&*self.transport, anyone, DATA, DIAL_TIMEOUT);
        let mut session = timeout_at(until, dialling)
            .await
            .unwrap_or(Err(DialError::Timeout(self.timeout)))
            .map_err(Trouble::NotAsked)?;
        let answering = async {
            session.sender.send(request.clone()).await?;
            let reply = session.receiver.receive().await?.ok_or(DialError::Closed)?;
            let reply: DataReply = decode(Kind::DataReply, reply)?;
            reply.answer.ok_or(DialError::Closed)
        };
        let answered = timeout_at(until, answering).await;
        let answered = answered.unwrap_or(Err(DialError::Timeout(ANSWER_TIMEOUT)));
        answered.map_err(|error| Trouble::Unanswered(in_full(&error)))
    }
}

fn refusal(address: &str, refused: DataRefused) -> ClientError {
    let DataRefused {
        reason,
        is_retryable,
        may_be_done,
        is_denied,
    } = refused;
    let reason = format!("{address}: {reason}");
    if may_be_done {
        ClientError::OutcomeUnknown { reason }
    } else if is_denied {
        ClientError::Denied { reason }
    } else {
        ClientError::Refused {
            reason,
            is_retryable,
        }
    }
}

fn nonsense(address: &str) -> ClientError {
    ClientError::Refused {
        reason: format!("{address} gives an answer to something else"),
        is_retryable: false,
    }
}

fn unknown(address: &str) -> ClientError {
    ClientError::OutcomeUnknown {
        reason: format!("{address} gives an answer to something else"),
    }
}

impl From<&WriteBatch> for WriteCall {
    fn from(batch: &WriteBatch) -> Self {
        let writes = batch.iter().map(|(database, key, value)| OneWrite {
            database: database.to_owned(),
            key: key.clone(),
            value: value.map(|(value, _)| value.clone()),
            ttl_ms: value.and_then(|(_, ttl)| Some(millis(ttl?))),
        });
        Self {
            writes: writes.collect(),
        }
    }
}
