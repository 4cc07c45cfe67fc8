//! A look at the server that costs it nothing but a TCP handshake: no login, no second ssh connection.

use std::net::{TcpStream, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

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
        let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(1);
        let mut words = format!("{name}: no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, share) {
                Ok(_) => return Ok(()),
                Err(error) => words = format!("{name}: {error}"),
            }
        }
        Err(words)
    }
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
