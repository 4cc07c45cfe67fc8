//! Wires one mount together and runs it until it is unmounted.

use crate::config::MountConfig;

/// Why a mount did not come about; the texts are for users and name the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Bad invocation or missing permission: exit code 1 of mount(8).
    #[error("{0}")]
    Usage(String),
    /// This machine lacks something: exit code 2 of mount(8).
    #[error("{0}")]
    System(String),
    /// The mount failed: exit code 32 of mount(8).
    #[error("{0}")]
    Mount(String),
}

/// Mounts and serves until the overlay is unmounted. `ready` is called once, when the overlay answers.
pub fn run(_config: MountConfig, _ready: impl FnOnce() + Send + 'static) -> Result<(), MountError> {
    Err(MountError::System("not wired yet".into()))
}
