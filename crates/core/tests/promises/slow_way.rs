//! A slow link between two nodes is not a dead node.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast::log::MemoryDisk;
use steadfast::machine::Machine;
use steadfast::{AdminCommand, Bootstrap, RepConfig, Role};
use steadfast_net::{MemoryNetwork, TcpTransport};
use tokio::runtime::Runtime;

use crate::support::{Env, PATIENCE, eventually, free_address, in_time, put, runtime};

/// Bandwidth of the slow link, in each direction of each connection.
const BYTES_PER_S: usize = 1024 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;
/// Short compared with the time of a large value on the slow link, even with socket buffers.
const SILENCE_MAX_MS: u64 = 1_000;
const VALUE_BYTES: usize = 4 * 1024 * 1024;

/// Forwards bytes, slowly, until one side ends.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let began = Instant::now();
    let mut bytes = 0;
    while let Ok(read) = from.read(&mut chunk) {
        bytes += read;
        let due = Duration::from_millis((bytes * 1_000 / BYTES_PER_S) as u64);
        let early = due.saturating_sub(began.elapsed());
        std::thread::park_timeout(early);
        if read == 0 || to.write_all(&chunk[..read]).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Write).ok();
}

/// An address that leads to `target` over a slow link.
fn slow_way_to(target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let Ok(far) = TcpStream::connect(&target) else {
                continue;
            };
            let (near_too, far_too) = (near.try_clone(), far.try_clone());
            std::thread::spawn(move || pass(near, far));
            std::thread::spawn(move || pass(far_too.expect("a socket"), near_too.expect("one")));
        }
    });
    address
}

fn open(runtime: &Runtime, at: usize, listen: &str, addresses: &[String; 3]) -> Env {
    let list = (1..=3)
        .zip(addresses)
        .map(|(n, address)| format!("n{n}={address}"));
    let config = RepConfig::builder("slow", format!("n{}", at + 1))
        .data_dir("/data")
        .listen(listen)
        .advertise(&addresses[at])
        .bootstrap(Bootstrap::expect(list).expect("a list"))
        .set("silence_max_ms", SILENCE_MAX_MS)
        .set("commit_timeout_ms", 120_000)
        .build()
        .expect("a configuration");
    let machine = Machine {
        transport: Arc::new(TcpTransport),
        disk: Arc::new(MemoryDisk::new()),
        ..Machine::in_memory(&MemoryNetwork::new(), "host").expect("entropy")
    };
    runtime
        .block_on(Env::open_on(config, machine))
        .expect("opened")
}

#[test]
fn large_values_reach_a_node_on_a_slow_way() {
    let runtime = runtime();
    let listens = [free_address(), free_address(), free_address()];
    let mut addresses = listens.clone();
    addresses[2] = slow_way_to(listens[2].clone());
    let nodes: Vec<_> = (0..3)
        .map(|at| open(&runtime, at, &listens[at], &addresses))
        .collect();
    let mut master = None;
    eventually("a master behind the fast ways", || {
        let is_master = |node: &&Env| node.state().role == Role::Master;
        if is_master(&&nodes[2]) {
            let transfer = AdminCommand::Transfer {
                to: Vec::new(),
                within: PATIENCE,
            };
            nodes[2].administer(&transfer).ok();
        }
        master = nodes[..2].iter().find(is_master);
        master.is_some()
    });
    let master = master.expect("just found").clone();
    for n in 0..3 {
        let _token = put(&master, format!("k{n}"), vec![7; VALUE_BYTES]).expect("committed");
    }
    let last = master.status().vlsn;
    let slow = nodes[2].clone();
    in_time("everything on the slow node", move || {
        eventually("everything on the slow node", || slow.status().vlsn >= last);
    });
    for node in nodes {
        node.close().expect("closed");
    }
}
