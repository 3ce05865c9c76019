//! The configuration of one node from a TOML file, environment variables and flags, in increasing
//! priority. The keys are those of [`KEYS`] and [`CLIENT_KEYS`] everywhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use steadfast::config::{ConfigError, KEYS, unknown_key};
use steadfast::credentials::CERTIFICATE_FILE;
use steadfast::{
    Bootstrap, Durability, JoinToken, ParseDurabilityError, ParseJoinTokenError, RepConfig,
    RepConfigBuilder,
};
use steadfast_server::ServerConfig;
use toml::Value;

use crate::clients::CLIENT_KEYS;
use crate::failure::Failure;
use crate::network::now_ms;
use crate::{clients, credentials, data_dir};

/// Environment variables that set a key begin with this: `STEADFAST_DATA_DIR`.
const VARIABLE_PREFIX: &str = "STEADFAST_";

/// The flags that configure a node.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Flags {
    /// TOML configuration file; flags override it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the group
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Name of this node
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Directory for this node's log and storage engine
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<String>,
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Nodes that form a new group, separated by commas
    #[arg(long, value_name = "NAME=HOST:PORT", value_delimiter = ',')]
    pub(crate) bootstrap: Vec<String>,
    /// Token from `steadfast token create`, to join an existing group; @FILE reads it from a file
    #[arg(long, value_name = "TOKEN", conflicts_with = "bootstrap")]
    pub(crate) join: Option<String>,
    /// Directory of this node's credentials, made by `steadfast init` or with a join token; by
    /// default, `credentials` in its data directory, if there is one
    #[arg(long, value_name = "DIR")]
    pub(crate) credentials: Option<String>,
    /// Address on which to serve clients of etcd
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) client_listen: Option<String>,
    /// Set any other key, for example `--set flush_interval_ms=1000`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) numbers: Vec<String>,
}

/// A checked configuration, and where its credentials come from.
pub(crate) struct NodeConfig {
    pub(crate) config: RepConfig,
    /// `None` without credentials.
    pub(crate) credentials: Option<PathBuf>,
    /// How it serves clients of etcd; `None`: it does not.
    pub(crate) clients: Option<ServerConfig>,
    /// The token with which a new node gets the credentials that are not there yet.
    enrolment: Option<JoinToken>,
    builder: RepConfigBuilder,
}

impl NodeConfig {
    /// The same with the credentials that the group gives this node, if it is a new one.
    ///
    /// # Errors
    /// When the group does not, or they cannot be written.
    pub(crate) async fn enrolled(mut self) -> Result<Self, Failure> {
        let (Some(token), Some(dir)) = (self.enrolment.take(), &self.credentials) else {
            return Ok(self);
        };
        credentials::enrol(&token, dir).await?;
        let read = steadfast::credentials::read(dir, now_ms())?;
        self.config = self.builder.clone().credentials(read).build()?;
        Ok(self)
    }
}

/// Values by key, each known and of the right type.
#[derive(Debug, Default)]
struct Settings(BTreeMap<&'static str, Setting>);

#[derive(Debug)]
enum Setting {
    Text(String),
    List(Vec<String>),
    Pairs(BTreeMap<String, String>),
    Number(u64),
}

impl Flags {
    /// The checked configuration.
    ///
    /// # Errors
    /// When the file cannot be read, or a value cannot be used; exits with the usage code.
    pub(crate) fn load(&self) -> Result<NodeConfig, Failure> {
        let mut settings = Settings::default();
        if let Some(path) = &self.config {
            settings.add_file(path)?;
        }
        for key in KEYS.iter().chain(CLIENT_KEYS) {
            let variable = format!("{VARIABLE_PREFIX}{}", key.name.to_uppercase());
            if let Ok(text) = std::env::var(variable)
                && !text.is_empty()
            {
                settings.add_text(key.name, &text)?;
            }
        }
        let flags = [
            ("group", &self.group),
            ("node", &self.node),
            ("data_dir", &self.data_dir),
            ("listen", &self.listen),
            ("join", &self.join),
            ("credentials", &self.credentials),
            ("client_listen", &self.client_listen),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                settings.add_text(key, value)?;
            }
        }
        if !self.bootstrap.is_empty() {
            settings.add_text("bootstrap", &self.bootstrap.join(","))?;
        }
        for item in &self.numbers {
            let (key, value) = item.split_once('=').ok_or_else(|| {
                Failure::usage(
                    format!("--set {item:?} has no '='"),
                    "write --set KEY=VALUE",
                )
            })?;
            settings.add_text(key, value)?;
        }
        settings.build()
    }
}

