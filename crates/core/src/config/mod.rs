//! Configuration: what a node is, where it keeps its data, and its limits. Every bad value is
//! reported by name before anything is touched.
//!
//! The program's TOML file uses the same keys; [`KEYS`] describes each.

pub(crate) mod access;
mod keys;
pub(crate) mod metadata;
mod security;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::runtime::RuntimeFlavor;

use crate::limits::{NAME_BYTES_MAX, NODES_MAX};
use crate::member::{Expected, JoinToken};
use crate::policy::Durability;

pub(crate) use keys::Tuning;
pub use keys::{KEYS, Key, Range};
use metadata::check_metadata;
pub(crate) use security::Security;
use security::check_credentials;

/// What is wrong with a configuration. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config: {key}: {problem}")]
pub struct ConfigError {
    /// The key, as written in the program's file.
    pub key: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl ConfigError {
    /// An error about `key`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

/// How a node with an empty data directory finds its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap(How);

#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    Expect(Vec<Expected>),
    Join(JoinToken),
}

impl Bootstrap {
    /// A group of this node alone, at the address on which it listens.
    pub fn single() -> Self {
        Self(How::Expect(Vec::new()))
    }

    /// Joins the token's group. The node gets the data first, and its vote once it has caught up,
    /// if its type votes.
    pub fn join(token: JoinToken) -> Self {
        Self(How::Join(token))
    }

    /// The group forms from these nodes, each written `name=host:port`, once all have started, in
    /// any order. Every node is given the same list.
    ///
    /// # Errors
    /// When an item is not of that form.
    pub fn expect<I: AsRef<str>>(nodes: impl IntoIterator<Item = I>) -> Result<Self, ConfigError> {
        let parse = |node: I| {
            let node = node.as_ref();
            let parts = node
                .split_once('=')
                .filter(|(name, address)| !name.is_empty() && !address.is_empty());
            let (name, address) = parts.ok_or_else(|| {
                ConfigError::new(
                    "bootstrap",
                    format!("{node:?} is not of the form name=host:port"),
                )
            })?;
            Ok(Expected {
                name: name.to_owned(),
                address: address.to_owned(),
            })
        };
        nodes
            .into_iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map(|nodes| Self(How::Expect(nodes)))
    }
}

/// What a node does when checksums, or a majority of the nodes, show that its own data is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// It gives up its vote, copies a peer's state, and gets its vote back.
    #[default]
    Auto,
    /// It does not open. If it is already running, it carries on and reports the damage.
    Never,
}

impl std::str::FromStr for Repair {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err(ConfigError::new(
                "repair",
                format!("{text:?} is neither auto nor never"),
            )),
        }
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct RepConfig {
    pub(crate) group: String,
    pub(crate) node: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: String,
    /// The address at which the others reach this node, if not `listen`.
    pub(crate) advertise: Option<String>,
    /// Every founding node of the group, this one included; empty with a token.
    pub(crate) expected: Vec<Expected>,
    /// Lets the node join an existing group.
    pub(crate) token: Option<JoinToken>,
    /// Default durability for writes that specify none.
    pub(crate) durability: Durability,
    /// What the node does when its own data is damaged.
    pub(crate) repair: Repair,
    pub(crate) security: Security,
    /// What this node publishes when it opens; if empty, the group keeps what it has.
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tuning: Tuning,
    pub(crate) runtime: Option<tokio::runtime::Handle>,
}

impl RepConfig {
    /// Begins the configuration of node `node` of group `group`.
    pub fn builder(group: impl Into<String>, node: impl Into<String>) -> RepConfigBuilder {
        RepConfigBuilder {
            group: group.into(),
            node: node.into(),
            data_dir: None,
            listen: None,
            advertise: None,
            bootstrap: Bootstrap::single(),
            durability: Durability::default(),
            repair: Repair::default(),
            security: Security::default(),
            speaks_plaintext_too: false,
            metadata: BTreeMap::new(),
            numbers: Vec::new(),
            runtime: None,
        }
    }

