//! What traces show of a node: spans that belong to the caller's own.

use std::sync::{Arc, Mutex};

use steadfast::{ConsistencyPolicy, SPANS, StartAt};
use tracing::span::{Attributes, Id};
use tracing::{Level, Subscriber, info_span};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::{Group, put};

/// A span and its parent, by name.
type Named = (&'static str, Option<&'static str>);

/// The spans of the library.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Named>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().target() == SPANS {
            let parent = context.span(id).and_then(|span| span.parent());
            let parent = parent.map(|parent| parent.name());
            let mut seen = self.0.lock().expect("no panic");
            seen.push((attributes.metadata().name(), parent));
        }
    }
}

#[test]
fn a_commit_a_read_and_a_feed_are_spans_below_the_span_of_the_caller() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let seen = Seen::default();
    let targets = Targets::new()
        .with_target(SPANS, Level::DEBUG)
        .with_target("promises", Level::INFO);
    let subscriber = tracing_subscriber::registry().with(seen.clone().with_filter(targets));
    tracing::subscriber::with_default(subscriber, || {
        let _request = info_span!(target: "promises", "request").entered();
        let _token = put(node, "k", "v").expect("committed");
        let open = node.begin_transaction().expect("begun");
        let _token = open.commit().expect("committed");
        for policy in [ConsistencyPolicy::Eventual, ConsistencyPolicy::Linearizable] {
            let read = node.read(policy, |snapshot| snapshot.database("d")?.get("k"));
            assert!(read.expect("read").is_some());
        }
        let mut feed = node.subscribe(StartAt::Start).expect("a feed");
        assert!(feed.next().is_some_and(|event| event.is_ok()));
    });
    let request = Some("request");
    let expected = [
        ("commit", request),
        ("commit", request),
        ("read", request),
        ("read", request),
        ("feed", request),
    ];
    assert_eq!(*seen.0.lock().expect("no panic"), expected);
}
