//! What holds a repair back at this moment (see [`crate::config::PermitConfig`]): one place for metrics, status and page.

use crate::supervisor::Snapshot;

/// The words for it: label values of `steadfs_repair_held`, and what `steadfs status` says.
pub const PERMITS: [&str; 7] =
    ["deploy_lock", "enable_file", "confirmations", "min_age", "cool_down", "hourly_limit", "daily_limit"];

/// Which of [`PERMITS`] keeps the supervisor from a repair that is due; none as a rule.
pub fn held(snapshot: &Snapshot) -> Option<&'static str> {
    snapshot.repair_log.held.first().map(|held| held.by.name())
}
