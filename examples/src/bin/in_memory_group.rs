//! Three nodes in one process, on in-memory disks: write, read elsewhere, lose the master, go on.
//!
//! `cargo run -p steadfast-examples --bin in_memory_group`

use std::error::Error;
use std::time::Duration;

use steadfast::{ConsistencyPolicy, ReplicatedEnvironment, Role};

fn main() -> Result<(), Box<dyn Error>> {
    let mut group = ReplicatedEnvironment::in_memory_group(3)?;
    println!(
        "three nodes have formed a group; {} is the master",
        master(&group)?
    );

    // Writes go to the master. The function may run more than once, and sees its own writes.
    let at = position(&group).ok_or("no master")?;
    let written = group[at].write(|txn| {
        let stock = txn.database("stock")?;
        let apples = stock.get("apples")?.map_or(0, |old| old[0]);
        stock.put("apples", [apples + 3])
    })?;
    println!("three more apples, committed as {}", written.token);

    // Any node can read, and sees what was acknowledged before the read began.
    for node in &group {
        let apples = node.read(ConsistencyPolicy::Linearizable, |snapshot| {
            snapshot.database("stock")?.get("apples")
        })?;
        println!("{:?} reads {apples:?}", node.state().role);
    }

    // When a master goes away, the others replace it without help.
    let old = group.swap_remove(at);
    let old_term = old.state().term;
    old.close()?;
    for node in &group {
        // A node may still believe in the old master for a moment.
        node.state_changes()
            .find(|state| state.term > old_term && state.master.is_some())
            .ok_or("no new master")?;
        node.wait_ready(Duration::from_secs(10))?;
    }
    println!("the master is closed; {} took over", master(&group)?);
    Ok(())
}

fn position(group: &[ReplicatedEnvironment]) -> Option<usize> {
    group
        .iter()
        .position(|node| node.state().role == Role::Master)
}

/// Name of the master, as the first node knows it.
fn master(group: &[ReplicatedEnvironment]) -> Result<String, Box<dyn Error>> {
    let master = group[0].state().master.ok_or("no master is known")?;
    Ok(master.name)
}
