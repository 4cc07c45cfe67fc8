//! Mountpoints.

use std::path::{Path, PathBuf};

use super::outputs::HANGS;
use super::report::Report;
use super::tool::{self, within};
use super::trust;
use crate::backing::mountinfo;
use crate::cli::file::{Loaded, overlap};
use crate::config::{HotPath, Source};
use crate::mountpoint::place;

pub fn check(loaded: &Loaded, serving: bool, report: &mut Report) {
    let mut resolved: Vec<HotPath> = Vec::new();
    for hot in &loaded.config.overlays {
        let whence = loaded.places.get(&hot.mountpoint).map(|place| format!(" ({place})")).unwrap_or_default();
        let what = format!("mountpoint {}", hot.mountpoint.display());
        let nonempty = loaded.nonempty.contains(&hot.mountpoint);
        let (given, source) = (hot.mountpoint.clone(), loaded.config.source.clone());
        match within(tool::LOOK, move || look(&given, nonempty, serving, &source)) {
            None => report.error(what, format!("{HANGS}{whence}")),
            Some(Err(words)) => report.error(what, format!("{words}{whence}")),
            Some(Ok((real, words))) => {
                report.ok(&*what, words);
                let way = hot.mountpoint.clone();
                for (bad, words) in within(tool::LOOK, move || trust::of(&way)).unwrap_or_default() {
                    if bad { report.error(&*what, words) } else { report.warn(&*what, words) }
                }
                resolved.push(HotPath { mountpoint: real, ..hot.clone() });
            }
        }
    }
    // Links may lead two of them to one place.
    for (_, _, sentence) in overlap::between(&resolved) {
        report.error("mountpoints", sentence);
    }
}

/// Where it really is, and what is to be said of it.
fn look(given: &Path, nonempty: bool, serving: bool, source: &Source) -> Result<(PathBuf, String), String> {
    let real = place::resolve(given).map_err(|error| error.to_string())?;
    let mounted = mountinfo::at(&real).map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    if serving && mounted.is_some_and(|entry| entry.is_fuse()) {
        return Ok((real, "is mounted on, while the daemon runs".into()));
    }
    place::check(&real, nonempty)
        .map_err(|error| error.to_string().replace("add -o nonempty", "set nonempty = true"))?;
    if let Source::Dir { path } = source {
        place::check_source(path, &real).map_err(|error| error.to_string())?;
    }
    let words = if nonempty { "is a directory, and what is in it will be hidden" } else { "is an empty directory" };
    Ok((real, words.into()))
}
