//! `NODE_STATE`: what a node reports about itself, even while it has no master or no group.

use std::future::Future;
use std::time::Duration;

use steadfast_net::Transport;

use crate::wire::NODE_STATE;
use crate::wire::hello::{Callee, Caller, DialError, Session};
use crate::wire::messages::{Kind, NodeStateMessage, NodeStateRequest, decode, encode};

/// Asks the node at `address` for its state, and for a digest if `digest` is set.
///
/// # Errors
/// When it cannot be reached, or its answer is invalid.
pub(crate) async fn ask(
    transport: &dyn Transport,
    address: &str,
    digest: bool,
    timeout: Duration,
) -> Result<NodeStateMessage, DialError> {
    let request = NodeStateRequest {
        digest,
        ..NodeStateRequest::default()
    };
    ask_for(transport, address, &request, timeout).await
}

/// Asks the node at `address` for its state and whatever else `request` names.
///
/// # Errors
/// When it cannot be reached, or its answer is invalid.
pub(crate) async fn ask_for(
    transport: &dyn Transport,
    address: &str,
    request: &NodeStateRequest,
    timeout: Duration,
) -> Result<NodeStateMessage, DialError> {
    let asked = async {
        let mut session = Caller::Client
            .dial(transport, Callee::any(address), NODE_STATE, timeout)
            .await?;
        let request = encode(Kind::NodeStateRequest, request);
        session.sender.send(request).await?;
        let reply = session.receiver.receive().await?.ok_or(DialError::Closed)?;
        Ok(decode(Kind::NodeState, reply)?)
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or(Err(DialError::Timeout(timeout)))
}

/// Answers requests with `describe` until the caller closes, or sends none for a while. Whatever a
/// request asks for besides the state may take long.
///
/// # Errors
/// When the caller sends invalid data or goes away.
pub(crate) async fn serve<F>(
    describe: impl Fn(NodeStateRequest) -> F,
    mut session: Session,
) -> Result<(), DialError>
where
    F: Future<Output = NodeStateMessage>,
{
    while let Some(frame) = session.next_request().await? {
        let state = describe(decode(Kind::NodeStateRequest, frame)?).await;
        session.sender.send(encode(Kind::NodeState, &state)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use steadfast_net::Connection;

    use super::*;
    use crate::admin::client;
    use crate::admin::messages::AdminAnswer;

    /// A session whose caller stays connected and says nothing.
    fn silent() -> (Session, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let connection = Connection::new(Box::new(near), "n1".to_owned());
        let (sender, receiver) = connection.split();
        let session = Session {
            sender,
            receiver,
            peer: "n1".to_owned(),
        };
        (session, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_asks_nothing_is_let_go() {
        let (session, _caller) = silent();
        let serving = serve(|_| async { NodeStateMessage::default() }, session);
        let served = tokio::time::timeout(Duration::from_secs(11), serving).await;
        assert!(matches!(served, Ok(Ok(()))), "{served:?}");
        let (session, _caller) = silent();
        let serving = client::serve(|_| async { AdminAnswer::NotMaster(String::new()) }, session);
        let served = tokio::time::timeout(Duration::from_secs(11), serving).await;
        assert!(matches!(served, Ok(Ok(()))), "{served:?}");
    }
}
