//! Taking a backup: writes down the state with which a subscription begins.

use std::path::Path;
use std::time::Duration;

use steadfast::{
    CommitToken, FeedError, FeedEvent, NodeStatus, Role, StartAt, Subscription, plural,
};

use crate::backup::format::{
    BackedUp, BackupError, CHUNK_BYTES, Chunk, ChunkBuilder, Digest, Manifest, VERSION, chunk_path,
    make_empty,
};
use crate::failure::{Failure, with_sources};
use crate::progress::Progress;
use crate::status::{ANSWER_TIMEOUT, Ask, Health, Survey, grouped};

/// Copies the state into `dir`.
///
/// # Errors
/// When no node can be read, none is known to be current and `stale` is false, or a file cannot be
/// written.
pub(super) async fn create(ask: &Ask, dir: &Path, stale: bool) -> Result<Manifest, Failure> {
    let survey = ask.survey().await?;
    let source = source(&survey)?;
    match (word(&survey, &source), stale) {
        (Ok(word), _) | (Err(word), true) => eprintln!("note: {word}"),
        (Err(word), false) => {
            return Err(Failure::new(
                word,
                "nothing was changed",
                "see `steadfast doctor`; ask a node of the majority (--ask), or accept this state with --stale",
            ));
        }
    }
    make_empty(dir)?;
    let address = source.node.address.clone();
    // Before the first byte moves: it is only an estimate of the total.
    let network = ask.network()?;
    let total = NodeStatus::ask_data_bytes(&*network, &address, ANSWER_TIMEOUT).await;
    let mut progress = Progress::new("copied", total.unwrap_or(0));
    let connecting =
        Subscription::connect_on(network, vec![address], &survey.group_name, StartAt::Start);
    let connected = connecting.await;
    let mut state = connected.map_err(|error| failed(&error))?;
    let mut writer = Writer::new(dir);
    let (token, digest) = loop {
        match state.next_async().await {
            Some(Ok(FeedEvent::State {
                database,
                rows,
                expiring,
            })) => {
                writer.part(&database, &rows, &expiring)?;
                progress.update(writer.bytes);
            }
            Some(Ok(FeedEvent::StateComplete { token, digest })) => break (token, digest),
            Some(Ok(_)) | None => unreachable!("a state comes first, and is ended by its token"),
            Some(Err(error)) => return Err(failed(&error)),
        }
    };
    state.close_async().await;
    if digest.is_none() {
        eprintln!(
            "note: {} did not report in time what its state has to be, so the rows were not checked against it",
            source.node.name
        );
    }
    Ok(writer.end(&survey, &source, token, digest)?)
}

/// The node to read: one that knows of no damage of its own, has the most, and is not the master,
/// which is busy enough.
fn source(survey: &Survey) -> Result<NodeStatus, Failure> {
    let with_data = survey.nodes.iter().filter(|node| node.has_data());
    let working = with_data.filter(|node| node.is_working());
    let working = working.filter_map(|node| node.status.as_ref().ok());
    let well = working.filter(|status| status.damage.is_none());
    let best = well.max_by_key(|status| (status.role != Role::Master, status.vlsn));
    best.cloned().ok_or_else(|| {
        Failure::new(
            "no working node has undamaged data",
            "nothing was changed",
            "start the nodes that are down; see `steadfast doctor`",
        )
    })
}

/// How old this node's state is, and on whose word; an error if nobody's word counts.
fn word(survey: &Survey, source: &NodeStatus) -> Result<String, String> {
    let (name, vlsn) = (&source.node.name, grouped(source.vlsn.0));
    match &survey.master {
        Some(master) if survey.health != Health::NoQuorum => {
            let behind = master.vlsn.0.saturating_sub(source.vlsn.0);
            Ok(format!(
                "{name} has everything up to VLSN {vlsn}, {} {} behind its master {} at this moment",
                grouped(behind),
                plural(behind, "transaction", "transactions"),
                master.node.name
            ))
        }
        _ => {
            let heard = match source.master_heard_ms_ago {
                Some(ago) => format!("has heard no master for {} s", ago / 1_000),
                None if source.role == Role::Master => "leads, and reaches no majority".to_owned(),
                None => "has heard no master since it started".to_owned(),
            };
            Err(format!(
                "no majority says that {name} is current: it {heard}, and its state, up to VLSN {vlsn}, may lack what \
                 was acknowledged since"
            ))
        }
    }
}

