//! Process groups that outlive the daemon: a daemon that is killed leaves its sshfs and ssh behind, connected. Each group is
//! written down before anything can go wrong, and whoever sweeps the directory later ends it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getsid};

use super::group::members_of;

/// Names of the records: this and the number of the generation.
const PREFIX: &str = "group-";
/// How long killed processes may take to go.
const GONE: Duration = Duration::from_secs(2);

/// What is written down of a group: enough not to take a stranger for it that got its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    leader: Pid,
    /// Start of the leader, in ticks since boot (proc_pid_stat(5)).
    started: u64,
    session: Pid,
}

impl Record {
    /// `None` if it has ended already.
    fn of(leader: Pid) -> Option<Record> {
        Some(Record { leader, started: started(leader)?, session: getsid(Some(leader)).ok()? })
    }

    fn parse(text: &str) -> Option<Record> {
        let mut fields = text.split_whitespace();
        let leader = fields.next()?.parse().ok().filter(|&pid| pid > 1).map(Pid::from_raw)?;
        let (started, session) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Record { leader, started, session: Pid::from_raw(session) })
    }

    fn text(&self) -> String {
        format!("{} {} {}\n", self.leader, self.started, self.session)
    }

    /// Kills what is left of the group and waits until it has gone.
    fn end(&self) {
        let ours = match started(self.leader) {
            Some(started) => started == self.started,
            // The leader has gone. As long as one member lives nobody else gets its number; who got it after the last one
            // is most likely of another session.
            None => true,
        };
        let until = Instant::now() + GONE;
        loop {
            let members = members_of(self.leader);
            let members: Vec<i32> = members.into_iter().filter(|&pid| self.is_member(pid)).collect();
            if !ours || members.is_empty() || Instant::now() >= until {
                return;
            }
            let _ = match started(self.leader) {
                Some(_) => killpg(self.leader, Signal::SIGKILL),
                None => members.iter().try_for_each(|&pid| kill(Pid::from_raw(pid), Signal::SIGKILL)),
            };
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_member(&self, pid: i32) -> bool {
        let zombie = super::group::state_letter(pid).is_none_or(|letter| letter == 'Z');
        !zombie && getsid(Some(Pid::from_raw(pid))) == Ok(self.session)
    }
}

/// When a process started; `None` if it has ended, a zombie counting as such.
fn started(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{number}"))
}

/// Writes down the group of generation `number` by its leader.
pub fn record(directory: &Path, number: u64, leader: i32) -> io::Result<()> {
    match Record::of(Pid::from_raw(leader)) {
        Some(record) => std::fs::write(path(directory, number), record.text()),
        None => Ok(()),
    }
}

/// The group has gone.
pub fn forget(directory: &Path, number: u64) {
    let _ = std::fs::remove_file(path(directory, number));
}

/// Ends every group that is written down in `directory`, and removes the records. Nothing is there as a rule.
pub fn end_all(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        if let Some(record) = std::fs::read_to_string(entry.path()).ok().and_then(|text| Record::parse(&text)) {
            record.end();
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
        end_all(directory.path());
        assert_eq!(alive(&members), 0);
        child.wait().expect("it ends");
        assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 0);
    }

    #[test]
    fn its_members_are_ended_though_the_leader_has_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut child, members) = group();
        record(directory.path(), 1, child.id().cast_signed()).expect("written");
        child.kill().expect("killed");
        child.wait().expect("it ends");
        assert_eq!(alive(&members), 2);
        end_all(directory.path());
        assert_eq!(alive(&members), 0);
    }

    #[test]
    fn a_stranger_with_the_same_number_is_spared_and_so_is_nonsense() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut child, members) = group();
        let leader = Pid::from_raw(child.id().cast_signed());
        let record = Record::of(leader).expect("it lives");
        let older = Record { started: record.started - 1, ..record };
        std::fs::write(path(directory.path(), 1), older.text()).expect("written");
        for (number, text) in ["", "1 2 3", "-1 2 3", "0 0 0", "x y z"].iter().enumerate() {
            std::fs::write(path(directory.path(), 2 + number as u64), text).expect("written");
        }
        end_all(directory.path());
        assert_eq!(alive(&members), members.len());
        killpg(leader, Signal::SIGKILL).expect("killed");
        child.wait().expect("it ends");
    }
}
