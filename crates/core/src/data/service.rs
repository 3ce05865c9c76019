//! The side of DATA that answers.

use std::future::Future;

use crate::data::messages::{DataAnswer, DataRefused, DataReply, DataRequest, writes_in};
use crate::error::WriteError;
use crate::limits::TRANSACTION_KEYS_MAX;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{Kind, decode, encode};

/// Answers requests with `handle`, one after the other, until the caller closes or sends no request
/// for a while.
///
/// # Errors
/// When the caller sends nonsense or disconnects.
pub(crate) async fn serve<F>(
    handle: impl Fn(DataRequest) -> F,
    mut session: Session,
) -> Result<(), DialError>
where
    F: Future<Output = DataAnswer>,
{
    while let Some(frame) = session.next_request().await? {
        let answer = Some(if writes_in(&frame) > TRANSACTION_KEYS_MAX {
            let max = TRANSACTION_KEYS_MAX;
            DataAnswer::Refused(DataRefused::from(WriteError::TooManyKeys { max }))
        } else {
            let request: DataRequest = decode(Kind::DataRequest, frame)?;
            handle(request).await
        });
        let reply = encode(Kind::DataReply, &DataReply { answer });
        session.sender.send(reply).await?;
    }
    Ok(())
}
