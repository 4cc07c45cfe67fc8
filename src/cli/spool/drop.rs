//! `steadfs spool drop`.

use std::path::Path;

use super::{Failure, bytes, find, say};
use crate::spool::{Listed, State, drop_entry, printable_path};

/// Arguments of `steadfs spool drop`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Their names, or as much of each as no other begins with.
    #[arg(required = true)]
    entries: Vec<String>,
    /// Do it.
    #[arg(long)]
    apply: bool,
}

/// Removes them, all or none if one of them is not there.
pub fn run(args: &Args, dir: Option<&Path>) -> Result<(), Failure> {
    let all = find::all(dir)?;
    let mut chosen: Vec<&Listed> = Vec::new();
    for name in &args.entries {
        let entry = find::one(&all, name)?;
        if !chosen.iter().any(|other| other.path == entry.path) {
            chosen.push(entry);
        }
    }
    for entry in chosen {
        if args.apply {
            drop_entry(&entry.path)?;
        }
        let verb = if args.apply { "removed" } else { "would remove" };
        say(&format!("{verb} {}: {}\n", entry.name, describe(entry)));
    }
    if !args.apply {
        say("nothing was removed: add --apply to remove\n");
    }
    Ok(())
}

fn describe(entry: &Listed) -> String {
    let state = match entry.state {
        State::Kept => "not restored",
        State::Restored => "restored",
        State::Unfinished => "not finished",
    };
    match &entry.header {
        Ok(header) => {
            let file = printable_path(&header.overlay.join(&header.path));
            format!("{} for {file}, {state}", bytes(header.data_len()))
        }
        Err(_) => format!("damaged, {state}"),
    }
}
