//! The daemons that are not the canary: looked at before and after, and never touched.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::backing::mountinfo;
use crate::cli::triage;
use crate::evidence::triage::Answer;
use crate::rundir;

/// What would change if one were touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The supervisor's state, `silent` or `absent`.
    pub state: String,
    /// The process that serves.
    pub pid: Option<u64>,
    /// Its newest generation.
    pub generation: Option<u64>,
    /// Outages that began.
    pub outages: Option<u64>,
    /// Events that are known of it.
    pub events: usize,
    /// Id of the mount at its hot path.
    pub mount_id: Option<u64>,
}

/// One daemon.
#[derive(Debug, Clone, Serialize)]
pub struct Overlay {
    /// Its hot path or name.
    pub name: String,
    /// Before the drill.
    pub before: Mark,
    /// After it; absent in a dry run.
    pub after: Option<Mark>,
    /// True if nothing changed; absent in a dry run. False says that something happened to it meanwhile, not why.
    pub unchanged: Option<bool>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Production {
    homes: Vec<PathBuf>,
    overlays: Vec<Overlay>,
}

impl Production {
    /// Looks.
    pub fn look(homes: &[PathBuf]) -> Production {
        let overlay = |home: &PathBuf| Overlay {
            name: home.display().to_string(),
            before: mark(home),
            after: None,
            unchanged: None,
        };
        Production { homes: homes.to_vec(), overlays: homes.iter().map(overlay).collect() }
    }

    /// Looks again, and compares.
    pub fn again(mut self) -> Production {
        for (overlay, home) in self.overlays.iter_mut().zip(&self.homes) {
            let after = mark(home);
            overlay.unchanged = Some(after == overlay.before);
            overlay.after = Some(after);
        }
        self
    }

    /// What was seen.
    pub fn overlays(self) -> Vec<Overlay> {
        self.overlays
    }
}

fn mark(home: &Path) -> Mark {
    let (state, status) = match triage::ask(&rundir::control_socket(home)) {
        Answer::Status(status) => (status["state"].as_str().unwrap_or_default().to_owned(), status),
        Answer::Absent => ("absent".into(), Value::Null),
        Answer::Silent | Answer::Unknown(_) => ("silent".into(), Value::Null),
    };
    Mark {
        // A doubt that a slow answer raised and the next one settled is no change.
        state: if state == "suspect" { "live".into() } else { state },
        pid: status["pid"].as_u64(),
        generation: status["generation"].as_u64(),
        outages: status["outages_total"].as_u64(),
        events: events(&status),
        mount_id: mountinfo::at(home).ok().flatten().map(|entry| entry.id),
    }
}

/// Doubts that were settled do not count.
fn events(status: &Value) -> usize {
    let events = status["events"].as_array().into_iter().flatten();
    events.filter(|event| !matches!(event["event"].as_str(), Some("evidence" | "cleared"))).count()
}
