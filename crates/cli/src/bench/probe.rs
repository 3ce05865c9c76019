//! The machine's own times for the two things that no commit can do without: one disk sync and one
//! network round trip.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

const BLOCK_BYTES: usize = 4096;
const FILE_BLOCKS: u64 = 256;
const SYNCS: u64 = 300;
const ROUND_TRIPS: usize = 2000;

/// Median of an fdatasync after a 4 KiB overwrite in a file whose blocks are already allocated.
///
/// # Errors
/// The disk's error.
#[expect(clippy::disallowed_methods, reason = "the disk itself is measured")]
pub(super) fn fdatasync(dir: &Path) -> std::io::Result<Duration> {
    let path = dir.join("probe");
    let file = std::fs::File::create(&path)?;
    let block = [0x5a; BLOCK_BYTES];
    for at in 0..FILE_BLOCKS {
        file.write_all_at(&block, at * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    let mut times = Vec::new();
    for round in 0..SYNCS {
        let begun = Instant::now();
        file.write_all_at(&block, round % FILE_BLOCKS * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(median(times))
}

/// Median round trip of 64 bytes over a TCP connection on the loopback interface.
///
/// # Errors
/// The network's error.
#[expect(clippy::disallowed_methods, reason = "the network itself is measured")]
pub(super) fn round_trip() -> std::io::Result<Duration> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || {
            let mut buffer = [0; 64];
            // The end of the stream ends the echo.
            while far.read_exact(&mut buffer).is_ok() && far.write_all(&buffer).is_ok() {}
        });
        let mut times = Vec::new();
        let mut buffer = [0; 64];
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            near.write_all(&buffer)?;
            near.read_exact(&mut buffer)?;
            times.push(begun.elapsed());
        }
        drop(near);
        echo.join()
            .map_err(|_| std::io::Error::other("the echo died"))?;
        Ok(median(times))
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// User and system time that processes have used so far, in clock ticks of 10 ms.
pub(super) fn cpu_ticks(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| process_ticks(*pid)).sum()
}

#[expect(clippy::disallowed_methods, reason = "the system's own accounts")]
fn process_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces; user and system time are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}
