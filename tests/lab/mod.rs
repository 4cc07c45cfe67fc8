//! A laboratory: a real sshd in a network namespace of its own, the steadfs binary in front of it, faults for both, and
//! agents (processes of their own) that use the mount. Everything is gone when it is dropped, also after a failure.
//! Needs root; fails loudly without.
#![allow(dead_code, clippy::unwrap_used)]

pub mod agent;
pub mod net;
pub mod sshd;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use net::Net;
use sshd::Sshd;

/// Longer than anything takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One server, one mount.
pub struct Lab {
    pub net: Net,
    pub sshd: Sshd,
    daemon: Option<Child>,
    pub hot: PathBuf,
    pub store: PathBuf,
    directory: tempfile::TempDir,
    _alone: Flock<File>,
}

impl Lab {
    /// Starts a server and mounts it with these options on top of those that reach it.
    pub fn new(options: &str) -> Lab {
        let lab = Lab::unmounted();
        lab.mounted(options)
    }

    /// A server, and nothing mounted yet.
    pub fn unmounted() -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run `sudo make test`");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        // Two timing tests at once on two cores would measure each other.
        let lock = File::create(std::env::temp_dir().join("steadfs-lab.lock")).unwrap();
        let alone = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        let directory = tempfile::Builder::new().prefix("steadfs-lab").tempdir().unwrap();
        let (hot, store) = (directory.path().join("hot"), directory.path().join("store"));
        std::fs::create_dir(&hot).unwrap();
        std::fs::create_dir(&store).unwrap();
        let net = Net::new();
        let sshd = Sshd::start(&net, directory.path());
        Lab { net, sshd, daemon: None, hot, store, directory, _alone: alone }
    }

    /// Mounts.
    pub fn mounted(mut self, options: &str) -> Lab {
        let log = File::create(self.directory.path().join("log")).unwrap();
        let child = self.mount_command("-f", options).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        let lab = self;
        wait("the overlay is mounted", || mount_of(&lab.hot).is_some());
        lab
    }

    /// The command that mounts this lab's server.
    pub fn mount_command(&self, flag: &str, options: &str) -> Command {
        let mut command = self.steadfs(&["mount", flag]);
        command.args([&format!("root@{}:{}", self.net.server, self.store.display()), self.hot.to_str().unwrap()]);
        command.args(["-o", &format!("guard=no,{},{options}", self.sshd.client_options())]).stdin(Stdio::null());
        command
    }

    /// The binary under test, with its state in this lab's directory.
    pub fn steadfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.args(arguments.iter().filter(|argument| !argument.is_empty()));
        command.env("STEADFS_RUNTIME_DIR", self.directory.path().join("run"));
        command.env("STEADFS_STATE_DIR", self.directory.path().join("state"));
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn status(&self) -> serde_json::Value {
        let output = self.steadfs(&["status", "--json", self.hot.to_str().unwrap()]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn state(&self) -> String {
        self.status()["state"].as_str().unwrap_or("silent").to_owned()
    }

    pub fn wait_state(&self, wanted: &str) {
        wait(wanted, || self.state() == wanted);
    }

    fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().expect("mounted").id().cast_signed()
    }

    /// The daemon's child of that name: both sshfs and ssh are its children, the latter by adoption.
    pub fn process(&self, name: &str) -> Pid {
        let mut found = None;
        wait(name, || {
            found = children(self.daemon_pid()).into_iter().find(|&pid| command_name(pid) == name);
            found.is_some()
        });
        Pid::from_raw(found.unwrap())
    }

    pub fn signal(&self, name: &str, signal: Signal) {
        kill(self.process(name), signal).unwrap();
    }

    /// States of all threads of the daemon (proc_pid_stat(5)).
    pub fn thread_states(&self) -> Vec<char> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.daemon_pid())).unwrap();
        tasks.flatten().filter_map(|task| state_letter(&task.path().join("stat"))).collect()
    }

    /// Unmounts by umount(8) and checks that nothing is left.
    pub fn umount(mut self) {
        let output = run("umount", &[self.hot.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        self.assert_ended();
    }

    /// Checks that the daemon ends and leaves no process, no mount and no file.
    pub fn assert_ended(&mut self) {
        let mut daemon = self.daemon.take().expect("mounted");
        let family = children(daemon.id().cast_signed());
        wait("the daemon ends", || daemon.try_wait().unwrap().is_some());
        wait("its processes end", || family.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = self.directory.path().to_str().unwrap();
        assert!(!mounts.contains(name), "{mounts}");
        let left: Vec<_> = std::fs::read_dir(self.path("run")).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.path("state").exists());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of steadfs ---\n{}", self.log());
        }
        if let Some(mut daemon) = self.daemon.take() {
            let mut pids = children(daemon.id().cast_signed());
            pids.insert(0, daemon.id().cast_signed());
            for pid in pids {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = daemon.wait();
        }
        // Whatever is mounted below the lab's directory, innermost first.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            let place = line.split(' ').nth(4).unwrap_or_default();
            if place.starts_with(self.directory.path().to_str().unwrap()) {
                let flags = nix::mount::MntFlags::MNT_DETACH;
                let _ = nix::mount::umount2(place, flags);
            }
        }
    }
}

/// Waits for something that takes as long as it takes.
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

pub fn run_ok(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// Mount id and st_dev of the mount at a path.
pub fn mount_of(path: &Path) -> Option<(u64, (u32, u32))> {
    steadfs::backing::mountinfo::at(path).unwrap().map(|entry| (entry.id, entry.dev))
}

fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    all
}

pub fn command_name(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

pub fn state_letter(stat: &Path) -> Option<char> {
    let text = std::fs::read_to_string(stat).ok()?;
    text.rsplit_once(')')?.1.trim().chars().next()
}
