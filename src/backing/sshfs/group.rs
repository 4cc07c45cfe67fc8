//! The processes of one generation: sshfs and everything it started.
//!
//! sshfs double-forks ssh, so ssh is no child of it; but both stay in the process group that sshfs was started in, and
//! since steadfs is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) orphans of the group become its children.
//!
//! A group outlives the daemon that started it, and a successor may take it over ([`Group::adopt`]). Its processes are
//! somebody else's children then, so their ends are read from pidfds. Nothing of a group depends on the daemon: what it
//! prints goes to a pipe that its own members hold open at both ends ([`super::stderr`]).

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid};
use parking_lot::{Condvar, Mutex};

use super::orphans::Identity;
use super::stderr;
use crate::backing::process::{self, Pinned, Process};

/// Longest time between two looks at processes whose ends are read from pidfds.
const LOOK: Duration = Duration::from_secs(3600);
/// Most lines of output kept, the last ones: ssh's banners can be long, and why it ended comes at the end.
const OUTPUT_LINES: usize = 100;
/// Most bytes of data that sshfs or ssh may have (getrlimit(2), RLIMIT_DATA; stacks of threads count): a directory of a million
/// names takes a quarter of that.
const MEMORY: u64 = 2 << 30;

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
    /// Of a group that somebody else had started.
    adopted: Option<Identity>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Group {
    /// Starts `command` as the leader of a group of its own. `exited` is called for each member that ends and was not
    /// told to, from the thread that reaps.
    pub fn spawn(mut command: Command, exited: impl Fn(String) + Send + 'static) -> std::io::Result<Arc<Group>> {
        let (reader, writer) = stderr::pipe()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).process_group(0);
        // SAFETY: system calls with plain numbers, which a child of a process with threads may make.
        unsafe { command.pre_exec(|| inherit_nothing().and_then(|()| limit_memory())) };
        let child = command.spawn()?;
        // The last copy of the writing end here, without which the reader finds an end.
        drop(command);
        let leader = Pid::from_raw(child.id().cast_signed());
        let group = Arc::new(Group { leader, adopted: None, state: Mutex::default(), changed: Condvar::new() });
        let reaped = Arc::clone(&group);
        let reap = move || reaped.reap(&exited);
        let followed = std::thread::Builder::new().name("reaper".into()).spawn(reap);
        followed.and_then(|_| Group::listen(&group, reader)).inspect_err(|_| group.kill())?;
        Ok(group)
    }

    /// Takes over a group of somebody else's: those of its members that live, and what they print. `exited` is as for
    /// [`Group::spawn`].
    pub fn adopt(
        identity: Identity,
        members: Vec<Pinned>,
        exited: impl Fn(String) + Send + 'static,
    ) -> std::io::Result<Arc<Group>> {
        let leader = Pid::from_raw(identity.leader.pid);
        let state = State {
            sshfs_ended: !members.iter().any(|pinned| pinned.process() == identity.leader),
            ..State::default()
        };
        let state = Mutex::new(state);
        let group = Arc::new(Group { leader, adopted: Some(identity), state, changed: Condvar::new() });
        let watched = Arc::clone(&group);
        let watch = move || watched.watch(identity, members, &exited);
        let followed = std::thread::Builder::new().name("watcher".into()).spawn(watch);
        followed.inspect_err(|_| group.kill())?;
        match stderr::of(leader.as_raw()) {
            Ok(reader) => Group::listen(&group, reader).inspect_err(|_| group.kill())?,
            // It serves as well unheard.
            Err(error) => tracing::debug!(%error, "what an adopted sshfs prints cannot be read"),
        }
        Ok(group)
    }

    fn listen(group: &Arc<Group>, stderr: File) -> std::io::Result<()> {
        let heard = Arc::clone(group);
        std::thread::Builder::new().name("sshfs-stderr".into()).spawn(move || {
            stderr::lines(stderr, |line| {
                tracing::debug!(target: "steadfs::sshfs", "{line}");
                let mut state = heard.state.lock();
                if !line.trim().is_empty() {
                    if state.output.len() == OUTPUT_LINES {
                        state.output.pop_front();
                    }
                    state.output.push_back(line);
                }
            });
        })?;
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
            self.member_ended(pid, &what, exited);
        }
        self.all_ended();
    }

    /// As [`Group::reap`], for members that are not our children.
    fn watch(&self, identity: Identity, mut members: Vec<Pinned>, exited: &dyn Fn(String)) {
        loop {
            if members.is_empty() {
                // Those that came later, or were not known.
                let later = identity.members().into_iter().filter_map(Process::of);
                members = later.filter_map(|process| process.pin().ok().flatten()).collect();
                if members.is_empty() {
                    break;
                }
            }
            let Ok(ended) = process::ended(&members, LOOK) else { continue };
            let mut ended = ended.into_iter();
            let mut dead = Vec::new();
            members.retain(|member| {
                let ended = ended.next().unwrap_or(false);
                dead.extend(ended.then(|| Pid::from_raw(member.process().pid)));
                !ended
            });
            for pid in dead {
                // It is our child if the daemon before us was, or if nobody between it and us takes orphans in.
                let what = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, code)) => format!("ended with exit code {code}"),
                    Ok(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
                    _ => "ended".to_owned(),
                };
                self.member_ended(pid, &what, exited);
            }
        }
        self.all_ended();
    }

    fn member_ended(&self, pid: Pid, what: &str, exited: &dyn Fn(String)) {
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

    fn all_ended(&self) {
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
        if let Some(identity) = self.adopted {
            identity.kill();
        } else if !state.empty {
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
        match self.adopted {
            Some(identity) => identity.members(),
            None => members_of(self.leader),
        }
    }

    /// The processes of it that live, and who they are.
    pub fn record(&self) -> Option<(Identity, Vec<Process>)> {
        let identity = self.adopted.or_else(|| Identity::of(self.leader()))?;
        Some((identity, self.members().into_iter().filter_map(Process::of).collect()))
    }
}

/// Marks all descriptors but the first three to be closed by execve(2), also those that steadfs has itself inherited from
/// whoever started it. Those it opens are marked already, so that a kernel without this call (before 5.11) does no harm.
fn inherit_nothing() -> std::io::Result<()> {
    // SAFETY: plain numbers go in, and only flags are set.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

/// A server can send a listing without an end, which sshfs keeps whole: it shall end then, and not the machine.
fn limit_memory() -> std::io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    Ok(setrlimit(Resource::RLIMIT_DATA, soft.min(MEMORY), hard)?)
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
    process::stat(pid).map(|(letter, _)| letter)
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
    fn a_group_that_was_taken_over_is_heard_watched_and_killed() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; sleep 1000 & sleep 1000; sleep 1000"]);
        let (reader, writer) = stderr::pipe().expect("a pipe");
        let mut child = command.stderr(writer).process_group(0).spawn().expect("sh starts");
        drop((command, reader));
        let identity = Identity::of(child.id().cast_signed()).expect("it lives");
        while identity.members().len() < 3 {
            std::thread::yield_now();
        }
        let pins = identity.members().into_iter().filter_map(|pid| Process::of(pid)?.pin().ok().flatten()).collect();
        let group = Group::adopt(identity, pins, move |what| _ = sender.send(what)).expect("taken over");
        while group.output().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(group.output(), ["first"], "what was printed when nobody read");
        kill_one(&group);
        let what = receiver.recv_timeout(Duration::from_secs(10)).expect("a report");
        assert!(what.starts_with("ssh (pid "), "{what}");
        assert_eq!(group.ending(), None);
        group.kill();
        assert!(group.wait_empty(Duration::from_secs(10)));
        assert!(group.ending().is_some() && group.members().is_empty());
        assert!(receiver.recv_timeout(Duration::from_secs(10)).is_err(), "an end that was asked for is no news");
        // The watcher may have reaped it: it is our child.
        let _ = child.wait();
    }

    /// A regression: the end of nobody was waited for, and each repair of a dead sshfs after a death of the daemon took five
    /// seconds.
    #[test]
    fn a_group_that_has_gone_when_it_is_taken_over_is_empty_at_once() {
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().expect("sleep starts");
        let identity = Identity::of(child.id().cast_signed()).expect("it lives");
        child.kill().expect("killed");
        child.wait().expect("it ended");
        let group = Group::adopt(identity, Vec::new(), |_| {}).expect("taken over");
        assert!(group.wait_empty(Duration::from_secs(10)));
    }

    /// Kills a member that is not the leader.
    fn kill_one(group: &Group) {
        let other = group.members().into_iter().find(|&pid| pid != group.leader()).expect("two members");
        nix::sys::signal::kill(Pid::from_raw(other), Signal::SIGKILL).expect("killed");
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
