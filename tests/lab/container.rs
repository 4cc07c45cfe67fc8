//! A mount namespace as a container without propagation has it: made before a fault, it sees no mount that is made later.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::agent::Agent;
use super::tools::{Answer, ask};
use super::{mount_in, process, wait};

/// Lives until it is dropped.
pub struct Container {
    keeper: Child,
}

impl Container {
    /// Makes one with a copy of all mounts there are.
    pub fn new() -> Container {
        let mut command = Command::new("unshare");
        // cat ends by itself when the test does, whatever becomes of the test.
        command.args(["-m", "--propagation", "private", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let keeper = command.spawn().unwrap();
        wait("the namespace is there", || process::name(keeper.id().cast_signed()) == "cat");
        Container { keeper }
    }

    fn prefix(&self) -> Vec<String> {
        ["nsenter", "-t", &self.keeper.id().to_string(), "-m", "--"].map(str::to_owned).to_vec()
    }

    /// A command that is to run inside.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command inside and says how it went.
    pub fn ask(&self, arguments: &[&str], limit: Duration) -> Answer {
        ask(&mut self.command(arguments), limit)
    }

    /// Mount id and device of the mount at a path, seen from inside.
    pub fn mount_of(&self, path: &Path) -> Option<(String, String)> {
        mount_in(&std::fs::read_to_string(format!("/proc/{}/mountinfo", self.keeper.id())).unwrap(), path)
    }

    /// An agent inside.
    pub fn agent(&self, kind: &str, target: &Path, directory: &Path) -> Agent {
        let prefix = self.prefix();
        Agent::start_in(&prefix.iter().map(String::as_str).collect::<Vec<_>>(), kind, target, directory)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
