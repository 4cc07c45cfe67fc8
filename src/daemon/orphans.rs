//! Reaps processes that became the daemon's children by adoption.
//!
//! The daemon is a subreaper for the sake of ssh, so whatever a hook or an `ssh_command` left behind becomes its child as
//! well and would stay a zombie. Those with somebody waiting for them are gone by the second look.

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// Remembers who was dead at the last look.
#[derive(Debug, Default)]
pub struct Orphans {
    seen: Option<Pid>,
}

impl Orphans {
    /// Looks for a dead child and reaps the one that was dead at the last look already. Never blocks.
    pub fn look(&mut self) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let dead = match waitid(Id::All, flags) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => Some(pid),
            _ => None,
        };
        if let Some(pid) = dead.filter(|_| dead == self.seen) {
            // ECHILD: somebody was waiting for it after all.
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
        self.seen = dead;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    #[allow(clippy::zombie_processes)]
    fn a_child_nobody_waits_for_is_reaped_at_the_second_look() {
        let child = Command::new("true").spawn().expect("it starts");
        let pid = Pid::from_raw(child.id().cast_signed());
        let state = || waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        assert!(matches!(state(), Ok(WaitStatus::Exited(..))));
        let mut orphans = Orphans { seen: Some(pid) };
        // Other tests may have dead children that are found first; theirs are only looked at.
        for _ in 0..1000 {
            orphans.look();
            if state().is_err() {
                return;
            }
            orphans.seen = Some(pid);
        }
        panic!("it is still there");
    }
}
