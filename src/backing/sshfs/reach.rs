//! A look at the server that costs it nothing but a TCP handshake: no login, no second ssh connection.

mod connect;
pub(crate) mod route;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use route::Route;
pub use route::Server;

/// Turns a name into addresses; may take as long as it likes.
type Resolver = dyn Fn(&Server) -> std::io::Result<Vec<SocketAddr>> + Send + Sync;
/// An answer of the resolver that is on its way.
type Pending = Receiver<std::io::Result<Vec<SocketAddr>>>;

/// Looks at one server again and again.
pub struct Lookout {
    /// How `ssh -G` is called: program and arguments. `None` if ssh is not what reaches the server.
    ssh: Option<Vec<String>>,
    resolver: Arc<Resolver>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    route: Option<Route>,
    /// The name has been resolved once: from then on a resolver that says nothing is a network that is down.
    resolved: bool,
    /// A resolver that was left behind, so that never more than one is.
    pending: Option<Pending>,
    answered: Option<SocketAddr>,
}

impl Lookout {
    /// For a server that this ssh command leads to; without one every look finds it.
    pub fn new(ssh: Option<Vec<String>>) -> Lookout {
        let resolver = |server: &Server| (server.host.as_str(), server.port).to_socket_addrs().map(Vec::from_iter);
        Lookout { ssh, resolver: Arc::new(resolver), state: Mutex::default() }
    }

    /// Tries to connect to one address of the server after the other until one answers, and hangs up at once. Where ssh
    /// does not make a plain TCP connection there is nothing to look at, and it is left to a start to find out.
    pub fn reach(&self, limit: Duration) -> Result<(), String> {
        let until = Instant::now() + limit;
        let Some(server) = self.server(limit / 2) else { return Ok(()) };
        let name = format!("{}:{}", server.host, server.port);
        let addresses = match self.resolve(&server, until) {
            Ok(Some(addresses)) => addresses,
            Ok(None) => return Ok(()),
            Err(words) => return Err(format!("{name}: {words}")),
        };
        // However slow the resolver was, the server gets its chance.
        let left = until.saturating_duration_since(Instant::now()).max(limit / 2);
        let answered = connect::any(&addresses, left).map_err(|error| format!("{name}: {error}"))?;
        self.state.lock().answered = Some(answered);
        Ok(())
    }

    /// The address that answered the last look that was answered.
    pub fn answered(&self) -> Option<SocketAddr> {
        self.state.lock().answered
    }

    fn server(&self, limit: Duration) -> Option<Server> {
        let ssh = self.ssh.as_ref()?;
        if let Some(route) = &self.state.lock().route {
            return route.first_hop().cloned();
        }
        // What could not be found out this time is asked again next time.
        let route = route::of(ssh, limit)?;
        let server = route.first_hop().cloned();
        self.state.lock().route = Some(route);
        server
    }

    /// The addresses; `None` if the resolver says nothing and that says nothing of the server.
    fn resolve(&self, server: &Server, until: Instant) -> Result<Option<Vec<SocketAddr>>, String> {
        let pending = self.state.lock().pending.take();
        let pending = match pending {
            Some(pending) => pending,
            None => {
                let (sender, receiver) = channel();
                let (resolver, server) = (Arc::clone(&self.resolver), server.clone());
                let resolve = move || _ = sender.send(resolver(&server));
                std::thread::Builder::new().name("resolve".into()).spawn(resolve).map_err(|error| error.to_string())?;
                receiver
            }
        };
        match pending.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Ok(addresses)) if addresses.is_empty() => Err("no address".into()),
            Ok(Ok(addresses)) => {
                self.state.lock().resolved = true;
                Ok(Some(addresses))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(RecvTimeoutError::Timeout) => {
                let mut state = self.state.lock();
                state.pending = Some(pending);
                // A resolver that was always slow says nothing of the server; ssh has more patience.
                if state.resolved { Err("the name is not resolved".into()) } else { Ok(None) }
            }
            Err(RecvTimeoutError::Disconnected) => Err("the resolver was lost".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// A lookout for that port of this machine, with a resolver that takes as long as it is told to.
    fn lookout(port: u16, millis: Arc<AtomicU64>, asked: Arc<AtomicU64>) -> Lookout {
        let resolver = move |server: &Server| {
            asked.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(millis.load(SeqCst)));
            Ok(vec![SocketAddr::from(([127, 0, 0, 1], server.port))])
        };
        let state = State { route: Some(Route::Direct(Server::new("name", port))), ..State::default() };
        Lookout { ssh: Some(Vec::new()), resolver: Arc::new(resolver), state: Mutex::new(state) }
    }

    #[test]
    fn a_silent_resolver_is_a_dead_network_once_it_has_spoken() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        let (millis, asked) = (Arc::new(AtomicU64::new(400)), Arc::new(AtomicU64::new(0)));
        let lookout = lookout(port, Arc::clone(&millis), Arc::clone(&asked));
        assert_eq!(lookout.reach(S / 20), Ok(()), "it cannot be told");
        assert_eq!(lookout.reach(5 * S), Ok(()));
        assert_eq!(asked.load(SeqCst), 1, "the one that was left behind is waited for");
        assert_eq!(lookout.answered(), Some(SocketAddr::from(([127, 0, 0, 1], port))));
        let words = lookout.reach(S / 20).expect_err("it has spoken before");
        assert!(words.contains("not resolved"), "{words}");
        millis.store(0, SeqCst);
        assert_eq!(lookout.reach(5 * S), Ok(()));
    }

    #[test]
    fn a_closed_port_is_not_reached_and_an_open_one_is() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        let lookout = lookout(port, Arc::default(), Arc::default());
        assert_eq!(lookout.reach(5 * S), Ok(()));
        drop(listener);
        // A child that another test is just starting has a copy until it runs its program.
        let mut tries = std::iter::repeat_with(|| lookout.reach(5 * S)).take(10_000);
        let words = tries.find_map(Result::err).expect("nobody listens");
        assert!(words.contains("refused"), "{words}");
    }

    #[test]
    fn without_ssh_there_is_nothing_to_look_at() {
        assert_eq!(Lookout::new(None).reach(S), Ok(()));
    }
}
