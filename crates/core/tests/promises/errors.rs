//! Each error names its cause in its own text, and a chain of errors says nothing twice.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use steadfast::addresses::AddressesError;
use steadfast::config::ConfigError;
use steadfast::credentials::CredentialsError;
use steadfast::engine::EngineError;
use steadfast::log::LogError;
use steadfast::quorum_loss::RecoverError;
use steadfast::{FeedError, NodeStatus, OpenError, ReadError, WriteError};
use steadfast_net::{MemoryNetwork, NetError};

use crate::support::runtime;

const CAUSE: &str = "the very cause";

fn of_system() -> io::Error {
    io::Error::other(CAUSE)
}

fn of_net() -> NetError {
    NetError::Io {
        doing: "listen at n1:7400".to_owned(),
        source: of_system(),
    }
}

fn of_log() -> LogError {
    LogError::Io {
        path: PathBuf::from("/data/log"),
        source: Arc::new(of_system()),
    }
}

fn of_engine() -> EngineError {
    EngineError::Io {
        doing: "sync",
        source: of_system().into(),
    }
}

fn of_open() -> OpenError {
    OpenError::Io {
        doing: "read",
        path: PathBuf::from("/data"),
        source: of_system(),
    }
}

fn of_credentials() -> CredentialsError {
    CredentialsError::Io {
        doing: "read",
        path: PathBuf::from("/data"),
        source: of_system(),
    }
}

/// Every error of the library that has another one as its cause.
fn with_causes() -> Vec<Box<dyn Error>> {
    let failed = LogError::Failed {
        path: PathBuf::from("/data/log"),
        source: Arc::new(of_system()),
    };
    let full = EngineError::DiskFull {
        source: of_system().into(),
    };
    let listen = OpenError::Listen {
        address: "n1:7400".to_owned(),
        source: of_net(),
    };
    let no_holder = CredentialsError::NoHolder {
        path: PathBuf::from("/data"),
        source: ConfigError::new("uri", CAUSE),
    };
    let unusable = CredentialsError::Unusable {
        dir: PathBuf::from("/data"),
        source: of_net(),
    };
    vec![
        Box::new(of_log()),
        Box::new(failed),
        Box::new(of_engine()),
        Box::new(full),
        Box::new(of_open()),
        Box::new(listen),
        Box::new(OpenError::from(ConfigError::new("data_dir", CAUSE))),
        Box::new(OpenError::Log(of_log())),
        Box::new(OpenError::from(of_engine())),
        Box::new(ReadError::from(of_log())),
        Box::new(ReadError::Engine(of_engine())),
        Box::new(WriteError::from(ReadError::Engine(of_engine()))),
        Box::new(WriteError::abort(of_system())),
        Box::new(FeedError::Log(of_log())),
        Box::new(FeedError::Engine(of_engine())),
        Box::new(RecoverError::from(of_open())),
        Box::new(RecoverError::Begun { source: of_open() }),
        Box::new(AddressesError::from(of_open())),
        Box::new(of_credentials()),
        Box::new(no_holder),
        Box::new(unusable),
    ]
}

/// The texts of an error and of the causes below it, as those print them who print all.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    texts
}

fn check(texts: &[String]) {
    for (at, text) in texts.iter().enumerate() {
        for below in &texts[at + 1..] {
            let repeats = text.contains(below.as_str()) || below.contains(text.as_str());
            assert!(!repeats, "{texts:#?}");
        }
    }
}

#[test]
fn an_error_names_its_cause_once_alone_and_with_its_whole_chain() {
    for error in with_causes() {
        let texts = chain(&*error);
        check(&texts);
        assert_eq!(texts[0].matches(CAUSE).count(), 1, "{}", texts[0]);
    }
    let texts = chain(&of_net());
    check(&texts);
    assert!(texts[1].contains(CAUSE), "{texts:?}");
}

#[test]
fn a_port_that_is_taken_and_a_node_that_is_not_there_are_named_once() {
    let network = MemoryNetwork::new();
    let transport = network.host("n1");
    let asking = NodeStatus::ask_on(&*transport, "n2:7400", false, Duration::from_secs(10));
    let refused = runtime().block_on(asking).expect_err("nobody is there");
    let texts = chain(&refused);
    check(&texts);
    assert_eq!(
        texts.concat().matches("n2:7400 does").count(),
        1,
        "{texts:?}"
    );
    assert!(texts[0].contains("refused"), "{texts:?}");

    let listen = OpenError::Listen {
        address: "n1:7400".to_owned(),
        source: of_net(),
    };
    assert_eq!(listen.to_string().matches("cannot listen").count(), 1);
}

#[test]
fn what_another_node_can_take_is_retryable() {
    let stopped = || "the log failed".to_owned();
    assert!(WriteError::Closed.is_retryable());
    assert!(WriteError::Stopped { reason: stopped() }.is_retryable());
    assert!(ReadError::Closed.is_retryable());
    assert!(ReadError::Stopped { reason: stopped() }.is_retryable());
    assert!(ReadError::NoData.is_retryable());
    assert!(WriteError::from(ReadError::NoData).is_retryable());
    assert!(FeedError::Closed.is_retryable());
}
