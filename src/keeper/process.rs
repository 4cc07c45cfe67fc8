//! A daemon as a process: started, watched, signalled and killed through its pidfd, never by number alone.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::write;

use super::LINK;
use super::executable::Executable;
use super::machine::Death;
use super::notify;
use super::socket::Channel;

/// See the module.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

/// A pidfd of that process.
fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers; what it returns is a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(Errno::result(raw)?).map_err(io::Error::other)?;
    // SAFETY: it was made just now, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A pidfd of this process.
pub fn own_pidfd() -> io::Result<OwnedFd> {
    pidfd_open(nix::unistd::getpid().as_raw())
}

/// A command for `executable` that will find `link` by [`LINK`], with no signal blocked and the usual oom score.
pub fn command(executable: &Executable, arguments: &[OsString], link: &Channel) -> Command {
    let raw = link.as_fd().as_raw_fd();
    let mut command = Command::new(executable.path());
    command.arg0("steadfs").args(arguments).env(LINK, raw.to_string());
    notify::hide(&mut command);
    let prepare = move || {
        // SAFETY: the command is run while the caller still has the channel.
        let link = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl(link, FcntlArg::F_SETFD(FdFlag::empty()))?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        // The keeper's own exemption is not for its children; to give it up is always allowed.
        if let Ok(score) = open("/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            let _ = write(&score, b"0");
        }
        Ok(())
    };
    // SAFETY: between fork and execve it only makes system calls; the path fits nix's buffer, so nothing is allocated.
    unsafe { command.pre_exec(prepare) };
    command
}

impl Process {
    /// Starts a daemon as a child.
    pub fn start(executable: &Executable, arguments: &[OsString], link: &Channel) -> io::Result<Process> {
        let mut child = command(executable, arguments, link).spawn()?;
        let pid = child.id().cast_signed();
        // The number is its own until it has been waited for, which happens only below.
        match pidfd_open(pid) {
            Ok(pidfd) => Ok(Process { pid, pidfd }),
            Err(error) => {
                // Nobody would know of it.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// A daemon that is not a child.
    pub fn adopt(pid: i32, pidfd: OwnedFd) -> Process {
        Process { pid, pidfd }
    }

    /// Its number, which may be somebody else's once it has ended.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. One that has ended takes none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let none: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: a descriptor that lives, a number, and no siginfo.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, none, 0) };
        match Errno::result(done) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Err(error) = self.signal(Signal::SIGKILL as i32) {
            tracing::error!(%error, pid = self.pid, "cannot kill the daemon");
        }
    }

    /// It was killed, and some thread of it has not ended yet: its first one is a zombie (proc_pid_stat(5)), and its pidfd
    /// says nothing before the last is. To be asked only if it has not ended.
    pub fn is_dying(&self) -> bool {
        let stat = std::fs::read(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name in parentheses may hold anything.
        let end = stat.iter().rposition(|&byte| byte == b')').unwrap_or(0);
        let zombie = stat.get(end..end + 3) == Some(b") Z");
        // The number was its own until now.
        zombie && matches!(poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO), Ok(0))
    }

    /// How it ended, if it has; a child is reaped by that.
    pub fn ended(&self) -> Option<Death> {
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => Some(Death::Exited(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Death::Signalled(signal as i32)),
            Ok(_) => None,
            // Not a child.
            Err(_) => {
                let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
                matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)).then_some(Death::Unknown)
            }
        }
    }
}

/// Readable when it has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn wait(process: &Process) -> Death {
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1));
        process.ended().expect("it has ended")
    }

    fn start(path: &str, arguments: &[&str]) -> Process {
        let executable = Executable::open(Path::new(path)).expect("opened");
        let (link, _other) = Channel::pair().expect("a pair");
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Process::start(&executable, &arguments, &link).expect("started")
    }

    #[test]
    fn the_end_of_a_child_is_seen_and_told_apart() {
        assert_eq!(wait(&start("/bin/sh", &["-c", "exit 7"])), Death::Exited(7));
        let sleeper = start("/bin/sleep", &["1000"]);
        assert_eq!(sleeper.ended(), None);
        sleeper.kill();
        assert_eq!(wait(&sleeper), Death::Signalled(9));
        assert!(sleeper.signal(15).is_ok(), "nobody else is hit");
    }

    #[test]
    fn a_child_inherits_the_link_and_nothing_of_the_keepers_exemptions() {
        let script = "test -S /proc/self/fd/$STEADFS_LINK && test $(cat /proc/self/oom_score_adj) = 0";
        assert_eq!(wait(&start("/bin/sh", &["-c", script])), Death::Exited(0));
    }

    #[test]
    fn a_program_that_is_not_one_is_not_started() {
        let executable = Executable::open(Path::new("/etc/passwd")).expect("opened");
        let (link, _other) = Channel::pair().expect("a pair");
        assert!(Process::start(&executable, &[], &link).is_err());
    }
}
