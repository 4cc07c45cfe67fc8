//! What holds a repair back (promise P3), and evidence that is kept of it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a repair needs before it may begin. Nothing by default; the first start of a daemon is no repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PermitConfig {
    /// `deploy_lock`: while somebody holds a lock (flock(2)) on that file, nothing is repaired. A file that is merely lying
    /// there does not count, unless it cannot be probed and is younger than [`PermitConfig::deploy_lock_max_age`].
    pub deploy_lock: Option<PathBuf>,
    /// `deploy_lock_max_age`: 2 h when absent.
    pub deploy_lock_max_age: Option<Duration>,
    /// `enable_file`: nothing is repaired while it is not there.
    pub enable_file: Option<PathBuf>,
    /// `confirmations`: looks in a row that have to find the backing dead; 0 or 1 for the verdict alone.
    pub confirmations: u32,
    /// `confirm_interval`: time between two such looks; 60 s by default.
    pub confirm_interval: Duration,
    /// `min_age`: how old an outage must be.
    pub min_age: Duration,
    /// `cool_down`: time between the starts of two repairs.
    pub cool_down: Duration,
    /// `max_per_hour`: repairs within an hour; 0 for no limit.
    pub max_per_hour: u32,
    /// `max_per_day`: repairs within 24 h; 0 for no limit.
    pub max_per_day: u32,
}

impl Default for PermitConfig {
    fn default() -> Self {
        PermitConfig {
            deploy_lock: None,
            deploy_lock_max_age: None,
            enable_file: None,
            confirmations: 0,
            confirm_interval: Duration::from_secs(60),
            min_age: Duration::ZERO,
            cool_down: Duration::ZERO,
            max_per_hour: 0,
            max_per_day: 0,
        }
    }
}

impl PermitConfig {
    /// The default of `deploy_lock_max_age`: a deploy that takes longer has died.
    pub const DEPLOY_LOCK_MAX_AGE: Duration = Duration::from_secs(7200);

    /// [`PermitConfig::deploy_lock_max_age`], or its default.
    pub fn lock_max_age(&self) -> Duration {
        self.deploy_lock_max_age.unwrap_or(Self::DEPLOY_LOCK_MAX_AGE)
    }

    /// True if a repair depends on when earlier ones began, which then has to outlive the daemon.
    pub fn counts_repairs(&self) -> bool {
        !self.cool_down.is_zero() || self.max_per_hour > 0 || self.max_per_day > 0
    }
}

/// Bundles of evidence that are taken by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvidenceConfig {
    /// `dir`: where they go; none are taken by themselves when absent.
    pub dir: Option<PathBuf>,
    /// `keep`: how many of them are kept; 20 when 0.
    pub keep: u32,
    /// `manifest`: a file that is copied into each.
    pub manifest: Option<PathBuf>,
    /// `units`: systemd units whose state and journal go into each.
    pub units: Vec<String>,
}
