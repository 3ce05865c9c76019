//! Read barriers: one serves every read that arrived before the barrier was requested.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::consensus::{Consensus, ConsensusError};
use crate::ids::LogPosition;

/// Reads that may wait for one barrier; further reads wait to be admitted.
const WAITING_MAX: usize = 65_536;

type Answer = Result<Option<LogPosition>, ConsensusError>;

/// A barrier that was obtained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    /// A position at or above every write acknowledged before the barrier was requested.
    pub(crate) position: Option<LogPosition>,
    /// When it was requested.
    pub(crate) asked: Instant,
}

/// Requests barriers from consensus, one at a time.
pub(crate) struct ReadBarriers {
    requests: mpsc::Sender<oneshot::Sender<Answer>>,
    last: watch::Receiver<Option<Barrier>>,
}

impl ReadBarriers {
    /// Starts the requesting task. It ends with the last handle, or with consensus.
    pub(crate) fn start(consensus: &Arc<Consensus>) -> Self {
        let (requests, mut receiver) = mpsc::channel::<oneshot::Sender<Answer>>(WAITING_MAX);
        let (last_sender, last) = watch::channel(None);
        let asked_of = Arc::clone(consensus);
        consensus.spawn(async move {
            while let Some(first) = receiver.recv().await {
                let mut waiting = vec![first];
                while let Ok(more) = receiver.try_recv() {
                    waiting.push(more);
                }
                let asked = Instant::now();
                let answer = asked_of.read_barrier().await;
                if let Ok(position) = answer {
                    last_sender.send_replace(Some(Barrier { position, asked }));
                }
                for reader in waiting {
                    reader.send(answer.clone()).ok();
                }
            }
        });
        Self { requests, last }
    }

    /// The last barrier that was obtained.
    pub(crate) fn last(&self) -> Option<Barrier> {
        *self.last.borrow()
    }

    /// A position at or above every write acknowledged before this call.
    ///
    /// # Errors
    /// As [`Consensus::read_barrier`].
    pub(crate) async fn wait(&self) -> Answer {
        let stopped = || ConsensusError::Stopped("the environment is closed".to_owned());
        let (reader, answer) = oneshot::channel();
        self.requests.send(reader).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}
