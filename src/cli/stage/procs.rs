//! Finds processes by descent, so that nothing but what the demo started is ever signalled.
//!
//! Strangers are not even looked at: reading /proc/PID/stat waits for a process that is inside execve(2), and such a
//! process may be waiting for the very mount that is being tormented (its close-on-exec files are flushed there).

use std::path::PathBuf;

/// A process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proc {
    /// Its id.
    pub pid: i32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// R, S, D, T, Z and their like (proc_pid_stat(5)).
    pub state: char,
}

/// The process of that id, if there is one.
pub fn look_at(pid: i32) -> Option<Proc> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// All processes that descend from `root`, without it (proc_tid_children(5)).
pub fn descendants(root: i32) -> Vec<Proc> {
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        next += 1;
        for child in children(parent) {
            if !family.contains(&child) {
                family.push(child);
            }
        }
    }
    family.iter().skip(1).filter_map(|&pid| look_at(pid)).collect()
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let lists = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let lists = lists.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

fn parse(stat: &str) -> Option<Proc> {
    // The name may hold anything, parentheses included: it ends at the last one.
    let (head, tail) = stat.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    Some(Proc { pid: pid.parse().ok()?, name: name.to_string(), state: tail.trim_start().chars().next()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn names_with_parentheses_are_parsed() {
        let found = parse("42 (a) R (b)) S 7 42 42 0 -1");
        assert_eq!(found, Some(Proc { pid: 42, name: "a) R (b)".into(), state: 'S' }));
    }

    #[test]
    fn grandchildren_are_found_and_siblings_are_not() {
        let mut sibling = Command::new("sleep").arg("60").spawn().unwrap();
        let script = "sh -c 'sleep 60 & echo up; wait' & wait";
        let mut root = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(root.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        let mut found = descendants(root.id() as i32);
        // A child has its parent's name until it has become what it is to be.
        while found.iter().map(|p| p.name.as_str()).ne(["sh", "sleep"]) {
            assert!(Instant::now() < until, "{found:?}");
            found = descendants(root.id() as i32);
        }
        assert!(found.iter().all(|p| p.pid != sibling.id() as i32));
        for proc in &found {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(proc.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        root.wait().unwrap();
        sibling.kill().unwrap();
        sibling.wait().unwrap();
    }
}
