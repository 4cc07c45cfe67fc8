//! Where ssh would connect to, as `ssh -G` tells it, which reads all configuration and connects nowhere.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Most jump hosts that are followed, each by way of another.
const MOST_HOPS: usize = 4;

/// A host by name, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Server {
    /// A server by name and port.
    pub fn new(host: &str, port: u16) -> Server {
        Server { host: host.to_owned(), port }
    }
}

/// The first step of ssh's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// A TCP connection of its own, to the server or to its first jump host.
    Direct(Server),
    /// A program, or something that ssh will find better words for.
    Unknown,
}

impl Route {
    pub fn first_hop(&self) -> Option<&Server> {
        match self {
            Route::Direct(server) => Some(server),
            Route::Unknown => None,
        }
    }
}

/// What one `ssh -G` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Route(Route),
    /// By way of that host, with a port if one was named.
    Jump(String, Option<u16>),
}

/// Asks `ssh`, a program and the arguments that lead to the host. `None` if it said nothing in time.
pub(super) fn of(ssh: &[String], limit: Duration) -> Option<Route> {
    let until = Instant::now() + limit;
    let (program, arguments) = ssh.split_first()?;
    let mut arguments = arguments.to_vec();
    for _ in 0..MOST_HOPS {
        let Some(config) = ask(program, &arguments, until)? else { return Some(Route::Unknown) };
        match parse(&config) {
            Said::Route(route) => return Some(route),
            // ssh gives its jump host its configuration file, and nothing else that matters here.
            Said::Jump(host, port) => {
                let file = arguments.iter().position(|argument| argument == "-F");
                let file = file.and_then(|at| arguments.get(at..at + 2)).unwrap_or_default().to_vec();
                let port = port.map(|port| ["-p".to_owned(), port.to_string()]);
                arguments = file.into_iter().chain(port.into_iter().flatten()).chain(["--".into(), host]).collect();
            }
        }
    }
    Some(Route::Unknown)
}

/// What `ssh -G` prints: `Some(None)` if it rejects its arguments (it will say so again, in its own words, when it is
/// started for real), `None` if it cannot be asked now.
fn ask(program: &str, arguments: &[String], until: Instant) -> Option<Option<String>> {
    let mut command = Command::new(program);
    command.arg("-G").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.process_group(0).spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let (sender, receiver) = channel();
    let read = move || {
        let mut config = String::new();
        _ = sender.send(stdout.read_to_string(&mut config).map(|_| config));
    };
    let reading = std::thread::Builder::new().name("ssh-G".into()).spawn(read);
    let config = reading.is_ok().then(|| receiver.recv_timeout(until.saturating_duration_since(Instant::now())).ok());
    if !matches!(config, Some(Some(Ok(_)))) {
        // `Match exec` may have started something that hangs: it is in the same group.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    }
    let status = child.wait().ok()?;
    let config = config??.ok()?;
    Some(status.success().then_some(config))
}

pub(crate) fn parse(config: &str) -> Said {
    let field = |name: &str| config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let set = |name: &str| field(name).filter(|value| *value != "none");
    if let Some(jumps) = set("proxyjump") {
        let first = jumps.split(',').next().unwrap_or_default();
        let first = first.strip_prefix("ssh://").unwrap_or(first);
        let (user, place) = first.rsplit_once('@').map_or(("", first), |(user, place)| (user, place));
        let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let host = if user.is_empty() { host.to_owned() } else { format!("{user}@{host}") };
        return Said::Jump(host, port.and_then(|port| port.parse().ok()));
    }
    let server = field("hostname").zip(field("port").and_then(|port| port.parse().ok()));
    Said::Route(match server.filter(|_| set("proxycommand").is_none()) {
        Some((host, port)) => Route::Direct(Server::new(host, port)),
        None => Route::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_taken_from_ssh() {
        let config = "user me\nhostname box.example\nport 23\nproxyjump none\n";
        assert_eq!(parse(config), Said::Route(Route::Direct(Server::new("box.example", 23))));
        assert_eq!(parse("hostname h\nport 22\nproxycommand nc %h %p\n"), Said::Route(Route::Unknown));
        let jump = |value: &str| parse(&format!("hostname h\nport 22\nproxyjump {value}\n"));
        assert_eq!(jump("a@gate:2222,other"), Said::Jump("a@gate".into(), Some(2222)));
        assert_eq!(jump("ssh://[fe80::1]:24"), Said::Jump("fe80::1".into(), Some(24)));
        assert_eq!(jump("gate"), Said::Jump("gate".into(), None));
    }

    /// A program in place of ssh.
    fn script(text: &str) -> (tempfile::TempDir, Vec<String>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ssh");
        // By another process: no other test's child may hold it open for writing when it is run.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let written = Command::new("sh").args(["-c", write]).arg(&path).arg(text).status();
        assert!(written.expect("it ran").success());
        let ssh = [path.to_string_lossy().into_owned(), "-F".into(), "/f".into(), "--".into(), "box".into()].into();
        (directory, ssh)
    }

    #[test]
    fn a_jump_host_is_looked_at_in_place_of_what_lies_behind_it() {
        let (_directory, ssh) = script(
            "case \"$*\" in
             '-G -F /f -- box') echo hostname box; echo port 22; echo proxyjump me@gate:99 ;;
             '-G -F /f -p 99 -- me@gate') echo hostname gate.example; echo port 99 ;;
             *) exit 1 ;;
             esac",
        );
        assert_eq!(of(&ssh, Duration::from_secs(10)), Some(Route::Direct(Server::new("gate.example", 99))));
    }

    #[test]
    fn an_ssh_that_hangs_is_not_waited_for_and_one_that_refuses_is_left_alone() {
        let (_directory, hangs) = script("sleep 1000 & sleep 1000");
        let began = Instant::now();
        assert_eq!(of(&hangs, Duration::from_millis(200)), None);
        assert!(began.elapsed() < Duration::from_secs(5));
        let (_directory, refuses) = script("exit 255");
        assert_eq!(of(&refuses, Duration::from_secs(10)), Some(Route::Unknown));
    }
}
