//! Tokens: a signed statement of who had the right password, and when. Every node can check one,
//! since all have the key; none is kept anywhere.
//!
//! One ends [`Tokens::ttl`] after it was made, or after it was last used at this node.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::auth::state::State;

/// How many tokens a node remembers the last use of. One that it does not know ends with the time
/// that stands in it.
const USED_MAX: usize = 10_000;

/// Checks tokens and makes them.
pub(crate) struct Tokens {
    ttl: Duration,
    /// When a token was last used here, in seconds since 1970.
    used: Mutex<HashMap<String, u64>>,
}

impl Tokens {
    pub(crate) fn new(ttl: Duration) -> Self {
        let used = Mutex::new(HashMap::new());
        Self { ttl, used }
    }

    /// A token for a user; `since` is that of the user in `state`.
    pub(crate) fn make(state: &State, name: &str, since: u64) -> String {
        let text = format!("{}.{since}.{name}", now_s());
        let signature = hmac::sign(&signing_key(state), text.as_bytes());
        let encode = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        format!("{}.{}", encode(text.as_bytes()), encode(signature.as_ref()))
    }

    /// The name of the user whose token this is, if it is one and good.
    pub(crate) fn check(&self, state: &State, token: &str) -> Option<String> {
        let (text, signature) = token.split_once('.')?;
        let text = URL_SAFE_NO_PAD.decode(text).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&signing_key(state), &text, &signature).ok()?;
        let text = String::from_utf8(text).ok()?;
        let mut parts = text.splitn(3, '.');
        let made: u64 = parts.next()?.parse().ok()?;
        let since: u64 = parts.next()?.parse().ok()?;
        let name = parts.next()?;
        let is_current = state.user(name).is_some_and(|user| user.since == since);
        (is_current && self.is_in_time(token, made)).then(|| name.to_owned())
    }

    /// Whether a good token has not expired, which this use then puts off.
    fn is_in_time(&self, token: &str, made: u64) -> bool {
        let (now, ttl) = (now_s(), self.ttl.as_secs());
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let last = used.get(token).copied().unwrap_or(made);
        if last.saturating_add(ttl) < now {
            used.remove(token);
            return false;
        }
        if used.len() >= USED_MAX {
            used.retain(|_, last| last.saturating_add(ttl) >= now);
        }
        if used.len() < USED_MAX || used.contains_key(token) {
            used.insert(token.to_owned(), now);
        }
        true
    }
}

fn signing_key(state: &State) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &state.key)
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Tokens, now_s};
    use crate::auth::state::State;

    fn state() -> State {
        let mut state = State {
            key: "key".into(),
            ..State::default()
        };
        state
            .add_user("a.b", "hash".to_owned())
            .expect("there is none");
        state
    }

    #[test]
    fn a_token_is_good_at_every_node_until_the_user_changes() {
        let mut state = state();
        let there = Tokens::new(Duration::from_mins(1));
        let token = Tokens::make(&state, "a.b", 1);
        assert_eq!(there.check(&state, &token).as_deref(), Some("a.b"));
        let cut = &token[..token.len() - 2];
        assert_eq!(there.check(&state, cut), None);
        state.revision = 7;
        state
            .change_password("a.b", "other".to_owned())
            .expect("it is there");
        assert_eq!(there.check(&state, &token), None, "of the old password");
        let token = Tokens::make(&state, "a.b", 8);
        state.key = "another".into();
        assert_eq!(there.check(&state, &token), None, "of another key");
    }

    #[test]
    fn a_token_ends_by_itself_unless_it_is_used() {
        let state = state();
        let tokens = Tokens::new(Duration::from_mins(1));
        let token = Tokens::make(&state, "a.b", 1);
        let then = now_s() - 100;
        let used = |last| {
            let mut used = tokens.used.lock().expect("nobody has panicked");
            used.insert(token.clone(), last);
        };
        used(then);
        assert_eq!(tokens.check(&state, &token), None, "last used 100 s ago");
        used(now_s() - 50);
        assert!(tokens.check(&state, &token).is_some());
        let used = tokens.used.lock().expect("nobody has panicked");
        assert!(used[&token] >= now_s() - 1, "its use puts its end off");
    }
}
