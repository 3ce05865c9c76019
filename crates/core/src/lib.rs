//! Replication and high availability for Noxu DB, as an embedded library.
//!
//! One master orders the writes of all nodes, and its replicas hold the same data. When the master
//! dies, another node takes over automatically; no acknowledged write is lost. A write returns once
//! it is on the disks of a majority. Transactions are strictly serializable. A read on any node sees
//! every write acknowledged before the read began, unless it asks for less.
//!
//! ```
//! use steadfast::{ConsistencyPolicy, ReplicatedEnvironment, Role, WriteError};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Three connected nodes in this process, for tests.
//!     let group = ReplicatedEnvironment::in_memory_group(3)?;
//!     let is_master = |node: &&ReplicatedEnvironment| node.state().role == Role::Master;
//!     let master = group.iter().find(is_master).ok_or("no master")?;
//!     let placed = master.write(|txn| -> Result<u8, WriteError> {
//!         let orders = txn.database("orders")?;
//!         let count = orders.get("count")?.map_or(0, |old| old[0]) + 1;
//!         orders.put("count", [count])?;
//!         Ok(count)
//!     })?;
//!     println!("{} orders as of {}", placed.value, placed.token);
//!     for node in &group {
//!         let count = node.read(ConsistencyPolicy::Linearizable, |snapshot| {
//!             snapshot.database("orders")?.get("count")
//!         })?;
//!         assert_eq!(count.as_deref(), Some(&[1][..]));
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A node of a real group has a directory, an address, and the list of nodes from which the group
//! forms:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use steadfast::{Bootstrap, RepConfig, ReplicatedEnvironment};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = RepConfig::builder("orders", "n1")
//!     .data_dir("/var/lib/orders")
//!     .listen("10.0.0.1:7400")
//!     .bootstrap(Bootstrap::expect([
//!         "n1=10.0.0.1:7400",
//!         "n2=10.0.0.2:7400",
//!         "n3=10.0.0.3:7400",
//!     ])?)
//!     .build()?;
//! let env = ReplicatedEnvironment::open(config)?;
//! env.wait_ready(Duration::from_secs(30))?;
//! # Ok(())
//! # }
//! ```
//!
//! Nodes that other machines can reach have [credentials]; see `docs/security.md`.
//!
//! | module | holds |
//! | --- | --- |
//! | [`table`] | typed tables with indexes, and counters |
//! | `env` | [`ReplicatedEnvironment`]: open, write, read, close |
//! | `in_memory` | [`InMemoryGroup`]: groups for the tests of applications |
//! | `database`, `open_transaction` | single operations and batches; transactions without a closure |
//! | [`config`], [`limits`] | everything that can be configured, and every bound that cannot |
//! | `runtime`, `tasks` | the runtime for calls, and its lifetime; tasks that end with their owner |
//! | [`error`], `token`, `listener` | errors, commit tokens, state changes |
//! | `lifecycle` | a node from open to close |
//! | `node` | the parts of a node at work: write path, read path, acknowledgements |
//! | `txn` | window, sequencer, flush |
//! | `consensus` | who is master and what is committed; the only module that names openraft |
//! | [`log`] | this node's replicated log, on disk |
//! | [`engine`] | where the data is stored: the contract, Noxu, and an in-memory engine |
//! | `group` | members; the identity of a data directory |
//! | `wire` | what is sent between nodes: hello, envelope, messages |
//! | `forward` | writes on a node that is not the master |
//! | `calls` | calls between the applications of the nodes |
//! | `admin` | changes to the group, requested from any member |
//! | `feed` | the change feed, within this process and from another |
//! | `events` | events of a group, for its watchers |
//! | `state_copy` | a full copy of the state, for a node that the log cannot bring up to date |
//! | `compare` | digests; comparing nodes with each other |
//! | [`credentials`] | what nodes and clients prove with who they are: made, read, shown |
//! | [`addresses`] | recovery when all addresses have changed |
//! | [`quorum_loss`] | recovery when a quorum is lost for good |
//! | [`machine`] | disk, network, engine, clock, randomness and threads: the edge |
//! | [`ids`] | terms, numbers and positions as types |
//!
//! `ARCHITECTURE.md` follows the write path and the read path through these modules.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the application's output is its own"
)]