    /// Name of the group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The address to listen on.
    pub fn listen(&self) -> &str {
        &self.listen
    }
}

/// Builds a [`RepConfig`]; nothing is checked before [`RepConfigBuilder::build`].
#[derive(Clone, Debug)]
pub struct RepConfigBuilder {
    group: String,
    node: String,
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    bootstrap: Bootstrap,
    durability: Durability,
    repair: Repair,
    security: Security,
    speaks_plaintext_too: bool,
    metadata: BTreeMap<String, String>,
    numbers: Vec<(String, u64)>,
    runtime: Option<tokio::runtime::Handle>,
}

impl RepConfigBuilder {
    /// Directory of this node's log and engine. Created if missing.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Address on which this node listens, `host:port`.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// Address at which the others reach this node; by default, the address on which it listens.
    #[must_use]
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// How the node finds its group while its directory is empty.
    #[must_use]
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    /// Default durability for writes that specify none.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What the node does when its own data is damaged.
    #[must_use]
    pub fn repair(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    /// Sets a number by its key, see [`KEYS`]: `.set("flush_interval_ms", 1000)`.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: u64) -> Self {
        self.numbers.push((key.into(), value));
        self
    }

    /// Runs the environment on the application's runtime instead of one of its own. It must be
    /// multi-threaded and outlive the environment.
    #[must_use]
    pub fn runtime(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first unusable value.
    pub fn build(self) -> Result<RepConfig, ConfigError> {
        check_name("group", &self.group)?;
        check_name("node", &self.node)?;
        let missing = |key| ConfigError::new(key, "is required");
        let data_dir = self.data_dir.ok_or_else(|| missing("data_dir"))?;
        if data_dir.as_os_str().is_empty() {
            return Err(ConfigError::new("data_dir", "is empty"));
        }
        let listen = self.listen.ok_or_else(|| missing("listen"))?;
        check_address("listen", &listen)?;
        if let Some(address) = &self.advertise {
            check_address("advertise", address)?;
            check_reachable("advertise", address)?;
        }
        let (expected, token) = match self.bootstrap.0 {
            How::Expect(expected) if expected.is_empty() => {
                let address = advertised(&listen, self.advertise.as_ref())?;
                let name = self.node.clone();
                (vec![Expected { name, address }], None)
            }
            How::Expect(expected) => (expected, None),
            How::Join(token) => {
                advertised(&listen, self.advertise.as_ref())?;
                (Vec::new(), Some(token))
            }
        };
        match &token {
            Some(token) => check_token(&self.group, token)?,
            None => check_expected(&self.node, &expected)?,
        }
        let security = if self.speaks_plaintext_too {
            self.security.with_plaintext()?
        } else {
            self.security
        };
        if let Some(credentials) = security.credentials() {
            check_credentials(credentials, &self.group)?;
        }
        check_metadata(&self.metadata)?;
        let mut tuning = Tuning::default();
        for (key, value) in self.numbers {
            tuning.set(&key, value)?;
        }
        tuning.check()?;
        let (group, node, runtime) = (self.group, self.node, self.runtime);
        runtime.as_ref().map(check_runtime).transpose()?;
        let durability = self.durability;
        Ok(RepConfig {
            group,
            node,
            data_dir,
            listen,
            advertise: self.advertise,
            expected,
            token,
            durability,
            repair: self.repair,
            security,
            metadata: self.metadata,
            tuning,
            runtime,
        })
    }
}

/// A current-thread runtime stands still while its thread waits for the environment.
fn check_runtime(runtime: &tokio::runtime::Handle) -> Result<(), ConfigError> {
    match runtime.runtime_flavor() {
        RuntimeFlavor::CurrentThread => Err(ConfigError::new(
            "runtime",
            "it is a current-thread runtime, on which the environment would stall whenever that \
             thread waits for it or does something else; pass a multi-threaded runtime, or none: \
             then the environment has a runtime of its own, and can be used from any other",
        )),
        _ => Ok(()),
    }
}

/// The error for an unknown key, with the nearest known one.
pub fn unknown_key(key: &str) -> ConfigError {
    let near = KEYS
        .iter()
        .map(|known| (edit_distance(key, known.name), known.name))
        .min();
    let hint = match near {
        Some((distance, name)) if distance <= key.len() / 3 + 1 => {
            format!("; did you mean {name}?")
        }
        _ => String::new(),
    };
    ConfigError::new(key, format!("no such key{hint}"))
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Tuning {
    fn check(&self) -> Result<(), ConfigError> {
        if self.election_timeout_min < self.heartbeat_interval * 3 {
            let problem = "must be at least three times heartbeat_interval_ms";
            return Err(ConfigError::new("election_timeout_min_ms", problem));
        }
        if self.election_timeout_max <= self.election_timeout_min {
            let problem = "must be greater than election_timeout_min_ms";
            return Err(ConfigError::new("election_timeout_max_ms", problem));
        }
        let warn = self.disk_free_warn_bytes;
        if warn > 0 && self.disk_free_read_only_bytes > warn {
            let problem = "must be at most disk_free_warn_bytes";
            return Err(ConfigError::new("disk_free_read_only_bytes", problem));
        }
        if self.flush_bytes > self.window_bytes_max / 2 {
            let problem = "must be at most half of window_bytes_max";
            return Err(ConfigError::new("flush_bytes", problem));
        }
        if self.log_retain_bytes_max < self.log_keep_bytes {
            let problem = "must be at least log_keep_bytes";
            return Err(ConfigError::new("log_retain_bytes_max", problem));
        }
        Ok(())
    }
}

pub(crate) fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let problem = match name {
        "" => "is empty".to_owned(),
        _ if name.len() > NAME_BYTES_MAX => {
            format!("{name:?} is longer than {NAME_BYTES_MAX} bytes")
        }
        _ if !name.chars().all(is_plain) => {
            format!("{name:?} may contain only letters, digits, '-', '_' and '.'")
        }
        _ => return Ok(()),
    };
    Err(ConfigError::new(key, problem))
}

pub(crate) fn check_address(key: &str, address: &str) -> Result<(), ConfigError> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(()),
        _ => Err(ConfigError::new(
            key,
            format!("{address:?} is not of the form host:port"),
        )),
    }
}

