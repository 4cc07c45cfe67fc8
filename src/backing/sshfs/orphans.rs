//! Process groups that outlive the daemon: a daemon that is killed leaves its sshfs and ssh behind, connected. Each group is
//! written down before anything can go wrong, and whoever sweeps the directory later ends it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getsid};

use super::group::members_of;
use crate::backing::process::{Process, stat};

/// Names of the records: this and the number of the generation.
const PREFIX: &str = "group-";
/// How long killed processes may take to go.
const GONE: Duration = Duration::from_secs(2);

/// What is written down of a group: enough not to take a stranger for it that got its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// sshfs.
    pub leader: Process,
    /// The session of all members.
    pub session: Pid,
}

impl Identity {
    /// `None` if it has ended already.
    pub fn of(leader: i32) -> Option<Identity> {
        let session = getsid(Some(Pid::from_raw(leader))).ok()?;
        Some(Identity { leader: Process::of(leader)?, session })
    }

    /// Reads what [`Identity::text`] made.
    pub(crate) fn parse(text: &str) -> Option<Identity> {
        let mut fields = text.split_whitespace();
        let pid = fields.next()?.parse().ok().filter(|&pid| pid > 1)?;
        let (started, session) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Identity { leader: Process { pid, started }, session: Pid::from_raw(session) })
    }

    /// Written down.
    pub(crate) fn text(&self) -> String {
        format!("{} {} {}\n", self.leader.pid, self.leader.started, self.session)
    }

    /// Its members that live.
    pub fn members(&self) -> Vec<i32> {
        // If the leader has gone: as long as one member lives nobody else gets its number; who got it after the last one is
        // most likely of another session.
        if stat(self.leader.pid).is_some_and(|(_, started)| started != self.leader.started) {
            return Vec::new();
        }
        let members = members_of(Pid::from_raw(self.leader.pid));
        members.into_iter().filter(|&pid| self.is_member(pid)).collect()
    }

    /// Kills every member there is at this moment.
    pub fn kill(&self) {
        let members = self.members();
        if members.contains(&self.leader.pid) {
            let _ = killpg(Pid::from_raw(self.leader.pid), Signal::SIGKILL);
        } else {
            members.iter().for_each(|&pid| _ = kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
    }

    /// Kills what is left of the group and waits until it has gone.
    fn end(&self) {
        let until = Instant::now() + GONE;
        while !self.members().is_empty() && Instant::now() < until {
            self.kill();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_member(&self, pid: i32) -> bool {
        Process::of(pid).is_some() && getsid(Some(Pid::from_raw(pid))) == Ok(self.session)
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(name(number))
}

/// The name of the record of generation `number`.
pub fn name(number: u64) -> String {
    format!("{PREFIX}{number}")
}

/// Writes down the group of generation `number` by its leader.
pub fn record(directory: &Path, number: u64, leader: i32) -> io::Result<()> {
    match Identity::of(leader) {
        Some(identity) => std::fs::write(path(directory, number), identity.text()),
        None => Ok(()),
    }
}

/// The group has gone.
pub fn forget(directory: &Path, number: u64) {
    let _ = std::fs::remove_file(path(directory, number));
}

/// Ends every group that is written down in `directory`, and removes the records, but for that of the generation that is to
/// be taken over. Nothing is there as a rule.
pub fn end_all(directory: &Path, spared: Option<u64>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_spared = spared.is_some_and(|number| entry.path() == path(directory, number));
        if is_spared || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        if let Some(identity) = std::fs::read_to_string(entry.path()).ok().and_then(|text| Identity::parse(&text)) {
            identity.end();
        }
        let _ = std::fs::remove_file(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;

    /// A leader that waits, with a child in its group.
    fn group() -> (Child, Vec<i32>) {
        let child = Command::new("sh").args(["-c", "sleep 1000 & sleep 1000"]).process_group(0).spawn().expect("sh");
        let leader = Pid::from_raw(child.id().cast_signed());
        while members_of(leader).len() < 3 {
            std::thread::yield_now();
        }
        (child, members_of(leader))
    }

    fn alive(pids: &[i32]) -> usize {
        let lives = |pid: &&i32| super::super::group::state_letter(**pid).is_some_and(|letter| letter != 'Z');
        pids.iter().filter(lives).count()
    }

    #[test]
    fn a_group_that_was_left_behind_is_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut child, members) = group();
        record(directory.path(), 3, child.id().cast_signed()).expect("written");
        end_all(directory.path(), None);
        assert_eq!(alive(&members), 0);
        child.wait().expect("it ends");
        assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_group_that_is_to_be_taken_over_is_spared() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut child, members) = group();
        record(directory.path(), 3, child.id().cast_signed()).expect("written");
        std::fs::write(path(directory.path(), 33), "nonsense").expect("written");
        end_all(directory.path(), Some(3));
        assert_eq!(alive(&members), members.len());
        assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 1);
        end_all(directory.path(), Some(4));
        assert_eq!(alive(&members), 0);
        child.wait().expect("it ends");
    }

    #[test]
    fn its_members_are_ended_though_the_leader_has_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut child, members) = group();
        record(directory.path(), 1, child.id().cast_signed()).expect("written");
        child.kill().expect("killed");
        child.wait().expect("it ends");
        assert_eq!(alive(&members), 2);
        end_all(directory.path(), None);
        assert_eq!(alive(&members), 0);
    }

    #[test]
    fn a_stranger_with_the_same_number_is_spared_and_so_is_nonsense() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut child, members) = group();
        let leader = Pid::from_raw(child.id().cast_signed());
        let identity = Identity::of(leader.as_raw()).expect("it lives");
        let started = identity.leader.started - 1;
        let older = Identity { leader: Process { started, ..identity.leader }, ..identity };
        std::fs::write(path(directory.path(), 1), older.text()).expect("written");
        for (number, text) in ["", "1 2 3", "-1 2 3", "0 0 0", "x y z"].iter().enumerate() {
            std::fs::write(path(directory.path(), 2 + number as u64), text).expect("written");
        }
        end_all(directory.path(), None);
        assert_eq!(alive(&members), members.len());
        killpg(leader, Signal::SIGKILL).expect("killed");
        child.wait().expect("it ends");
    }
}