pub mod addresses;
mod admin;
mod calls;
mod compare;
pub mod config;
mod consensus;
pub mod credentials;
mod data;
mod database;
pub mod engine;
mod env;
mod env_calls;
mod env_group;
mod env_security;
pub mod error;
mod events;
mod feed;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod group_client;
pub mod ids;
mod in_memory;
mod lifecycle;
pub mod limits;
mod listener;
pub mod log;
pub mod machine;
mod measures;
mod member;
mod node;
mod open_transaction;
mod pass;
#[cfg(feature = "planted")]
pub mod planted;
#[cfg(not(feature = "planted"))]
mod planted;
mod plural;
mod policy;
pub mod quorum_loss;
mod recent;
mod runtime;
mod spans;
mod state_copy;
pub mod table;
mod tasks;
mod token;
mod txn;
mod wire;

pub use admin::{AdminCommand, AdminError, PRIORITY_MAX};
pub use calls::{IncomingCall, ServedCalls};
pub use compare::{CheckedNode, ComparedDatabase, Comparison};
pub use config::access::{Access, Holder};
pub use config::{Bootstrap, RepConfig, RepConfigBuilder, Repair};
pub use database::{CompareAndSet, Database, WriteBatch};
pub use env::ReplicatedEnvironment;
pub use error::{
    CallError, ClientError, CounterError, FeedError, OpenError, Outcome, ReadError, ReadyError,
    ServeCallsError, WriteError,
};
pub use events::{GroupChange, GroupEvent, GroupEvents, GroupHealth, GroupView, MemberView};
pub use feed::{
    Change, CommittedTransaction, Feed, FeedEvent, FeedListener, ListenOptions, SharedFeed,
    SharedFeedOptions, StartAt, SubscribeOptions, Subscription,
};
#[doc(hidden)]
pub use group::identity::UNFINISHED_RESTORE;
pub use group_client::GroupClient;
pub use in_memory::{InMemoryError, InMemoryGroup};
pub use listener::{ParseRoleError, Role, RoleState, StateChanges};
pub use measures::{METRICS, Metric, MetricKind, describe_metrics};
pub use member::{JoinToken, ParseJoinTokenError};
pub use member::{NodeAddress, NodeType, PRIORITY_DEFAULT, ParseNodeTypeError};
pub use node::health::{Health, NodePhase};
pub use node::status::{
    Divergence, MemberStatus, NodeStatus, ReplicaStatus, RestoreProgress, StatusError, Unreachable,
};
pub use open_transaction::OpenTransaction;
pub use pass::Pass;
#[doc(hidden)]
pub use plural::plural;

pub use policy::{
    ConsistencyPolicy, Durability, ParseDurabilityError, ReadOptions, ReplicaAckPolicy, SyncPolicy,
};
pub use spans::SPANS;
pub use steadfast_net::Descriptors;
pub use steadfast_net::{TcpTransport, TlsCredentials, TlsTransport, Transport};
pub use token::{CommitToken, Committed, ParseTokenError, TokenOutcome};
pub use txn::scan::Scan;
pub use txn::transaction::{Snapshot, SnapshotDatabase, Transaction, TransactionDatabase};

/// A filter for logs, in the syntax of `tracing-subscriber`, with which a healthy node says a line for
/// each change and nothing else: the libraries below say at `info` and `warn` much that only their
/// own developers need.
///
/// For `EnvFilter::new(LOG_FILTER)` or `LOG_FILTER.parse::<Targets>()`; what comes through the `log`
/// crate, as from Noxu, is meant too.
pub const LOG_FILTER: &str = "info,openraft=error,noxu=warn";

/// The examples in the README and the guide, run with the documentation's own.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/guide.md")]
#[doc = include_str!("../../../docs/service.md")]
#[doc = include_str!("../../../docs/tables.md")]
struct Guides;
