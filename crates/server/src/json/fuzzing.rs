//! Bodies as functions of bytes: see [`crate::fuzzing`].

use tonic::Status;

use super::codec::{Codec, Requests};
use super::paths::Paths;

/// Longest text: those of a body that comes in pieces have a bound, which is not meant here.
const TEXT_MAX: usize = 64 * 1024;

/// A body of the method that the first byte chooses, of which as many bytes come at a time as the
/// second says.
pub(crate) fn json(input: &[u8]) {
    let [method, step, text @ ..] = input else {
        return;
    };
    if text.len() > TEXT_MAX {
        return;
    }
    let paths = Paths::new();
    let codec = Codec::new(paths.nth(usize::from(*method)));
    let whole = requests(&codec, text, usize::MAX);
    if let Ok(whole) = &whole {
        let pieces = requests(&codec, text, usize::from(*step) + 1);
        let pieces = pieces.expect("it does not matter how a text comes in");
        assert_eq!(&pieces, whole);
    }
    let first = codec.first_request(text);
    let Ok(first) = first else { return };
    if let Some(one) = whole.ok().and_then(|whole| whole.first().cloned()) {
        assert_eq!(first, one, "one request is the first of many");
    }
    let written = codec.request_text(&first).expect("a request has a text");
    let again = codec.first_request(&written);
    assert_eq!(again.expect("which is read"), first);
}

/// The requests of a text that comes in pieces.
fn requests(codec: &Codec, text: &[u8], step: usize) -> Result<Vec<Vec<u8>>, Status> {
    let (mut requests, mut all) = (Requests::new(codec.clone()), Vec::new());
    for piece in text.chunks(step) {
        requests.add(piece);
        while let Some(next) = requests.next() {
            all.push(next?);
        }
    }
    Ok(all)
}
