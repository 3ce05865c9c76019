//! The files of a backup as functions of bytes: what the target `cli_backup` in `fuzz/` calls, and
//! what a test calls with its corpus. Their checksums are made right first.

use std::path::Path;

use super::format::{Chunk, ChunkBuilder, Manifest, Record, hex, is_readable, parse_chunk};

/// With 0 in front a manifest, with another number a chunk.
pub(super) fn backup(input: &[u8]) {
    match input.split_first() {
        None => {}
        Some((0, text)) => manifest(text),
        Some((_, body)) => chunk(body),
    }
}

fn manifest(text: &[u8]) {
    let path = Path::new("manifest.json");
    drop(Manifest::parse(path, text));
    let Ok(mut manifest) = serde_json::from_slice::<Manifest>(text) else {
        return;
    };
    manifest.checksum = manifest.own_checksum();
    let text = serde_json::to_vec(&manifest).expect("text and numbers");
    match Manifest::parse(path, &text) {
        Ok(read) => assert_eq!(read, manifest),
        Err(error) => assert!(!is_readable(manifest.format), "{error}"),
    }
}

/// The records of a chunk, which are as long when they are written again.
fn chunk(body: &[u8]) {
    let mut bytes = body.to_vec();
    bytes.extend(blake3::hash(body).as_bytes());
    let chunk = Chunk {
        bytes: bytes.len() as u64,
        checksum: hex(&bytes),
    };
    let mut again = ChunkBuilder::new(1);
    let read = parse_chunk((Path::new("chunk-000001"), &bytes), 1, &chunk, |record| {
        match record {
            Record::Database(name) => again.database(name),
            Record::Row(key, value) => again.row(key, value),
            Record::TimeToLive(left) => again.time_to_live(left),
        }
        Ok(())
    });
    assert!(read.is_err() || again.len() == body.len());
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the corpora are files")]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn manifests_and_chunks_of_the_corpus_are_read_without_a_panic() {
        let mut inputs = paths_in("corpus/cli_backup");
        inputs.retain(|input| {
            let bytes = fs::read(input).expect("read");
            catch_unwind(|| backup(&bytes)).is_err()
        });
        assert!(inputs.is_empty(), "{inputs:?}");
    }

    #[test]
    fn the_one_target_of_this_crate_has_the_one_corpus() {
        for folder in ["corpus", "fuzz_targets"] {
            let names = paths_in(folder).into_iter();
            let names = names.filter_map(|path| path.file_stem()?.to_str().map(str::to_owned));
            let own: Vec<_> = names.filter(|name| name.starts_with("cli_")).collect();
            assert_eq!(own, ["cli_backup"], "{folder}");
        }
    }

    fn paths_in(folder: &str) -> Vec<PathBuf> {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        let entries = fs::read_dir(fuzz.join(folder)).expect("a folder");
        let paths: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert!(!paths.is_empty(), "{folder}");
        paths
    }
}