impl Settings {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program reads its configuration itself"
    )]
    fn add_file(&mut self, path: &Path) -> Result<(), Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            Failure::usage(what, "give --config the path of a TOML file")
        })?;
        let table: toml::Table = text.parse().map_err(|error| {
            let what = format!("{} is not valid TOML: {error}", path.display());
            Failure::usage(what, "correct that line")
        })?;
        for (key, value) in table {
            self.add(&key, value)?;
        }
        Ok(())
    }

    /// A value from the file.
    fn add(&mut self, key: &str, value: Value) -> Result<(), ConfigError> {
        let wrong = |expected: &str| ConfigError::new(key, format!("must be {expected}"));
        let setting = match (known(key)?, value) {
            (key, Value::String(text)) if is_text(key) => Setting::Text(text),
            (key, _) if is_text(key) => return Err(wrong("a string")),
            ("bootstrap", Value::Array(items)) => {
                let item = |item| match item {
                    Value::String(text) => Ok(text),
                    _ => Err(wrong("an array of strings \"name=host:port\"")),
                };
                Setting::List(items.into_iter().map(item).collect::<Result<_, _>>()?)
            }
            ("bootstrap", _) => return Err(wrong("an array of strings \"name=host:port\"")),
            ("metadata", Value::Table(table)) => {
                let pair = |(name, value)| match value {
                    Value::String(text) => Ok((name, text)),
                    _ => Err(wrong("a table of strings")),
                };
                Setting::Pairs(table.into_iter().map(pair).collect::<Result<_, _>>()?)
            }
            ("metadata", _) => return Err(wrong("a table of strings")),
            (_, Value::Integer(number)) => {
                Setting::Number(u64::try_from(number).map_err(|_| wrong("0 or more"))?)
            }
            _ => return Err(wrong("a number")),
        };
        self.0.insert(known(key)?, setting);
        Ok(())
    }

    /// A value from a flag or an environment variable.
    fn add_text(&mut self, key: &str, text: &str) -> Result<(), ConfigError> {
        let value = match known(key)? {
            key if is_text(key) => Value::String(text.to_owned()),
            "bootstrap" => {
                let items = text
                    .split(',')
                    .map(|item| Value::String(item.trim().to_owned()));
                Value::Array(items.collect())
            }
            "metadata" => Value::Table(pairs(text)?),
            _ => Value::Integer(
                text.parse()
                    .map_err(|_| ConfigError::new(key, format!("{text:?} is not a number")))?,
            ),
        };
        self.add(key, value)
    }

    fn build(mut self) -> Result<NodeConfig, Failure> {
        let token = self.token()?.filter(|token| token.pass.is_some());
        let data_dir = self.text("data_dir").map(PathBuf::from);
        let own = data_dir.map(|dir| dir.join(data_dir::CREDENTIALS));
        self.check_joins(own.as_deref())?;
        let has_own = |dir: &PathBuf| token.is_some() || dir.join(CERTIFICATE_FILE).exists();
        let given = self.text("credentials").map(PathBuf::from);
        let dir = given.or_else(|| own.filter(has_own));
        self.0.remove("credentials");
        let data_dir = self.text("data_dir").map(PathBuf::from);
        let client = |key| match self.0.remove(key) {
            Some(Setting::Text(text)) => Some(text),
            Some(Setting::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let clients = clients::configured(client, data_dir)?;
        let mut builder = self.builder()?;
        let mut enrolment = None;
        match (&dir, token) {
            (Some(dir), Some(token)) if !dir.join(CERTIFICATE_FILE).exists() => {
                enrolment = Some(token);
            }
            (Some(dir), _) => {
                builder = builder.credentials(steadfast::credentials::read(dir, now_ms())?);
            }
            (None, _) => {}
        }
        Ok(NodeConfig {
            config: builder.clone().build()?,
            builder,
            credentials: dir,
            clients,
            enrolment,
        })
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(Setting::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether the node of this data directory belongs to a group: it has a log then.
    fn has_joined(&self) -> bool {
        let dir = self
            .text("data_dir")
            .map(|dir| Path::new(dir).join(data_dir::LOG));
        let names = dir.and_then(|dir| data_dir::names_in(&dir).ok());
        names.is_some_and(|names| !names.is_empty())
    }

    /// A node that has got its credentials with a join token joins with it, and founds no group.
    fn check_joins(&self, own: Option<&Path>) -> Result<(), ConfigError> {
        let has_own = own.is_some_and(|dir| dir.join(CERTIFICATE_FILE).exists());
        let how = ["join", "bootstrap"];
        if !has_own || self.has_joined() || how.iter().any(|key| self.0.contains_key(key)) {
            return Ok(());
        }
        let problem = format!(
            "is missing: there are credentials in {}, and the node belongs to no group yet; give the join \
             token that they came with, or the nodes that form the group (bootstrap)",
            own.unwrap_or(Path::new("")).display()
        );
        Err(ConfigError::new("join", problem))
    }

    /// The join token; one that begins with `@` is in the file of that name.
    #[expect(
        clippy::disallowed_methods,
        reason = "a program reads its configuration itself"
    )]
    fn token(&mut self) -> Result<Option<JoinToken>, ConfigError> {
        let Some(text) = self.text("join") else {
            return Ok(None);
        };
        let wrong = |problem: String| ConfigError::new("join", problem);
        let text = match text
            .strip_prefix('@')
            .map(|path| (path, std::fs::read_to_string(path)))
        {
            // A node that has joined needs no token, and a used one may well be gone.
            Some((_, Err(_))) if self.has_joined() => {
                self.0.remove("join");
                return Ok(None);
            }
            Some((path, read)) => {
                read.map_err(|error| wrong(format!("cannot be read from {path}: {error}")))?
            }
            None => text.to_owned(),
        };
        let text = text.trim().to_owned();
        let token = text
            .parse()
            .map_err(|error: ParseJoinTokenError| wrong(error.to_string()))?;
        self.0.insert("join", Setting::Text(text));
        Ok(Some(token))
    }

    fn builder(mut self) -> Result<RepConfigBuilder, ConfigError> {
        let mut text = |key| match self.0.remove(key) {
            Some(Setting::Text(text)) => Ok(text),
            _ => Err(ConfigError::new(key, "is required")),
        };
        let mut builder = RepConfig::builder(text("group")?, text("node")?)
            .data_dir(text("data_dir")?)
            .listen(text("listen")?);
        if self.0.contains_key("join") && self.0.contains_key("bootstrap") {
            let problem =
                "is set together with bootstrap; a node either forms a group or joins one";
            return Err(ConfigError::new("join", problem));
        }
        for (key, setting) in self.0 {
            builder = match (key, setting) {
                (_, Setting::List(nodes)) => builder.bootstrap(Bootstrap::expect(nodes)?),
                (_, Setting::Number(number)) => builder.set(key, number),
                (_, Setting::Pairs(pairs)) => {
                    let add =
                        |builder: RepConfigBuilder, (name, value)| builder.metadata(name, value);
                    pairs.into_iter().fold(builder, add)
                }
                ("join", Setting::Text(token)) => {
                    let token = token.parse::<JoinToken>();
                    let token = token.map_err(|error| ConfigError::new(key, error.to_string()))?;
                    builder.bootstrap(Bootstrap::join(token))
                }
                ("advertise", Setting::Text(address)) => builder.advertise(address),
                ("repair", Setting::Text(repair)) => builder.repair(repair.parse()?),
                ("insecure_plaintext", Setting::Text(word)) => match &*word {
                    "yes" => builder.insecure_plaintext(),
                    "too" => builder.insecure_plaintext_too(),
                    "no" => builder,
                    _ => {
                        return Err(ConfigError::new(
                            key,
                            format!("{word:?} is neither yes, no nor too"),
                        ));
                    }
                },
                // The others were handled above.
                (_, Setting::Text(name)) => {
                    let durability = name.parse::<Durability>();
                    let refused =
                        |error: ParseDurabilityError| ConfigError::new(key, error.to_string());
                    builder.durability(durability.map_err(refused)?)
                }
            };
        }
        Ok(builder)
    }
}

/// The values of `name=value,name=value`.
fn pairs(text: &str) -> Result<toml::Table, ConfigError> {
    let pair = |item: &str| {
        let (name, value) = item.trim().split_once('=').ok_or_else(|| {
            ConfigError::new(
                "metadata",
                format!("{item:?} is not of the form name=value"),
            )
        })?;
        Ok((name.to_owned(), Value::String(value.to_owned())))
    };
    text.split(',').map(pair).collect()
}

fn is_text(key: &str) -> bool {
    [
        "group",
        "node",
        "data_dir",
        "listen",
        "durability",
        "repair",
        "join",
        "advertise",
        "credentials",
        "insecure_plaintext",
    ]
    .contains(&key)
        || CLIENT_KEYS
            .iter()
            .any(|known| known.name == key && known.range.is_none())
}

fn known(key: &str) -> Result<&'static str, ConfigError> {
    let found = KEYS
        .iter()
        .chain(CLIENT_KEYS)
        .find(|known| known.name == key);
    found.map(|key| key.name).ok_or_else(|| unknown_key(key))
}
