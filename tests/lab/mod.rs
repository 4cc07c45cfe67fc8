//! A laboratory: a real sshd in a network namespace of its own, the steadfs binary in front of it, faults for both, and
//! agents (processes of their own) that use the mount. Everything is gone when it is dropped, also after a failure.
//! Needs root and /dev/fuse, and fails loudly without.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod agent;
pub mod agents;
pub mod boot;
pub mod container;
pub mod control;
pub mod net;
pub mod parts;
pub mod process;
pub mod program;
pub mod relay;
pub mod relayed;
pub mod scenario;
pub mod sftp;
pub mod sshd;
pub mod sweep;
pub mod tidy;
pub mod tools;
pub mod tree;
pub mod workloads;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use net::Net;
use sshd::Sshd;

/// Lets a test binary be another process too, for those who start it with `--exact NAME --ignored`.
#[allow(unused_macros)]
macro_rules! also_runs_as {
    ($name:ident: $main:path) => {
        #[test]
        #[ignore = "a process of other tests, not a test"]
        fn $name() {
            $main();
        }
    };
}
#[allow(unused_imports)]
pub(crate) use also_runs_as;

/// Longer than anything takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One server and what is mounted from it.
pub struct Lab {
    // Dropped in this order: first the server, then the namespace, then the directory.
    pub sshd: Sshd,
    pub net: Net,
    pub hot: PathBuf,
    pub store: PathBuf,
    daemon: Option<Child>,
    /// Absent once it has been given away.
    directory: Option<tempfile::TempDir>,
    /// Absent where nothing is measured.
    _alone: Option<Flock<File>>,
}

impl Lab {
    /// A server, mounted by steadfs, live, with these options on top of those that reach it.
    pub fn new(options: &str) -> Lab {
        let mut lab = Lab::unmounted();
        let command = lab.mount_command("-f", options);
        lab.serve(command);
        lab.wait_state("live");
        lab
    }

    /// A server, mounted by sshfs alone: what the faults do to those who have no steadfs.
    pub fn plain() -> Lab {
        let mut lab = Lab::unmounted();
        let mut command = Command::new("sshfs");
        command.args(["-f", "-o", &format!("{},sshfs_sync", lab.sshd.client_options()), &lab.source()]).arg(&lab.hot);
        lab.serve(command);
        lab
    }

    /// A server, and nothing mounted yet.
    pub fn unmounted() -> Lab {
        // Two timing tests at once would measure each other.
        let lock = File::create(std::env::temp_dir().join("steadfs-lab.lock")).unwrap();
        let alone = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        let mut lab = Lab::untimed();
        lab._alone = Some(alone);
        lab
    }

    /// The same for a test that measures nothing: it waits for no other.
    pub fn untimed() -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse: run modprobe fuse");
        sweep::orphans();
        let prefix = format!("{}{}-", sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let (hot, store) = (directory.path().join("hot"), directory.path().join("store"));
        std::fs::create_dir(&hot).unwrap();
        std::fs::create_dir(&store).unwrap();
        let net = Net::new();
        let sshd = Sshd::start(&net, directory.path());
        Lab { sshd, net, daemon: None, hot, store, directory: Some(directory), _alone: None }
    }

    /// Starts what stays in the foreground.
    pub fn start(&mut self, mut command: Command) {
        let log = File::create(self.path("log")).unwrap();
        self.daemon = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Starts what mounts `hot` and stays in the foreground, and waits for the mount.
    pub fn serve(&mut self, command: Command) {
        self.start(command);
        wait("the mount is there", || mount_of(&self.hot).is_some());
    }

    /// `[user@]host:dir` of the store.
    pub fn source(&self) -> String {
        format!("root@{}:{}", self.net.server, self.store.display())
    }

    /// The command that mounts this laboratory's server.
    pub fn mount_command(&self, flag: &str, options: &str) -> Command {
        let mut command = self.steadfs(&["mount"]);
        command.args((!flag.is_empty()).then_some(flag)).arg(self.source()).arg(&self.hot);
        command.args(["-o", &format!("guard=no,{}", self.sshd.client_options())]).stdin(Stdio::null());
        command.args((!options.is_empty()).then_some(["-o", options]).iter().flatten());
        command
    }

    /// The binary under test, with its runtime files in this laboratory's directory.
    pub fn steadfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.args(arguments);
        command.env("STEADFS_RUNTIME_DIR", self.path("run")).env("STEADFS_STATE_DIR", self.path("state"));
        command
    }

    /// A path outside the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The directory of everything.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("it is there until the end").path()
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// `steadfs status --json`, or null.
    pub fn status(&self) -> serde_json::Value {
        let output = self.steadfs(&["status", "--json", self.hot.to_str().unwrap()]).output().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        value.get(0).cloned().unwrap_or(value)
    }

