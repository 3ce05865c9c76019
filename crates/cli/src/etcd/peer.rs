//! One side of a copy: a few endpoints of one cluster, asked through the etcd v3 API.
//!
//! A call that fails because an endpoint is gone, slow or without a leader is made again at the next
//! one, for up to [`RETRY_FOR`]. So what is called here must bear being done twice.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use steadfast_server::proto::etcdserverpb::auth_client::AuthClient;
use steadfast_server::proto::etcdserverpb::kv_client::KvClient;
use steadfast_server::proto::etcdserverpb::watch_client::WatchClient;
use steadfast_server::proto::etcdserverpb::watch_request::RequestUnion;
use steadfast_server::proto::etcdserverpb::{
    AuthenticateRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::failure::Failure;

/// For how long a call is made again. An election takes seconds, a restart of a machine minutes.
const RETRY_FOR: Duration = Duration::from_mins(1);
/// The same for the first call to a side: a wrong address should be told soon.
const GREET_FOR: Duration = Duration::from_secs(10);
/// How long one attempt may take. A server of etcd gives up after 7 s itself.
const CALL_MAX: Duration = Duration::from_secs(10);
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How often a connection with a call on it is asked whether it still stands. Servers of etcd end one
/// that asks more often than each 5 s, or while nothing is going on.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest message that is read: a request of the largest size that servers are known to be set to.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Endpoints of one side.
const ENDPOINTS_MAX: usize = 64;

/// Every key that there can be: from this one on.
pub(super) const FIRST_KEY: &[u8] = b"\0";
/// As the end of a range: there is none.
pub(super) const NO_END: &[u8] = b"\0";

/// How a side is reached, as arguments of the verb.
#[derive(Default)]
pub(super) struct Way {
    /// Endpoints, `host:port` or a URL.
    pub(super) endpoints: Vec<String>,
    /// `name:password`.
    pub(super) user: Option<String>,
    pub(super) cacert: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// Why a call failed for good.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server says no.
    Refused(Status),
    /// No endpoint has given an answer for long; the last reason.
    Lost(Status),
}

impl Trouble {
    /// Whether the server says this.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused(status) if status.message().contains(words))
    }

    /// Whether a range or a watch begins at what the server has dropped.
    pub(super) fn is_compacted(&self) -> bool {
        self.says("required revision has been compacted")
    }

    /// Whether a message is larger than the server, or this program, takes.
    pub(super) fn is_too_large(&self) -> bool {
        let Self::Refused(status) = self else {
            return false;
        };
        status.message().contains("request is too large")
            || (matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange)
                && (status.message().contains("larger than max")
                    || status.message().contains("message length too large")))
    }
}

type Token = MetadataValue<Ascii>;

#[derive(Default)]
struct State {
    /// The endpoint that is asked.
    at: usize,
    token: Option<Token>,
    /// The cluster does not ask who calls.
    has_no_users: bool,
    has_answered: bool,
}

/// See the module.
pub(super) struct Peer {
    /// "source" or "target".
    side: &'static str,
    names: Vec<String>,
    channels: Vec<Channel>,
    user: Option<(String, String)>,
    state: Mutex<State>,
}

impl Peer {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When an endpoint, a file or the user is written in a way that cannot be used.
    pub(super) fn new(side: &'static str, way: &Way) -> Result<Self, Failure> {
        let flag = flag(side);
        let names: Vec<String> = way
            .endpoints
            .iter()
            .map(|name| name.trim().to_owned())
            .collect();
        if names.is_empty() || names.len() > ENDPOINTS_MAX || names.iter().any(String::is_empty) {
            let what = format!("--{flag} needs 1 to {ENDPOINTS_MAX} endpoints, by commas");
            return Err(Failure::usage(
                what,
                format!("--{flag} 10.0.0.1:2379,10.0.0.2:2379"),
            ));
        }
        let user = way.user.as_deref().map(|user| {
            let parts = user.split_once(':').filter(|(name, _)| !name.is_empty());
            parts
                .map(|(name, password)| (name.to_owned(), password.to_owned()))
                .ok_or_else(|| {
                    let remedy = "write it as name:password";
                    Failure::usage(format!("--{flag}-user has no password"), remedy)
                })
        });
        let user = user.transpose()?;
        let tls = tls(flag, way)?;
        let channels = names.iter().map(|name| channel(flag, name, tls.as_ref()));
        Ok(Self {
            side,
            channels: channels.collect::<Result<_, _>>()?,
            names,
            user,
            state: Mutex::default(),
        })
    }

