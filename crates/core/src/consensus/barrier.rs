//! Read barriers: one serves every read that arrived before it was sent.

use std::sync::Arc;

use steadfast_net::process;
use tokio::sync::{mpsc, oneshot};

use crate::consensus::{Consensus, ConsensusError};
use crate::ids::LogPosition;

/// Reads that may wait for one barrier; more wait to be let in.
const WAITING_MAX: usize = 65_536;

type Answer = Result<Option<LogPosition>, ConsensusError>;

/// Asks consensus for barriers, one at a time.
pub(crate) struct ReadBarriers {
    requests: mpsc::Sender<oneshot::Sender<Answer>>,
}

impl ReadBarriers {
    /// Starts the task that asks. It ends with the last handle.
    pub(crate) fn start(consensus: Arc<Consensus>) -> Self {
        let (requests, mut receiver) = mpsc::channel::<oneshot::Sender<Answer>>(WAITING_MAX);
        process::spawn(async move {
            while let Some(first) = receiver.recv().await {
                let mut waiting = vec![first];
                while let Ok(more) = receiver.try_recv() {
                    waiting.push(more);
                }
                let answer = consensus.read_barrier().await;
                for reader in waiting {
                    reader.send(answer.clone()).ok();
                }
            }
        });
        Self { requests }
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
