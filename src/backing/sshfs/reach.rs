//! A look at the server that costs it nothing but a TCP handshake: no login, no second ssh connection.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Where ssh would connect to, when that is a plain TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
}

impl Server {
    /// A server by name and port.
    pub fn new(host: &str, port: u16) -> Server {
        Server { host: host.to_owned(), port }
    }

    /// Asks `ssh -G`, which reads all configuration and connects nowhere. `None` if ssh goes through a proxy, or if
    /// ssh rejects its arguments (it will say so again, in its own words, when it is started for real).
    pub fn resolve(ssh_arguments: &[String]) -> Option<Server> {
        let output = Command::new("ssh").arg("-G").args(ssh_arguments).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| parse(&String::from_utf8_lossy(&output.stdout)))?
    }

    /// Tries to connect, to each address of the host in turn, and hangs up at once.
    pub fn reach(&self, limit: Duration) -> Result<(), String> {
        // Resolving a name has no limit of its own: it is left behind in its thread when it takes too long.
        let (sender, receiver) = channel();
        let server = self.clone();
        let resolve =
            move || _ = sender.send((server.host.as_str(), server.port).to_socket_addrs().map(Vec::from_iter));
        std::thread::Builder::new().name("resolve".into()).spawn(resolve).map_err(|error| error.to_string())?;
        let name = format!("{}:{}", self.host, self.port);
        let addresses = match receiver.recv_timeout(limit) {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(format!("{name}: {error}")),
            // A slow resolver says nothing of the server; ssh has more patience.
            Err(_) => return Ok(()),
        };
        if addresses.is_empty() {
            return Err(format!("{name}: no address"));
        }
        connect_any(&addresses, limit).map_err(|error| format!("{name}: {error}"))
    }
}

/// Connects to whichever address answers first. Each is tried twice, half a limit apart: a lost SYN is only sent again by
/// the kernel after a second (RFC 6298), and a link that has just been healed should not wait for that.
fn connect_any(addresses: &[SocketAddr], limit: Duration) -> io::Result<()> {
    let (sender, receiver) = channel();
    for delay in [Duration::ZERO, limit / 2] {
        for &address in addresses {
            let sender = sender.clone();
            let connect = move || {
                std::thread::sleep(delay);
                _ = sender.send(TcpStream::connect_timeout(&address, limit).map(drop));
            };
            std::thread::Builder::new().name("connect".into()).spawn(connect)?;
        }
    }
    let until = Instant::now() + limit;
    let mut failure = io::Error::from(io::ErrorKind::TimedOut);
    for _ in addresses {
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => failure = error,
            Err(_) => break,
        }
    }
    Err(failure)
}

fn parse(config: &str) -> Option<Server> {
    let field = |name: &str| config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let direct = |name: &str| field(name).is_none_or(|value| value == "none");
    if !direct("proxycommand") || !direct("proxyjump") {
        return None;
    }
    Some(Server::new(field("hostname")?, field("port")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_taken_from_ssh() {
        let config = "user me\nhostname box.example\nport 23\nproxyjump none\n";
        assert_eq!(parse(config), Some(Server::new("box.example", 23)));
        assert_eq!(parse("hostname h\nport 22\nproxycommand nc %h %p\n"), None);
    }

    #[test]
    fn a_closed_port_is_not_reached_and_an_open_one_is() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        let server = Server::new("127.0.0.1", port);
        assert_eq!(server.reach(Duration::from_secs(5)), Ok(()));
        drop(listener);
        let words = server.reach(Duration::from_secs(5)).expect_err("nobody listens");
        assert!(words.contains("refused"), "{words}");
    }
}
