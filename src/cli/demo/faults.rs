//! The faults, in the order in which they are played.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cli::stage::Stage;

/// Something bad that is done to the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to sshfs.
    KillSshfs,
    /// SIGSTOP to sshfs.
    FreezeSshfs,
    /// SIGSTOP to sftp-server.
    FreezeServer,
    /// SIGKILL to sftp-server, and no new connections for so long.
    Refuse(Duration),
}

impl Fault {
    /// All four.
    pub fn program(fast: bool) -> [Fault; 4] {
        let refusal = Duration::from_secs(if fast { 7 } else { 15 });
        [Fault::KillSshfs, Fault::FreezeSshfs, Fault::FreezeServer, Fault::Refuse(refusal)]
    }

    /// What it is called in tables.
    pub fn name(self) -> String {
        match self {
            Fault::KillSshfs => "sshfs killed".into(),
            Fault::FreezeSshfs => "sshfs frozen".into(),
            Fault::FreezeServer => "server frozen".into(),
            Fault::Refuse(time) => format!("server killed, none for {} s", time.as_secs()),
        }
    }

    /// How long it lasts, for those that end by themselves; the others end when steadfs ends them.
    pub fn lasts(self) -> Option<Duration> {
        match self {
            Fault::Refuse(time) => Some(time),
            _ => None,
        }
    }

    /// Does it.
    pub fn begin(self, stage: &Stage) -> Result<(), String> {
        match self {
            Fault::KillSshfs => stage.signal("sshfs", Signal::SIGKILL),
            Fault::FreezeSshfs => stage.signal("sshfs", Signal::SIGSTOP),
            Fault::FreezeServer => stage.signal("sftp-server", Signal::SIGSTOP),
            Fault::Refuse(_) => {
                stage.refuse(true).map_err(|e| format!("cannot refuse connections: {e}"))?;
                stage.signal("sftp-server", Signal::SIGKILL)
            }
        }
    }

    /// Lifts it, for those that last.
    pub fn lift(self, stage: &Stage) -> Result<(), String> {
        match self {
            Fault::Refuse(_) => stage.refuse(false).map_err(|e| format!("cannot take connections again: {e}")),
            _ => Ok(()),
        }
    }

    /// Removes what a server's own housekeeping would remove in time.
    pub fn clear_up(self, stage: &Stage) {
        if self == Fault::FreezeServer {
            stage.end_frozen("sftp-server");
        }
    }
}
