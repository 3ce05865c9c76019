//! Dials a member at each address it may have: the one given by an operator, the one in the
//! membership, and the one that worked last. The hello shows whether the member itself answers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use steadfast_net::Transport;
use tokio::time::{Instant, sleep};

use crate::group::addresses::Addresses;
use crate::ids::NodeId;
use crate::wire::RESTORE;
use crate::wire::hello::{Callee, Caller, DialError, Session};
use crate::wire::messages::Refusal;

/// An address has 1/n of the dial timeout to itself before the next is tried in parallel.
const HEAD_START_PART: u32 = 4;

/// Dials members of the group.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) caller: Caller,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) addresses: Arc<Addresses>,
    /// How long a dial may take, including the hello.
    pub(crate) timeout: Duration,
}

impl Dialler {
    /// Opens a session with this member, whose address in the membership is `address`.
    ///
    /// # Errors
    /// The first failure, unless the member itself has refused: then its refusal.
    pub(crate) async fn dial(
        &self,
        address: &str,
        id: NodeId,
        service: &str,
    ) -> Result<Session, DialError> {
        let deadline = Instant::now() + self.timeout;
        let candidates = self.addresses.candidates(id, address);
        let mut waiting = candidates.iter();
        let mut dials = FuturesUnordered::new();
        let mut failure: Option<DialError> = None;
        loop {
            match waiting.next() {
                Some(candidate) => {
                    dials.push(self.dial_only(candidate, id, service, deadline));
                }
                None if dials.is_empty() => return Err(failure.unwrap_or(DialError::Closed)),
                None => {}
            }
            tokio::select! {
                biased;
                Some(dialled) = dials.next() => match dialled {
                    Ok(session) => return Ok(session),
                    Err(error) if failure.is_none() || is_of_member(&error) => failure = Some(error),
                    Err(_) => {}
                },
                () = sleep(self.timeout / HEAD_START_PART), if waiting.len() > 0 => {}
            }
        }
    }

    /// Checks that this member is at exactly this address.
    ///
    /// # Errors
    /// Why this could not be confirmed.
    pub(crate) async fn prove(&self, address: &str, id: NodeId) -> Result<(), DialError> {
        let deadline = Instant::now() + self.timeout;
        // A connection to this service without a request has no effect.
        let proved = self.dial_only(address, id, RESTORE, deadline);
        proved.await.map(drop)
    }

    /// Makes sure that this member's address is known.
    ///
    /// # Errors
    /// As [`Dialler::dial`].
    pub(crate) async fn greet(&self, address: &str, id: NodeId) -> Result<(), DialError> {
        self.dial(address, id, RESTORE).await.map(drop)
    }

    async fn dial_only(
        &self,
        address: &str,
        id: NodeId,
        service: &str,
        deadline: Instant,
    ) -> Result<Session, DialError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (transport, callee) = (&*self.transport, Callee { address, id });
        let dialled = self.caller.dial(transport, callee, service, left);
        let session = dialled.await?;
        self.addresses.note(id, address, &session.peer);
        Ok(session)
    }
}

/// Whether the refusal came from the intended member.
fn is_of_member(error: &DialError) -> bool {
    let DialError::Refused { refusal, .. } = error else {
        return false;
    };
    !matches!(
        refusal,
        Refusal::WrongNode | Refusal::WrongGroup | Refusal::NotFormed
    )
}
