//! What becomes of acknowledged changes that cannot be sent again: somebody is told, and they are saved.

use std::path::Path;

use crate::log::Changes;

/// Told of a finding, in words.
pub type Notices = Box<dyn Fn(String) + Send + Sync>;

/// Where such changes go.
#[derive(Default)]
pub struct Rescue {
    notices: Option<Notices>,
}

impl Rescue {
    /// Tells `notices`.
    pub fn new(notices: Notices) -> Rescue {
        Rescue { notices: Some(notices) }
    }

    /// Tells of a finding that concerns one file.
    pub fn tell(&self, words: String) {
        match &self.notices {
            Some(notices) => notices(words),
            None => tracing::warn!("{words}"),
        }
    }

    /// Saves changes of the file at that path below the root, which is not what it was for that reason.
    pub fn save(&self, path: &Path, reason: &str, changes: Changes) {
        let path = path.display();
        match changes.is_empty() {
            true => self.tell(format!("{path}: {reason}")),
            false => self.tell(format!("{path}: {reason}; {} uncommitted bytes are lost", changes.bytes())),
        }
    }
}