/// Whether an address, `host:port`, is the wildcard address: a node can listen on it, but nobody
/// can reach it there.
pub fn is_unspecified(address: &str) -> bool {
    let parsed = address.parse::<SocketAddr>();
    parsed.is_ok_and(|address| address.ip().to_canonical().is_unspecified())
}

/// Whether an address, `host:port`, is of this machine alone.
pub(crate) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let parsed = address.parse::<SocketAddr>();
    host == "localhost" || parsed.is_ok_and(|address| address.ip().to_canonical().is_loopback())
}

fn check_reachable(key: &str, address: &str) -> Result<(), ConfigError> {
    if !is_unspecified(address) {
        return Ok(());
    }
    let problem = format!(
        "{address} stands for every address of the machine; give the one at which the other nodes \
         reach it"
    );
    Err(ConfigError::new(key, problem))
}

/// Where the others reach a node that announces its own address.
fn advertised(listen: &str, advertise: Option<&String>) -> Result<String, ConfigError> {
    if let Some(address) = advertise {
        return Ok(address.clone());
    }
    if !is_unspecified(listen) {
        return Ok(listen.to_owned());
    }
    let problem = format!(
        "is required, because the node listens on every address of its machine ({listen}): give the \
         one at which the other nodes reach it"
    );
    Err(ConfigError::new("advertise", problem))
}

fn check_token(group: &str, token: &JoinToken) -> Result<(), ConfigError> {
    if token.group_name == group {
        return Ok(());
    }
    let problem = format!(
        "is a token for group {:?}, not for {group:?}",
        token.group_name
    );
    Err(ConfigError::new("join", problem))
}

