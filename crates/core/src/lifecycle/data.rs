//! Single reads and writes for other processes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::access::Holder;
use crate::data::messages::{
    DataAnswer, DataCall, DataRefused, DataRequest, DatabasesMessage, FoundMessage, GetCall,
    OneWrite, WriteCall,
};
use crate::data::service;
use crate::error::{Outcome, ReadError, WriteError};
use crate::lifecycle::Lifecycle;
use crate::limits::RESERVED_DATABASES_PREFIX;
use crate::policy::ConsistencyPolicy;
use crate::txn::transaction::Transaction;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::WireError;

impl Lifecycle {
    /// Serves one DATA connection.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(super) async fn serve_data(self: Arc<Self>, session: Session) -> Result<(), DialError> {
        let weak = &Arc::downgrade(&self);
        // A connection must not keep a dropped environment alive.
        drop(self);
        let holder = &session.holder.clone();
        let answer = |request| async move {
            match weak.upgrade() {
                Some(lifecycle) => lifecycle.answer_data(request, holder.as_ref()).await,
                None => DataAnswer::Refused(ReadError::Closed.into()),
            }
        };
        service::serve(answer, session).await
    }

    /// The answer to a request; `holder` has made it, if the connection says who.
    async fn answer_data(&self, request: DataRequest, holder: Option<&Holder>) -> DataAnswer {
        let own = &self.config.group;
        if !request.group_name.is_empty() && request.group_name != *own {
            let wanted = request.group_name;
            return refused(format!("the node belongs to group {own}, not {wanted}"));
        }
        let answered = match request.call {
            Some(DataCall::Get(call)) => self.answer_get(call).await,
            Some(DataCall::Databases(freshness)) => match freshness.try_into() {
                Ok(policy) => self.answer_databases(policy).await,
                Err(error) => Err(invalid(&error)),
            },
            Some(DataCall::Write(_)) if !holder.is_none_or(Holder::may_write) => Err(DataRefused {
                is_denied: true,
                ..refusal("writing needs credentials of the role admin".to_owned())
            }),
            Some(DataCall::Write(call)) => self.answer_write_call(call).await,
            None => Err(refusal(
                "the node does not know this request: it is of an earlier version".to_owned(),
            )),
        };
        answered.unwrap_or_else(DataAnswer::Refused)
    }

    async fn answer_get(&self, call: GetCall) -> Result<DataAnswer, DataRefused> {
        let policy = ConsistencyPolicy::try_from(call.freshness.unwrap_or_default());
        let policy = policy.map_err(|error| invalid(&error))?;
        let snapshot = self.snapshot(policy.into()).await?;
        let found = snapshot.database(&call.database)?.get(&call.key)?;
        let value = found.map(|value| Bytes::copy_from_slice(value.as_ref()));
        Ok(DataAnswer::Found(FoundMessage { value }))
    }

    async fn answer_databases(&self, policy: ConsistencyPolicy) -> Result<DataAnswer, DataRefused> {
        let names = self.snapshot(policy.into()).await?.list_databases()?;
        Ok(DataAnswer::Databases(DatabasesMessage { names }))
    }

    async fn answer_write_call(&self, call: WriteCall) -> Result<DataAnswer, DataRefused> {
        let is_reserved = |write: &&OneWrite| write.database.starts_with(RESERVED_DATABASES_PREFIX);
        if let Some(OneWrite { database, .. }) = call.writes.iter().find(is_reserved) {
            let why = "belongs to the etcd API of the group: write with a client of etcd";
            return Err(refusal(format!("the database {database:?} {why}")));
        }
        let committed = self.write(None, |txn| apply(&call, txn)).await?;
        Ok(DataAnswer::Written(committed.token.into()))
    }
}

fn apply(call: &WriteCall, txn: &Transaction) -> Result<(), WriteError> {
    for one in &call.writes {
        let (database, key) = (txn.database(&one.database)?, one.key.clone());
        match (one.value.clone(), one.ttl_ms) {
            (Some(value), Some(ttl_ms)) => {
                database.set_with_ttl(key, value, Duration::from_millis(ttl_ms))?;
            }
            (value, _) => database.set(key, value)?,
        }
    }
    Ok(())
}

fn refusal(reason: String) -> DataRefused {
    DataRefused {
        reason,
        ..DataRefused::default()
    }
}

fn refused(reason: String) -> DataAnswer {
    DataAnswer::Refused(refusal(reason))
}

fn invalid(error: &WireError) -> DataRefused {
    refusal(error.to_string())
}

impl From<ReadError> for DataRefused {
    fn from(error: ReadError) -> Self {
        Self {
            is_retryable: error.is_retryable(),
            ..refusal(error.to_string())
        }
    }
}

impl From<WriteError> for DataRefused {
    fn from(error: WriteError) -> Self {
        Self {
            is_retryable: error.is_retryable(),
            may_be_done: error.outcome() != Outcome::NotCommitted,
            ..refusal(error.to_string())
        }
    }
}
