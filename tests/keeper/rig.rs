//! A keeper, its fake daemons, and what they say.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fake;

/// Longer than anything takes on a loaded machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one test; what still runs at its end is killed.
pub struct Rig {
    pub directory: tempfile::TempDir,
    events: UnixDatagram,
    pub keeper: Child,
}

/// A daemon that has been started.
#[derive(Debug)]
pub struct Started {
    pub pid: i32,
    pub successor: bool,
    pub held: u64,
    pub executable: String,
    pub reason: String,
}

/// What a test changes before the keeper starts.
#[derive(Default)]
pub struct Plan<'a> {
    pub switches: &'a [&'a str],
    pub files: &'a [(&'a str, &'a str)],
    pub notify: Option<&'a Path>,
    /// Handed over as a service manager does, as the device.
    pub kept: Option<std::fs::File>,
}

impl Rig {
    pub fn begin(plan: Plan<'_>) -> Rig {
        let directory = tempfile::tempdir().expect("tempdir");
        let events = UnixDatagram::bind(directory.path().join("events")).expect("bound");
        events.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        for (name, text) in plan.files {
            std::fs::write(directory.path().join(name), text).expect("written");
        }
        let daemon = std::env::current_exe().expect("this");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "test -z \"$LISTEN_FDS\" || exec 3<&0; exec </dev/null; LISTEN_PID=$$ exec \"$@\"", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_steadfs")).arg("keeper");
        let patient = ["--deadline=60s", "--watchdog=60s"];
        let given =
            |switch: &&&str| !plan.switches.iter().any(|other| other.split('=').next() == switch.split('=').next());
        command.args(patient.iter().filter(given)).args(plan.switches);
        command.arg("--executable").arg(daemon);
        command.args(["--", "--exact", "fake::fake_daemon", "--nocapture", "--test-threads=1"]);
        command.env(fake::DIRECTORY, directory.path()).env_remove("NOTIFY_SOCKET");
        if let Some(path) = plan.notify {
            command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "2000000");
        }
        if let Some(kept) = plan.kept {
            command.stdin(kept).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "device");
        }
        let log = std::fs::File::create(directory.path().join("log")).expect("created");
        let keeper = command.stdout(Stdio::null()).stderr(log).spawn().expect("started");
        Rig { directory, events, keeper }
    }

    pub fn want(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).expect("written");
    }

    pub fn want_no_more(&self, name: &str) {
        std::fs::remove_file(self.directory.path().join(name)).expect("removed");
    }

    /// What a fake daemon says next.
    pub fn event(&self) -> String {
        let mut buffer = [0; 1000];
        match self.events.recv(&mut buffer) {
            Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
            Err(error) => panic!("no daemon says anything: {error}; log:\n{}", self.log()),
        }
    }

    pub fn started(&self) -> Started {
        let event = self.event();
        let words: Vec<&str> = event.splitn(7, ' ').collect();
        let ["start", pid, why, held, _, executable, reason] = words[..] else {
            panic!("{event}; log:\n{}", self.log())
        };
        Started {
            pid: pid.parse().expect("a number"),
            successor: why == "Successor",
            held: held.parse().expect("a number"),
            executable: executable.into(),
            reason: reason.into(),
        }
    }

    /// The inode that the daemon holds.
    pub fn ready(&self) -> u64 {
        let event = self.event();
        let held = event.strip_prefix("ready ").and_then(|rest| rest.split_once(' '));
        held.unwrap_or_else(|| panic!("{event}; log:\n{}", self.log())).1.parse().expect("a number")
    }

    pub fn order(&self, text: &str) {
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.send_to(text.as_bytes(), self.directory.path().join("orders")).expect("it listens");
    }

    pub fn keeper_exit(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.keeper.try_wait().expect("waited") {
                return status;
            }
            assert!(Instant::now() < until, "the keeper does not end; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Keepers that live, of this test.
    pub fn keepers(&self) -> Vec<i32> {
        let is_keeper = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"keeper".as_slice())
        };
        self.processes().into_iter().filter(is_keeper).collect()
    }

    /// Processes of this test: those with its directory in their environment. Zombies have none.
    fn processes(&self) -> Vec<i32> {
        let mark = format!("{}={}", fake::DIRECTORY, self.directory.path().display());
        let is_ours = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let entries = std::fs::read_dir("/proc").expect("proc").flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// This test binary under another name.
    pub fn candidate(&self) -> PathBuf {
        let path = self.path("candidate");
        std::fs::copy(std::env::current_exe().expect("this"), &path).expect("copied");
        path
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it lives");
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Each may start another while it lives.
        loop {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.keeper.wait();
    }
}
