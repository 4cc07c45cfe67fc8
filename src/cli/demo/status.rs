//! What `steadfs status --json` says, as far as the demo shows it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// How to ask the daemon.
#[derive(Debug, Clone)]
pub struct Question {
    /// This program.
    pub exe: PathBuf,
    /// Its `STEADFS_RUNTIME_DIR`.
    pub run: PathBuf,
    /// The mount.
    pub hot: PathBuf,
}

impl Question {
    /// Runs `steadfs status --json`.
    pub fn ask(&self) -> Status {
        let mut command = Command::new(&self.exe);
        command.env("STEADFS_RUNTIME_DIR", &self.run).args(["status", "--json"]).arg(&self.hot);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        output.ok().and_then(|output| Status::parse(&output.stdout)).unwrap_or_else(Status::silent)
    }
}

/// State of the mount at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// `live`, `suspect`, `repairing` and their like; `silent` when the daemon gave no answer.
    pub state: String,
    /// Number of the newest generation.
    pub generation: u64,
    /// Why it is in that state.
    pub why: String,
    /// What it will do next.
    pub next: String,
}

impl Status {
    /// Used when there was no answer.
    pub fn silent() -> Status {
        Status { state: "silent".into(), ..Status::default() }
    }

    /// Reads the command's output.
    pub fn parse(json: &[u8]) -> Option<Status> {
        let value: Value = serde_json::from_slice(json).ok()?;
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let state = text("state");
        if state.is_empty() {
            return None;
        }
        let generation = value.get("generation").and_then(Value::as_u64)?;
        Some(Status { state, generation, why: text("why"), next: text("next") })
    }

    /// Calls succeed as far as the supervisor knows.
    pub fn is_live(&self) -> bool {
        self.state == "live"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_words_are_empty_and_an_absent_state_is_no_status() {
        let status = Status::parse(br#"{"state":"live","generation":3,"why":null,"next":"probe"}"#);
        let wanted = Status { state: "live".into(), generation: 3, why: String::new(), next: "probe".into() };
        assert_eq!(status, Some(wanted));
        assert_eq!(Status::parse(b"{}"), None);
        assert_eq!(Status::parse(b"not json"), None);
    }
}
