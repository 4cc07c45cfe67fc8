//! `steadfs spool restore`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{Failure, bytes, find, plain, say};
use crate::backing::mountinfo;
use crate::cli::status;
use crate::mountpoint::claim;
use crate::spool::{self, Change, Entry, Header, Plan, State, Target, printable_path};

/// Arguments of `steadfs spool restore`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Its name, or as much of it as no other begins with.
    entry: String,
    /// Write into this file, and make it if it is missing, rather than into the one that the entry is about.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Do it.
    #[arg(long)]
    apply: bool,
}

/// How many pieces are told one by one.
const TOLD: usize = 20;

/// Restores it, or says what that would do.
pub fn run(args: &Args, dir: Option<&Path>) -> Result<(), Failure> {
    let entries = find::all(dir)?;
    let listed = find::one(&entries, &args.entry)?;
    let entry = Entry::open(&listed.path)?;
    let header = entry.header();
    let target = match &args.to {
        Some(file) => Target::File(file),
        None => {
            check_mount(header)?;
            Target::Below(&header.overlay)
        }
    };
    if listed.state == State::Restored {
        say(&format!("{} was restored before\n", listed.name));
    }
    if args.apply {
        let (plan, path) = spool::restore(&listed.path, target)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        say(&describe(&plan, true));
        say(&format!("restored, and read back: the entry is {name} now, to be removed with steadfs spool drop\n"));
    } else {
        say(&describe(&spool::plan(&listed.path, target)?, false));
        say("nothing was changed: add --apply to write it\n");
    }
    Ok(())
}

/// Whether the overlay is mounted, and shows what it showed then (promise P5).
fn check_mount(header: &Header) -> Result<(), Failure> {
    let shown = printable_path(&header.overlay);
    let elsewhere = "or restore into another file with --to FILE";
    let mounted = mountinfo::at(&header.overlay)
        .map_err(|error| Failure { code: 2, text: format!("cannot read /proc/self/mountinfo: {error}") })?;
    let Some(mounted) = mounted else {
        return Err(Failure::refused(format!("{shown} is not mounted: mount it, {elsewhere}")));
    };
    let alive = claim::is_alive(&header.overlay);
    if mounted.fstype != OsStr::new("fuse.steadfs") && !alive {
        return Err(Failure::refused(format!("{shown} is not a mount of steadfs: mount it, {elsewhere}")));
    }
    // fsname= may have changed what the mount table says, so the daemon is asked.
    match status::source(&header.overlay) {
        Ok(source) if source == header.backing => Ok(()),
        Ok(source) => Err(Failure::refused(format!(
            "{shown} shows {} and not {}: mount that, {elsewhere}",
            plain(&source),
            plain(&header.backing)
        ))),
        Err(error) => Err(Failure {
            code: 2,
            text: format!("the daemon of {shown} does not answer: {}: see steadfs status, {elsewhere}", plain(&error)),
        }),
    }
}

fn describe(plan: &Plan, done: bool) -> String {
    let shown = printable_path(&plan.target);
    let (had, was) = if done { ("had", "was") } else { ("has", "is") };
    let before = plan.present.map_or(0, |present| present.size);
    let mut lines = vec![match &plan.present {
        Some(present) => {
            let changed = present.modified.map(|at| format!(", changed {}", humantime::format_rfc3339_seconds(at)));
            format!("{shown} {had} {}{}", bytes(present.size), changed.unwrap_or_default())
        }
        None if done => format!("{shown} did not exist and was made"),
        None => format!("{shown} does not exist and would be made"),
    }];
    if let Some(cut) = plan.cut {
        lines.push(format!("  cut to {}: the last {} of what {was} there go", bytes(cut), bytes(before - cut)));
    }
    lines.extend(plan.changes.iter().take(TOLD).map(|change| change_line(change, was)));
    if let Some(rest) = plan.changes.get(TOLD..).filter(|rest| !rest.is_empty()) {
        let sum = |field: fn(&Change) -> u64| rest.iter().map(field).sum();
        let sum = Change { offset: 0, len: sum(|c| c.len), differing: sum(|c| c.differing), beyond: sum(|c| c.beyond) };
        lines.push(format!("  write {} in {} more pieces: {}", bytes(sum.len), rest.len(), judge(&sum, was)));
    }
    let shorter = before.saturating_sub(plan.size);
    let loss = match plan.cut {
        None if shorter > 0 => format!(": the last {} of what {was} there go", bytes(shorter)),
        _ => String::new(),
    };
    lines.push(format!("  size in the end: {}{loss}", bytes(plan.size)));
    lines.join("\n") + "\n"
}

fn change_line(change: &Change, was: &str) -> String {
    format!("  write {} at {}: {}", bytes(change.len), change.offset, judge(change, was))
}

/// What writing it means for what is there.
fn judge(change: &Change, was: &str) -> String {
    let within = change.len - change.beyond;
    match (change.differing, change.beyond) {
        (0, 0) => format!("as {was} there already"),
        (0, beyond) if within == 0 => format!("{beyond} beyond its end"),
        (differing, 0) => format!("{differing} differ from what {was} there"),
        (differing, beyond) => format!("{differing} differ from what {was} there, {beyond} beyond its end"),
    }
}
