//! The time that a client gives a call, by the header `grpc-timeout`: an answer that is not there by
//! then is the error `DeadlineExceeded`, and a stream of answers ends with it.
//!
//! What the call has begun is given up where it only reads or waits. A write that is under way goes
//! on, and may be committed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

/// The name of the header.
pub(crate) const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Most digits of a time.
const DIGITS_MAX: usize = 8;

/// The answer of the services to a request, or that its time is over.
pub(crate) async fn call<B>(mut routes: Routes, request: Request<B>) -> Response<Body>
where
    Routes: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    let timeout = match timeout_of(request.headers()) {
        Ok(timeout) => timeout,
        Err(status) => return status.into_http(),
    };
    // A time that the clock cannot count to is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    // Routes are always ready, and cannot fail.
    let answering = routes.call(request);
    let answered = match deadline {
        None => Ok(answering.await),
        Some(deadline) => timeout_at(deadline, answering).await,
    };
    match (answered, deadline) {
        (Err(_), _) => exceeded().into_http(),
        (Ok(Ok(response)), None) => response,
        (Ok(Ok(response)), Some(deadline)) => response.map(|body| {
            Body::new(Until {
                body,
                deadline,
                timer: None,
                is_over: false,
            })
        }),
        (Ok(Err(never)), _) => match never {},
    }
}

/// The time that the headers of a request give it.
fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    let parsed = parse(value);
    let wrong = || Status::internal(format!("malformed grpc-timeout: {value:?}"));
    parsed.ok_or_else(wrong).map(Some)
}

/// Up to eight digits and a unit.
fn parse(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn exceeded() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// Answers up to a time, then the error.
struct Until {
    body: Body,
    deadline: Instant,
    /// Made once an answer has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let deadline = self.deadline;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.is_over = true;
        // The call ends here, not with the connection.
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        let written = exceeded().add_header(&mut trailers);
        Poll::Ready(Some(written.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_up_to_eight_digits_and_a_unit() {
        let parsed = |text| parse(&HeaderValue::from_static(text));
        for (text, time) in [
            ("2H", Duration::from_hours(2)),
            ("99999999H", Duration::from_hours(99_999_999)),
            ("3M", Duration::from_mins(3)),
            ("0S", Duration::ZERO),
            ("4999971u", Duration::from_micros(4_999_971)),
            ("12m", Duration::from_millis(12)),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(parsed(text), Some(time), "{text}");
        }
        for wrong in [
            "",
            "S",
            "5",
            "5s",
            "-5S",
            "+5S",
            "1.5S",
            "5 S",
            "123456789S",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_answers_nothing_more_ends_in_time_and_is_given_up() {
        use http_body_util::{BodyExt, StreamBody};
        use tokio::sync::mpsc;
        use tokio_stream::wrappers::ReceiverStream;

        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let began = Instant::now();
        let mut body = Until {
            body: Body::new(StreamBody::new(ReceiverStream::new(receiver))),
            deadline: began + Duration::from_secs(5),
            timer: None,
            is_over: false,
        };
        let first = Frame::data(Bytes::from_static(b"answer"));
        sender.send(Ok(first)).await.expect("it is read");
        let frame = body.frame().await.expect("a frame").expect("an answer");
        assert_eq!(frame.into_data().expect("data"), "answer");
        let last = body.frame().await.expect("a frame").expect("an end");
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let trailers = last.into_trailers().expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(sender.is_closed());
        assert!(body.frame().await.is_none());
    }
}
