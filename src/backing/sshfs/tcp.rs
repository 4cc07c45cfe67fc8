//! Reads the kernel's counters of a TCP connection of another process, through sock_diag(7).

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use nix::sys::time::TimeVal;

/// What `struct tcp_info` (include/uapi/linux/tcp.h) says of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpCounters {
    /// tcpi_bytes_acked: bytes that the peer's kernel has acknowledged.
    pub acked: u64,
    /// tcpi_bytes_received.
    pub received: u64,
    /// tcpi_unacked: segments on their way.
    pub unacked: u32,
    /// tcpi_notsent_bytes: bytes that wait in the socket.
    pub not_sent: u32,
    /// tcpi_last_ack_recv: milliseconds since the last acknowledgement.
    pub last_ack_ms: u32,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
/// Length of `struct inet_diag_msg`, after which the attributes follow.
const INET_DIAG_MSG: usize = 72;
const NLMSG_HEADER: usize = 16;

/// Asks for the counters of the connection between these two addresses in this network namespace.
pub fn counters(local: SocketAddr, remote: SocketAddr) -> nix::Result<TcpCounters> {
    let mut reply = [0_u8; 4096];
    let length = ask(&request(SOCK_DIAG_BY_FAMILY, 0, local, remote), &mut reply)?;
    parse(&reply[..length]).ok_or(nix::errno::Errno::ENOENT)
}

/// Resets the connection between these two addresses and throws away what it holds (needs CAP_NET_ADMIN and a kernel with
/// CONFIG_INET_DIAG_DESTROY).
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> nix::Result<()> {
    let mut reply = [0_u8; 4096];
    let length = ask(&request(SOCK_DESTROY, libc::NLM_F_ACK as u16, local, remote), &mut reply)?;
    // struct nlmsgerr: the errno, negative; 0 is the acknowledgement.
    let error = reply[..length].get(NLMSG_HEADER..NLMSG_HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    match i32::from_ne_bytes(error.ok_or(nix::errno::Errno::EBADMSG)?) {
        0 => Ok(()),
        error => Err(nix::errno::Errno::from_raw(-error)),
    }
}

fn ask(request: &[u8], reply: &mut [u8]) -> nix::Result<usize> {
    use std::os::fd::AsRawFd;
    let netlink =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    // The kernel answers at once; the limit only guards against a lost reply.
    nix::sys::socket::setsockopt(&netlink, nix::sys::socket::sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
    sendto(netlink.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    recv(netlink.as_raw_fd(), reply, MsgFlags::empty())
}

fn request(kind: u16, flags: u16, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Vec::with_capacity(72);
    message.extend(72_u32.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    message.extend([0; 8]);
    // struct inet_diag_req_v2
    message.extend([family as u8, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0]);
    message.extend(u32::MAX.to_ne_bytes());
    // struct inet_diag_sockid
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => bytes = v6.octets(),
        }
        message.extend(bytes);
    }
    message.extend(0_u32.to_ne_bytes());
    message.extend([0xff; 8]);
    message
}

/// The counters in an answer of the kernel.
pub(crate) fn parse(reply: &[u8]) -> Option<TcpCounters> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    if kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut attributes = reply.get(NLMSG_HEADER + INET_DIAG_MSG..)?;
    while let Some(header) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes(header[..2].try_into().ok()?));
        let attribute = u16::from_ne_bytes(header[2..].try_into().ok()?);
        if attribute == INET_DIAG_INFO {
            return counters_of(attributes.get(4..length)?);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// Picks the fields out of a `struct tcp_info` by their offsets, which are part of the kernel's ABI.
fn counters_of(info: &[u8]) -> Option<TcpCounters> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    Some(TcpCounters {
        unacked: u32_at(24)?,
        last_ack_ms: u32_at(56)?,
        acked: u64_at(120)?,
        received: u64_at(128)?,
        not_sent: u32_at(144)?,
    })
}

/// A TCP connection of a process, or what is to become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Address on this side.
    pub local: SocketAddr,
    /// Address of the peer.
    pub remote: SocketAddr,
    /// The peer has answered; else only a SYN was sent.
    pub established: bool,
}

/// The TCP connections that a process holds or waits for.
pub fn connections(pid: i32) -> Vec<Connection> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let sockets: Vec<String> = descriptors
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    [table("tcp"), table("tcp6")]
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| find_in(line, &sockets))
        .collect()
}

/// One line of /proc/net/tcp (Documentation/networking/proc_net_tcp.rst), if its inode is among `sockets`.
pub(crate) fn find_in(line: &str, sockets: &[String]) -> Option<Connection> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // States of include/net/tcp_states.h.
    let established = match *fields.get(3)? {
        "01" => true,
        "02" => false,
        _ => return None,
    };
    let ours = sockets.iter().any(|inode| fields.get(9) == Some(&inode.as_str()));
    ours.then_some(Connection { local: address(fields[1])?, remote: address(fields[2])?, established })
}

fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    // Each group of eight digits is a 32-bit word in host order.
    for word in ip.as_bytes().chunks(8) {
        bytes.extend(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn count_bytes(bind: &str) {
        let listener = TcpListener::bind(bind).expect("loopback");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (mut server, _) = listener.accept().expect("accepts");
        client.write_all(&[7; 5000]).expect("writes");
        server.read_exact(&mut [0; 5000]).expect("reads");
        server.write_all(&[7; 300]).expect("writes");
        client.read_exact(&mut [0; 300]).expect("reads");
        let (local, remote) = (client.local_addr().expect("local"), client.peer_addr().expect("peer"));
        let pid = std::process::id().cast_signed();
        assert!(connections(pid).contains(&Connection { local, remote, established: true }));
        let seen = counters(local, remote).expect("the kernel answers");
        assert_eq!((seen.received, seen.not_sent), (300, 0));
        // The handshake's SYN counts as one byte on some kernels.
        assert!((5000..=5001).contains(&seen.acked), "{seen:?}");
    }

    #[test]
    fn a_connection_that_nobody_has_answered_is_seen() {
        let line = "  3: 0100007F:9C40 0200007F:0016 02 00000001:00000000 01:00000064 00000001  0  0 4711 2 0 800 -1";
        let found = find_in(line, &["4711".into()]).expect("it is there");
        assert_eq!((found.remote.to_string().as_str(), found.established), ("127.0.0.2:22", false));
        assert_eq!(find_in(line, &["4712".into()]), None);
        assert_eq!(find_in(&line.replace(" 02 ", " 06 "), &["4711".into()]), None);
    }

    #[test]
    fn bytes_of_a_connection_are_counted() {
        count_bytes("127.0.0.1:0");
    }

    #[test]
    fn bytes_of_an_ipv6_connection_are_counted() {
        count_bytes("[::1]:0");
    }
}
