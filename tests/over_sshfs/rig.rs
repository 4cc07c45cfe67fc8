//! Two mounts of one server: a plain sshfs and steadfs, each of a directory of its own.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::parts::{Part, Parts};
use crate::lab::sshd::SFTP_SERVER;
use crate::lab::{control, mount_of, process, run, sweep, wait};

/// See the module.
pub struct Pair {
    /// Where the plain sshfs is mounted, and steadfs.
    pub plain: PathBuf,
    pub hot: PathBuf,
    directory: Option<tempfile::TempDir>,
    sshfs: Child,
    steadfs: Child,
}

/// What starts an sftp-server in the place of ssh: by `prefix` (a command that runs another), with these options of its own.
fn transport(directory: &Path, prefix: &str, options: &str) -> PathBuf {
    let path = directory.join("instead-of-ssh");
    // Whatever umask the client has, and wherever it was started.
    std::fs::write(&path, format!("#!/bin/sh\numask 022\nexec {prefix} {SFTP_SERVER} {options}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

impl Pair {
    /// Of an ordinary server; steadfs has these options on top.
    pub fn new(own: &str) -> Pair {
        Pair::of("", "", "", own)
    }

    /// Of a server that is started by `prefix` and has `server_options`; both mounts have the options `both`, steadfs `own` too.
    pub fn of(prefix: &str, server_options: &str, both: &str, own: &str) -> Pair {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        sweep::orphans();
        let name = format!("{}{}-", sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        // The server may be somebody else.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let ssh = transport(directory.path(), prefix, server_options);
        let path = |name: &str| directory.path().join(name);
        for name in ["plain", "hot", "store", "store/plain", "store/hot"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let transport = format!("ssh_command={}", ssh.display());
        let given = |options: &[&str]| {
            let all = [&[transport.as_str()], options].concat();
            all.into_iter().filter(|option| !option.is_empty()).collect::<Vec<_>>().join(",")
        };
        let source = |name: &str| format!("localhost:{}", path(&format!("store/{name}")).display());
        let log = |name: &str| File::create(path(name)).unwrap();
        let sshfs = Command::new("sshfs")
            .args(["-f", "-o", &given(&[both]), &source("plain")])
            .arg(path("plain"))
            .stdin(Stdio::null())
            .stderr(log("plain.log"))
            .spawn()
            .unwrap();
        let steadfs = Command::new(env!("CARGO_BIN_EXE_steadfs"))
            .args(["mount", "-f", &source("hot")])
            .arg(path("hot"))
            .args(["-o", &given(&["guard=no", both, own])])
            .env("STEADFS_RUNTIME_DIR", path("run"))
            .env("STEADFS_STATE_DIR", path("state"))
            .stdin(Stdio::null())
            .stderr(log("log"))
            .spawn()
            .unwrap();
        let (plain, hot) = (path("plain"), path("hot"));
        let pair = Pair { plain, hot, directory: Some(directory), sshfs, steadfs };
        wait("both are mounted", || mount_of(&pair.plain).is_some() && mount_of(&pair.hot).is_some());
        wait("it is live", || pair.status()["state"] == "live");
        pair
    }

    /// The directory of everything.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("it is there until the end").path()
    }

    /// A file of the store behind steadfs.
    pub fn stored(&self, name: &str) -> PathBuf {
        self.directory().join("store/hot").join(name)
    }

    /// Both mounts, each with its directory of the store.
    pub fn both(&self) -> [(&Path, PathBuf); 2] {
        let store = self.directory().join("store");
        [(&self.plain, store.join("plain")), (&self.hot, store.join("hot"))]
    }

    /// What `steadfs status` shows; null if nobody answers.
    pub fn status(&self) -> Value {
        control::status(&self.directory().join("run")).unwrap_or_default()
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// SIGKILL for the sshfs below steadfs; returns when the next one serves.
    pub fn kill_sshfs(&self) {
        let before = self.status()["generation"].as_u64();
        let all = process::mentioning(self.directory().join("run").to_str().unwrap());
        let sshfs: Vec<i32> = all.into_iter().filter(|&pid| process::name(pid) == "sshfs").collect();
        assert_eq!(sshfs.len(), 1, "{sshfs:?}");
        process::signal(sshfs[0], Signal::SIGKILL);
        wait("the next generation", || {
            let status = self.status();
            status["generation"].as_u64() > before && status["state"] == "live"
        });
    }

    /// SIGKILL for the daemon; returns when its successor serves.
    pub fn kill_daemon(&self) {
        let before = self.status()["pid"].clone();
        Parts::of(self.directory()).kill(Part::Daemon).expect("there is one");
        wait("the successor", || {
            let status = self.status();
            status["pid"].is_number() && status["pid"] != before && status["state"] == "live"
        });
    }

    /// The kernel forgets every name and inode that nobody holds.
    pub fn drop_caches(&self) {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }

    /// Unmounts both; nothing may be left.
    pub fn end(mut self) {
        for mount in [&self.plain, &self.hot] {
            // Whoever just looks at all mounts may be in it.
            wait("it is unmounted", || run("umount", &[mount.to_str().unwrap()]).status.success());
        }
        // Somebody's new mount namespace may have a copy of the mount: a plain sshfs would serve that.
        process::signal(self.sshfs.id().cast_signed(), Signal::SIGTERM);
        wait("sshfs ends", || self.sshfs.try_wait().unwrap().is_some());
        wait("steadfs ends", || self.steadfs.try_wait().unwrap().is_some());
        let parts = Parts::of(self.directory());
        wait("keeper and daemon end", || parts.keepers().is_empty() && parts.daemons().is_empty());
        assert_eq!(sweep::mounts_below(self.directory()), Vec::<String>::new());
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let parts = Parts::of(self.directory());
        process::end(&[parts.keepers(), parts.daemons()].concat());
        for child in [&mut self.steadfs, &mut self.sshfs] {
            let _ = child.kill();
            let _ = child.wait();
        }
        for mount in [&self.plain, &self.hot] {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        sweep::directory(self.directory());
    }
}
