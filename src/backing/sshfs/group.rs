//! The processes of one generation: sshfs and everything it started.
//!
//! sshfs double-forks ssh, so ssh is no child of it; but both stay in the process group that sshfs was started in, and
//! since steadfs is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) orphans of the group become its children.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid};
use parking_lot::{Condvar, Mutex};

/// Most lines of output kept, the last ones: ssh's banners can be long, and why it ended comes at the end.
const OUTPUT_LINES: usize = 100;

#[derive(Default)]
struct State {
    output: VecDeque<String>,
    ended: Vec<String>,
    sshfs_ended: bool,
    /// Expected to end: exits are no longer news.
    condemned: bool,
    empty: bool,
}

/// A process group with its leader sshfs.
pub struct Group {
    leader: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

impl Group {
    /// Starts `command` as the leader of a group of its own. `exited` is called for each member that ends and was not
    /// told to, from the thread that reaps.
    pub fn spawn(mut command: Command, exited: impl Fn(String) + Send + 'static) -> std::io::Result<Arc<Group>> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let leader = Pid::from_raw(child.id().cast_signed());
        let group = Arc::new(Group { leader, state: Mutex::default(), changed: Condvar::new() });
        Group::follow(&group, &mut child, exited).inspect_err(|_| group.kill())?;
        Ok(group)
    }

    fn follow(group: &Arc<Group>, child: &mut Child, exited: impl Fn(String) + Send + 'static) -> std::io::Result<()> {
        let reaped = Arc::clone(group);
        std::thread::Builder::new().name("reaper".into()).spawn(move || reaped.reap(&exited))?;
        if let Some(stderr) = child.stderr.take() {
            let heard = Arc::clone(group);
            std::thread::Builder::new().name("sshfs-stderr".into()).spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    tracing::debug!(target: "steadfs::sshfs", "{line}");
                    let mut state = heard.state.lock();
                    if !line.trim().is_empty() {
                        if state.output.len() == OUTPUT_LINES {
                            state.output.pop_front();
                        }
                        state.output.push_back(line);
                    }
                }
            })?;
        }
        Ok(())
    }

    fn reap(&self, exited: &dyn Fn(String)) {
        loop {
            let (pid, what) = match waitpid(Pid::from_raw(-self.leader.as_raw()), None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("ended with exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("was killed by {signal}")),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let name = if pid == self.leader { "sshfs" } else { "ssh" };
            let what = format!("{name} (pid {pid}) {what}");
            let mut state = self.state.lock();
            state.ended.push(what.clone());
            state.sshfs_ended |= pid == self.leader;
            let news = !state.condemned;
            drop(state);
            self.changed.notify_all();
            if news {
                exited(what);
            }
        }
        self.state.lock().empty = true;
        self.changed.notify_all();
    }

    /// Pid of sshfs, which is also the number of the group.
    pub fn leader(&self) -> i32 {
        self.leader.as_raw()
    }

    /// How sshfs ended, if it has.
    pub fn ending(&self) -> Option<String> {
        let state = self.state.lock();
        state.sshfs_ended.then(|| state.ended.last().cloned().unwrap_or_default())
    }

    /// What the group printed on standard error so far, if that is not too much: then the end of it.
    pub fn output(&self) -> Vec<String> {
        self.state.lock().output.iter().cloned().collect()
    }

    /// From now on members are expected to end.
    pub fn condemn(&self) {
        self.state.lock().condemned = true;
    }

    /// Kills every member, stopped ones too (SIGKILL wakes them).
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.condemned = true;
        if !state.empty {
            // ESRCH: all have ended and are being reaped.
            let _ = killpg(self.leader, Signal::SIGKILL);
        }
    }

    /// Waits until every member has been reaped; false when time ran out.
    pub fn wait_empty(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        while !state.empty {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return state.empty;
            }
        }
        true
    }

    /// The members' pids.
    pub fn members(&self) -> Vec<i32> {
        members_of(self.leader)
    }
}

/// The pids of a group's members. /proc is only listed: to read another process's files there waits for its execve(2),
/// which may wait for the very mount that is being repaired, to close a file on it.
pub fn members_of(leader: Pid) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| getpgid(Some(Pid::from_raw(pid))) == Ok(leader))
        .collect()
}

/// State letter of a process (proc_pid_stat(5)); `None` if it has gone.
pub fn state_letter(pid: i32) -> Option<char> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the letter is looked for behind its end.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(end + 2).map(|&letter| letter.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_killed_and_reaped_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo words >&2; sleep 1000 & sleep 1000"]);
        let group = Group::spawn(command, |_| {}).expect("sh starts");
        while group.members().len() < 3 || group.output().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(group.output(), ["words"]);
        let members = group.members();
        group.kill();
        assert!(group.wait_empty(Duration::from_secs(10)));
        assert!(group.ending().expect("the leader ended").contains("SIGKILL"));
        assert!(!members.contains(&std::process::id().cast_signed()));
    }

    #[test]
    fn the_last_words_are_kept_however_long_the_banner() {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1000 >&2; echo why >&2"]);
        let group = Group::spawn(command, |_| {}).expect("sh starts");
        while group.output().last().is_none_or(|line| line != "why") {
            std::thread::yield_now();
        }
        assert_eq!((group.output().len(), group.output()[0].as_str()), (OUTPUT_LINES, "902"));
    }

    #[test]
    fn an_exit_that_was_not_asked_for_is_reported_at_once() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let _group = Group::spawn(command, move |what| _ = sender.send(what)).expect("sh starts");
        let what = receiver.recv_timeout(Duration::from_secs(10)).expect("a report");
        assert!(what.contains("exit code 3"), "{what}");
    }
}
