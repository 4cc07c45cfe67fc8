//! `steadfs status`, `steadfs recover`, and the client of the control socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `steadfs status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// The hot path; all of this user's when absent.
    pub mountpoint: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Placeholder.
pub fn run(_args: StatusArgs) -> ExitCode {
    ExitCode::FAILURE
}

/// Placeholder.
pub fn recover(_mountpoint: &Path) -> ExitCode {
    ExitCode::FAILURE
}

/// Asks the daemon of `mountpoint` to unmount and end. Placeholder.
pub fn umount_request(_mountpoint: &Path) -> Result<(), String> {
    Err("no daemon".into())
}
