//! A real sshd with keys of its own.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::net::Net;
use super::{children, command_name, run_ok, wait};

const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

pub struct Sshd {
    directory: PathBuf,
    namespace: String,
    address: String,
    server: Option<Child>,
}

impl Sshd {
    pub fn start(net: &Net, directory: &Path) -> Sshd {
        let directory = directory.join("ssh");
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        for key in ["host", "client", "stranger"] {
            let path = directory.join(key);
            run_ok("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", path.to_str().unwrap()]);
        }
        std::fs::copy(directory.join("client.pub"), directory.join("authorized")).unwrap();
        let host = std::fs::read_to_string(directory.join("host.pub")).unwrap();
        std::fs::write(directory.join("known"), format!("{} {host}", net.server)).unwrap();
        std::fs::write(directory.join("unknown"), "").unwrap();
        let at = directory.display();
        let config = format!(
            "HostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n\
             MaxStartups 100\nPermitRootLogin prohibit-password\nListenAddress {}\nSubsystem sftp {SFTP_SERVER}\n",
            net.server
        );
        std::fs::write(directory.join("config"), config).unwrap();
        std::fs::set_permissions(directory.join("host"), PermissionsExt::from_mode(0o600)).unwrap();
        let mut sshd = Sshd { directory, namespace: net.name.clone(), address: net.server.clone(), server: None };
        sshd.begin();
        sshd
    }

    /// Starts it, for the first time or again.
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
        self.server = Some(child);
        let address: std::net::SocketAddr = format!("{}:22", self.address).parse().unwrap();
        wait("sshd listens", || std::net::TcpStream::connect(address).is_ok());
    }

    /// Options for steadfs and sshfs that reach it.
    pub fn client_options(&self) -> String {
        let at = self.directory.display();
        format!(
            "IdentityFile={at}/client,UserKnownHostsFile={at}/known,GlobalKnownHostsFile=/dev/null,StrictHostKeyChecking=yes,IdentitiesOnly=yes"
        )
    }

    /// Those options with the word of one of them replaced.
    pub fn options_with(&self, from: &str, to: &str) -> String {
        let at = self.directory.display();
        self.client_options().replace(&format!("{at}/{from}"), &format!("{at}/{to}"))
    }

    fn family(&self) -> Vec<i32> {
        let Some(server) = &self.server else { return Vec::new() };
        let (mut all, mut next) = (Vec::new(), children(server.id().cast_signed()));
        while let Some(pid) = next.pop() {
            all.push(pid);
            next.extend(children(pid));
        }
        all
    }

    fn signal_family(&self, signal: Signal, which: impl Fn(&str) -> bool) {
        let pids: Vec<_> = self.family().into_iter().filter(|&pid| which(&command_name(pid))).collect();
        assert!(!pids.is_empty(), "nobody to signal");
        for pid in pids {
            // It may have ended with its parent.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Kills the session of whoever is connected; the server goes on.
    pub fn kill_sessions(&self) {
        self.signal_family(Signal::SIGKILL, |name| name.starts_with("sshd"));
    }

    /// Freezes what serves files; the connection stays up.
    pub fn freeze_sftp(&self) {
        self.signal_family(Signal::SIGSTOP, |name| name == "sftp-server");
    }

    /// Ends everything.
    pub fn stop(&mut self) {
        for pid in self.family() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}
