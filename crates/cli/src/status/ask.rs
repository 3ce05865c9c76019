//! Which nodes verbs ask, and how they print the answer.

use crate::failure::Failure;
use crate::status::{Output, Survey};

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
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        env = "STEADFAST_ASK",
        global = true
    )]
    ask: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
}

impl Ask {
    /// The same, but asking the nodes given as arguments, if any.
    pub(crate) fn at(&mut self, at: At) -> &Self {
        if !at.addresses.is_empty() {
            self.ask = at.addresses;
        }
        self
    }

    pub(crate) fn addresses(&self) -> &[String] {
        &self.ask
    }

    pub(crate) fn output(&self) -> Output {
        self.output
    }

    pub(crate) async fn survey(&self) -> Result<Survey, Failure> {
        Survey::of(&self.ask).await
    }
}
