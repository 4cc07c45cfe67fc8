//! What is told to workers (promise P7).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A command that is run without a shell unless it was asked for with `sh:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
}

/// What is told to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerConfig {
    /// `pause_file=`: exists while the worker should pause.
    pub pause_file: Option<PathBuf>,
    /// `on_outage=`: run when an outage outlives `deadline`.
    pub on_outage: Option<HookCommand>,
    /// `on_recovery=`: run when the backing has been steady again.
    pub on_recovery: Option<HookCommand>,
    /// `hook_timeout=`: after this a hook is killed.
    pub hook_timeout: Option<Duration>,
    /// `[[worker]]`: paused one after the other in this order, let go in the opposite one.
    pub workers: Vec<WorkerEntry>,
    /// `[[after_recovery]]`: run in this order when everybody has been let go.
    pub after_recovery: Vec<RecoveryHook>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerEntry {
    /// What people call it; unique.
    pub name: String,
    /// How it is paused and let go.
    pub means: Means,
    /// How long a step may take; 30 s when absent.
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// How long the backing must have been steady before it is let go; `steady=` of the repair when absent.
    #[serde(default)]
    pub steady: Option<Duration>,
}

/// How a worker is paused and let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Means {
    /// A file that exists while it should pause.
    Flag {
        /// The file.
        file: PathBuf,
    },
    /// A command each.
    Command {
        /// Pauses it.
        pause: HookCommand,
        /// Lets it go.
        resume: HookCommand,
    },
    /// A signal to the process whose id is in a file, and to its process group if so asked.
    Signal {
        /// The file.
        pid_file: PathBuf,
        /// Number of the signal that pauses it; SIGSTOP as a rule.
        pause: i32,
        /// Number of the one that lets it go; SIGCONT as a rule.
        resume: i32,
        /// To its whole process group.
        #[serde(default)]
        group: bool,
    },
    /// A systemd unit.
    Unit {
        /// Its name.
        unit: String,
        /// Stopped and started, or frozen and thawed.
        by: UnitBy,
    },
    /// A cgroup of version 2 that is frozen (cgroup.freeze).
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
    /// Containers that are paused by their engine.
    Container {
        /// The engine's program: `docker`, `podman`, or a path.
        engine: String,
        /// By name, or…
        #[serde(default)]
        names: Vec<String>,
        /// …all that run and have this label (`key` or `key=value`).
        #[serde(default)]
        label: Option<String>,
    },
}

impl Means {
    /// Which it is, in a word, as in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Means::Flag { .. } => "flag",
            Means::Command { .. } => "command",
            Means::Signal { .. } => "signal",
            Means::Unit { .. } => "unit",
            Means::Cgroup { .. } => "cgroup",
            Means::Container { .. } => "container",
        }
    }

    /// What it has done outlives a reboot, which ends processes, their signals and their freezes.
    pub fn outlives_reboot(&self) -> bool {
        match self {
            Means::Flag { .. } | Means::Command { .. } | Means::Unit { by: UnitBy::Stop, .. } => true,
            Means::Unit { by: UnitBy::Freeze, .. }
            | Means::Signal { .. }
            | Means::Cgroup { .. }
            | Means::Container { .. } => false,
        }
    }
}

/// See [`Means::Unit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitBy {
    /// `systemctl stop`, `systemctl start`.
    Stop,
    /// `systemctl freeze`, `systemctl thaw`.
    Freeze,
}

/// Something that is done after a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryHook {
    /// What people call it; unique.
    pub name: String,
    /// What is run.
    pub command: HookCommand,
    /// How long it may take; 30 s when absent.
    #[serde(default)]
    pub timeout: Option<Duration>,
}
