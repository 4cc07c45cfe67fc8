//! Stands between sshfs and a real sftp-server, and kills the server at one chosen request.
//!
//! sshfs starts a script in the place of ssh; that script is this test binary, started again for one hidden test. What it
//! says and hears goes through files of one directory: `order` (written by the test), `seen.RUN` (one line for each
//! request) and `struck.RUN` (the request that it struck).

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::sftp;
use super::sshd::SFTP_SERVER;

/// How a request is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The server never sees it.
    Before,
    /// The server has done it, and its reply is lost.
    After,
    /// The server has done it and all that was in the pipe behind it, and every reply is lost.
    Burst,
    /// The server has done it and says so, and nothing can be sent to it any more.
    Deaf,
}

impl Moment {
    const ALL: [(Moment, &'static str); 4] =
        [(Moment::Before, "before"), (Moment::After, "after"), (Moment::Burst, "burst"), (Moment::Deaf, "deaf")];

    fn name(self) -> &'static str {
        Moment::ALL.iter().find(|(moment, _)| *moment == self).unwrap().1
    }
}

/// The test's side.
pub struct Relay {
    directory: PathBuf,
}

impl Relay {
    /// Prepares the script below `directory`.
    pub fn new(directory: &Path) -> Relay {
        let relay = Relay { directory: directory.join("relay") };
        std::fs::create_dir(&relay.directory).unwrap();
        let (exe, at) = (std::env::current_exe().unwrap(), relay.directory.display());
        // The standard output of a test binary is not its own, so the two ends of the link move elsewhere.
        let script = format!(
            "#!/bin/sh\n[ -e {at}/away ] && exit 1\nexec 3<&0 4>&1 </dev/null >/dev/null\n\
             exec env LAB_RELAY={at} {} relay_process {at} --exact --ignored --nocapture --test-threads=1\n",
            exe.display()
        );
        std::fs::write(relay.program(), script).unwrap();
        std::fs::set_permissions(relay.program(), PermissionsExt::from_mode(0o755)).unwrap();
        relay
    }

    /// What sshfs starts (`ssh_command=`).
    pub fn program(&self) -> PathBuf {
        self.directory.join("instead-of-ssh")
    }

    /// From now on requests are counted and noted down, and that one is struck, once.
    pub fn arm(&self, run: u64, strike: Option<(usize, Moment)>) {
        let (number, moment) = strike.unwrap_or((0, Moment::Before));
        let part = self.directory.join("order.part");
        std::fs::write(&part, format!("{run} {number} {}", moment.name())).unwrap();
        std::fs::rename(part, self.directory.join("order")).unwrap();
    }

    /// Everything passes again.
    pub fn disarm(&self) {
        std::fs::remove_file(self.directory.join("order")).unwrap();
    }

    /// From now on nobody can be reached, or everybody again. Links that are there stay.
    pub fn is_away(&self, away: bool) {
        let path = self.directory.join("away");
        let _ = if away { std::fs::write(path, "") } else { std::fs::remove_file(path) };
    }

