//! The drills: what is done to the canary, by pid, and what is to come of it.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::stage::Stage;

/// A drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Drill {
    /// The canary's sshfs is killed.
    Killed,
    /// The canary's sshfs is stopped.
    Frozen,
    /// The canary's ssh is killed, and its server with it.
    Link,
    /// The canary's daemon is killed.
    Daemon,
    /// The canary is held in an outage, which its metrics have to show and alerts to tell.
    Alert,
    /// Say which drills there are.
    List,
}

impl Drill {
    /// All that do something.
    pub const ALL: [Drill; 5] = [Drill::Killed, Drill::Frozen, Drill::Link, Drill::Daemon, Drill::Alert];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Drill::Killed => "killed",
            Drill::Frozen => "frozen",
            Drill::Link => "link",
            Drill::Daemon => "daemon",
            Drill::Alert => "alert",
            Drill::List => "list",
        }
    }

    /// In a line.
    pub fn about(self) -> &'static str {
        match self {
            Drill::Killed => "the canary's sshfs is killed (SIGKILL): the next one serves within a second",
            Drill::Frozen => "the canary's sshfs is stopped (SIGSTOP): it is found out, killed and replaced",
            Drill::Link => "the canary's ssh and the server at its other end are killed: a new link is made",
            Drill::Daemon => {
                "the canary's daemon is killed (SIGKILL): its keeper starts the next one, callers wait meanwhile"
            }
            Drill::Alert => {
                "the canary's server is gone for a while: metrics show it, alerts would fire, and it ends by itself"
            }
            Drill::List => "this list",
        }
    }

    /// True if callers are to see errors: an outage that outlives its deadline.
    pub fn fails_calls(self) -> bool {
        self == Drill::Alert
    }

    /// Does it; `daemon` is the process that serves the canary.
    pub fn begin(self, stage: &Stage, daemon: u64) -> Result<(), String> {
        match self {
            Drill::Killed => stage.signal("sshfs", Signal::SIGKILL),
            Drill::Frozen => stage.signal("sshfs", Signal::SIGSTOP),
            Drill::Link => {
                // The server would live on without its ssh for as long as it has something to say.
                stage.signal("ssh", Signal::SIGKILL)?;
                stage.signal("sftp-server", Signal::SIGKILL).or(Ok(()))
            }
            Drill::Daemon => kill_daemon(stage, daemon),
            Drill::Alert => {
                stage.refuse(true).map_err(|error| format!("cannot refuse connections: {error}"))?;
                stage.signal("sftp-server", Signal::SIGKILL)
            }
            Drill::List => Ok(()),
        }
    }

    /// Ends it, if it does not end when it is mended.
    pub fn lift(self, stage: &Stage) -> Result<(), String> {
        match self {
            Drill::Alert => stage.refuse(false).map_err(|error| format!("cannot take connections again: {error}")),
            _ => Ok(()),
        }
    }
}

/// Only a process that descends from what was started here.
fn kill_daemon(stage: &Stage, daemon: u64) -> Result<(), String> {
    let ours = stage.processes("steadfs").into_iter().find(|proc| u64::try_from(proc.pid) == Ok(daemon));
    let proc = ours.ok_or_else(|| format!("process {daemon} is not the canary's daemon"))?;
    match kill(Pid::from_raw(proc.pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(format!("kill {daemon}: {}", errno.desc())),
    }
}

/// All drills, for programs.
pub fn list_as_json() -> String {
    let list = Drill::ALL.iter().map(|drill| serde_json::json!({"name": drill.name(), "about": drill.about()}));
    serde_json::Value::from_iter(list).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn each_drill_is_listed_under_the_name_that_it_is_called_by() {
        for drill in Drill::value_variants() {
            assert_eq!(Drill::from_str(drill.name(), false), Ok(*drill));
            assert!(*drill == Drill::List || Drill::ALL.contains(drill));
        }
    }
}
