//! Metrics, status, health (promise P8). Reads what others count; nobody calls it.

use std::sync::Arc;

use crate::config::MountConfig;
use crate::gate::Gate;
use crate::overlay::Counts;
use crate::supervisor::Watch;

/// All that may be observed of one mount.
#[derive(Clone)]
pub struct Observed {
    /// Its configuration.
    pub config: Arc<MountConfig>,
    /// Its gate.
    pub gate: Arc<Gate>,
    /// Its supervisor.
    pub watch: Watch,
    /// Its overlay's figures.
    pub counts: Arc<dyn Fn() -> Counts + Send + Sync>,
    /// Asks the supervisor to try again at once (`steadfs recover`).
    pub retry_now: Arc<dyn Fn() + Send + Sync>,
    /// Asks the daemon to unmount and end (`steadfs umount`); the error is for the user.
    pub stop: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}
