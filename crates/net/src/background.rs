//! Threads whose work can wait.

/// How far a thread stands back where processors are short, as a nice value: it gets a third of
/// what a thread of a commit or of a heartbeat gets. Not less, or its debt would grow without end.
const NICE: i32 = 5;

/// Lets the threads of commits, heartbeats and reads go before this one until it ends: for the
/// flush, the upkeep of an engine, copies and checks of the data.
pub fn give_way() {
    // Elsewhere the value belongs to the whole process.
    if cfg!(target_os = "linux")
        && let Err(error) = rustix::process::nice(NICE)
    {
        tracing::debug!(%error, "a thread of the background does not give way to others");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_and_its_siblings_do_not() {
        let nice = || rustix::process::getpriority_process(None).expect("a nice value");
        let before = nice();
        let inside = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                give_way();
                nice()
            });
            inside.join().expect("no panic")
        });
        assert_eq!(inside, (before + NICE).min(19));
        assert_eq!(nice(), before);
    }
}
