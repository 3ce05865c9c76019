//! What the long answers have in common: they end when the server closes, and when there is no leader
//! for those who said that they want one.

use std::time::Duration;

use futures_util::{Stream, StreamExt, future, stream};

use tokio::time::{Instant, timeout_at};

use crate::auth::Caller;
use crate::error::Error;
use crate::etcd::Node;
use crate::etcd::kv::Answers;
use crate::stop::stopped;

/// How long a node may know no leader before it ends the streams of those who want one. An election
/// takes less.
const LEADERLESS_MAX: Duration = Duration::from_secs(3);

impl Node {
    /// The answers of a call, with its end.
    pub(super) fn answers<T: Send + 'static>(
        &self,
        caller: &Caller,
        answers: impl Stream<Item = Result<T, tonic::Status>> + Send + 'static,
    ) -> Answers<T> {
        let (env, mut stopping) = (self.env.clone(), self.stopping.clone());
        let wants_leader = caller.wants_leader;
        let ends = async move {
            let leaderless = async {
                if wants_leader {
                    leaderless(&env).await;
                } else {
                    future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = stopped(&mut stopping) => Error::Stopped,
                () = leaderless => Error::NoLeader,
            }
        };
        let (ended, end) = tokio::sync::oneshot::channel();
        let until = async move {
            // Nobody hears it if the answers have ended by themselves.
            ended.send(ends.await).ok();
        };
        let last = stream::once(end).filter_map(|end| future::ready(end.ok()));
        let last = last.map(|error| Err(tonic::Status::from(error)));
        Box::pin(answers.take_until(Box::pin(until)).chain(last))
    }
}

/// Waits until this node has known no leader for a while.
async fn leaderless(env: &steadfast::ReplicatedEnvironment) {
    let mut states = env.state_changes();
    let mut until = None;
    loop {
        let next = states.next_async();
        let state = match until {
            None => next.await,
            Some(until) => match timeout_at(until, next).await {
                Ok(state) => state,
                Err(_) => return,
            },
        };
        let Some(state) = state else { return };
        until = match until {
            _ if state.role.is_known() => None,
            None => Some(Instant::now() + LEADERLESS_MAX),
            until => until,
        };
    }
}
