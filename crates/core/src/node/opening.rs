//! Opening the log and the engine of a node, and checking that they belong together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use steadfast_net::process;
use tokio::sync::{oneshot, watch};

use super::{Surroundings, log_config};
use crate::config::RepConfig;
use crate::engine::{Applied, StorageEngine};
use crate::error::OpenError;
use crate::group::identity::{DataDir, Identity};
use crate::log::{Log, LogConfig, LogError, LogId, LogIdentity, LogState};
use crate::machine::Machine;
use crate::txn::audit::retrace::RetraceError;
use crate::txn::audit::{Audit, AuditError, Auditor, Opening};
use crate::txn::flush::{Flush, FlushError};

pub(super) async fn open_log(
    config: &RepConfig,
    machine: &Machine,
    dir: &DataDir,
    identity: &Identity,
    around: &Surroundings,
) -> Result<Log, OpenError> {
    check_has_log(machine, dir, identity)?;
    let whose = whose(identity);
    let (log, ended) = start_log(
        log_config(config),
        machine,
        dir.log_dir(identity.log),
        whose,
    )
    .await?;
    let (failed, watched) = (Arc::clone(&around.failed), log.clone());
    process::spawn(async move {
        // Whatever ended the writer, closing says why.
        ended.await.ok();
        if let Err(error) = watched.close().await {
            failed(format!("the log failed: {error}"));
        }
    });
    Ok(log)
}

/// Opens the log of a node that is not going to run.
///
/// # Errors
/// See [`OpenError`].
pub(crate) async fn open_idle_log(
    config: &LogConfig,
    machine: &Machine,
    dir: &DataDir,
    identity: &Identity,
) -> Result<Log, OpenError> {
    check_has_log(machine, dir, identity)?;
    let (log, _ended) =
        start_log(*config, machine, dir.log_dir(identity.log), whose(identity)).await?;
    Ok(log)
}

fn check_has_log(machine: &Machine, dir: &DataDir, identity: &Identity) -> Result<(), OpenError> {
    if dir.has_log(&*machine.disk, identity.log)? {
        return Ok(());
    }
    Err(OpenError::Corrupt {
        path: dir.log_dir(identity.log),
        offset: 0,
        what: "the identity says that there is a log, but there is none".to_owned(),
    })
}

/// Creates the log of a node whose group has just formed, before its identity says so: an identity
/// without a log means a lost log.
///
/// # Errors
/// See [`OpenError`].
pub(crate) async fn create_log(
    config: &LogConfig,
    machine: &Machine,
    dir: &DataDir,
    identity: &Identity,
) -> Result<(), OpenError> {
    dir.remove_log(&*machine.disk, identity.log)?;
    let whose = whose(identity);
    let (log, _ended) = start_log(*config, machine, dir.log_dir(identity.log), whose).await?;
    log.close().await.map_err(open_log_error)
}

pub(super) fn whose(identity: &Identity) -> LogIdentity {
    LogIdentity {
        group: identity
            .group
            .expect("a log is made when its group has formed"),
        node: identity.node_id,
        incarnation: identity.incarnation,
    }
}

/// Opens the log in `path` with its writer on a thread; the receiver reports when that has ended.
async fn start_log(
    log_config: LogConfig,
    machine: &Machine,
    path: PathBuf,
    whose: LogIdentity,
) -> Result<(Log, oneshot::Receiver<()>), OpenError> {
    let disk = Arc::clone(&machine.disk);
    let (opened_sender, opened) = oneshot::channel();
    let ended = machine.run("steadfast-log", async move {
        match Log::open(disk, path, whose, log_config).await {
            Ok((log, writer)) => {
                opened_sender.send(Ok(log)).ok();
                writer.run().await;
            }
            Err(error) => drop(opened_sender.send(Err(error))),
        }
    })?;
    let opened = opened
        .await
        .map_err(|_| OpenError::Start("the log's thread died".to_owned()))?;
    Ok((opened.map_err(open_log_error)?, ended))
}

fn open_log_error(error: LogError) -> OpenError {
    match error {
        LogError::Corrupt {
            file,
            offset,
            damage,
        } => OpenError::Corrupt {
            path: file,
            offset,
            what: damage.to_string(),
        },
        other => OpenError::Log(other),
    }
}

/// Opens the engine, which may take long.
///
/// # Errors
/// See [`OpenError`].
pub(crate) async fn open_engine(
    machine: &Machine,
    dir: &DataDir,
    identity: &Identity,
) -> Result<Arc<dyn StorageEngine>, OpenError> {
    let path = dir.engine_dir(identity.copy);
    let engines = Arc::clone(&machine.engines);
    let opened = machine.run("steadfast-open", async move { engines.open(&path) })?;
    let opened = opened
        .await
        .map_err(|_| OpenError::Start("the engine's thread died".to_owned()))?;
    Ok(opened?)
}

