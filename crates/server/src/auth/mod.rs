//! Who may do what: users, roles and permissions on ranges of keys, as etcd has them.
//!
//! All of it is one row of the store, which changes as a whole and only if it was not changed in
//! between. Every node follows the row, and checks each request against what it says. A change is
//! acknowledged when this node goes by it, and when no write that was permitted before is under way
//! here any more: who has lost a right cannot write at this node from then on.

pub(crate) mod passwords;
pub(crate) mod state;
mod tokens;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::auth::passwords::Passwords;
use crate::auth::state::{Need, STATE_BYTES_MAX, State, User};
use crate::auth::tokens::Tokens;
use crate::error::Error;
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use crate::store::{AuthChange, Store};

/// The key of the row.
const ROW: &[u8] = b"state";

/// How often a change is tried again because of another one in between.
const TRIES: usize = 16;

/// Pause of a node that could not read the row, before it tries again.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// How deep transactions may be nested, where their permissions are checked.
const DEPTH_MAX: usize = 128;

/// What this node knows of users and roles.
pub(crate) struct Auth {
    store: Store,
    pub(crate) passwords: Passwords,
    tokens: Tokens,
    versions: watch::Receiver<u64>,
    known: watch::Receiver<Arc<Known>>,
    /// What was known before, while requests that were checked against it are under way.
    before: Arc<Mutex<Vec<TaskTracker>>>,
    follows: JoinHandle<()>,
    request_timeout: Duration,
}

/// The row at one time, and the requests that were checked against it.
struct Known {
    /// The store's number of it.
    version: u64,
    state: State,
    requests: TaskTracker,
}

/// Who is at the other end of a connection. Requests have it among their extensions.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The common name of its certificate.
    pub(crate) name: Option<Arc<str>>,
}

/// How a caller says who it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    token: Option<String>,
    /// The common name of its certificate.
    peer: Option<Arc<str>>,
    /// Whether it wants no answer of a node that knows no leader.
    pub(crate) wants_leader: bool,
}

impl Caller {
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        let metadata = request.metadata();
        let token = metadata
            .get("token")
            .or_else(|| metadata.get("authorization"));
        // What is no text is no token of ours.
        let token = token.map(|token| token.to_str().unwrap_or_default());
        let token = token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token).to_owned());
        let peer = request.extensions().get::<Peer>();
        Self {
            token,
            peer: peer.and_then(|peer| peer.name.clone()),
            wants_leader: metadata
                .get("hasleader")
                .is_some_and(|value| value == "true"),
        }
    }
}

/// Who asks, and against what it is checked. Held while the request is under way.
pub(crate) struct Access {
    known: Arc<Known>,
    user: Option<String>,
    _request: TaskTrackerToken,
}

