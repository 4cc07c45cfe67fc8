//! Processes that are not our children: who they are, whether they live, and a grip that no later process slips into.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// A process by its number and its start: numbers are used again, pairs are not before the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its start, in ticks since boot (proc_pid_stat(5)).
    pub started: u64,
}

impl Process {
    /// The process that has that number now; `None` if there is none, a zombie counting as such.
    pub fn of(pid: i32) -> Option<Process> {
        let (letter, started) = stat(pid)?;
        (letter != 'Z').then_some(Process { pid, started })
    }

    /// This process.
    pub fn own() -> Process {
        let pid = std::process::id().cast_signed();
        // /proc is there, and we live; a start that nobody has would only say that we have ended.
        Process::of(pid).unwrap_or(Process { pid, started: u64::MAX })
    }

    /// Takes hold of it; nothing if it has gone. A zombie can be held.
    pub fn pin(self) -> nix::Result<Option<Pinned>> {
        let pidfd = match pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(Errno::ESRCH) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        // Looked at while it is held: the number cannot go to another one meanwhile.
        let same = stat(self.pid).is_some_and(|(_, started)| started == self.started);
        Ok(same.then_some(Pinned { process: self, pidfd }))
    }

    /// Waits until the whole process, each of its threads, has gone; false when time ran out.
    ///
    /// That is more than a zombie: the first thread of a process that was killed may be one while another is still inside a
    /// filesystem. A pidfd can be read only after the last (pidfd_open(2)).
    pub fn wait_gone(self, until: Instant) -> nix::Result<bool> {
        let Some(pinned) = self.pin()? else { return Ok(true) };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match ended(std::slice::from_ref(&pinned), left) {
                Ok(ended) if ended[0] => return Ok(true),
                Ok(_) if left.is_zero() => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// A process that is held by a pidfd.
#[derive(Debug)]
pub struct Pinned {
    process: Process,
    pidfd: OwnedFd,
}

impl Pinned {
    /// Who it is.
    pub fn process(&self) -> Process {
        self.process
    }

    /// It has ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        ended(std::slice::from_ref(self), Duration::ZERO).is_ok_and(|ended| ended[0])
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        _ = self.send(signal as i32);
    }

    /// The same by the signal's number; ESRCH if it has ended.
    pub fn send(&self, number: i32) -> nix::Result<()> {
        // SAFETY: plain numbers and a null pointer, for which the kernel makes the usual siginfo.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                number,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(sent).map(drop)
    }
}

/// Waits until one of them has ended, or for `limit`, and says which have.
pub fn ended(processes: &[Pinned], limit: Duration) -> nix::Result<Vec<bool>> {
    let mut polled: Vec<PollFd> =
        processes.iter().map(|pinned| PollFd::new(pinned.pidfd.as_fd(), PollFlags::POLLIN)).collect();
    // Rounded up, so that a caller with half a millisecond left does not spin.
    let limit = limit.saturating_add(Duration::from_micros(999));
    poll(&mut polled, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX))?;
    Ok(polled.iter().map(|polled| polled.any().unwrap_or(false)).collect())
}

/// Takes hold of whatever process has that number.
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers go in, and a descriptor comes out that nobody else has.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }
}

/// Turns what a system call returned into a descriptor.
///
/// # Safety
/// `result` is that of a system call that makes a new descriptor.
pub unsafe fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the caller says so.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// State letter and start of a process, a zombie too (proc_pid_stat(5)).
pub fn stat(pid: i32) -> Option<(char, u64)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted behind its end.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_held_by_number_and_start() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        let process = Process::of(child.id().cast_signed()).expect("it lives");
        let other = Process { started: process.started + 1, ..process };
        assert!(other.pin().expect("a kernel with pidfds").is_none(), "somebody else's number");
        let pinned = process.pin().expect("a kernel with pidfds").expect("it lives");
        assert!(!pinned.has_ended());
        assert_eq!(process.wait_gone(Instant::now()), Ok(false));
        pinned.signal(Signal::SIGKILL);
        assert_eq!(process.wait_gone(Instant::now() + Duration::from_secs(10)), Ok(true));
        assert!(pinned.has_ended(), "though nobody has waited for it yet");
        assert_eq!(Process::of(process.pid), None, "a zombie is none");
        child.wait().expect("it ended");
        assert!(process.pin().expect("a kernel with pidfds").is_none());
        assert_eq!(process.wait_gone(Instant::now()), Ok(true));
        pinned.signal(Signal::SIGKILL);
    }

    #[test]
    fn one_that_ends_is_told_among_those_that_live() {
        let spawn = || Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        let mut children = [spawn(), spawn()];
        let pin = |child: &std::process::Child| {
            let process = Process::of(child.id().cast_signed()).expect("it lives");
            process.pin().expect("a kernel with pidfds").expect("it lives")
        };
        let pinned = [pin(&children[0]), pin(&children[1])];
        assert_eq!(ended(&pinned, Duration::ZERO), Ok(vec![false, false]));
        children[1].kill().expect("killed");
        assert_eq!(ended(&pinned, Duration::from_secs(10)), Ok(vec![false, true]));
        children[0].kill().expect("killed");
        children.iter_mut().for_each(|child| drop(child.wait()));
    }
}
