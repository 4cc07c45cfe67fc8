//! A mount of the hostile server, or of a directory, and calls into it that may take their time and no more.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{control, mount_of, parts::Parts, process, sweep, wait};
use crate::server::{GOOD, Server};

/// `deadline=` of these mounts.
const DEADLINE: Duration = Duration::from_secs(2);
/// That for each of a few system calls, and room for a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Runs a call that must end in time, well or not.
pub fn within<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || _ = sender.send(call()));
    receiver.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{what}: no answer by the deadline"))
}

/// For names that nobody remembers.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// One mount and its directory.
pub struct Rig {
    pub server: Server,
    pub hot: PathBuf,
    directory: Option<tempfile::TempDir>,
    mounter: Option<Child>,
}

impl Rig {
    /// Nothing mounted yet.
    pub fn new() -> Rig {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        let prefix = format!("{}{}-", sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let hot = directory.path().join("hot");
        std::fs::create_dir(&hot).unwrap();
        std::fs::create_dir(directory.path().join("store")).unwrap();
        Rig { server: Server::new(directory.path()), hot, directory: Some(directory), mounter: None }
    }

    /// The hostile server, mounted and live.
    pub fn hostile(options: &str) -> Rig {
        let mut rig = Rig::new();
        let command = rig.mount(options);
        rig.serve(command);
        rig
    }

    /// What mounts it.
    pub fn mount(&self, options: &str) -> Command {
        let ssh = self.server.program();
        let options = format!("guard=no,deadline={}s,ssh_command={},{options}", DEADLINE.as_secs(), ssh.display());
        self.steadfs(&["mount", "-f", "localhost:/", self.hot.to_str().unwrap(), "-o", &options])
    }

    /// The binary under test, with its runtime files in this directory.
    pub fn steadfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.args(arguments).stdin(Stdio::null());
        command.env("STEADFS_RUNTIME_DIR", self.path("run")).env("STEADFS_STATE_DIR", self.path("state"));
        command
    }

    /// Starts it and waits until it is live.
    pub fn serve(&mut self, mut command: Command) {
        let child = command.stderr(File::create(self.path("log")).unwrap()).spawn().unwrap();
        let child = self.mounter.insert(child);
        let (hot, run) = (self.hot.clone(), self.directory.as_ref().unwrap().path().join("run"));
        wait("it is live", || {
            assert!(matches!(child.try_wait(), Ok(None)), "steadfs does not mount");
            mount_of(&hot).is_some() && control::status(&run).is_ok_and(|status| status["state"] == "live")
        });
    }

    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("it is there until the end").path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    pub fn status(&self) -> Value {
        control::status(&self.path("run")).unwrap_or_default()
    }

    pub fn parts(&self) -> Parts {
        Parts::of(self.directory())
    }

    /// The one sshfs.
    pub fn sshfs(&self) -> Option<i32> {
        let all = process::mentioning(self.path("run").to_str().unwrap());
        all.into_iter().find(|&pid| process::name(pid) == "sshfs")
    }

    pub fn signal_sshfs(&self, signal: Signal) {
        process::signal(self.sshfs().expect("it lives"), signal);
    }

    /// The same daemon serves what is good, if not at once then after a repair.
    pub fn is_well(&self, daemon: &Value) {
        self.serves(daemon, "good");
    }

    /// The same of a name that nobody remembers.
    pub fn is_well_anew(&self, daemon: &Value) {
        let number = NEXT.fetch_add(1, SeqCst);
        self.serves(daemon, &format!("good-{number}"));
    }

    fn serves(&self, daemon: &Value, name: &str) {
        // A lost answer is waited for during six deadlines.
        let until = Instant::now() + crate::lab::PATIENCE + 6 * DEADLINE;
        loop {
            let good = self.hot.join(name);
            let read = within(name, move || std::fs::read(good));
            if read.as_deref().ok() == Some(GOOD) {
                break;
            }
            assert!(Instant::now() < until, "{name} is not served: {read:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = self.status();
        assert_eq!(&status["pid"], daemon, "another daemon serves");
        assert!(status["resident_bytes"].as_u64() < status["resident_limit_bytes"].as_u64(), "{status}");
        assert!(!self.log().contains("panic"), "{}", self.log());
    }

    /// Unmounts; the daemon must end well and leave nothing.
    pub fn end(mut self) {
        let output = self.steadfs(&["umount", self.hot.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut mounter = self.mounter.take().expect("mounted");
        wait("it ends", || mounter.try_wait().unwrap().is_some());
        let status = mounter.wait().unwrap();
        // Nobody but a test kills it.
        assert!(status.success() || status.signal() == Some(Signal::SIGKILL as i32), "{status}");
        assert_eq!(sweep::mounts_below(self.directory()), Vec::<String>::new());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log().chars().take(8000).collect::<String>());
        }
        let directory = self.directory().to_owned();
        let parts = self.parts();
        process::end(&[parts.keepers(), parts.daemons()].concat());
        if let Some(mut mounter) = self.mounter.take() {
            let _ = mounter.kill();
            let _ = mounter.wait();
        }
        sweep::directory(&directory);
    }
}
