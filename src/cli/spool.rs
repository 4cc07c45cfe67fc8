//! `steadfs spool`: what was acknowledged and could no longer be written, for a human to decide about.

mod drop;
mod find;
mod list;
mod restore;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use super::say;
use crate::plain::{plain, plain_json};
use crate::spool::SpoolError;

/// Arguments of `steadfs spool`.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_subcommand = true)]
pub struct SpoolArgs {
    #[command(subcommand)]
    command: Command,
    /// The directory to look in, as given to spool_dir=; those below the state directory when absent.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List the entries.
    List(list::Args),
    /// Say what an entry holds, and check that it is whole.
    Show(show::Args),
    /// Write an entry into its file, or say what that would do.
    Restore(restore::Args),
    /// Remove entries, or say which.
    Drop(drop::Args),
}

/// Why a command failed, and with which exit code.
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// It was asked for what is not there, or must not be done.
    fn refused(text: impl Into<String>) -> Failure {
        Failure { code: 1, text: text.into() }
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Failure {
        Failure { code: if error.is_system() { 2 } else { 1 }, text: plain(&error.to_string()) }
    }
}

/// Runs it. Exit code 0: done; 1: usage, not found, damaged or refused; 2: the system failed.
pub fn run(args: &SpoolArgs) -> ExitCode {
    let dir = args.dir.as_deref();
    let result = match &args.command {
        Command::List(args) => list::run(args, dir),
        Command::Show(args) => show::run(args, dir),
        Command::Restore(args) => restore::run(args, dir),
        Command::Drop(args) => drop::run(args, dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => {
            super::complain(&text);
            ExitCode::from(code)
        }
    }
}

/// Prints it as a line of JSON.
fn say_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure { code: 2, text: error.to_string() })?;
    say(&(plain_json(&text) + "\n"));
    Ok(())
}

/// `1 byte`, `2 bytes`.
fn bytes(count: u64) -> String {
    format!("{count} byte{}", if count == 1 { "" } else { "s" })
}