fn check_expected(node: &str, expected: &[Expected]) -> Result<(), ConfigError> {
    let fail = |problem| Err(ConfigError::new("bootstrap", problem));
    if expected.len() > NODES_MAX {
        return fail(format!(
            "{} nodes are more than a group may have ({NODES_MAX})",
            expected.len()
        ));
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for item in expected {
        check_name("bootstrap", &item.name)?;
        check_address("bootstrap", &item.address)?;
        check_reachable("bootstrap", &item.address)?;
        if !names.insert(&item.name) {
            return fail(format!("{:?} is listed twice", item.name));
        }
        if !addresses.insert(&item.address) {
            return fail(format!("address {:?} is listed twice", item.address));
        }
    }
    if !expected.iter().any(|item| item.name == node) {
        return fail(format!("this node, {node:?}, is not in the list"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> RepConfigBuilder {
        RepConfig::builder("orders", "n1")
            .data_dir("/d")
            .listen("127.0.0.1:7400")
    }

    fn problem(builder: RepConfigBuilder) -> String {
        builder.build().unwrap_err().to_string()
    }

    #[test]
    fn every_bad_value_is_named_by_its_key() {
        let expect = |nodes: &[&str]| builder().bootstrap(Bootstrap::expect(nodes).unwrap());
        assert!(problem(RepConfig::builder("a b", "n1")).contains("config: group"));
        assert!(problem(RepConfig::builder("g", "n1")).contains("config: data_dir"));
        assert!(problem(builder().listen("7400")).contains("config: listen"));
        assert!(
            problem(builder().set("heartbeat_interval_ms", 1)).contains("heartbeat_interval_ms")
        );
        assert!(
            problem(builder().set("election_timeout_max_ms", 150))
                .contains("election_timeout_max_ms")
        );
        let disk = problem(builder().set("disk_free_read_only_bytes", 2 << 30));
        assert!(disk.contains("at most disk_free_warn_bytes"), "{disk}");
        assert!(problem(builder().set("log_retain_bytes_max", 1 << 20)).contains("log_keep_bytes"));
        assert!(problem(expect(&["n2=h:1"])).contains("is not in the list"));
        assert!(problem(expect(&["n1=h:1", "n1=h:2"])).contains("listed twice"));
        assert!(Bootstrap::expect(["n1"]).is_err());
    }

    #[test]
    fn an_address_that_others_are_told_is_one_that_they_can_reach() {
        let everywhere = || builder().listen("0.0.0.0:7400");
        let token = "steadfast-join/1/orders/f9858012-f9cf-4200-91e8-8ecb6b6c023d/electable/1/h:1";
        let token: JoinToken = format!("{token}/{:08x}", crc32c::crc32c(token.as_bytes()))
            .parse()
            .unwrap();
        let listed = Bootstrap::expect(["n1=h:1", "n2=h:2"]).unwrap();
        for listen in ["0.0.0.0:7400", "[::]:7400", "[::ffff:0.0.0.0]:7400"] {
            let problem = problem(builder().listen(listen));
            assert!(
                problem.contains("config: advertise: is required"),
                "{problem}"
            );
        }
        let joining = everywhere().bootstrap(Bootstrap::join(token.clone()));
        assert!(problem(joining.clone()).contains("advertise: is required"));
        assert!(problem(everywhere().advertise("[::]:7400")).contains("every address"));
        let list = Bootstrap::expect(["n1=0.0.0.0:1"]).unwrap();
        assert!(problem(builder().bootstrap(list)).contains("config: bootstrap"));
        // With another address to advertise, it may listen everywhere.
        assert!(joining.advertise("h:7400").build().is_ok());
        assert!(everywhere().advertise("h:7400").build().is_ok());
        assert!(everywhere().bootstrap(listed).build().is_ok());
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = problem(builder().set("flush_intervall_ms", 1));
        assert!(error.contains("did you mean flush_interval_ms?"), "{error}");
    }

    #[test]
    fn every_described_number_can_be_set_to_its_default() {
        for key in KEYS {
            if let Ok(default) = key.default.parse() {
                assert!(
                    builder().set(key.name, default).build().is_ok(),
                    "{}",
                    key.name
                );
            }
        }
    }
}
