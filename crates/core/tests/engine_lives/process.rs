//! Lives in separate processes, which are killed or lose their disk.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use steadfast::engine::{NoxuEngine, StorageEngine};
use steadfast::ids::DatabaseId;

use crate::engine_disk::{Mount, run};
use crate::life::{Event, Known, Living};
use crate::plan::{End, Plan};

/// Set in the living process: seed, number of the life, what is known, and the directory.
const CHILD: &str = "STEADFAST_LIVES_CHILD";
/// A process that takes longer is hung.
const PROCESS_TIME_MAX: Duration = Duration::from_mins(5);
const SIGKILL: i32 = 9;

/// Location of a sequence's files.
pub(crate) struct Home {
    parent: PathBuf,
    disk: Option<Mount>,
}

impl Home {
    pub(crate) fn new(parent: &Path, has_disk: bool) -> Self {
        let image = parent.join("image");
        let disk = has_disk.then(|| Mount::new_file_system(&image, parent));
        if let Some(None) = disk {
            println!("no power is cut: this needs root, mkfs.ext4 and loop devices");
        }
        Self {
            parent: parent.to_owned(),
            disk: disk.flatten(),
        }
    }

    fn path(&self) -> PathBuf {
        let root = self.disk.as_ref().map_or(&self.parent, |disk| &disk.path);
        root.join("engine")
    }

    /// Copies what the disk has received; call [`Home::start_again`] once nobody uses the files.
    fn copy_disk(&self) {
        let (image, copy) = (self.parent.join("image"), self.parent.join("copy"));
        let sparse = "--sparse=always".as_ref();
        run("cp", &[sparse, image.as_os_str(), copy.as_os_str()]).unwrap();
    }

    fn start_again(&mut self) {
        self.disk = None;
        let image = self.parent.join("image");
        std::fs::rename(self.parent.join("copy"), &image).unwrap();
        self.disk = Some(Mount::new(&image, &self.parent).unwrap());
    }
}

/// Lives in a new process, from life number `first` until one that does not share it with the next.
/// Returns the number of that next life.
pub(crate) fn live(plan: &Plan, first: usize, home: &mut Home, known: &mut Known) -> usize {
    let mut process = Process::start(plan, first, home, known);
    let mut events = process.events();
    let mut at = first;
    loop {
        let life = &plan.lives[at];
        let is_over = process.follow(life.end, &mut events, home, known);
        at += 1;
        if is_over || !shares_process(plan, at - 1) {
            break;
        }
    }
    process.end(plan.lives[at - 1].end, events, known);
    if home.disk.is_some() && matches!(plan.lives[at - 1].end, End::PowerCut { .. }) {
        home.start_again();
    }
    at
}

fn shares_process(plan: &Plan, at: usize) -> bool {
    let life = &plan.lives[at];
    life.end.is_orderly() && life.shares_process && at + 1 < plan.lives.len()
}

struct Process {
    child: Child,
}

type Reports = Lines<BufReader<ChildStdout>>;

impl Process {
    fn start(plan: &Plan, life: usize, home: &Home, known: &Known) -> Self {
        let gone: Vec<_> = known.gone.iter().map(|gone| gone.0.to_string()).collect();
        let (seed, synced, gone) = (plan.seed, known.synced, gone.join(":"));
        let told = format!("{seed},{life},{synced},{gone},{}", home.path().display());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_lives", "--nocapture"])
            .env(CHILD, told)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn events(&mut self) -> Reports {
        BufReader::new(self.child.stdout.take().unwrap()).lines()
    }

    /// Follows one life to its end. Returns whether the process is dead or was killed.
    fn follow(&mut self, end: End, events: &mut Reports, home: &Home, known: &mut Known) -> bool {
        let mut reports = 0;
        for line in events {
            let Some(event) = Event::parse(&line.unwrap()) else {
                continue;
            };
            known.learn(event);
            let is_time = match end {
                End::Close | End::Drop => false,
                End::KillAtClose { .. } => event == Event::Done,
                End::Kill { reports: after, .. } | End::PowerCut { reports: after, .. } => {
                    reports >= after || event == Event::Done
                }
            };
            if is_time {
                self.interrupt(end, home);
                return true;
            }
            if event == Event::Ended {
                return false;
            }
            reports += 1;
        }
        true
    }

    fn interrupt(&mut self, end: End, home: &Home) {
        let (End::Kill { delay_us, .. }
        | End::KillAtClose { delay_us }
        | End::PowerCut { delay_us, .. }) = end
        else {
            return;
        };
        std::thread::sleep(Duration::from_micros(delay_us));
        if home.disk.is_some() && matches!(end, End::PowerCut { .. }) {
            let id = self.child.id().to_string();
            run("kill", &["-STOP".as_ref(), id.as_ref()]).unwrap();
            home.copy_disk();
        }
        self.child.kill().unwrap();
    }

    /// Waits for the process, which has nothing more to do. Reports sent before it died count.
    fn end(mut self, end: End, events: Reports, known: &mut Known) {
        for line in events {
            if let Some(event) = Event::parse(&line.unwrap()) {
                known.learn(event);
            }
        }
        let status = self.child.wait().unwrap();
        let is_as_planned = if end.is_orderly() {
            status.success()
        } else {
            status.signal() == Some(SIGKILL)
        };
        assert!(is_as_planned, "the process ended by itself: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone unless the test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The work of a process started by [`live`]. Returns at once in others.
pub(crate) fn live_here() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    end_when_hung();
    let words: Vec<_> = told.splitn(5, ',').collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let plan = Plan::new(number(0));
    let gone = words[3].split(':').filter(|gone| !gone.is_empty());
    let mut known = Known {
        synced: number(2),
        gone: gone.map(|gone| DatabaseId(gone.parse().unwrap())).collect(),
    };
    let mut at = usize::try_from(number(1)).unwrap();
    // The harness has already printed this test's name on the current line.
    println!();
    loop {
        live_one(&plan, at, Path::new(words[4]), &mut known);
        if !shares_process(&plan, at) {
            break;
        }
        at += 1;
    }
}

fn live_one(plan: &Plan, at: usize, home: &Path, known: &mut Known) {
    let life = &plan.lives[at];
    let mut tell = |event: Event| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{event}").unwrap();
        out.flush().unwrap();
    };
    tell(Event::Opening);
    let engine = NoxuEngine::open_with(home, life.sizes).unwrap();
    let mut living = Living::begin(&engine, plan, known, &mut tell);
    living.live(life, usize::MAX);
    let number = living.number();
    tell(Event::Done);
    match life.end {
        End::Close => engine.close().unwrap(),
        End::KillAtClose { .. } => {
            engine.close().unwrap();
            park();
        }
        End::Drop => {}
        End::Kill { .. } | End::PowerCut { .. } => park(),
    }
    drop(engine);
    known.learn(Event::Synced(number));
    tell(Event::Synced(number));
    tell(Event::Ended);
}

/// Waits to be killed.
fn park() {
    loop {
        std::thread::park();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a watch over a process that may hang"
)]
fn end_when_hung() {
    std::thread::spawn(|| {
        std::thread::sleep(PROCESS_TIME_MAX);
        eprintln!("the process has hung");
        std::process::abort();
    });
}
