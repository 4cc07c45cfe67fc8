//! Makes sure that nothing a dead generation had sent is carried out after its end.
//!
//! When the link is cut, requests wait in the send buffer of ssh's TCP socket. They outlive ssh: a kernel goes on sending
//! for minutes what a process that has ended left behind (tcp(7), `tcp_orphan_retries`), so that after the repair a
//! server would be told to truncate, remove or overwrite what is newer. A socket with SO_LINGER at zero seconds
//! (socket(7)) is reset instead when its last descriptor is closed, and what it holds is thrown away. It is ssh's
//! socket, so a copy of its descriptor is borrowed (pidfd_getfd(2)); a process that is stopped does not mind.
//!
//! The reset itself may be lost on the cut link, and then the server keeps the session, idle, for hours. So before the
//! next one is started, and when it is there, [`Connections::knock`] sends a SYN from the old port: a server that still
//! has the connection answers it with an acknowledgement that fits no socket here, which this kernel answers with a
//! reset (RFC 9293, 3.5.1, half-open connections; RFC 5961, 4).
//!
//! What the server's kernel has received is out of reach: a server that is frozen carries it out when it thaws.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getpeername, getsockname, setsockopt, socket,
    sockopt,
};
use nix::unistd::{Pid, getpgid};
use parking_lot::Mutex;

use super::group::Group;
use super::tcp;
use crate::backing::process::{owned, pidfd_open};

/// Local and remote address.
pub type Connection = (SocketAddr, SocketAddr);

/// More connections than one generation has, so that a list that is never emptied does not grow.
const MOST: usize = 16;

/// The TCP connections of generations, up to the one that lives.
#[derive(Debug, Default)]
pub struct Connections(Mutex<Vec<Connection>>);

impl Connections {
    /// From now on the end of a process of this group resets its connections. Never blocks, and never fails: what cannot
    /// be done is said in the debug log.
    pub fn arm(&self, group: &Group) {
        for pid in group.members() {
            match arm(pid, || is_member(group, pid)) {
                Ok(armed) => self.remember(armed),
                // No such descriptors to be had: Linux before 5.6, or a process that may not be traced.
                Err(error) => tracing::warn!(pid, %error, "the sockets of a process cannot be borrowed"),
            }
        }
    }

    /// As [`Connections::arm`], right before the group is killed: connections that could not be armed are destroyed.
    pub fn cut(&self, group: &Group) {
        for pid in group.members() {
            let error = match arm(pid, || is_member(group, pid)) {
                Ok(armed) => {
                    self.remember(armed);
                    continue;
                }
                Err(error) => error,
            };
            for tcp::Connection { local, remote, .. } in tcp::connections(pid) {
                self.remember(vec![(local, remote)]);
                let destroyed = tcp::destroy(local, remote);
                tracing::debug!(pid, %error, %local, %remote, ?destroyed, "a connection is destroyed from outside");
            }
        }
    }

    /// Those that are known.
    pub fn known(&self) -> Vec<Connection> {
        self.0.lock().clone()
    }

    /// Adds those of a generation that somebody else had armed.
    pub fn remember(&self, armed: Vec<Connection>) {
        let mut all = self.0.lock();
        all.retain(|connection| !armed.contains(connection));
        all.extend(armed);
        let surplus = all.len().saturating_sub(MOST);
        all.drain(..surplus);
    }

    /// Tells servers that connections of dead generations have gone, in case that was lost. Returns at once.
    pub fn knock(&self) {
        for &(local, remote) in &*self.0.lock() {
            if let Err(errno) = knock(local, remote) {
                tracing::debug!(%local, %remote, error = errno.desc(), "cannot ask for an old connection");
            }
        }
    }

    /// Every session that there was is taken for gone.
    pub fn forget(&self) {
        self.0.lock().clear();
    }
}

fn is_member(group: &Group, pid: i32) -> bool {
    getpgid(Some(Pid::from_raw(pid))) == Ok(Pid::from_raw(group.leader()))
}

