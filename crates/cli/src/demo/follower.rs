//! The subscriber of the demo: it follows the change feed over the network while nodes are killed,
//! and what it received is checked against the ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use steadfast::{
    Change, CommittedTransaction, FeedError, FeedEvent, StartAt, Subscription, Transport,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ledger::Ledger;
use super::protocol::JOURNAL;
use crate::failure::Failure;

/// What the subscriber received, in the order of arrival.
#[derive(Default)]
pub(super) struct Told {
    /// Term of each transaction, from the first VLSN on.
    terms: Vec<u64>,
    /// The VLSN before the first one.
    began: u64,
    /// The VLSN at which each record was put.
    records: HashMap<String, u64>,
    pub(super) violations: Vec<String>,
}

/// See the module.
pub(super) struct Follower {
    task: JoinHandle<Told>,
    /// The last VLSN received.
    told: watch::Receiver<u64>,
}

impl Follower {
    /// Subscribes to whichever node answers, starting with the whole state.
    ///
    /// # Errors
    /// When no node answers.
    pub(super) async fn start(
        network: Arc<dyn Transport>,
        addresses: &[String],
    ) -> Result<Self, Failure> {
        let addresses = addresses.to_vec();
        let connected = Subscription::connect_on(network, addresses, "demo", StartAt::Start).await;
        let subscription = connected.map_err(|error| failure(&error))?;
        let (sender, told) = watch::channel(0);
        let task = tokio::spawn(follow(subscription, sender));
        Ok(Self { task, told })
    }

    /// Waits until it has received everything that was acknowledged, and checks that. Returns how
    /// many transactions it received.
    pub(super) async fn check(mut self, ledger: &mut Ledger, patience: Duration) -> usize {
        let target = ledger.vlsn();
        let complete = self.told.wait_for(|vlsn| *vlsn >= target);
        let is_complete = matches!(tokio::time::timeout(patience, complete).await, Ok(Ok(_)));
        // The task ends when it sees that nobody is interested any more.
        drop(self.told);
        let told = match self.task.await {
            Ok(told) => told,
            Err(error) => Told {
                violations: vec![error.to_string()],
                ..Told::default()
            },
        };
        if !is_complete {
            let last = told.began + told.terms.len() as u64;
            ledger.violation(format!("the subscriber is at {last} and not at {target}"));
        }
        ledger.check_told(&told);
        told.terms.len()
    }
}

impl Told {
    /// The term of a transaction; `None` if it was not received.
    pub(super) fn term(&self, vlsn: u64) -> Option<u64> {
        let at = usize::try_from(vlsn.checked_sub(self.began + 1)?).ok()?;
        self.terms.get(at).copied()
    }

    /// The VLSN at which a record was put.
    pub(super) fn record(&self, id: &str) -> Option<u64> {
        self.records.get(id).copied()
    }

    fn add(&mut self, transaction: &CommittedTransaction) {
        let (term, vlsn) = (transaction.token.term.0, transaction.token.vlsn.0);
        self.terms.push(term);
        let last = self.began + self.terms.len() as u64;
        if vlsn != last {
            let what = format!("vlsn {vlsn} came where {last} was expected");
            self.violations.push(what);
        }
        for change in &transaction.changes {
            if let Change::Put {
                database, value, ..
            } = change
                && **database == *JOURNAL
            {
                let id = String::from_utf8_lossy(value).into_owned();
                if let Some(before) = self.records.insert(id, vlsn) {
                    let what = format!("a record came at vlsn {before} and again at {vlsn}");
                    self.violations.push(what);
                }
            }
        }
    }
}

/// Runs until nobody is interested any more.
async fn follow(mut subscription: Subscription, sender: watch::Sender<u64>) -> Told {
    let mut told = Told::default();
    loop {
        let event = tokio::select! {
            biased;
            () = sender.closed() => break,
            event = subscription.next_async() => event,
        };
        match event {
            Some(Ok(FeedEvent::StateComplete { token, .. })) => told.began = token.vlsn.0,
            Some(Ok(FeedEvent::Transaction(transaction))) => {
                told.add(&transaction);
                sender.send_replace(transaction.token.vlsn.0);
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => told.violations.push(error.to_string()),
            None => break,
        }
    }
    told
}

fn failure(error: &FeedError) -> Failure {
    Failure::new(
        error.to_string(),
        "the change feed could not be followed",
        "read the nodes' logs",
    )
}