fn failed(error: &FeedError) -> Failure {
    let what = match error {
        FeedError::Disconnected { reason, .. } => {
            format!("the node being backed up no longer sends its state: {reason}")
        }
        error => with_sources(error),
    };
    let to_do = match error {
        FeedError::Disconnected { .. } => {
            "see `steadfast status`: start that node, or ask another one with --ask; then try again with another directory"
        }
        FeedError::SnapshotTooOld => {
            "on that node, raise snapshot_age_max_ms above the time that a backup takes, and window_bytes_max above the bytes written meanwhile; then try again"
        }
        _ => "see `steadfast status`, then try again with another directory",
    };
    Failure::new(
        what,
        "nothing in the group was changed; the backup is incomplete, and `backup verify` says so",
        to_do,
    )
}

/// Writes rows into chunks.
struct Writer<'a> {
    dir: &'a Path,
    builder: ChunkBuilder,
    chunks: Vec<Chunk>,
    databases: Vec<BackedUp>,
    digest: Digest,
    rows: u64,
    bytes: u64,
}

impl<'a> Writer<'a> {
    fn new(dir: &'a Path) -> Self {
        Self {
            dir,
            builder: ChunkBuilder::new(1),
            chunks: Vec::new(),
            databases: Vec::new(),
            digest: Digest::default(),
            rows: 0,
            bytes: 0,
        }
    }

    fn part(
        &mut self,
        database: &str,
        rows: &[(bytes::Bytes, bytes::Bytes)],
        expiring: &[(usize, Duration)],
    ) -> Result<(), BackupError> {
        if self
            .databases
            .last()
            .is_none_or(|last| last.name != database)
        {
            self.digest.add(database.as_bytes());
            self.databases.push(BackedUp {
                name: database.to_owned(),
                rows: 0,
            });
            self.builder.database(database);
        }
        let mut expiring = expiring.iter().peekable();
        for (index, (key, value)) in rows.iter().enumerate() {
            let size = key.len() + value.len();
            if self.builder.len() + size > CHUNK_BYTES && !self.builder.is_empty() {
                self.next_chunk()?;
                self.builder.database(database);
            }
            if let Some((_, left)) = expiring.next_if(|(of, _)| *of == index) {
                self.builder.time_to_live(*left);
            }
            self.builder.row(key, value);
            self.digest.add(key);
            self.digest.add(value);
            self.bytes += size as u64;
        }
        self.rows += rows.len() as u64;
        if let Some(last) = self.databases.last_mut() {
            last.rows += rows.len() as u64;
        }
        Ok(())
    }

    fn next_chunk(&mut self) -> Result<(), BackupError> {
        let number = self.chunks.len() + 1;
        let next = ChunkBuilder::new(number + 1);
        let full = std::mem::replace(&mut self.builder, next);
        let chunk = full.write(&chunk_path(self.dir, number))?;
        self.chunks.push(chunk);
        Ok(())
    }

    fn end(
        mut self,
        survey: &Survey,
        source: &NodeStatus,
        token: CommitToken,
        digest: Option<u128>,
    ) -> Result<Manifest, BackupError> {
        if !self.builder.is_empty() {
            self.next_chunk()?;
        }
        let manifest = Manifest {
            format: VERSION,
            group_name: survey.group_name.clone(),
            group: token.group.to_string(),
            vlsn: token.vlsn.0,
            token: token.to_string(),
            created_at_ms: source.clock_ms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rows: self.rows,
            bytes: self.bytes,
            databases: self.databases,
            chunks: self.chunks,
            digest: self.digest.hex(),
            running_digest: digest.map(|digest| format!("{digest:032x}")),
            checksum: String::new(),
        };
        manifest.write(self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_that_fails_is_told_of_as_one() {
        let went = failed(&FeedError::Disconnected {
            resume: None,
            reason: "n2 has closed".to_owned(),
        });
        let text = went.to_string();
        assert!(
            text.contains("the node being backed up no longer sends its state: n2 has closed"),
            "{text}"
        );
        assert!(text.contains("--ask"), "{text}");
        let slow = failed(&FeedError::SnapshotTooOld).to_string();
        assert!(slow.contains("snapshot_age_max_ms"), "{slow}");
        for text in [text, slow] {
            assert!(text.contains("the backup is incomplete"), "{text}");
            assert!(!text.contains("subscription"), "{text}");
        }
    }
}
