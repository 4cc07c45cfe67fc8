//! `steadfs spool restore`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{Failure, bytes, find, plain, say};
use crate::backing::mountinfo;
use crate::cli::status;
use crate::config::DaemonConfig;
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
    let config = status::config(&header.overlay).map_err(|error| Failure {
        code: 2,
        text: format!("the daemon of {shown} does not answer: {}: see steadfs status, {elsewhere}", plain(&error)),
    })?;
    shows_the_same(&config, &mounted, header)
        .map_err(|found| Failure::refused(format!("{shown} {}: mount that, {elsewhere}", plain(&found))))
}

/// Whether the overlay that this daemon has there shows what the entry is about, and is what is mounted there; or what
/// there is instead. The same mountpoint may have been given to another directory since.
fn shows_the_same(config: &DaemonConfig, mounted: &mountinfo::Entry, header: &Header) -> Result<(), String> {
    let wanted = &header.backing;
    let Some(hot) = config.overlays.iter().find(|hot| hot.mountpoint == header.overlay) else {
        return Err(format!("is no overlay of its daemon, and would have to show {wanted}"));
    };
    let shows = config.label_of(hot);
    if shows != *wanted {
        return Err(format!("shows {shows} and not {wanted}"));
    }
    let source = hot.overlay.fsname.as_deref().unwrap_or(&shows);
    if mounted.source != source || mounted.fstype != format!("fuse.{}", hot.overlay.subtype).as_str() {
        let (other, kind) = (mounted.source.to_string_lossy(), mounted.fstype.to_string_lossy());
        return Err(format!("is covered by {other} ({kind}) and does not show {wanted}"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::config::{HotPath, OverlayConfig, Source};

    /// An entry of what `/hot` showed.
    fn header(backing: &str) -> Header {
        Header {
            version: 1,
            overlay: "/hot".into(),
            backing: backing.into(),
            path: "file".into(),
            reason: String::new(),
            at: SystemTime::UNIX_EPOCH,
            cut: None,
            size: None,
            extents: Vec::new(),
        }
    }

    /// A daemon of `h:/d` that shows these directories at these mountpoints.
    fn daemon(overlays: &[(&str, &str)], look: &OverlayConfig) -> DaemonConfig {
        let source = Source::Sshfs { target: "h:/d".into() };
        let overlays = overlays.iter().map(|(mountpoint, path)| HotPath {
            mountpoint: mountpoint.into(),
            path: path.into(),
            slot: 1,
            overlay: look.clone(),
        });
        DaemonConfig {
            overlays: overlays.collect(),
            ..DaemonConfig::of_one(source, "@box".into(), OverlayConfig::default())
        }
    }

    fn mounted(source: &str, fstype: &str) -> mountinfo::Entry {
        let line = format!("1 1 0:1 / /hot rw - {fstype} {source} rw\n");
        mountinfo::parse(line.as_bytes()).pop().expect("an entry")
    }

    #[test]
    fn the_directory_that_the_overlay_shows_counts_and_not_only_the_source() {
        let plain = OverlayConfig::default();
        let here = mounted("h:/d/a", "fuse.steadfs");
        let config = daemon(&[("/other", "b"), ("/hot", "a")], &plain);
        assert_eq!(shows_the_same(&config, &here, &header("h:/d/a")), Ok(()));
        // Attached anew with another --path, by this daemon or by another one.
        for backing in ["h:/d", "h:/d/b", "h:/d/a/b", "h:/e/a"] {
            let said = shows_the_same(&config, &here, &header(backing));
            assert_eq!(said, Err(format!("shows h:/d/a and not {backing}")));
        }
        let elsewhere = daemon(&[("/other", "a")], &plain);
        assert!(shows_the_same(&elsewhere, &here, &header("h:/d/a")).is_err_and(|text| text.contains("no overlay")));
    }

    #[test]
    fn what_covers_the_overlay_is_seen() {
        let plain = daemon(&[("/hot", "a")], &OverlayConfig::default());
        for (source, fstype) in [("h:/d/b", "fuse.steadfs"), ("h:/d/a", "fuse.sshfs"), ("tmpfs", "tmpfs")] {
            let said = shows_the_same(&plain, &mounted(source, fstype), &header("h:/d/a"));
            assert!(said.is_err_and(|text| text.starts_with(&format!("is covered by {source} ({fstype})"))));
        }
        let look = OverlayConfig { fsname: Some("store".into()), subtype: "sshfs".into(), ..OverlayConfig::default() };
        let named = daemon(&[("/hot", "a")], &look);
        assert_eq!(shows_the_same(&named, &mounted("store", "fuse.sshfs"), &header("h:/d/a")), Ok(()));
        assert!(shows_the_same(&named, &mounted("h:/d/a", "fuse.sshfs"), &header("h:/d/a")).is_err());
    }
}
