//! What the service manager is told (sd_notify(3)), and what it keeps for us (FDSTORE=). Without one all does nothing.
//!
//! The daemon does not see the manager's variables, since its words would not count; they reach a later keeper under
//! names of our own.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket,
};

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::time::{TimeVal, TimeValLike};

use super::is_device;

/// The manager's variable, and under which name it reaches a later keeper.
const SOCKET: [&str; 2] = ["NOTIFY_SOCKET", "STEADFS_NOTIFY_SOCKET"];
const WATCHDOG: [&str; 2] = ["WATCHDOG_USEC", "STEADFS_WATCHDOG_USEC"];
/// How long a busy manager is waited for, in milliseconds; then it is not told.
const PATIENCE: i64 = 500;
/// First descriptor that a manager hands over (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// See the module.
#[derive(Debug, Default)]
pub struct Manager {
    to: Option<(OwnedFd, UnixAddr)>,
    /// Half of what it waits for signs of life.
    every: Option<Duration>,
    next: Option<Instant>,
}

/// Renames the manager's variables for a child.
pub fn hide(command: &mut Command) {
    for [name, ours] in [SOCKET, WATCHDOG] {
        if let Some(value) = value([name, ours]) {
            command.env(ours, value);
        }
        command.env_remove(name);
    }
    for name in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
}

fn value(names: [&str; 2]) -> Option<OsString> {
    names.iter().find_map(env::var_os).filter(|value| !value.is_empty())
}

fn is_for_us(name: &str) -> bool {
    env::var(name).ok().and_then(|pid| pid.parse().ok()) == Some(std::process::id())
}

impl Manager {
    /// The one that started this process, or the keeper before it.
    pub fn of_environment() -> Manager {
        let to = value(SOCKET).and_then(|path| match open(&path) {
            Ok(to) => Some(to),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told anything");
                None
            }
        });
        let asked =
            env::var_os(WATCHDOG[1]).is_some() || env::var_os("WATCHDOG_PID").is_none() || is_for_us("WATCHDOG_PID");
        let micros = value(WATCHDOG).filter(|_| asked).and_then(|text| text.to_str()?.parse().ok());
        let every = micros.map(|micros: u64| Duration::from_micros(micros / 2));
        Manager { next: to.is_some().then(Instant::now).filter(|_| every.is_some()), to, every }
    }

    /// Sends assignments, one a line.
    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) {
        let Some((socket, address)) = &self.to else { return };
        let raw: Vec<RawFd> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
        let with = [ControlMessage::ScmRights(&raw)];
        let with: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &with };
        let flags = MsgFlags::MSG_NOSIGNAL;
        if let Err(errno) = sendmsg(socket.as_raw_fd(), &[IoSlice::new(text.as_bytes())], with, flags, Some(address)) {
            tracing::debug!(%errno, text, "sd_notify");
        }
    }

    /// The overlay answers; and this process is the one to watch.
    pub fn ready(&self) {
        self.send(&format!("READY=1\nMAINPID={}", std::process::id()), None);
    }

    /// This process is the one to watch from now on.
    pub fn main_pid(&self) {
        self.send(&format!("MAINPID={}", std::process::id()), None);
    }

    /// A line for people.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")), None);
    }

    /// The end.
    pub fn stopping(&self) {
        self.send("STOPPING=1", None);
    }

    /// Has a descriptor kept across a death of all of us, in place of another of that name.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.forget(name);
        // The device says by poll(2) when its connection has ended; of others systemd must not ask (O_PATH cannot be polled).
        let poll = if is_device(name) { "" } else { "\nFDPOLL=0" };
        self.send(&format!("FDSTORE=1\nFDNAME={name}{poll}"), Some(descriptor));
    }

    /// Has it closed.
    pub fn forget(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    /// Gives a sign of life if one is due.
    pub fn live(&mut self, now: Instant) {
        if let (Some(next), Some(every)) = (self.next, self.every)
            && now >= next
        {
            self.next = Some(now + every);
            self.send("WATCHDOG=1", None);
        }
    }

    /// When the next sign of life is due.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.next
    }
}

fn open(path: &OsStr) -> io::Result<(OwnedFd, UnixAddr)> {
    let address = match path.as_bytes().split_first() {
        Some((b'@', name)) => UnixAddr::new_abstract(name)?,
        _ => UnixAddr::new(path)?,
    };
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(PATIENCE))?;
    Ok((socket, address))
}

/// What the manager kept of an earlier life, by name. To be called once, before this process opens anything.
pub fn kept() -> Vec<(String, OwnedFd)> {
    let count = env::var("LISTEN_FDS").ok().and_then(|text| text.parse::<RawFd>().ok()).unwrap_or(0);
    if !is_for_us("LISTEN_PID") {
        return Vec::new();
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat("unknown"));
    let take = |raw: RawFd| {
        // SAFETY: only looked at, to see whether it is open at all.
        let shown = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl(shown, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        // SAFETY: it is open, and by the protocol it is ours from the start; nobody here has taken it before.
        Some(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    let found = (FIRST..FIRST.saturating_add(count.clamp(0, 1024))).zip(names);
    found.filter_map(|(raw, name)| Some((name.to_owned(), take(raw)?))).collect()
}

#[cfg(test)]
impl Manager {
    fn at(path: &OsStr) -> io::Result<Manager> {
        Ok(Manager { to: Some(open(path)?), ..Manager::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn it_is_told_a_line_each() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).expect("bound");
        let manager = Manager::at(path.as_os_str()).expect("opened");
        manager.ready();
        manager.status("two\nlines");
        manager.store("state", std::fs::File::open("/dev/null").expect("opened").as_fd());
        let mut buffer = [0; 200];
        let mut next = || {
            let length = listener.recv(&mut buffer).expect("told");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(next(), format!("READY=1\nMAINPID={}", std::process::id()));
        assert_eq!(next(), "STATUS=two lines");
        assert_eq!(next(), "FDSTOREREMOVE=1\nFDNAME=state");
        assert_eq!(next(), "FDSTORE=1\nFDNAME=state\nFDPOLL=0");
        Manager::default().ready();
    }
}
