//! What somebody should hear of although a call has been answered.

use std::path::Path;

use super::Overlay;
use super::files::LOST_FILE;
use super::settle::UNSETTLED;
use crate::backing::OpResult;

/// Told of a finding, in words. Must not block.
pub type Notices = Box<dyn Fn(String) + Send + Sync>;

impl Overlay {
    /// From now on findings go there; until then they go to the log. Only the first counts.
    pub fn on_notice(&self, notices: Notices) {
        let _ = self.notices.set(notices);
    }

    pub(super) fn tell(&self, words: String) {
        match self.notices.get() {
            Some(notices) => notices(words),
            None => tracing::warn!("{words}"),
        }
    }

    /// What the caller of a call is told: EIO if nobody can say whether it was done, and then somebody is to look.
    pub(super) fn settled<T>(&self, call: &str, path: &Path, result: OpResult<T>) -> OpResult<T> {
        if matches!(result, Err(UNSETTLED)) {
            self.tell(format!(
                "{call} {}: nobody can tell whether it was done before the link was lost",
                path.display()
            ));
            return Err(LOST_FILE);
        }
        result
    }
}
