//! Which nodes verbs ask, and how they print the answer.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use steadfast::Transport;

use crate::failure::Failure;
use crate::network::{chosen, network};
use crate::status::{Output, Survey};

/// How long a verb waits for an answer before it says that it waits.
const NOTICE_AFTER: Duration = Duration::from_secs(2);

/// Whom to ask, as arguments of a verb.
#[derive(clap::Args)]
pub(crate) struct At {
    /// Addresses of nodes to ask, separated by spaces or commas; overrides --ask
    #[arg(value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) addresses: Vec<String>,
}

/// Whom to ask, and how to print the answer.
#[derive(clap::Args)]
pub(crate) struct Ask {
    /// Addresses of nodes to ask, separated by commas; one is enough
    #[arg(
        long = "ask",
        id = "ask",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        env = "STEADFAST_ASK",
        global = true
    )]
    addresses: Vec<String>,
    /// Directory of the credentials to show to nodes; by default, `STEADFAST_CREDENTIALS`, then that of
    /// the node whose data directory is `STEADFAST_DATA_DIR`, then that of the user
    /// (~/.config/steadfast/credentials)
    #[arg(long, value_name = "DIR", global = true)]
    credentials: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
}

impl Ask {
    /// The same, but asking the nodes given as arguments, if any.
    pub(crate) fn at(&mut self, at: At) -> &Self {
        if !at.addresses.is_empty() {
            self.addresses = at.addresses;
        }
        self
    }

    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    pub(crate) fn output(&self) -> Output {
        self.output
    }

    /// Waits for an answer that may take up to `limit`. If it takes long, says so, once.
    pub(crate) async fn wait_for<T>(&self, limit: Duration, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        if let Ok(answer) = tokio::time::timeout(NOTICE_AFTER, &mut answer).await {
            return answer;
        }
        eprintln!(
            "no answer yet from the group at {}; trying for up to {} s",
            self.addresses.join(", "),
            limit.as_secs()
        );
        answer.await
    }

    pub(crate) async fn survey(&self) -> Result<Survey, Failure> {
        Survey::of(&*self.network()?, &self.addresses).await
    }

    /// Whether nodes were asked with credentials.
    pub(crate) fn has_credentials(&self) -> bool {
        chosen(self.credentials.as_deref()).is_some()
    }

    /// How the nodes are reached.
    pub(crate) fn network(&self) -> Result<Arc<dyn Transport>, Failure> {
        network(self.credentials.as_deref())
    }
}