    /// Its endpoints, by commas.
    pub(super) fn names(&self) -> String {
        self.names.join(",")
    }

    /// One call, made again at other endpoints while it fails for reasons that pass.
    pub(super) async fn call<R: Clone, T, F>(
        &self,
        request: R,
        ask: impl Fn(Channel, Request<R>) -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let at = self.state().at;
            let status = match self.attempt(at, request.clone(), &ask).await {
                Ok(answer) => {
                    self.state().has_answered = true;
                    return Ok(answer);
                }
                Err(status) => status,
            };
            let is_unsigned =
                self.user.is_some() && status.message().contains("user name is empty");
            if !is_passing(&status) && !is_unsigned {
                return Err(Trouble::Refused(status));
            }
            if is_of_server(&status) {
                self.state().has_answered = true;
            }
            tracing::debug!(side = self.side, endpoint = self.names[at], %status, "asking again");
            let patience = if self.state().has_answered {
                RETRY_FOR
            } else {
                GREET_FOR
            };
            if began.elapsed() > patience {
                return Err(Trouble::Lost(status));
            }
            self.turn(at);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt<R, T, F>(
        &self,
        at: usize,
        message: R,
        ask: &impl Fn(Channel, Request<R>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = async {
            let request = self.signed(at, message).await?;
            ask(self.channels[at].clone(), request).await
        };
        let answer = timeout(CALL_MAX, call).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        answer
            .inspect_err(|status| self.forget_token(status))
            .map(Response::into_inner)
    }

    /// The message with the token of the user, if there is one.
    async fn signed<R>(&self, at: usize, message: R) -> Result<Request<R>, Status> {
        let mut request = Request::new(message);
        let Some((name, password)) = &self.user else {
            return Ok(request);
        };
        let (known, has_no_users) = {
            let state = self.state();
            (state.token.clone(), state.has_no_users)
        };
        let token = match known {
            Some(token) => token,
            None if has_no_users => return Ok(request),
            None => {
                let asked = AuthenticateRequest {
                    name: name.clone(),
                    password: password.clone(),
                };
                let answer = AuthClient::new(self.channels[at].clone())
                    .authenticate(asked)
                    .await;
                match answer {
                    Err(status) if status.message().contains("authentication is not enabled") => {
                        self.state().has_no_users = true;
                        return Ok(request);
                    }
                    answer => {
                        let token = answer?.into_inner().token.parse::<Token>();
                        token.map_err(|_| Status::internal("the token is no text"))?
                    }
                }
            }
        };
        self.state().token = Some(token.clone());
        request.metadata_mut().insert("token", token);
        Ok(request)
    }

    /// A token that has ended, or rights that have changed, need a new one.
    fn forget_token(&self, status: &Status) {
        let is_of_users = status.code() == Code::Unauthenticated
            || status.message().contains("revision of auth store is old")
            || status.message().contains("user name is empty");
        if is_of_users {
            let mut state = self.state();
            state.token = None;
            state.has_no_users = false;
        }
    }

    /// From here on the endpoint after this one is asked, unless another call has moved on already.
    fn turn(&self, from: usize) {
        let mut state = self.state();
        if state.at == from {
            state.at = (from + 1) % self.channels.len();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Trouble> {
        self.call(request, |channel, request| async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            client.range(request).await
        })
        .await
    }

    /// How many keys there are at a revision (0: the newest), with the header: a read that has
    /// everything that was acknowledged before.
    pub(super) async fn count(&self, revision: i64) -> Result<RangeResponse, Trouble> {
        let request = RangeRequest {
            key: Bytes::from_static(FIRST_KEY),
            range_end: Bytes::from_static(NO_END),
            count_only: true,
            revision,
            ..RangeRequest::default()
        };
        self.range(request).await
    }

    /// The newest revision.
    pub(super) async fn revision(&self) -> Result<i64, Trouble> {
        let request = RangeRequest {
            key: Bytes::from_static(FIRST_KEY),
            count_only: true,
            ..RangeRequest::default()
        };
        let answer = self.range(request).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Everything that happens to any key from a revision on. One attempt; a stream that ends is
    /// opened anew by who reads it, after [`Self::failed_at`].
    ///
    /// # Errors
    /// With the number of the endpoint, for [`Self::failed_at`].
    pub(super) async fn watch(
        &self,
        start_revision: i64,
    ) -> Result<(usize, Streaming<WatchResponse>), (usize, Status)> {
        let at = self.state().at;
        let create = WatchCreateRequest {
            key: Bytes::from_static(FIRST_KEY),
            range_end: Bytes::from_static(NO_END),
            start_revision,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // It stays open for as long as the answers are read.
        let requests = || stream::iter([create.clone()]).chain(stream::pending());
        let opened = self.attempt(at, requests(), &|channel, mut request| async move {
            // A member that has lost its leader ends the stream instead of keeping silent.
            let yes = MetadataValue::from_static("true");
            request.metadata_mut().insert("hasleader", yes);
            let mut client = WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            client.watch(request).await
        });
        let opened = opened.await.map_err(|status| (at, status))?;
        Ok((at, opened))
    }

    /// A stream at this endpoint has ended.
    ///
    /// # Errors
    /// When the server says that it would end again.
    pub(super) fn failed_at(&self, at: usize, status: Status) -> Result<(), Trouble> {
        if !is_passing(&status) {
            return Err(Trouble::Refused(status));
        }
        self.forget_token(&status);
        self.turn(at);
        Ok(())
    }

    /// The failure of the verb, for a call that failed for good.
    pub(super) fn failure(&self, trouble: Trouble, data: &str) -> Failure {
        let (side, names) = (self.side, self.names());
        let flag = flag(side);
        let (status, is_lost) = match trouble {
            Trouble::Refused(status) => (status, false),
            Trouble::Lost(status) => (status, true),
        };
        let said = whole_text(&status);
        let has_answered = self.state().has_answered;
        if !has_answered && (is_lost || status.code() == Code::Unimplemented) {
            return self.never_reached(&said, data);
        }
        let remedy = if is_lost {
            format!("see why no endpoint of the {side} answers, then run the same command again")
        } else {
            match status.code() {
                Code::PermissionDenied => format!(
                    "give --{flag}-user a user with the role root: a copy touches every key and lease"
                ),
                Code::InvalidArgument if said.contains("user name is empty") => {
                    format!("the {side} has users enabled: give --{flag}-user name:password")
                }
                Code::InvalidArgument if said.contains("authentication failed") => {
                    format!("correct --{flag}-user")
                }
                Code::InvalidArgument if said.contains("too many operations") => format!(
                    "let the {side} take transactions of 128 operations (etcd: --max-txn-ops)"
                ),
                Code::ResourceExhausted => {
                    format!("give the {side} more space, then run the same command again")
                }
                _ => "remove the cause, then run the same command again".to_owned(),
            }
        };
        let what = if is_lost {
            format!("no endpoint of the {side} at {names} answers: {said}")
        } else {
            format!("the {side} at {names} refuses: {said}")
        };
        Failure::new(what, data, remedy)
    }
}

impl Peer {
    /// The failure of a verb that got no answer at all.
    fn never_reached(&self, said: &str, data: &str) -> Failure {
        let (side, names, flag) = (self.side, self.names(), flag(self.side));
        if said.contains("ertificate") {
            let what = format!("no TLS with the {side} at {names}: {said}");
            let remedy = format!(
                "check --{flag}-cacert, the authority of its certificate, and --{flag}-cert with \
                 --{flag}-key, which it may ask for"
            );
            return Failure::new(what, data, remedy);
        }
        let what = if is_unreachable(said) {
            format!("the {side} at {names} cannot be reached: {said}")
        } else {
            format!("the {side} at {names} does not answer as etcd does: {said}")
        };
        let remedy = format!(
            "give --{flag} the addresses of an etcd's clients (often port 2379), or the \
             --client-listen of nodes of a group; with --{flag}-cacert where they speak TLS"
        );
        Failure::new(what, data, remedy)
    }
}

/// Whether the same call may succeed later, or elsewhere.
fn is_passing(status: &Status) -> bool {
    let text = status.message();
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::Internal
        | Code::Unauthenticated
        | Code::Unknown => true,
        Code::ResourceExhausted => text.contains("too many requests"),
        Code::InvalidArgument => text.contains("revision of auth store is old"),
        // What is not there yet on a member that lags.
        Code::OutOfRange => text.contains("future revision"),
        _ => false,
    }
}

/// Whether it was a server of the API that said so.
fn is_of_server(status: &Status) -> bool {
    let text = status.message();
    text.starts_with("etcdserver: ") || text == "context deadline exceeded"
}

fn is_unreachable(text: &str) -> bool {
    [
        "refused",
        "unreachable",
        "tcp connect",
        "lookup",
        "dns",
        "timed out",
        "no answer",
    ]
    .iter()
    .any(|word| text.contains(word))
}

/// What the server says and why, down to the first cause.
fn whole_text(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() {
                more
            } else {
                format!("{text}: {more}")
            };
        }
        cause = error.source();
    }
    if text.is_empty() {
        status.code().description().clone_into(&mut text);
    }
    text
}

/// The beginning of the flags of a side.
pub(super) fn flag(side: &str) -> &'static str {
    if side == "source" { "from" } else { "to" }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program reads its certificates itself"
)]
fn tls(flag: &str, way: &Way) -> Result<Option<ClientTlsConfig>, Failure> {
    if way.cacert.is_none() {
        if way.cert.is_some() || way.key.is_some() {
            let what =
                format!("--{flag}-cert and --{flag}-key are of no use without --{flag}-cacert");
            return Err(Failure::usage(
                what,
                "name the authority of the servers' certificates",
            ));
        }
        return Ok(None);
    }
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            Failure::usage(what, "name a file in PEM that this user may read")
        })
    };
    let mut config = ClientTlsConfig::new();
    if let Some(path) = &way.cacert {
        config = config.ca_certificate(Certificate::from_pem(read(path)?));
    }
    match (&way.cert, &way.key) {
        (Some(cert), Some(key)) => {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        (None, None) => {}
        _ => {
            let what = format!("--{flag}-cert and --{flag}-key need each other");
            return Err(Failure::usage(what, "give both, or none"));
        }
    }
    Ok(Some(config))
}

