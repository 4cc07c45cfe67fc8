//! Looking at processes through /proc (proc(5)), and ending those of a laboratory, by pid.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends a signal; the process may have ended already.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Stops one, and waits until it is: kill(2) returns before that.
pub fn stop(pid: i32) {
    signal(pid, Signal::SIGSTOP);
    super::wait("it is stopped", || state(&format!("/proc/{pid}")) == Some('T'));
}

/// True until it has been waited for.
pub fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The name of its program, cut at 15 bytes by the kernel.
pub fn name(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Its parent.
pub fn parent(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Kills a daemon of steadfs and its keeper, so that neither can start the other again, and waits for their end. Without a
/// keeper `daemon` is all there is.
pub fn kill_both(daemon: i32) {
    let keeper = parent(daemon).filter(|&pid| name(pid) == "steadfs-keeper");
    keeper.iter().for_each(|&pid| signal(pid, Signal::SIGSTOP));
    signal(daemon, Signal::SIGKILL);
    keeper.iter().for_each(|&pid| signal(pid, Signal::SIGKILL));
    let both = [&[daemon][..], keeper.as_slice()].concat();
    super::wait("both have ended", || both.iter().all(|&pid| has_ended(pid)));
}

/// True when each thread of it has ended, waited for or not: the last one closes what is open.
pub fn has_ended(pid: i32) -> bool {
    tasks(pid).iter().all(|task| state(task).is_none_or(|state| state == 'Z' || state == 'X'))
}

/// Its children.
pub fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for task in tasks(pid) {
        let text = std::fs::read_to_string(format!("{task}/children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    all
}

/// Its children and theirs.
pub fn descendants(pid: i32) -> Vec<i32> {
    let (mut all, mut next) = (Vec::new(), children(pid));
    while let Some(pid) = next.pop() {
        all.push(pid);
        next.extend(children(pid));
    }
    all
}

fn tasks(pid: i32) -> Vec<String> {
    let list = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    list.map(|task| task.path().display().to_string()).collect()
}

/// Its threads and their names.
pub fn threads(pid: i32) -> Vec<(i32, String)> {
    let all = tasks(pid).into_iter().filter_map(|task| {
        let name = std::fs::read_to_string(format!("{task}/comm")).ok()?;
        Some((task.rsplit_once('/')?.1.parse().ok()?, name.trim().to_owned()))
    });
    all.collect()
}

/// True for a thread that runs, or would if there were a processor for it.
pub fn is_runnable(pid: i32, thread: i32) -> bool {
    state(&format!("/proc/{pid}/task/{thread}")) == Some('R')
}

/// All processes whose command line contains a text, this one excepted. A zombie has no command line.
pub fn mentioning(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid.cast_unsigned() != std::process::id() && String::from_utf8_lossy(&line).contains(text) {
            found.push(pid);
        }
    }
    found
}

/// Its command line, words ended by NUL.
pub fn command_line(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// All processes that were started with that in their environment, this one excepted.
pub fn with_environment(entry: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for place in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = place.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let environment = std::fs::read(place.path().join("environ")).unwrap_or_default();
        if environment.split(|&byte| byte == 0).any(|other| other == entry.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// What its descriptors lead to.
pub fn descriptors(pid: i32) -> Vec<String> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    all.filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}

/// The number behind that field of proc_pid_status(5), 0 if there is none.
pub fn status_number(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Kills them and waits a moment for their end.
pub fn end(pids: &[i32]) {
    pids.iter().for_each(|&pid| signal(pid, Signal::SIGKILL));
    let until = Instant::now() + Duration::from_secs(2);
    while pids.iter().any(|&pid| state(&format!("/proc/{pid}")).is_some_and(|s| s != 'Z')) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The letter of proc_pid_stat(5).
fn state(directory: &str) -> Option<char> {
    let text = std::fs::read_to_string(format!("{directory}/stat")).ok()?;
    text.rsplit_once(')')?.1.trim().chars().next()
}

/// Threads of these processes that are in state D, and are so whenever one looks for a second and a half.
pub fn stuck(pids: &[i32]) -> Vec<String> {
    let look = || -> BTreeSet<String> {
        let all = pids.iter().flat_map(|&pid| tasks(pid));
        all.filter(|task| state(task) == Some('D')).collect()
    };
    let mut always = look();
    for _ in 0..15 {
        if always.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        always = always.intersection(&look()).cloned().collect();
    }
    let comm = |task: &String| std::fs::read_to_string(format!("{task}/comm")).unwrap_or_default();
    always.iter().map(|task| format!("{task} ({})", comm(task).trim())).collect()
}

/// True for one that has ended and has not been waited for.
pub fn is_zombie(pid: i32) -> bool {
    state(&format!("/proc/{pid}")) == Some('Z')
}
