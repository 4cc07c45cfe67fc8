//! Whether somebody else could change what steadfs goes by: the configuration, and the way to a mountpoint.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::report::Report;
use crate::cli::file::Loaded;

/// Most links that are followed on one path, as path_resolution(7) has it.
const MAX_LINKS: usize = 40;

/// The configuration, and the manifest: whoever writes them decides what is run and where it is mounted.
pub fn files(loaded: &Loaded, report: &mut Report) {
    let manifests = loaded.places.values().map(|place| place.file.clone());
    let mut files: Vec<PathBuf> = loaded.config.file.iter().cloned().chain(manifests).collect();
    files.dedup();
    files.sort();
    files.dedup();
    for file in files {
        let what = format!("file {}", file.display());
        let Ok(found) = std::fs::metadata(&file) else { continue };
        let path = file.display();
        match () {
            () if !is_trusted(found.uid()) => {
                report.error(
                    what,
                    format!(
                        "belongs to uid {}, who could have commands run by this user: run chown {} {path}",
                        found.uid(),
                        own()
                    ),
                );
            }
            () if found.mode() & 0o022 != 0 => {
                report.error(
                    what,
                    format!(
                        "can be written by others, who could have commands run by this user: run chmod go-w {path}"
                    ),
                );
            }
            () => report.ok(what, "can be changed by its owner only"),
        }
    }
}

/// Those who could put something else in the place of this path: half sentences, and whether it is as bad as an error.
pub fn of(path: &Path) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut links = 0;
    let mut at = PathBuf::from("/");
    let mut pending = Some(path.to_owned());
    // A path is walked down to its first link, and then on from what that leads to.
    while let Some(path) = pending.take() {
        let rest: Vec<Component<'_>> = path.components().collect();
        for (index, part) in rest.iter().enumerate() {
            match part {
                Component::RootDir => at = "/".into(),
                Component::ParentDir => _ = at.pop(),
                Component::Normal(name) => {
                    let parent = at.clone();
                    at.push(name);
                    let Ok(metadata) = at.symlink_metadata() else { return found };
                    found.extend(complaint(&parent, &at, &metadata));
                    if metadata.is_symlink() {
                        links += 1;
                        let Ok(target) = std::fs::read_link(&at) else { return found };
                        if links > MAX_LINKS {
                            return found;
                        }
                        at = parent;
                        let more: PathBuf = rest[index + 1..].iter().collect();
                        pending = Some(target.join(more));
                        break;
                    }
                }
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
    found.dedup();
    found
}

fn complaint(parent: &Path, path: &Path, found: &Metadata) -> Option<(bool, String)> {
    let shown = path.display();
    if found.is_symlink() && !is_trusted(found.uid()) {
        return Some((
            true,
            format!("{shown} is a symbolic link of uid {}, who can lead it elsewhere: give the real path", found.uid()),
        ));
    }
    let above = std::fs::metadata(parent).ok()?;
    let above_shown = parent.display();
    // In a directory with the sticky bit others can make new names, and not replace this one.
    if above.mode() & 0o1000 != 0 && is_trusted(found.uid()) {
        return None;
    }
    if above.mode() & 0o002 != 0 {
        return Some((
            true,
            format!(
                "{above_shown} can be written by everybody, who can put something else in the place of {shown}: run chmod o-w {above_shown}"
            ),
        ));
    }
    let words = |who: String| {
        format!("{above_shown} can be written by {who}, who can put something else in the place of {shown}")
    };
    if !is_trusted(above.uid()) {
        return Some((false, words(format!("uid {}", above.uid())) + ": see that this is meant"));
    }
    let group = above.gid();
    (above.mode() & 0o020 != 0 && group != 0)
        .then(|| (false, words(format!("group {group}")) + ": see that this is meant"))
}

fn own() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == own()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_way_that_others_can_bend_is_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().canonicalize().expect("real path");
        std::fs::create_dir_all(base.join("open/hot")).expect("mkdir");
        std::os::unix::fs::symlink("open", base.join("link")).expect("symlink");
        std::os::unix::fs::symlink("loop", base.join("loop")).expect("symlink");
        let mode = |mode| std::fs::set_permissions(base.join("open"), PermissionsExt::from_mode(mode)).expect("chmod");
        mode(0o755);
        assert_eq!(of(&base.join("open/hot")), []);
        assert_eq!(of(&base.join("link/hot")), []);
        mode(0o777);
        for way in ["open/hot", "link/hot"] {
            let found = of(&base.join(way));
            assert!(matches!(found.as_slice(), [(true, words)] if words.contains("by everybody")), "{found:?}");
        }
        mode(0o1777);
        assert_eq!(of(&base.join("open/hot")), []);
        of(&base.join("loop/x"));
        of(&base.join("missing/x"));
    }
}
