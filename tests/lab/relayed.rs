//! A steadfs mount whose sshfs reaches a real sftp-server through a [`Relay`]: no network, no keys.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::parts::Parts;
use super::relay::Relay;
use super::{PATIENCE, control, mount_of, process, sweep, tree, wait};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(3);

/// One mount.
pub struct Relayed {
    pub relay: Relay,
    /// Absent once it has been given away.
    directory: Option<tempfile::TempDir>,
    hot: PathBuf,
    store: PathBuf,
    daemon: Child,
    runs: u64,
}

/// A directory that nothing has looked into yet, here and on the store.
pub struct Fresh {
    pub run: u64,
    pub hot: PathBuf,
    pub store: PathBuf,
}

impl Relayed {
    /// Mounts, with these options on top, and waits until it is live.
    pub fn new(options: &str) -> Relayed {
        Relayed::with(options, |_, _| ())
    }

    /// The same of a command that is changed before; it is told the directory of everything.
    pub fn with(options: &str, change: impl FnOnce(&mut Command, &Path)) -> Relayed {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        let prefix = format!("{}{}-", sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (hot, store, relay) = (path("hot"), path("store"), Relay::new(directory.path()));
        std::fs::create_dir(&hot).unwrap();
        std::fs::create_dir(&store).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command
            .args(["mount", "-f", &format!("localhost:{}", store.display())])
            .arg(&hot)
            .args(["-o", &format!("guard=no,ssh_command={},{options}", relay.program().display())])
            .env("STEADFS_RUNTIME_DIR", path("run"))
            .env("STEADFS_STATE_DIR", path("state"))
            .stdin(Stdio::null())
            .stderr(File::create(path("log")).unwrap());
        change(&mut command, directory.path());
        let daemon = command.spawn().unwrap();
        let directory = Some(directory);
        let mut relayed = Relayed { relay, directory, hot, store, daemon, runs: 0 };
        wait("the mount is there", || {
            assert!(matches!(relayed.daemon.try_wait(), Ok(None)), "steadfs does not mount");
            mount_of(&relayed.hot).is_some()
        });
        wait("the mount is live", || relayed.status()["state"] == "live");
        relayed
    }

    /// The directory of everything.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("it is there until the end").path()
    }

    /// A directory for the next run.
    pub fn fresh(&mut self) -> Fresh {
        self.runs += 1;
        let name = format!("run-{}", self.runs);
        let fresh = Fresh { run: self.runs, hot: self.hot.join(&name), store: self.store.join(&name) };
        std::fs::create_dir(&fresh.store).unwrap();
        fresh
    }

    /// What `steadfs status` shows, without starting it; null if nobody answers.
    pub fn status(&self) -> Value {
        control::status(&self.directory().join("run")).unwrap_or_default()
    }

    /// The processes between the overlay and the disk, whoever is their parent by now.
    pub fn family(&self) -> Vec<i32> {
        let run = self.directory().join("run");
        let mut all = process::mentioning(run.to_str().unwrap());
        all.retain(|&pid| process::name(pid) == "sshfs");
        all.extend(self.relays());
        let theirs: Vec<i32> = all.iter().flat_map(|&pid| process::descendants(pid)).collect();
        all.extend(theirs);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What stands in the place of ssh.
    pub fn relays(&self) -> Vec<i32> {
        process::mentioning(&format!("relay_process\0{}", self.directory().join("relay").display()))
    }

    /// Keeper and daemon.
    pub fn parts(&self) -> Parts {
        Parts::of(self.directory())
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.hot
    }

    /// Where its files are.
    pub fn root(&self) -> &Path {
        &self.store
    }

    /// Waits until the mount is live, nothing is open in it and nothing is under way; what is left otherwise.
    pub fn settle(&self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            let calm = ["/open_files", "/open_dirs", "/calls/waiting"];
            let calm = calm.iter().all(|field| status.pointer(field) == Some(&0.into())) && status["state"] == "live";
            let mut open = if calm { self.open_on_server() } else { Vec::new() };
            // What is removed after its last close is removed by nobody who waits.
            open.extend(tree::named_below(&self.store, ".steadfs-hidden-"));
            if calm && open.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!("never calm: open on the server {open:?}, {status}"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Files of the store that an sftp-server has open.
    fn open_on_server(&self) -> Vec<PathBuf> {
        let servers = self.family().into_iter().filter(|&pid| process::name(pid) == "sftp-server");
        let files =
            servers.flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten());
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .filter(|path| path.starts_with(&self.store))
            .collect()
    }

    /// Names in the store that no run has asked for.
    pub fn strangers(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.store).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|name| !name.starts_with("run-")).collect()
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// Unmounts as a user would; the daemon must end well. What is left is its directory.
    pub fn umount(mut self) -> tempfile::TempDir {
        super::run_ok("umount", &[self.hot.to_str().unwrap()]);
        let mut ended = None;
        wait("the keeper that was started first ends", || {
            ended = self.daemon.try_wait().unwrap();
            ended.is_some()
        });
        // Nobody but a test kills it.
        let well = ended.is_some_and(|status| status.success() || status.signal() == Some(Signal::SIGKILL as i32));
        assert!(well, "{ended:?}\n{}", self.log());
        let parts = self.parts();
        wait("keeper and daemon end", || parts.keepers().is_empty() && parts.daemons().is_empty());
        wait("all that they started ends", || self.family().is_empty());
        assert_eq!(sweep::mounts_below(self.directory()), Vec::<String>::new());
        self.directory.take().expect("it is there until the end")
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if std::thread::panicking() && self.directory.is_some() {
            eprintln!("{}", self.log());
        }
        if let Some(directory) = &self.directory {
            let parts = Parts::of(directory.path());
            process::end(&[parts.keepers(), parts.daemons()].concat());
        }
        process::signal(self.daemon.id().cast_signed(), Signal::SIGKILL);
        let _ = self.daemon.wait();
        if let Some(directory) = &self.directory {
            sweep::directory(directory.path());
        }
    }
}
