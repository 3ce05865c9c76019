//! The server that a row is asked of, and in what servers differ.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::etcd;
use crate::http::{self, Answer, Lines};
use crate::ours;

/// How long an answer may take. Only a failure takes that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// How long a whole row may take. Only a failure takes that long.
const ROW_MAX: Duration = Duration::from_secs(50);

/// What ours says.
const OURS: Version = Version(3, 5, 30);

/// The version that a server says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = text
            .trim()
            .split('.')
            .map(|part| part.parse().expect("a version"));
        let mut next = || parts.next().expect("three parts");
        Self(next(), next(), next())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What a row needs. A group of ours has three members as well where a replica is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    One,
    Three,
    /// One that tells progress each second, which 3.4 cannot.
    Progress,
}

/// A server of its own for one row.
pub(crate) struct Target {
    pub(crate) is_ours: bool,
    /// What it behaves like.
    pub(crate) version: Version,
    /// Where the members listen. A row asks the first unless it says otherwise.
    pub(crate) addresses: Vec<SocketAddr>,
    servers: Servers,
}

/// What a target runs on.
enum Servers {
    Etcd {
        members: Vec<Option<etcd::Member>>,
        _home: TempDir,
    },
    Ours(ours::Group),
}

/// In what servers differ. Ours is like the newest.
impl Target {
    /// The HTTP status of `FailedPrecondition`.
    pub(crate) fn failed_precondition_status(&self) -> u16 {
        if self.version < Version(3, 5, 0) {
            412
        } else {
            400
        }
    }

    /// What a write without a quorum ends with. Ours says that the outcome is unknown.
    pub(crate) fn late_write(&self) -> (Code, u16) {
        if self.is_ours || self.version < Version(3, 5, 16) {
            (Code::Unknown, 500)
        } else {
            (Code::DeadlineExceeded, 504)
        }
    }

    pub(crate) fn loses_a_delete_at_the_compacted_revision(&self) -> bool {
        self.version < Version(3, 5, 16)
    }

    pub(crate) fn tells_progress_before_its_events(&self) -> bool {
        self.version < Version(3, 5, 16)
    }

    pub(crate) fn tells_progress_without_watches(&self) -> bool {
        self.version < Version(3, 5, 16)
    }

    pub(crate) fn accepts_a_negative_start_first(&self) -> bool {
        self.version < Version(3, 5, 30)
    }
}

impl Target {
    /// A lazy connection to the first member.
    pub(crate) fn channel(&self) -> Channel {
        self.channel_to(0)
    }

    pub(crate) fn channel_to(&self, member: usize) -> Channel {
        let address = format!("http://{}", self.addresses[member]);
        Endpoint::from_shared(address).unwrap().connect_lazy()
    }

    /// Ends a member at once.
    pub(crate) async fn kill(&mut self, member: usize) {
        match &mut self.servers {
            Servers::Etcd { members, .. } => members[member].take().expect("it runs").kill(),
            Servers::Ours(group) => group.kill(member).await,
        }
    }

    pub(crate) async fn http(
        &self,
        method: &str,
        path: &str,
        head: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let answer = http::request(self.addresses[0], method, path, head, body.as_bytes()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The answer to a request in the JSON form that has to succeed.
    pub(crate) async fn json(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// The answer to a request in the JSON form.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.http("POST", path, &[], &body.to_string()).await
    }

    /// A request in the JSON form whose answer goes on.
    pub(crate) async fn lines(&self, path: &str, body: &str) -> Lines {
        Lines::open(self.addresses[0], path, body.as_bytes()).await
    }
}

/// Runs a row against a real etcd, or says that there is none.
pub(crate) fn on_etcd<F: Future<Output = ()>>(size: Size, row: impl FnOnce(Target) -> F) {
    let Some(program) = etcd::program() else {
        eprintln!("skipped: no etcd in STEADFAST_ETCD or PATH");
        return;
    };
    Runtime::new().unwrap().block_on(async {
        if size == Size::Progress && program.version < Version(3, 5, 0) {
            eprintln!(
                "skipped: {} has its time of progress built in",
                program.version
            );
            return;
        }
        let (home, members) = etcd::start(program, size).await;
        let target = Target {
            is_ours: false,
            version: program.version,
            addresses: members.iter().map(|member| member.address).collect(),
            servers: Servers::Etcd {
                members: members.into_iter().map(Some).collect(),
                _home: home,
            },
        };
        timeout(ROW_MAX, row(target))
            .await
            .expect("the row took too long");
    });
}

/// Runs a row against a group of ours. The node that it asks is the master, or a replica.
pub(crate) fn on_ours<F: Future<Output = ()>>(
    at_master: bool,
    size: Size,
    row: impl FnOnce(Target) -> F,
) {
    Runtime::new().unwrap().block_on(async {
        let (group, addresses) = ours::Group::start(at_master, size).await;
        let target = Target {
            is_ours: true,
            version: OURS,
            addresses,
            servers: Servers::Ours(group),
        };
        timeout(ROW_MAX, row(target))
            .await
            .expect("the row took too long");
    });
}

/// Makes a test of each row for each kind of server, and of ours for a master and for a replica.
macro_rules! rows {
    ($($size:ident: $($row:ident),+;)+) => {
        mod etcd {
            $($(
                #[test]
                fn $row() {
                    $crate::target::on_etcd($crate::target::Size::$size, super::$row);
                }
            )+)+
        }
        mod our_master {
            $($(
                #[test]
                fn $row() {
                    $crate::target::on_ours(true, $crate::target::Size::$size, super::$row);
                }
            )+)+
        }
        mod our_replica {
            $($(
                #[test]
                fn $row() {
                    $crate::target::on_ours(false, $crate::target::Size::$size, super::$row);
                }
            )+)+
        }
    };
}
pub(crate) use rows;
