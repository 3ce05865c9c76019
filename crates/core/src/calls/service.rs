//! The called side: a task for each request of a connection, and the answers as they come.

use std::time::Duration;

use bytes::Bytes;
use steadfast_net::{BoxFuture, FrameSender, process};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::calls::messages::{CallAnswer, CallRefusal, CallReply, CallRequest};
use crate::limits::{CALL_BYTES_MAX, CALLS_IN_FLIGHT_BYTES_MAX, CALLS_IN_FLIGHT_MAX};
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{Kind, decode, encode};

/// How often a node says that it is there, although it has no answer.
const STANDING_INTERVAL: Duration = Duration::from_secs(1);

/// A longer request is worth keeping in the buffer that it came in; a shorter one is copied, or it would
/// keep the whole buffer for as long as its handler takes.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// What becomes of a request: its answer, or why there is none.
pub(crate) type Handled = BoxFuture<'static, Result<Bytes, String>>;

/// A request that was answered.
struct Answered {
    id: u64,
    request_bytes: usize,
    answer: CallAnswer,
}

/// With which a handler says something before its answer, once.
pub(crate) struct Tell {
    id: u64,
    told: mpsc::Sender<(u64, Bytes)>,
}

impl Tell {
    pub(crate) fn tell(self, what: Bytes) {
        // Only a caller that takes nothing at all has so many untold, and its connection is given up.
        self.told.try_send((self.id, what)).ok();
    }
}

/// Has `begin` handle the requests of one peer until it closes. A handler is dropped when its caller
/// waits no longer, and when the connection ends.
///
/// # Errors
/// When the peer sends nonsense, disconnects, or does not take its answers.
pub(crate) async fn serve(
    session: Session,
    bytes_max: usize,
    begin: impl Fn(&CallRequest, Tell) -> Result<Handled, CallRefusal>,
) -> Result<(), DialError> {
    let (mut sender, mut receiver) = (session.sender, session.receiver);
    let mut under_way: JoinSet<Answered> = JoinSet::new();
    let (tell, mut told) = mpsc::channel(CALLS_IN_FLIGHT_MAX);
    let mut request_bytes = 0;
    let mut stands_until = Instant::now() + STANDING_INTERVAL;
    loop {
        let has_room =
            under_way.len() < CALLS_IN_FLIGHT_MAX && request_bytes < CALLS_IN_FLIGHT_BYTES_MAX;
        tokio::select! {
            biased;
            Some((id, what)) = told.recv() => {
                feed(&mut sender, id, CallAnswer::Told(what)).await?;
                while let Ok((id, what)) = told.try_recv() {
                    feed(&mut sender, id, CallAnswer::Told(what)).await?;
                }
                sender.flush().await?;
            }
            Some(answered) = under_way.join_next(), if !under_way.is_empty() => {
                let mut next = Some(answered);
                while let Some(answered) = next {
                    // Panics were caught: it was aborted, with the runtime.
                    let Ok(answered) = answered else { return Ok(()) };
                    request_bytes -= answered.request_bytes;
                    feed(&mut sender, answered.id, answered.answer).await?;
                    next = under_way.try_join_next();
                }
                sender.flush().await?;
                stands_until = Instant::now() + STANDING_INTERVAL;
            }
            frame = receiver.receive(), if has_room => {
                let Some(frame) = frame? else { return Ok(()) };
                let mut request: CallRequest = decode(Kind::CallRequest, frame)?;
                if request.body.len() <= COPY_BYTES_MAX {
                    request.body = Bytes::copy_from_slice(&request.body);
                }
                request_bytes += request.body.len();
                let begun = if request.body.len() > bytes_max {
                    Err(CallRefusal::TooLarge)
                } else {
                    let (id, told) = (request.id, tell.clone());
                    begin(&request, Tell { id, told })
                };
                under_way.spawn(process::in_current(answer(request, begun)));
            }
            () = sleep_until(stands_until) => {
                feed(&mut sender, 0, CallAnswer::Standing(true)).await?;
                sender.flush().await?;
                stands_until = Instant::now() + STANDING_INTERVAL;
            }
        }
    }
}

async fn answer(request: CallRequest, begun: Result<Handled, CallRefusal>) -> Answered {
    let (id, request_bytes) = (request.id, request.body.len());
    let within = Duration::from_millis(request.timeout_ms);
    drop(request);
    let answer = match begun {
        Err(refusal) => CallAnswer::Refused(refusal.into()),
        Ok(handled) => match timeout(within, handled).await {
            Ok(handled) => handled
                .and_then(sendable)
                .map_or_else(CallAnswer::Failed, CallAnswer::Done),
            Err(_) => CallAnswer::Failed("not in time".to_owned()),
        },
    };
    Answered {
        id,
        request_bytes,
        answer,
    }
}

/// The answer, unless it is too large.
pub(crate) fn sendable(answer: Bytes) -> Result<Bytes, String> {
    let bytes = answer.len();
    if bytes <= CALL_BYTES_MAX {
        return Ok(answer);
    }
    Err(format!(
        "its answer of {bytes} bytes exceeds the limit of {CALL_BYTES_MAX}"
    ))
}

async fn feed(sender: &mut FrameSender, id: u64, answer: CallAnswer) -> Result<(), DialError> {
    let answer = Some(answer);
    let reply = encode(Kind::CallReply, &CallReply { id, answer });
    Ok(sender.feed(reply).await?)
}
