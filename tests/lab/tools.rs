//! The programs that people and scripts point at a mount: in every state they answer, and soon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Lab;

/// What any program may take.
pub const LIMIT: Duration = Duration::from_secs(2);
/// What `steadfs status` may take: 100 ms is the promise, the rest is for starting a process on a busy machine. One that
/// waits for a backing takes 2 s and more, and so does the next; one that is late alone is the machine's.
pub const STATUS_LIMIT: Duration = Duration::from_millis(300);
/// What not even a single one may take.
const STATUS_LIMIT_ALONE: Duration = Duration::from_secs(1);

/// Between two questions of one kind.
const PAUSE: Duration = Duration::from_millis(250);

/// How a program answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code; absent if it did not end in time.
    pub code: Option<i32>,
    pub took: Duration,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program for no longer than this. One that hangs is killed and left alone, since it may not even die.
pub fn ask(command: &mut Command, limit: Duration) -> Answer {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    loop {
        if child.try_wait().unwrap().is_some() {
            let took = begun.elapsed();
            let output = child.wait_with_output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            return Answer {
                code: output.status.code(),
                took,
                stdout: text(&output.stdout),
                stderr: text(&output.stderr),
            };
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            return Answer { code: None, took: begun.elapsed(), stdout: String::new(), stderr: String::new() };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The commands, by name.
fn commands(lab: &Lab) -> Vec<(&'static str, Command)> {
    let hot = lab.hot.to_str().unwrap();
    let tools: [(&str, &[&str]); 4] = [("df", &["-k"]), ("ls", &["-d"]), ("findmnt", &[]), ("mountpoint", &["-q"])];
    let mut all = Vec::new();
    for (name, arguments) in tools {
        let mut command = Command::new(name);
        command.args(arguments).arg(hot);
        all.push((name, command));
    }
    all.push(("status", lab.steadfs(&["status", "--json", hot])));
    all
}

/// What was seen while they were asked again and again.
#[derive(Debug, Default)]
pub struct Seen {
    /// Longest answer by program.
    pub longest: BTreeMap<&'static str, Duration>,
    /// Answers that were late or wrong.
    pub bad: Vec<String>,
    /// States that `steadfs status` named.
    pub states: BTreeSet<String>,
    /// The last answer of `steadfs status` was late.
    late: bool,
}

/// Asks all of them again and again, each in a thread of its own.
pub struct Watch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Watch {
    pub fn start(lab: &Lab) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |(name, mut command): (&'static str, Command)| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut seen = Seen::default();
                while !stop.load(Ordering::SeqCst) {
                    seen.take(name, &ask(&mut command, LIMIT));
                    std::thread::sleep(PAUSE);
                }
                seen
            })
        };
        let threads = commands(lab).into_iter().map(watch).collect();
        Watch { stop, threads }
    }

    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.threads.into_iter().map(|thread| thread.join().unwrap());
        all.reduce(|mut all, one| {
            all.longest.extend(one.longest);
            all.bad.extend(one.bad);
            all.states.extend(one.states);
            all
        })
        .unwrap_or_default()
    }
}

impl Seen {
    fn take(&mut self, name: &'static str, answer: &Answer) {
        let longest = self.longest.entry(name).or_default();
        *longest = answer.took.max(*longest);
        let (limit, good) = match name {
            // 1 says that the mount is not live, which is no failure to answer.
            "status" => (STATUS_LIMIT, matches!(answer.code, Some(0 | 1))),
            _ => (LIMIT, answer.code == Some(0)),
        };
        let late = answer.took > limit;
        let too_late = late && (name != "status" || self.late || answer.took > STATUS_LIMIT_ALONE);
        self.late = late;
        if !good || too_late {
            self.bad.push(format!("{name}: {answer:?}"));
        }
        if let (true, Ok(status)) = (name == "status", serde_json::from_str::<serde_json::Value>(&answer.stdout)) {
            self.states.extend(status.get(0).unwrap_or(&status)["state"].as_str().map(str::to_owned));
        }
    }
}

/// Writes in two processes at random, syncs now and then, and reads everything back by its checksums.
pub fn fio(directory: &Path) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--rw=randwrite", "--size=16m", "--bsrange=1k-64k", "--numjobs=2", "--fsync=32"]);
    fio.args([
        "--ioengine=psync",
        "--rate=2m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
        "--minimal",
    ]);
    fio.arg(format!("--directory={}", directory.display()));
    fio
}