impl Auth {
    /// Follows the row of this store.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub(crate) async fn open(
        store: Store,
        token_ttl: Duration,
        request_timeout: Duration,
    ) -> Result<Self, Error> {
        let mut versions = store.auth_version();
        let version = *versions.borrow_and_update();
        let first = Known::new(version, read(&store).await?);
        let (publish, known) = watch::channel(Arc::new(first));
        let before = Arc::new(Mutex::new(Vec::new()));
        let followed = versions.clone();
        let follows = tokio::spawn(follow(
            store.clone(),
            followed,
            publish,
            Arc::clone(&before),
        ));
        Ok(Self {
            store,
            passwords: Passwords::new(),
            tokens: Tokens::new(token_ttl),
            versions,
            known,
            before,
            follows,
            request_timeout,
        })
    }

    /// Ends following.
    pub(crate) fn close(&self) {
        self.follows.abort();
    }

    /// What this node has applied.
    async fn current(&self) -> Result<Arc<Known>, Error> {
        let now = Arc::clone(&self.known.borrow());
        if now.version == *self.versions.borrow() {
            return Ok(now);
        }
        let mut known = self.known.clone();
        loop {
            let now = Arc::clone(&known.borrow_and_update());
            if now.version == *self.versions.borrow() {
                return Ok(now);
            }
            let changed = timeout(self.request_timeout, known.changed()).await;
            changed
                .map_err(|_| Error::Timeout)?
                .map_err(|_| Error::Stopped)?;
        }
    }

    /// What the caller may do, as of now.
    ///
    /// # Errors
    /// [`Error::InvalidAuthToken`] for a token that is not good; [`Error::Stopped`],
    /// [`Error::Timeout`].
    pub(crate) async fn access(&self, caller: &Caller) -> Result<Access, Error> {
        let (known, request) = loop {
            let known = self.current().await?;
            let request = known.requests.token();
            // Else whoever has changed it may not have waited for this request.
            if Arc::ptr_eq(&known, &self.known.borrow()) {
                break (known, request);
            }
        };
        let user = if known.state.enabled {
            self.user(&known.state, caller)?
        } else {
            None
        };
        Ok(Access {
            known,
            user,
            _request: request,
        })
    }

    fn user(&self, state: &State, caller: &Caller) -> Result<Option<String>, Error> {
        let Some(token) = &caller.token else {
            return Ok(caller.peer.as_deref().map(str::to_owned));
        };
        let user = self.tokens.check(state, token);
        user.map(Some).ok_or(Error::InvalidAuthToken)
    }

    /// The same caller's access as of now, if what it was checked against has changed since: a read
    /// that took some time is checked again.
    ///
    /// # Errors
    /// As [`Auth::access`].
    pub(crate) async fn changed(
        &self,
        access: &Access,
        caller: &Caller,
    ) -> Result<Option<Access>, Error> {
        let is_same = Arc::ptr_eq(&self.current().await?, &access.known);
        if is_same {
            Ok(None)
        } else {
            Ok(Some(self.access(caller).await?))
        }
    }

    /// Everything that was acknowledged before the call.
    pub(crate) async fn newest(&self) -> Result<State, Error> {
        self.store.linearize().await?;
        Ok(read(&self.store).await?.0)
    }

    /// A token for a user with this password.
    pub(crate) async fn authenticate(&self, name: &str, password: String) -> Result<String, Error> {
        let state = self.newest().await?;
        if !state.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = state.user(name).filter(|user| !user.hash.is_empty());
        let hash = user.map(|user| user.hash.clone());
        let is_right = self.passwords.verify(password, hash).await?;
        match user {
            Some(user) if is_right => Ok(Tokens::make(&state, name, user.since)),
            _ => Err(Error::AuthFailed),
        }
    }

    /// Changes users or roles, if the one who asks may at the time of the change. Returns when this
    /// node goes by it.
    pub(crate) async fn change(
        &self,
        access: Access,
        change: impl Fn(&mut State) -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        let user = access.user.clone();
        // This request must not wait for its own end.
        drop(access);
        for _ in 0..TRIES {
            self.store.linearize().await?;
            let (mut state, row) = read(&self.store).await?;
            if state.enabled {
                admin(&state, user.as_deref())?;
            }
            let had = state.clone();
            change(&mut state)?;
            if state == had {
                return Ok(());
            }
            state.revision += 1;
            if state.encoded_len() > STATE_BYTES_MAX {
                return Err(Error::RequestTooLarge);
            }
            let change = AuthChange {
                expect: vec![(Bytes::from_static(ROW), row)],
                set: vec![(Bytes::from_static(ROW), Some(state.encode_to_vec().into()))],
            };
            if self.store.auth_change(change).await? {
                return self.in_force(state.revision).await;
            }
        }
        Err(Error::TooManyRequests)
    }

    /// Waits until this node goes by a change, and nothing goes by what was before.
    async fn in_force(&self, revision: u64) -> Result<(), Error> {
        let mut known = self.known.clone();
        let in_force = async {
            let is_known = |known: &Arc<Known>| known.state.revision >= revision;
            known.wait_for(is_known).await.map_err(|_| Error::Stopped)?;
            let before = self
                .before
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            for requests in before {
                requests.wait().await;
            }
            Ok(())
        };
        let waited = timeout(self.request_timeout.saturating_mul(2), in_force).await;
        waited.unwrap_or(Err(Error::OutcomeUnknown))
    }
}

/// Reads the row again whenever it has changed, until the store ends.
async fn follow(
    store: Store,
    mut versions: watch::Receiver<u64>,
    publish: watch::Sender<Arc<Known>>,
    before: Arc<Mutex<Vec<TaskTracker>>>,
) {
    while versions.changed().await.is_ok() {
        let version = *versions.borrow_and_update();
        let state = loop {
            match read(&store).await {
                Ok(read) => break read,
                Err(Error::Stopped) => return,
                Err(error) => {
                    tracing::warn!(%error, "users and roles cannot be read");
                    sleep(READ_AGAIN).await;
                }
            }
        };
        // Whoever sees the new one must find the requests of the old one here.
        let mut before = before.lock().unwrap_or_else(PoisonError::into_inner);
        let old = publish.send_replace(Arc::new(Known::new(version, state)));
        old.requests.close();
        before.retain(|requests| !requests.is_empty());
        before.push(old.requests.clone());
    }
}

