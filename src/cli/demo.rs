//! `steadfs demo`.

use std::process::ExitCode;

/// Arguments of `steadfs demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Keep the directories.
    #[arg(long)]
    pub keep: bool,
    /// Shorter faults.
    #[arg(long)]
    pub fast: bool,
}

/// Placeholder.
pub fn run(_args: DemoArgs) -> ExitCode {
    ExitCode::FAILURE
}
