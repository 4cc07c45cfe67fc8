//! A real sshd with keys of its own.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::net::Net;
use super::process::{descendants, name, signal};
use super::{PATIENCE, run, run_ok, wait};

/// A program of its own, so that it can be frozen while its connection lives.
pub const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// The server, inside the namespace.
pub struct Sshd {
    directory: PathBuf,
    namespace: String,
    address: String,
    listener: Option<Child>,
}

impl Sshd {
    /// Makes keys and a configuration below `directory`, and starts it.
    pub fn start(net: &Net, directory: &Path) -> Sshd {
        let directory = directory.join("ssh");
        std::fs::create_dir(&directory).unwrap();
        // sshd insists on its privilege separation directory.
        std::fs::create_dir_all("/run/sshd").unwrap();
        for key in ["host", "client", "stranger"] {
            let path = directory.join(key);
            run_ok("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", path.to_str().unwrap()]);
        }
        std::fs::copy(directory.join("client.pub"), directory.join("authorized")).unwrap();
        for (file, key) in [("known", "host.pub"), ("mistaken", "stranger.pub")] {
            let key = std::fs::read_to_string(directory.join(key)).unwrap();
            std::fs::write(directory.join(file), format!("{} {key}", net.server)).unwrap();
        }
        std::fs::write(directory.join("unknown"), "").unwrap();
        let at = directory.display();
        let mut config = format!(
            "HostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n\
             MaxStartups 100\nUseDNS no\nPermitRootLogin prohibit-password\nListenAddress {}\n\
             Subsystem sftp {SFTP_SERVER}\n",
            net.server
        );
        let path = directory.join("config");
        std::fs::write(&path, format!("{config}PerSourcePenalties no\n")).unwrap();
        // Known since OpenSSH 9.8; without it the faults would be punished.
        if !run("/usr/sbin/sshd", &["-t", "-f", path.to_str().unwrap()]).status.success() {
            config.push_str("# no PerSourcePenalties\n");
            std::fs::write(&path, config).unwrap();
        }
        let (namespace, address) = (net.name.clone(), net.server.clone());
        let mut sshd = Sshd { directory, namespace, address, listener: None };
        sshd.begin();
        sshd
    }

    /// Starts it, for the first time or again; returns when it listens.
    pub fn begin(&mut self) {
        let log = File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        // `ip netns exec` becomes sshd itself, so this is its pid.
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "/usr/sbin/sshd", "-D", "-e", "-f"])
            .arg(self.directory.join("config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.listener = Some(child);
        let address: SocketAddr = format!("{}:22", self.address).parse().unwrap();
        wait("sshd listens", || TcpStream::connect_timeout(&address, PATIENCE).is_ok());
    }

    /// Options for steadfs and sshfs that reach it.
    pub fn client_options(&self) -> String {
        let at = self.directory.display();
        format!(
            "IdentityFile={at}/client,UserKnownHostsFile={at}/known,GlobalKnownHostsFile=/dev/null,\
             StrictHostKeyChecking=yes,IdentitiesOnly=yes"
        )
    }

    /// The same as lines of a configuration's `[sshfs]`.
    pub fn client_lines(&self) -> String {
        let options = self.client_options();
        let pairs = options.split(',').map(|option| option.split_once('=').unwrap());
        pairs.map(|(name, value)| format!("{name} = {value:?}\n")).collect()
    }

    /// Those options with another file (`stranger`, `unknown`, `mistaken`) in the place of `client` or `known`.
    pub fn options_with(&self, file: &str, other: &str) -> String {
        let at = self.directory.display();
        self.client_options().replace(&format!("{at}/{file}"), &format!("{at}/{other}"))
    }

    fn family(&self) -> Vec<i32> {
        self.listener.as_ref().map(|listener| descendants(listener.id().cast_signed())).unwrap_or_default()
    }

    fn signal_family(&self, which: &str, sent: Signal) {
        let pids: Vec<_> = self.family().into_iter().filter(|&pid| name(pid).starts_with(which)).collect();
        assert!(!pids.is_empty(), "there is no {which} to signal");
        pids.into_iter().for_each(|pid| signal(pid, sent));
    }

    /// Kills the session of whoever is connected; the server goes on.
    pub fn kill_sessions(&self) {
        self.signal_family("sshd", Signal::SIGKILL);
    }

    /// Freezes what serves files; the connection stays up.
    pub fn freeze_sftp(&self) {
        self.signal_family("sftp-server", Signal::SIGSTOP);
    }

    /// Undoes [`Sshd::freeze_sftp`].
    pub fn thaw_sftp(&self) {
        self.signal_family("sftp-server", Signal::SIGCONT);
    }

    /// What serves files.
    pub fn servers(&self) -> Vec<i32> {
        self.family().into_iter().filter(|&pid| name(pid) == "sftp-server").collect()
    }

    /// How many clients have a session now.
    pub fn sessions(&self) -> usize {
        self.servers().len()
    }

    /// Ends the listener and all sessions.
    pub fn stop(&mut self) {
        // Whoever connects meanwhile would get a child that nobody knows of.
        self.listener.iter().for_each(|listener| signal(listener.id().cast_signed(), Signal::SIGSTOP));
        self.family().into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
        if let Some(mut listener) = self.listener.take() {
            let _ = listener.kill();
            let _ = listener.wait();
        }
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}