    /// The supervisor's state, `silent` if nobody answers.
    pub fn state(&self) -> String {
        self.status()["state"].as_str().unwrap_or("silent").to_owned()
    }

    pub fn wait_state(&self, wanted: &str) {
        wait(wanted, || self.state() == wanted);
    }

    /// Number of the present generation.
    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap_or(0)
    }

    /// Number of the generation that is live, if one is. It comes from one answer: of two, the first may be of the time before an
    /// outage and the second of the time after it.
    pub fn live(&self) -> Option<u64> {
        let status = self.status();
        if status["state"] == "live" { status["generation"].as_u64() } else { None }
    }

    /// The process that serves the mount and all that it started.
    pub fn family(&self) -> Vec<i32> {
        let daemon = self.daemon.as_ref().expect("mounted").id().cast_signed();
        [&[daemon][..], &process::descendants(daemon)].concat()
    }

    /// Keeper and daemon.
    pub fn parts(&self) -> parts::Parts {
        parts::Parts::of(self.directory())
    }

    /// The client's processes of that name; each has a path of this laboratory in its command line.
    pub fn clients(&self, name: &str) -> Vec<i32> {
        let all = process::mentioning(self.directory().to_str().unwrap());
        all.into_iter().filter(|&pid| process::name(pid) == name).collect()
    }

    /// Sends a signal to the one `sshfs` or `ssh` of this laboratory.
    pub fn signal(&self, name: &str, sent: Signal) {
        let pids = self.clients(name);
        assert_eq!(pids.len(), 1, "{name}: {pids:?}");
        process::signal(pids[0], sent);
    }

    /// Pid of the process that serves the mount.
    pub fn serving(&self) -> i32 {
        self.status()["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a daemon answers")
    }

    /// Kills the process that serves the mount, and its keeper: the mount stays, dead.
    pub fn kill_daemon(&mut self) {
        process::kill_both(self.serving());
        let mut daemon = self.daemon.take().expect("mounted");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Unmounts by umount(8) and checks that nothing is left but the store, which is below the directory returned.
    pub fn umount(mut self) -> tempfile::TempDir {
        let output = run("umount", &[self.hot.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        self.assert_ended();
        self.directory.take().expect("it is there until the end")
    }

    /// Checks that the daemon ends and leaves no process, mount or file.
    pub fn assert_ended(&mut self) {
        if let Some(daemon) = self.daemon.as_mut() {
            wait("the daemon ends", || daemon.try_wait().unwrap().is_some());
            let status = self.daemon.take().unwrap().wait().unwrap();
            // Nobody but a test kills the keeper.
            let well = status.success() || status.signal() == Some(Signal::SIGKILL as i32);
            assert!(well, "the daemon: {status}\n{}", self.log());
        }
        let parts = self.parts();
        wait("keeper and daemon end", || parts.keepers().is_empty() && parts.daemons().is_empty());
        for name in ["steadfs", "sshfs", "ssh"] {
            wait(&format!("every {name} ends"), || self.clients(name).is_empty());
        }
        assert_eq!(sweep::mounts_below(self.directory()), Vec::<String>::new());
        for place in ["run", "state"] {
            let left = std::fs::read_dir(self.path(place)).into_iter().flatten().flatten();
            assert_eq!(left.map(|entry| entry.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        }
        wait("the server sees the client go", || self.sshd.sessions() == 0);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && self.directory.is_some() {
            eprintln!("--- {} ---\n{}", self.path("log").display(), self.log());
        }
        if let Some(directory) = &self.directory {
            let parts = parts::Parts::of(directory.path());
            process::end(&[parts.keepers(), parts.daemons()].concat());
        }
        let wedged = self.daemon.as_ref().map(|_| self.family()).unwrap_or_default();
        process::end(&wedged);
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        self.sshd.stop();
        if let Some(directory) = &self.directory {
            sweep::directory(directory.path());
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

/// Mount id and device of the mount at a path, as mountinfo says it (proc_pid_mountinfo(5)).
pub fn mount_of(path: &Path) -> Option<(String, String)> {
    mount_in(&std::fs::read_to_string("/proc/self/mountinfo").unwrap(), path)
}

/// The same from the text of some mountinfo.
pub fn mount_in(table: &str, path: &Path) -> Option<(String, String)> {
    let rows = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = rows.rev().find(|row| row.get(4) == path.to_str().as_ref());
    found.map(|row| (row[0].to_owned(), row[2].to_owned()))
}

pub fn sleep_secs(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// The name of a process's program.
pub fn command_name(pid: i32) -> String {
    process::name(pid)
}