    /// The requests of a run in their order, until the strike.
    pub fn seen(&self, run: u64) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.join(format!("seen.{run}"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The request of that run that was struck.
    pub fn struck(&self, run: u64) -> Option<String> {
        std::fs::read_to_string(self.directory.join(format!("struck.{run}"))).ok()
    }
}

/// What the test wants.
struct Order {
    run: u64,
    number: usize,
    moment: Moment,
}

impl Order {
    fn read(directory: &Path) -> Option<Order> {
        let text = std::fs::read_to_string(directory.join("order")).ok()?;
        let words: Vec<_> = text.split(' ').collect();
        let moment = Moment::ALL.iter().find(|(_, name)| *name == words[2]).unwrap().0;
        Some(Order { run: words[0].parse().unwrap(), number: words[1].parse().unwrap(), moment })
    }
}

/// The run that is being counted.
struct Count {
    run: u64,
    requests: usize,
    seen: File,
    /// An earlier generation's relay has struck: nothing is counted any more.
    over: bool,
}

/// What both directions share.
struct Link {
    directory: PathBuf,
    server: Mutex<Child>,
    /// Ids of requests whose replies are lost; the last of these replies is the end.
    lost: Mutex<HashSet<u32>>,
}

impl Link {
    /// The server dies, and the link with it.
    fn end(&self) -> ! {
        let mut server = self.server.lock().unwrap();
        let _ = server.kill();
        let _ = server.wait();
        std::process::exit(0);
    }
}

/// The hidden test calls this.
pub fn main() {
    let Some(directory) = std::env::var_os("LAB_RELAY") else { return };
    // SAFETY: the script has opened both for this process, and nothing else here uses them.
    let (client, to_client) = unsafe { (File::from_raw_fd(3), File::from_raw_fd(4)) };
    for end in [&client, &to_client] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    }
    let mut server = Command::new(SFTP_SERVER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (to_server, from_server) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
    let link = Link { directory: directory.into(), server: Mutex::new(server), lost: Mutex::default() };
    let link = Arc::new(link);
    let back = Arc::clone(&link);
    std::thread::spawn(move || replies(&back, from_server, to_client));
    requests(&link, &client, to_server);
    link.end();
}

/// Hands requests on until the client hangs up, or until the strike.
fn requests(link: &Link, client: &File, mut server: ChildStdin) {
    let mut packets = sftp::Packets::new(client);
    let mut count = None;
    while let Some(packet) = packets.next() {
        let Some(moment) = strikes(link, &mut count, &packet) else {
            if server.write_all(&packet).is_err() {
                return;
            }
            continue;
        };
        let mut last = vec![packet];
        match moment {
            Moment::Before => link.end(),
            Moment::After => {}
            Moment::Deaf => {
                let _ = server.write_all(&last[0]);
                // sshfs has one socket for both ways.
                shutdown(client.as_raw_fd(), Shutdown::Read).unwrap();
                rest();
            }
            Moment::Burst => {
                while packets.has_whole() || is_readable(client) {
                    last.extend(packets.next());
                }
            }
        }
        link.lost.lock().unwrap().extend(last.iter().filter_map(|packet| sftp::id(packet)));
        for packet in last {
            let _ = server.write_all(&packet);
        }
        rest();
    }
}

/// The other thread ends this process.
fn rest() -> ! {
    loop {
        std::thread::park();
    }
}

fn is_readable(client: &File) -> bool {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) && fds[0].revents().is_some_and(|r| r == PollFlags::POLLIN)
}

/// Counts a request, if they are counted now; how it is to be struck, if it is the one.
fn strikes(link: &Link, count: &mut Option<Count>, packet: &[u8]) -> Option<Moment> {
    let name = sftp::name(packet).filter(|name| !is_probe(name))?;
    let order = Order::read(&link.directory)?;
    let file = |kind: &str| link.directory.join(format!("{kind}.{}", order.run));
    if count.as_ref().is_none_or(|count| count.run != order.run) {
        let seen = File::options().create(true).append(true).open(file("seen")).unwrap();
        *count = Some(Count { run: order.run, requests: 0, seen, over: file("struck").exists() });
    }
    let count = count.as_mut().filter(|count| !count.over)?;
    count.requests += 1;
    writeln!(count.seen, "{name}").unwrap();
    let struck = count.requests == order.number;
    if struck {
        std::fs::write(file("struck"), name).unwrap();
    }
    struck.then_some(order.moment)
}

/// Requests of steadfs itself that come when they please.
fn is_probe(name: &str) -> bool {
    name.contains("statvfs@openssh.com") || name.contains(".steadfs-probe-")
}

/// Hands replies back, but those that are lost.
fn replies(link: &Link, server: impl Read, mut client: File) {
    let mut packets = sftp::Packets::new(server);
    while let Some(packet) = packets.next() {
        let mut lost = link.lost.lock().unwrap();
        if sftp::id(&packet).is_some_and(|id| lost.remove(&id)) {
            if lost.is_empty() {
                link.end();
            }
        } else if client.write_all(&packet).is_err() {
            break;
        }
    }
    link.end();
}
