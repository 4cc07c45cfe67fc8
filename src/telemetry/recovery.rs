//! What a repair would do, step by step, as data: for `steadfs recover`. Looking changes nothing.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Observed;
use crate::config::Source;
use crate::supervisor::permit::HeldBy;

/// A repair as it would be now. The JSON's fields only ever grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// The hot path, or the name of the daemon.
    pub mountpoint: String,
    /// Where its files really are.
    pub source: String,
    /// As in [`crate::supervisor::Snapshot::state`].
    pub state: String,
    /// For how long it has been in that state.
    pub for_secs: f64,
    /// Why, in words; absent when live.
    pub why: Option<String>,
    /// Calls succeed.
    pub healthy: bool,
    /// The newest generation.
    pub generation: u64,
    /// When the last probe was answered, RFC 3339.
    pub last_probe_at: Option<String>,
    /// What holds the repair back, and would be overridden.
    pub held: Vec<Held>,
    /// What would be done, in this order.
    pub steps: Vec<Step>,
}

/// A permit that is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which one.
    pub by: HeldBy,
    /// When it will be if nothing else changes, RFC 3339.
    pub until: Option<String>,
    /// In words, with the remedy.
    pub detail: String,
}

/// One step of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Ask the backing whether it is well; if it is not, the rest of a repair follows.
    Probe {
        /// The live generation.
        generation: u64,
    },
    /// Calls wait from here on, and fail when the outage is older than the deadline.
    CloseGate,
    /// Whoever hangs in the generation is freed.
    Abort {
        /// That generation.
        generation: u64,
    },
    /// sshfs and ssh are killed.
    KillProcessGroup {
        /// The generation they belong to.
        generation: u64,
    },
    /// Its private mount goes.
    Detach {
        /// That generation.
        generation: u64,
    },
    /// That has begun; its end is waited for.
    AwaitRemoval {
        /// The generation that is being removed.
        generation: u64,
    },
    /// The start goes ahead without these permits.
    Override {
        /// Those that hold it back.
        permits: Vec<HeldBy>,
    },
    /// The server has to accept a connection.
    LookAtServer,
    /// A new generation.
    Start {
        /// Its number.
        generation: u64,
    },
    /// That has begun; its end is waited for.
    AwaitStart {
        /// The generation that comes up.
        generation: u64,
    },
    /// Files that programs have open are opened in it.
    Reopen {
        /// How many.
        files: usize,
    },
    /// What was acknowledged and is not committed is written again.
    Replay {
        /// How many files it concerns.
        files: usize,
        /// How much is in the log, in bytes.
        bytes: u64,
    },
    /// Calls succeed from here on.
    OpenGate,
    /// The worker that is paused goes on when the backing has been steady.
    ResumeWorkers,
}

impl Step {
    /// The step in words.
    pub fn words(&self) -> String {
        match self {
            Step::Probe { generation } => format!("probe generation {generation}; if it does not answer, repair it"),
            Step::CloseGate => "close the gate: calls wait".into(),
            Step::Abort { generation } => format!("abort generation {generation}: whoever hangs in it is freed"),
            Step::KillProcessGroup { generation } => format!("kill the process group of generation {generation}"),
            Step::Detach { generation } => format!("detach the mount of generation {generation}"),
            Step::AwaitRemoval { generation } => format!("wait until nothing of generation {generation} is left"),
            Step::Override { permits } => {
                let names: Vec<&str> = permits.iter().map(|by| by.name()).collect();
                format!("go ahead in spite of {}", names.join(", "))
            }
            Step::LookAtServer => "look whether the server answers".into(),
            Step::Start { generation } => format!("start generation {generation}"),
            Step::AwaitStart { generation } => format!("wait until generation {generation} is up"),
            Step::Reopen { files } => format!("reopen {files} open files"),
            Step::Replay { files, bytes } => format!("write {bytes} uncommitted bytes of {files} files again"),
            Step::OpenGate => "open the gate: calls succeed".into(),
            Step::ResumeWorkers => "let the worker go that is paused".into(),
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

impl Recovery {
    /// Looks. With `force` a generation that is well is replaced.
    pub fn of(observed: &Observed, force: bool) -> Recovery {
        let snapshot = observed.watch.snapshot();
        let healthy = matches!(snapshot.state, "live" | "suspect");
        let held: Vec<Held> = snapshot
            .repair_log
            .held
            .iter()
            .map(|held| Held { by: held.by, until: held.until.map(rfc3339), detail: held.detail.clone() })
            .collect();
        let permits = held.iter().map(|held| held.by).collect();
        Recovery {
            mountpoint: observed.config.home.display().to_string(),
            source: observed.config.source.label(),
            state: snapshot.state.into(),
            for_secs: SystemTime::now().duration_since(snapshot.since).unwrap_or_default().as_secs_f64(),
            why: snapshot.why,
            healthy,
            generation: snapshot.generation,
            last_probe_at: snapshot.probe_ok_at.map(rfc3339),
            held,
            steps: steps(observed, snapshot.state, snapshot.generation, permits, force),
        }
    }
}

fn steps(observed: &Observed, state: &str, newest: u64, permits: Vec<HeldBy>, force: bool) -> Vec<Step> {
    let generation = newest;
    let mut steps = Vec::new();
    let remove = |steps: &mut Vec<Step>| {
        steps.push(Step::Abort { generation });
        // A directory has neither.
        if matches!(observed.config.source, Source::Sshfs { .. }) {
            steps.extend([Step::KillProcessGroup { generation }, Step::Detach { generation }]);
        }
    };
    let mut next = true;
    match state {
        "live" | "suspect" if !force => return vec![Step::Probe { generation }],
        "live" | "suspect" => {
            steps.push(Step::CloseGate);
            remove(&mut steps);
        }
        "restoring" if force => remove(&mut steps),
        "adopting" | "starting" | "restoring" => {
            steps.push(Step::AwaitStart { generation });
            next = false;
        }
        "retiring" => steps.push(Step::AwaitRemoval { generation }),
        "stopping" => return Vec::new(),
        _ => {}
    }
    if next {
        steps.extend((!permits.is_empty()).then_some(Step::Override { permits }));
        steps.extend([Step::LookAtServer, Step::Start { generation: newest + 1 }]);
    }
    let counts = (observed.counts)();
    steps.push(Step::Replay { files: counts.dirty_files, bytes: counts.log_bytes });
    steps.push(Step::Reopen { files: counts.open_files });
    steps.push(Step::OpenGate);
    steps.extend(observed.worker.report().paused_since.is_some().then_some(Step::ResumeWorkers));
    steps
}
