//! Signals of the keeper, read from a descriptor like everything else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// See the module.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks what is passed on to the daemon and reads it from here. The process must have a single thread.
    pub fn take() -> io::Result<Signals> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next signal that has come.
    pub fn next(&self) -> Option<i32> {
        let info = self.0.read_signal().ok()??;
        info.ssi_signo.try_into().ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
