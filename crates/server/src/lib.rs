//! The etcd v3 API on a replicated environment of Steadfast: gRPC and JSON on one port, at every
//! node of a group.
//!
//! ```
//! use std::time::Duration;
//! use steadfast::InMemoryGroup;
//! use steadfast_server::proto::etcdserverpb::{PutRequest, kv_client::KvClient};
//! use steadfast_server::{ServerConfig, serve};
//!
//! # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let group = InMemoryGroup::new_async(1).await?;
//! let env = group.node("n1")?.clone();
//! let server = serve(env.clone(), ServerConfig::new("127.0.0.1:0")).await?;
//!
//! // Any client of etcd will do.
//! let endpoint = format!("http://{}", server.local_address());
//! let channel = tonic::transport::Endpoint::from_shared(endpoint)?.connect().await?;
//! let mut client = KvClient::new(channel);
//! let put = PutRequest { key: "greeting".into(), value: "hello".into(), ..Default::default() };
//! let answer = client.put(put).await?.into_inner();
//! println!("put as revision {}", answer.header.map_or(0, |header| header.revision));
//!
//! server.close().await; // the environment stays open
//! # env.close_async().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`store`] | the data model: revisions, history, watches, leases |
//! | `etcd` | the gRPC services |
//! | `json` | the same services as JSON over HTTP |
//! | `http` | the port: HTTP/1.1 and HTTP/2, TLS, health, version and metrics |
//! | `grpc` | frames of calls, and the time that clients give them |
//! | `auth` | users, roles, permissions and tokens |
//! | [`error`], [`proto`] | texts, codes and messages as clients of etcd know them |

mod auth;
mod config;
pub mod error;
mod etcd;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod http;
mod json;
pub mod proto;
mod serve;
mod stop;
pub mod store;

pub use config::{
    BeyondLoopback, CLIENT_URLS, Limits, ParseBeyondLoopbackError, ServeError, ServerConfig,
    ServerTls,
};
pub use serve::{Server, serve};