/// Sets SO_LINGER on the TCP sockets of a process, if it is `the_right_one` at the time its pid is pinned down.
fn arm(pid: i32, the_right_one: impl Fn() -> bool) -> io::Result<Vec<Connection>> {
    let process = pidfd_open(pid)?;
    if !the_right_one() {
        return Ok(Vec::new());
    }
    let mut armed = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let is_socket =
            std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_socket) else {
            continue;
        };
        // Dropped at the end of this round: the process's own descriptor must be the last.
        match pidfd_getfd(&process, number) {
            Ok(socket) => armed.extend(arm_socket(&socket)?),
            // Closed meanwhile.
            Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(armed)
}

/// The addresses of the socket, if it is a TCP connection.
fn arm_socket(socket: &OwnedFd) -> nix::Result<Option<Connection>> {
    let fd = socket.as_raw_fd();
    let address = |storage: nix::Result<SockaddrStorage>| storage.ok().as_ref().and_then(internet_address);
    let (Some(local), Some(remote)) = (address(getsockname(fd)), address(getpeername(fd))) else { return Ok(None) };
    setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(Some((local, remote)))
}

fn internet_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || storage.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    let v6 = |v6: &nix::sys::socket::SockaddrIn6| {
        std::net::SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id()).into()
    };
    storage.as_sockaddr_in6().map(v6).or_else(v4)
}

fn pidfd_getfd(process: &OwnedFd, number: i32) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers go in, and a descriptor comes out that nobody else has; the kernel sets close-on-exec on what comes out.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0)) }
}

/// Sends one SYN. The socket is closed before an answer can come, so that the kernel finds nobody to give it to.
fn knock(local: SocketAddr, remote: SocketAddr) -> nix::Result<()> {
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(remote)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    /// A process whose standard input is one end of a connection; the other end.
    fn holder(bind: &str) -> (Child, TcpStream) {
        let listener = TcpListener::bind(bind).expect("loopback");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (server, _) = listener.accept().expect("accepts");
        let child = Command::new("sleep").arg("1000").stdin(OwnedFd::from(client)).spawn().expect("sleep starts");
        (child, server)
    }

    fn end(mut child: Child) {
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
    }

    #[test]
    fn the_end_of_an_armed_process_resets_its_connection() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let (child, mut server) = holder(bind);
            server.write_all(b"x").expect("written");
            let connection = (server.peer_addr().expect("peer"), server.local_addr().expect("local"));
            let pid = child.id().cast_signed();
            assert_eq!(arm(pid, || false).expect("it is ours"), []);
            assert_eq!(arm(pid, || true).expect("it is ours"), [connection]);
            server.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
            let alive = server.read(&mut [0]).expect_err("nothing comes").kind();
            assert_eq!(alive, io::ErrorKind::WouldBlock, "until then it lives");
            end(child);
            server.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
            let reset = server.read(&mut [0]).expect_err("no orderly end").kind();
            assert_eq!(reset, io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn a_stopped_process_is_armed_at_once() {
        let (child, _server) = holder("127.0.0.1:0");
        let pid = child.id().cast_signed();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).expect("sent");
        let began = Instant::now();
        assert_eq!(arm(pid, || true).expect("it is ours").len(), 1);
        assert!(began.elapsed() < Duration::from_secs(2));
        end(child);
    }

    #[test]
    fn a_connection_is_destroyed_from_outside() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs CAP_NET_ADMIN");
            return;
        }
        let (child, mut server) = holder("127.0.0.1:0");
        let (local, remote) = (server.peer_addr().expect("peer"), server.local_addr().expect("local"));
        match tcp::destroy(local, remote) {
            Ok(()) => {
                let reset = server.read(&mut [0]).expect_err("no orderly end").kind();
                assert_eq!(reset, io::ErrorKind::ConnectionReset);
            }
            // A kernel without CONFIG_INET_DIAG_DESTROY.
            Err(errno) => assert_eq!(errno, Errno::EOPNOTSUPP),
        }
        end(child);
    }

    #[test]
    fn a_knock_needs_no_answer_and_the_list_stays_short() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let remote = listener.local_addr().expect("bound");
        let free = TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound");
        knock(free, remote).expect("sent");
        let connections = Connections::default();
        for port in 1..100 {
            connections.remember(vec![(SocketAddr::new(free.ip(), port), remote)]);
            connections.remember(vec![(SocketAddr::new(free.ip(), port), remote)]);
        }
        assert_eq!(connections.0.lock().len(), MOST);
        connections.forget();
        connections.knock();
    }
}
