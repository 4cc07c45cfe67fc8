//! `steadfs spool list`.

use std::path::Path;

use serde::Serialize;

use super::{Failure, bytes, find, plain, say, say_json};
use crate::spool::{Header, Listed, printable_path};

/// Arguments of `steadfs spool list`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// An entry in JSON.
#[derive(Serialize)]
pub struct Shown<'a> {
    entry: &'a str,
    file: String,
    state: &'static str,
    bytes: u64,
    /// What is wrong with it, if something is.
    pub damage: Option<String>,
    #[serde(flatten)]
    header: Option<&'a Header>,
}

impl<'a> Shown<'a> {
    /// With what its header says.
    pub fn of(entry: &'a Listed) -> Shown<'a> {
        Shown {
            entry: &entry.name,
            file: printable_path(&entry.path),
            state: entry.state.word(),
            bytes: entry.bytes,
            damage: entry.header.as_ref().err().map(ToString::to_string),
            header: entry.header.as_ref().ok(),
        }
    }
}

/// Prints it.
pub fn run(args: &Args, dir: Option<&Path>) -> Result<(), Failure> {
    let entries = find::all(dir)?;
    if args.json {
        return say_json(&entries.iter().map(Shown::of).collect::<Vec<_>>());
    }
    if entries.is_empty() {
        crate::cli::complain("nothing is in the spool");
    }
    say(&entries.iter().map(describe).collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// A few lines for people.
fn describe(entry: &Listed) -> String {
    let title = format!("{}  {}", entry.name, entry.state.word());
    match &entry.header {
        Ok(header) => format!(
            "{title}, {} for {}\n  {}\n",
            bytes(header.data_len()),
            printable_path(&header.overlay.join(&header.path)),
            plain(&header.reason)
        ),
        Err(error) => format!("{title}\n  {}\n", plain(&error.to_string())),
    }
}
