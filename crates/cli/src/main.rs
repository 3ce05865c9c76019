//! The `steadfast` program: runs a node, shows the state of a group, starts groups to experiment
//! with, and tests and measures the library.
//!
//! Each verb is one module. A verb that fails returns a [`Failure`], which says what happened, what
//! it means for the data and what to do, and carries the exit code.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what prints, and never panics, is in `output`"
)]

// Its macros print for all modules below.
#[macro_use]
mod output;

mod addresses;
mod audit;
mod backup;
mod bench;
mod child;
mod clients;
mod configure;
mod credentials;
mod data;
mod data_dir;
mod demo;
mod dev;
mod doctor;
mod etcd;
mod events;
mod failure;
mod group;
mod network;
mod ports;
mod progress;
mod recover;
mod settings;
mod start;
mod status;
mod stop;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use steadfast::Descriptors;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// Reuses memory that another thread has freed: with glibc's allocator, a node that serves a copy
/// grows by nearly another cache size (`docs/engines.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The log filter unless `STEADFAST_LOG` sets another.
const LOG_DEFAULT: &str = "warn,openraft=error";

/// Replication and high availability for Noxu DB.
#[derive(Parser)]
#[command(
    name = "steadfast",
    version,
    after_help = "\
Examples:
  steadfast demo                          kill masters under load and check that nothing is lost
  steadfast dev                           start a three-node group to experiment with
  steadfast init --group orders ...       make the credentials of a new group
  steadfast certs show DIR                show whose credentials these are, and until when
  steadfast start --config n1.toml        run one node of a real group
  steadfast status 10.0.0.1:7400          show the state of a group; any of its nodes will do
  steadfast put stock chairs 12           set a key, at any node; also get, delete, scan, watch
  steadfast etcd import ...               move from etcd, while it is in use
  steadfast token create                  print the token with which a new node joins
  steadfast master transfer n2            make n2 the master
  steadfast group shutdown                stop all nodes once all of them have every write
  steadfast doctor                        find out what is wrong, why, and what to do about it
  steadfast events                        watch the masters, members and failures of a group
  steadfast verify --deep                 check that all nodes agree and all files are intact
  steadfast backup create DIR             back up the whole state as of one transaction
  steadfast recover plan --data-dir DIR   show what is left of a group that has lost its quorum
  steadfast config explain                explain every configuration key

Exit codes: 0 success, 1 failure, 2 usage error, 3 degraded, 4 no quorum.
STEADFAST_LOG sets the log filter for stderr, for example STEADFAST_LOG=debug."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Init(credentials::init::Arguments),
    Certs(credentials::Arguments),
    Start(start::Arguments),
    Status(status::Arguments),
    Node(group::NodeArguments),
    Master(group::MasterArguments),
    Token(group::TokenArguments),
    Group(group::GroupArguments),
    Doctor(doctor::Arguments),
    Events(events::Arguments),
    Get(data::GetArguments),
    Put(data::PutArguments),
    Delete(data::DeleteArguments),
    Scan(data::scan::ScanArguments),
    Watch(data::watch::Arguments),
    Databases(data::DatabasesArguments),
    Export(data::scan::ExportArguments),
    Import(data::import::Arguments),
    Etcd(etcd::Arguments),
    Verify(verify::Arguments),
    Backup(backup::Arguments),
    Recover(recover::Arguments),
    Dev(dev::Arguments),
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    Config(configure::Arguments),
    #[command(hide = true)]
    DemoNode(demo::node::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Each connection and each file takes one; the default of most systems is meant for fewer.
    let raised = Descriptors::raise_limit();
    let filter =
        EnvFilter::try_from_env("STEADFAST_LOG").unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::Log)
        .with_ansi(output::is_watched())
        .log_internal_errors(false)
        .init();
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let done = match arguments.verb {
        Verb::Init(arguments) => credentials::init::run(&arguments),
        Verb::Certs(arguments) => credentials::run(&arguments),
        Verb::Start(arguments) => on_runtime(start::run(arguments)),
        Verb::Status(arguments) => on_runtime(status::run(arguments)),
        Verb::Node(arguments) => on_runtime(group::run_node(arguments)),
        Verb::Master(arguments) => on_runtime(group::run_master(arguments)),
        Verb::Group(arguments) => on_runtime(group::run_group(arguments)),
        Verb::Token(arguments) => on_runtime(group::run_token(arguments)),
        Verb::Events(arguments) => on_runtime(events::run(arguments)),
        Verb::Get(arguments) => on_runtime(data::get(arguments)),
        Verb::Put(arguments) => on_runtime(data::put(arguments)),
        Verb::Delete(arguments) => on_runtime(data::delete(arguments)),
        Verb::Scan(arguments) => on_runtime(data::scan::run(arguments)),
        Verb::Watch(arguments) => on_runtime(data::watch::run(arguments)),
        Verb::Databases(arguments) => on_runtime(data::databases(arguments)),
        Verb::Export(arguments) => on_runtime(data::scan::export(arguments)),
        Verb::Import(arguments) => on_runtime(data::import::run(arguments)),
        Verb::Etcd(arguments) => on_runtime(etcd::run(arguments)),
        Verb::Doctor(arguments) => on_runtime(doctor::run(arguments)),
        Verb::Verify(arguments) => on_runtime(verify::run(arguments)),
        Verb::Backup(arguments) => on_runtime(backup::run(arguments)),
        Verb::Recover(arguments) => on_runtime(recover::run(arguments)),
        Verb::Dev(arguments) => on_runtime(dev::run(arguments)),
        Verb::Demo(arguments) => on_runtime(demo::run(arguments)),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Config(arguments) => configure::run(&arguments),
        Verb::DemoNode(arguments) => demo::node::run(&arguments),
    };
    output::end(done.unwrap_or_else(|failure| failure.print()))
}

/// Runs one verb to its end.
fn on_runtime(verb: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start the runtime", &error))?;
    let done = runtime.block_on(verb);
    // Nothing left over may delay the end, such as a thread that waits for a line of stdin.
    runtime.shutdown_background();
    done
}
