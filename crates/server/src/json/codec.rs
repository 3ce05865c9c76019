//! Messages as JSON in the form of etcd: 64-bit numbers as strings, enums by name, the names of the
//! `.proto` files, bytes as base64, defaults left out. What is read may also have numbers for
//! numbers and enums, names in camel case, and fields that nobody knows.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message as _;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::value::RawValue;
use tonic::Status;

use crate::grpc::frames::too_large;

const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
const WRITE: SerializeOptions = SerializeOptions::new()
    .stringify_64_bit_integers(true)
    .use_enum_numbers(false)
    .use_proto_field_name(true)
    .skip_default_fields(true);

/// Bytes of one request among many of a body: a watch names two keys of 64 KiB at most. A request
/// that comes in pieces is read again from its beginning with each, so it must not be long.
const TEXT_MAX: usize = 256 * 1024;

/// Translates the requests and answers of one method.
#[derive(Clone)]
pub(super) struct Codec {
    request: MessageDescriptor,
    answer: MessageDescriptor,
}

impl Codec {
    pub(super) fn new(method: &MethodDescriptor) -> Self {
        Self {
            request: method.input(),
            answer: method.output(),
        }
    }

    /// The request that `text` begins with, encoded; an empty text is the empty request.
    pub(super) fn first_request(&self, text: &[u8]) -> Result<Vec<u8>, Status> {
        match self.next_request(text) {
            Next::Request { message, .. } => Ok(message),
            Next::Nothing => Ok(Vec::new()),
            Next::Cut(what) | Next::Wrong(what) => Err(Status::invalid_argument(what)),
        }
    }

    /// An encoded answer as JSON.
    pub(super) fn answer(&self, message: &[u8]) -> Result<Vec<u8>, Status> {
        text_of(&self.answer, message)
    }

    /// An encoded request as JSON, in the form of answers.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn request_text(&self, message: &[u8]) -> Result<Vec<u8>, Status> {
        text_of(&self.request, message)
    }

    fn next_request(&self, all: &[u8]) -> Next {
        let mut texts = serde_json::Deserializer::from_slice(all).into_iter::<&RawValue>();
        let text = match texts.next() {
            None => return Next::Nothing,
            Some(Ok(text)) => text.get(),
            Some(Err(error)) if error.is_eof() || ends_in_a_number(all, &error) => {
                return Next::Cut(error.to_string());
            }
            Some(Err(error)) => return Next::Wrong(error.to_string()),
        };
        let end = texts.byte_offset();
        if text == "null" {
            let message = Vec::new();
            return Next::Request { message, end };
        }
        let mut text = serde_json::Deserializer::from_str(text);
        match DynamicMessage::deserialize_with_options(self.request.clone(), &mut text, &READ) {
            Ok(message) => Next::Request {
                message: message.encode_to_vec(),
                end,
            },
            Err(error) => Next::Wrong(error.to_string()),
        }
    }
}

/// Whether a text is wrong for nothing but its last byte, which begins a part of a number.
fn ends_in_a_number(text: &[u8], error: &serde_json::Error) -> bool {
    let last_line = text.rsplit(|byte| *byte == b'\n').next();
    let lines = text.split(|byte| *byte == b'\n').count();
    let is_at_end =
        error.line() == lines && last_line.is_some_and(|line| error.column() >= line.len());
    is_at_end && matches!(text.last(), Some(b'-' | b'+' | b'.' | b'e' | b'E'))
}

/// An encoded message as JSON.
fn text_of(descriptor: &MessageDescriptor, message: &[u8]) -> Result<Vec<u8>, Status> {
    let failed = |what: String| Status::internal(what);
    let message = DynamicMessage::decode(descriptor.clone(), message)
        .map_err(|error| failed(error.to_string()))?;
    let mut text = serde_json::Serializer::new(Vec::new());
    let written = message.serialize_with_options(&mut text, &WRITE);
    written.map_err(|error| failed(error.to_string()))?;
    Ok(text.into_inner())
}

/// What a text begins with.
enum Next {
    /// A request, which ends at this place of the text.
    Request { message: Vec<u8>, end: usize },
    /// White space to its end.
    Nothing,
    /// A request that does not end in the text.
    Cut(String),
    /// No request.
    Wrong(String),
}

/// The requests of a body that is not all there yet.
pub(super) struct Requests {
    codec: Codec,
    /// What is not a whole request yet.
    text: BytesMut,
}

impl Requests {
    pub(super) fn new(codec: Codec) -> Self {
        let text = BytesMut::new();
        Self { codec, text }
    }

    /// More of the body.
    pub(super) fn add(&mut self, data: &[u8]) {
        self.text.extend_from_slice(data);
    }

    /// The next request that is all there, encoded.
    pub(super) fn next(&mut self) -> Option<Result<Vec<u8>, Status>> {
        match self.codec.next_request(&self.text) {
            Next::Request { message, end } => {
                self.text.advance(end);
                Some(Ok(message))
            }
            Next::Cut(_) if self.text.len() > TEXT_MAX => {
                Some(Err(too_large(self.text.len(), TEXT_MAX)))
            }
            Next::Cut(_) | Next::Nothing => None,
            Next::Wrong(what) => Some(Err(Status::invalid_argument(what))),
        }
    }
}

/// One answer of many, as a line.
pub(super) fn result_line(answer: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(answer.len() + 12);
    line.extend_from_slice(b"{\"result\":");
    line.extend_from_slice(answer);
    line.extend_from_slice(b"}\n");
    line.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::paths::Paths;

    #[test]
    fn a_request_that_is_cut_in_a_number_is_waited_for() {
        let paths = Paths::new();
        let codec = Codec::new(paths.find("/v3/watch").expect("a path"));
        let text = b"{\n\"create_request\":{\"start_revision\":-1,\"who\":[1.5e+3,2E-1]}}";
        let whole = codec.first_request(text).expect("a request");
        for cut in 1..text.len() {
            let mut requests = Requests::new(codec.clone());
            requests.add(&text[..cut]);
            assert!(requests.next().is_none(), "cut at {cut}");
            requests.add(&text[cut..]);
            let next = requests.next().expect("it is whole");
            assert_eq!(next.expect("a request"), whole, "cut at {cut}");
        }
        for wrong in [&b"{\"ID\":e"[..], b"{\"ID\":1,.", b"{-", b"{\"a\":1e2.\n"] {
            let mut requests = Requests::new(codec.clone());
            requests.add(wrong);
            requests.add(b"}");
            let next = requests.next().expect("it is told");
            next.expect_err("it is no request");
        }
    }
}