pub(super) type FlushEnd = oneshot::Receiver<Result<(), FlushError>>;

/// An engine that was checked against the log, and the auditor that continues to check it.
pub(super) struct Audited {
    pub(super) log: Log,
    pub(super) engine: Arc<dyn StorageEngine>,
    pub(super) auditor: Auditor,
    pub(super) audit: Arc<Audit>,
}

/// Checks the engine against the log, which may take long.
pub(super) async fn audit(
    config: &RepConfig,
    machine: &Machine,
    opening: Opening,
) -> Result<Audited, OpenError> {
    let (log, engine) = (opening.log.clone(), Arc::clone(&opening.engine));
    check_log_reaches(log.state(), engine.applied()?.as_ref(), &config.data_dir)?;
    let audit = Arc::<Audit>::default();
    let auditing = Auditor::open(opening, Arc::clone(&audit));
    let opened = machine.run("steadfast-audit", auditing)?;
    let opened = opened
        .await
        .map_err(|_| OpenError::Start("the audit's thread died".to_owned()))?;
    let auditor = opened.map_err(|error| match error {
        AuditError::Differs(what) => OpenError::EngineDiffers { what },
        AuditError::Retrace(RetraceError::Log(error)) => open_log_error(error),
        AuditError::Engine(error) | AuditError::Retrace(RetraceError::Engine(error)) => {
            OpenError::Engine(error)
        }
        error => OpenError::Start(error.to_string()),
    })?;
    Ok(Audited {
        log,
        engine,
        auditor,
        audit,
    })
}

/// The engine never gets what is not in the log on disk, and the log never drops what the engine
/// does not have on disk. If the two do not meet, one of them has lost synced data.
pub(crate) fn check_log_reaches(
    log: LogState,
    held: Option<&Applied>,
    data_dir: &Path,
) -> Result<(), OpenError> {
    let position = |id: Option<LogId>| id.map(|id| id.position);
    let engine = held.map(|held| held.position);
    if position(log.purged) <= engine && engine <= position(log.last) {
        return Ok(());
    }
    let log_has = match (log.purged, log.last) {
        (_, None) => "is empty".to_owned(),
        (None, Some(last)) => format!("ends with entry {last}"),
        (Some(purged), Some(last)) => format!("has the entries after {purged}, up to {last}"),
    };
    let engine_has = held.map_or_else(
        || "nothing".to_owned(),
        |held| format!("entries up to {}@{}", held.position, held.term),
    );
    Err(OpenError::Corrupt {
        path: data_dir.join("log"),
        offset: 0,
        what: format!("the log {log_has}, but the storage engine holds {engine_has}"),
    })
}

pub(super) fn start_flush(
    machine: &Machine,
    flush: &Arc<Flush>,
    auditor: Auditor,
    log: &Log,
    around: &Surroundings,
) -> Result<(watch::Sender<bool>, FlushEnd), OpenError> {
    let (stop_sender, stop) = watch::channel(false);
    let (flush, persisted) = (Arc::clone(flush), log.persisted());
    let (failed, stopping) = (Arc::clone(&around.failed), stop.clone());
    let ended = machine.run_in_background("steadfast-flush", async move {
        let result = flush.run(auditor, persisted, stop).await;
        // Whoever stops the node gets the error from `stop`, and knows how to handle it.
        if let Err(error) = &result
            && !*stopping.borrow()
        {
            failed(error.to_string());
        }
        flush.end();
        result
    })?;
    Ok((stop_sender, ended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogPosition, Term, Vlsn};

    #[test]
    fn a_log_and_an_engine_that_do_not_meet_are_corrupt() {
        let term = Term(2);
        let id = |position| LogId {
            term,
            position: LogPosition(position),
        };
        let held = Applied {
            term,
            position: LogPosition(7),
            vlsn: Vlsn(3),
            membership: bytes::Bytes::new(),
        };
        let check = |purged: Option<u64>, last: Option<u64>, held: Option<&Applied>| {
            let log = LogState {
                purged: purged.map(id),
                last: last.map(id),
                ..LogState::default()
            };
            check_log_reaches(log, held, Path::new("/data"))
        };
        let meets = [
            (None, Some(7), Some(&held)),
            (None, Some(9), Some(&held)),
            (Some(7), Some(7), Some(&held)),
            (Some(4), Some(9), Some(&held)),
            (None, None, None),
            (None, Some(9), None),
        ];
        for (purged, last, held) in meets {
            assert!(check(purged, last, held).is_ok(), "{purged:?} {last:?}");
        }
        let lost = [
            (None, None, Some(&held)),
            (None, Some(6), Some(&held)),
            (Some(8), Some(9), Some(&held)),
            (Some(3), Some(9), None),
        ];
        for (purged, last, held) in lost {
            let refused = check(purged, last, held).expect_err("entries are lost");
            let refused = refused.to_string();
            assert!(refused.contains("/data/log is corrupt"), "{refused}");
        }
    }
}