/// The row as this node has it, with its bytes.
async fn read(store: &Store) -> Result<(State, Option<Bytes>), Error> {
    let rows = store.auth_rows(ROW).await?;
    let row = rows.into_iter().find(|(key, _)| key == ROW);
    let Some((_, row)) = row else {
        return Ok((
            State {
                revision: 1,
                ..State::default()
            },
            None,
        ));
    };
    let state = State::decode(&*row).map_err(|_| Error::Corrupt)?;
    Ok((state, Some(row)))
}

impl Known {
    fn new(version: u64, (state, _): (State, Option<Bytes>)) -> Self {
        Self {
            version,
            state,
            requests: TaskTracker::new(),
        }
    }
}

fn admin(state: &State, user: Option<&str>) -> Result<(), Error> {
    let user = user.ok_or(Error::UserEmpty)?;
    let user = state.user(user).ok_or(Error::UserNotFound)?;
    user.is_root().then_some(()).ok_or(Error::PermissionDenied)
}

impl Access {
    /// Whether checks are on.
    pub(crate) fn is_checked(&self) -> bool {
        self.known.state.enabled
    }

    pub(crate) fn state(&self) -> &State {
        &self.known.state
    }

    /// The name of the one who asks.
    pub(crate) fn user_name(&self) -> Option<&str> {
        self.user.as_deref()
    }

    fn user(&self) -> Result<&User, Error> {
        let name = self.user.as_deref().ok_or(Error::UserEmpty)?;
        self.known.state.user(name).ok_or(Error::PermissionDenied)
    }

    /// Whether the one who asks is known at all.
    pub(crate) fn anybody(&self) -> Result<(), Error> {
        if self.is_checked() {
            self.user()?;
        }
        Ok(())
    }

    /// Whether the one who asks has the role that may do everything.
    pub(crate) fn admin(&self) -> Result<(), Error> {
        if self.is_checked() {
            admin(&self.known.state, self.user.as_deref())?;
        }
        Ok(())
    }

    fn check(&self, need: Need, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        if !self.is_checked() {
            return Ok(());
        }
        let user = self.user()?;
        let permitted = self.known.state.permits(user, need, key, range_end);
        permitted.then_some(()).ok_or(Error::PermissionDenied)
    }

    pub(crate) fn read(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.check(Need::Read, key, range_end)
    }

    pub(crate) fn write(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.check(Need::Write, key, range_end)
    }

    /// A put, but for the keys of its lease.
    pub(crate) fn put(&self, request: &PutRequest) -> Result<(), Error> {
        self.write(&request.key, &[])?;
        if request.prev_kv {
            self.read(&request.key, &[])?;
        }
        Ok(())
    }

    pub(crate) fn delete_range(&self, request: &DeleteRangeRequest) -> Result<(), Error> {
        self.write(&request.key, &request.range_end)?;
        if request.prev_kv {
            self.read(&request.key, &request.range_end)?;
        }
        Ok(())
    }

    /// Everything that a transaction may do, in either branch, and in those nested in it. The leases
    /// of its puts are added to `leases`.
    pub(crate) fn txn(&self, request: &TxnRequest, leases: &mut Vec<i64>) -> Result<(), Error> {
        if self.is_checked() {
            self.txn_at(request, leases, 0)?;
        }
        Ok(())
    }

    fn txn_at(
        &self,
        request: &TxnRequest,
        leases: &mut Vec<i64>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooManyOps);
        }
        for compare in &request.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        for RequestOp { request: op } in request.success.iter().chain(&request.failure) {
            match op {
                None => {}
                Some(Op::RequestRange(range)) => self.read(&range.key, &range.range_end)?,
                Some(Op::RequestPut(put)) => {
                    self.put(put)?;
                    leases.push(put.lease);
                }
                Some(Op::RequestDeleteRange(delete)) => self.delete_range(delete)?,
                Some(Op::RequestTxn(txn)) => self.txn_at(txn, leases, depth + 1)?,
            }
        }
        Ok(())
    }
}
