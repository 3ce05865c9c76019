//! Commands of a replica, which the master answers over the connections of the group.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use steadfast::limits::CALL_BYTES_MAX;
use steadfast::{CallError, IncomingCall, ServeCallsError, ServedCalls};
use tokio::time::Instant;

use super::command::{Answer, AnswerMessage, Command, CommandMessage, Refusal};
use super::inner::Inner;
use crate::error::Error;

/// The name of the calls.
const NAME: &str = "etcd";

/// What an answer takes besides the part that depends on what is asked: headers and frames, in bytes.
const ANSWER_OVERHEAD_BYTES: usize = 1024;

impl Inner {
    /// Has the master do a command.
    ///
    /// # Errors
    /// As the master says; [`Refusal::Again`] when it certainly did not get it.
    pub(super) async fn ask_master(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Answer, Refusal> {
        let message = CommandMessage {
            command: Some(command.clone()),
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        let request = message.encode_to_vec();
        let called = self.env.call_master_async(NAME, request, timeout).await;
        match called {
            Ok(answer) => {
                let answer = AnswerMessage::decode(answer);
                answer.map_err(|_| Error::OutcomeUnknown)?.into_result()
            }
            Err(CallError::TooLarge { .. }) => Err(Error::RequestTooLarge.into()),
            Err(CallError::Closed) => Err(Error::Stopped.into()),
            Err(error) if error.may_have_run() && !command.may_be_repeated() => {
                Err(Error::OutcomeUnknown.into())
            }
            Err(_) => Err(Refusal::Again),
        }
    }

    /// Answers the commands of other nodes until what is returned is dropped.
    ///
    /// # Errors
    /// See [`ServeCallsError`].
    pub(super) fn serve_others(self: &Arc<Self>) -> Result<ServedCalls, ServeCallsError> {
        // The environment has the handler, and must not be kept open by it.
        let weak = Arc::downgrade(self);
        self.env.serve_calls(NAME, move |call: IncomingCall| {
            let inner = weak.upgrade();
            async move {
                let answer = match inner {
                    Some(inner) => answer(&inner, call.request).await,
                    None => Err(Refusal::Again),
                };
                let answer = AnswerMessage::from(answer).encode_to_vec();
                if answer.len() > CALL_BYTES_MAX {
                    // It was done, and cannot be told.
                    let unknown = Err(Error::OutcomeUnknown.into());
                    return AnswerMessage::from(unknown).encode_to_vec().into();
                }
                Bytes::from(answer)
            }
        })
    }
}

async fn answer(inner: &Arc<Inner>, request: Bytes) -> Result<Answer, Refusal> {
    let message = CommandMessage::decode(request);
    let command = message.ok().and_then(|message| message.command);
    // Of a newer version, or of none.
    let command = command.filter(Command::is_of_clients);
    let command = command.ok_or(Error::NotLeader)?;
    if !inner.leader.borrow().is_here {
        return Err(Refusal::Again);
    }
    let bytes_max = CALL_BYTES_MAX - ANSWER_OVERHEAD_BYTES;
    inner.answer_here(command, Some(bytes_max)).await
}