fn channel(flag: &str, name: &str, tls: Option<&ClientTlsConfig>) -> Result<Channel, Failure> {
    let unusable = |why: &dyn std::fmt::Display| {
        let what = format!("--{flag}: {name:?} cannot be used: {why}");
        Failure::usage(
            what,
            "write it as host:port, http://host:port or https://host:port",
        )
    };
    let url = match name.split_once("://") {
        Some(("http" | "https", _)) => name.to_owned(),
        Some((scheme, _)) => return Err(unusable(&format!("{scheme}:// is not known"))),
        None if tls.is_some() => format!("https://{name}"),
        None => format!("http://{name}"),
    };
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| unusable(&error))?;
    if endpoint.uri().port().is_none() {
        return Err(unusable(&"it has no port"));
    }
    let mut endpoint = endpoint
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    if url.starts_with("https://") {
        let Some(tls) = tls else {
            let what = format!("{name} speaks TLS, and no authority is given for it");
            let remedy = format!("give --{flag}-cacert the authority of its certificate, in PEM");
            return Err(Failure::usage(what, remedy));
        };
        let with_tls = endpoint.tls_config(tls.clone());
        endpoint = with_tls.map_err(|error| {
            let why = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            unusable(&why)
        })?;
    }
    Ok(endpoint.connect_lazy())
}
