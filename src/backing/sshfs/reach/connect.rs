//! Connects to whichever address of a server answers first.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, getsockopt, socket, sockopt::SocketError,
};

/// The address that answered. They are tried one after the other, so that as a rule the server sees one connection; those
/// that say nothing are tried a second time half a limit later: a lost SYN is only sent again by the kernel after a second
/// (RFC 6298), and a link that has just been healed should not wait for that.
pub fn any(addresses: &[SocketAddr], limit: Duration) -> io::Result<SocketAddr> {
    let began = Instant::now();
    let until = began + limit;
    let mut planned = plan(addresses, limit);
    let mut open: Vec<(SocketAddr, OwnedFd)> = Vec::new();
    let mut failure = io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let now = Instant::now();
        while let Some(&(delay, address)) = planned.first()
            && (now >= began + delay || open.is_empty())
        {
            planned.remove(0);
            match begin(address) {
                Ok(Some(socket)) => open.push((address, socket)),
                Ok(None) => return Ok(address),
                Err(error) => {
                    planned.retain(|(_, other)| *other != address);
                    failure = error.into();
                }
            }
        }
        if open.is_empty() || now >= until {
            return Err(failure);
        }
        let next = planned.first().map_or(until, |(delay, _)| began + *delay);
        wait(&open, next.min(until).saturating_duration_since(Instant::now()))?;
        let mut still_open = Vec::new();
        for (address, socket) in open {
            match outcome(&socket) {
                Some(Ok(())) => return Ok(address),
                // Somebody said no: to ask again would change nothing.
                Some(Err(errno)) => {
                    planned.retain(|(_, other)| *other != address);
                    failure = errno.into();
                }
                None => still_open.push((address, socket)),
            }
        }
        open = still_open;
    }
}

/// When each address is tried, in order: all within half the limit, and all of them again in the other half.
fn plan(addresses: &[SocketAddr], limit: Duration) -> Vec<(Duration, SocketAddr)> {
    let step = limit / 2 / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let twice = addresses.iter().chain(addresses);
    (0_u32..).map(|n| step * n).zip(twice.copied()).collect()
}

/// Begins to connect; `None` if that is done already.
fn begin(address: SocketAddr) -> nix::Result<Option<OwnedFd>> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    let begun = match address {
        SocketAddr::V4(address) => connect(socket.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => connect(socket.as_raw_fd(), &SockaddrIn6::from(address)),
    };
    match begun {
        Ok(()) => Ok(None),
        Err(Errno::EINPROGRESS) => Ok(Some(socket)),
        Err(errno) => Err(errno),
    }
}

/// Waits until one of them has come to something, or the time is over.
fn wait(open: &[(SocketAddr, OwnedFd)], time: Duration) -> nix::Result<()> {
    let mut polled: Vec<PollFd> = open.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)).collect();
    // One millisecond more, since poll rounds down and would spin.
    let time = PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, time) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What has come of it; `None` if nothing yet.
fn outcome(socket: &OwnedFd) -> Option<nix::Result<()>> {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(0) | Err(Errno::EINTR) => return None,
        Err(errno) => return Some(Err(errno)),
        Ok(_) => {}
    }
    Some(match getsockopt(socket, SocketError) {
        Ok(0) => Ok(()),
        Ok(error) => Err(Errno::from_raw(error)),
        Err(errno) => Err(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(600);

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    fn accepted(listener: &TcpListener) -> usize {
        listener.set_nonblocking(true).expect("a flag");
        std::iter::from_fn(|| listener.accept().ok()).count()
    }

    /// An address that says nothing: its queue of connections is full.
    fn silent() -> (Vec<TcpStream>, TcpListener, SocketAddr) {
        let (listener, address) = listener();
        // SAFETY: the descriptor is open, and listen(2) on a listening socket changes its backlog only.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let mut full = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            full.push(stream);
        }
        (full, listener, address)
    }

    /// An address where nobody listens, nor a child that another test is just starting.
    fn refused() -> SocketAddr {
        let address = listener().1;
        while TcpStream::connect_timeout(&address, LIMIT).is_ok() {
            std::thread::yield_now();
        }
        address
    }

    #[test]
    fn a_server_that_answers_sees_one_connection() {
        let (listener, address) = listener();
        let (other, second) = self::listener();
        assert_eq!(any(&[address, second], LIMIT).expect("it answers"), address);
        std::thread::sleep(LIMIT);
        assert_eq!((accepted(&listener), accepted(&other)), (1, 0));
    }

    #[test]
    fn the_second_address_answers_for_one_that_says_nothing_or_no() {
        let (_full, _listener, silent) = silent();
        let (_open, second) = listener();
        assert_eq!(any(&[silent, second], LIMIT).expect("the second answers"), second);
        let refused = refused();
        let began = Instant::now();
        assert_eq!(any(&[refused, second], LIMIT).expect("the second answers"), second);
        assert!(began.elapsed() < LIMIT / 2, "a refusal is not waited out");
    }

    #[test]
    fn the_last_words_of_several_are_waited_for() {
        let refused = refused();
        let error = any(&[refused, refused], LIMIT).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let (_full, _listener, silent) = silent();
        let began = Instant::now();
        assert_eq!(any(&[silent], LIMIT).expect_err("it says nothing").kind(), io::ErrorKind::TimedOut);
        assert!((LIMIT..LIMIT * 3).contains(&began.elapsed()));
    }

    #[test]
    fn each_address_is_tried_twice_and_the_first_first() {
        let [a, b] = [listener().1, listener().1];
        let ms = Duration::from_millis;
        assert_eq!(plan(&[a, b], ms(1000)), [(ms(0), a), (ms(250), b), (ms(500), a), (ms(750), b)]);
    }
}
