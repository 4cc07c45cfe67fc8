//! Commands are given a path that lies on a mount whose server hangs: they say what there is to say and end, and never look at
//! it. Needs root and /dev/fuse.
#![allow(clippy::unwrap_used)]

mod lab;

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far longer than a command takes; one that looks hangs for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Another steadfs, without a keeper and with directories of its own, which is stopped.
struct Frozen {
    directory: tempfile::TempDir,
    daemon: Pid,
}

impl Frozen {
    fn new() -> Frozen {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: run it as root");
        lab::sweep::orphans();
        let prefix = format!("{}{}-", lab::sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        for name in ["store/deep/hot", "mount"] {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("mount/deep", directory.path().join("link")).unwrap();
        let mut frozen = Frozen { directory, daemon: Pid::from_raw(0) };
        let (source, mount) = (format!("dir:{}", frozen.text("store")), frozen.text("mount"));
        let output = frozen.run("2", &["mount", "-o", "guard=no,keeper=no", &source, &mount]);
        assert!(output.status.success(), "{output:?}");
        let status: serde_json::Value =
            serde_json::from_slice(&frozen.run("2", &["status", "--json", &mount]).stdout).unwrap();
        frozen.daemon = Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap());
        kill(frozen.daemon, Signal::SIGSTOP).unwrap();
        frozen
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Whoever takes too long is killed, and has no exit code.
    fn run(&self, who: &str, words: &[&str]) -> Output {
        let mut command = Command::cargo_bin("steadfs").unwrap();
        let place = |name: &str| self.path(&format!("{name}{who}"));
        command.args(words).env_remove("STEADFS_LOG").timeout(PATIENCE);
        command.env("STEADFS_RUNTIME_DIR", place("run")).env("STEADFS_STATE_DIR", place("state"));
        command.output().unwrap()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.daemon.as_raw() > 0 {
            let _ = kill(self.daemon, Signal::SIGCONT);
        }
        let output = self.run("2", &["umount", "--lazy", &self.text("mount")]);
        assert!(output.status.success() || std::thread::panicking(), "{output:?}");
    }
}

#[test]
fn no_command_looks_at_a_mount_that_hangs() {
    let frozen = Frozen::new();
    for name in ["mount/deep/hot", "link/hot"] {
        let (hot, real) = (frozen.text(name), frozen.text("mount/deep/hot"));
        let answers: [(&[&str], i32, String); 7] = [
            (&["status"], 3, format!("no steadfs serves {hot}")),
            // Where the link leads is known without a look there.
            (&["recover"], 2, format!("no steadfs serves {real}")),
            (&["umount"], 32, format!("{real} is not mounted")),
            (&["detach"], 32, format!("no steadfs serves {real}")),
            (&["upgrade"], 3, format!("no steadfs serves {hot}")),
            (&["triage"], 1, String::new()),
            (&["drill", "killed"], 0, String::new()),
        ];
        for (words, code, says) in answers {
            let output = frozen.run("", &[words, &[hot.as_str()]].concat());
            assert_eq!(output.status.code(), Some(code), "{words:?} {hot}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(&says), "{words:?} {hot}: {output:?}");
        }
    }
}
