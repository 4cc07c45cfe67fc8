//! Which overlays cannot be in one daemon together.

use std::path::Path;

use crate::config::{HotPath, Source};

/// The conflicts of each overlay with one before it, at most one of each kind: the index of the later one, that of the
/// earlier one, and a whole sentence.
pub fn between(overlays: &[HotPath]) -> Vec<(usize, usize, String)> {
    let mut conflicts = Vec::new();
    for (later, hot) in overlays.iter().enumerate() {
        for conflict in [mountpoints, stores] {
            let mut before = overlays[..later].iter().enumerate();
            conflicts.extend(before.find_map(|(earlier, other)| Some((later, earlier, conflict(hot, other)?))));
        }
    }
    conflicts
}

/// Whether an overlay may be mounted there at all; a whole sentence if not.
pub fn with_source(overlay: &HotPath, source: &Source) -> Option<String> {
    let place = &overlay.mountpoint;
    match source {
        Source::Dir { path } if touch(path, place) => Some(format!(
            "mountpoint {} and dir:{} contain one another: choose paths side by side",
            place.display(),
            path.display()
        )),
        _ => None,
    }
}

fn touch(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn mountpoints(later: &HotPath, earlier: &HotPath) -> Option<String> {
    let (new, old) = (&later.mountpoint, &earlier.mountpoint);
    if new == old {
        return Some(format!("mountpoint {} is given twice: remove one", new.display()));
    }
    // The directory below the inner one would be on the store: it is there only while the outer overlay and the store
    // answer, and our own calls would have to go through it.
    touch(new, old).then(|| {
        let (inner, outer) = if new.starts_with(old) { (new, old) } else { (old, new) };
        format!(
            "mountpoint {} lies inside {}, an overlay too: its directory would be on the store, so that it could be mounted, \
             unmounted and reached only while that one works: choose paths side by side",
            inner.display(),
            outer.display()
        )
    })
}

fn stores(later: &HotPath, earlier: &HotPath) -> Option<String> {
    if !later.rivals(earlier) {
        return None;
    }
    let (new, old) = (&later.path, &earlier.path);
    let shown =
        |path: &Path| if path.as_os_str().is_empty() { "all of it".into() } else { format!("'{}'", path.display()) };
    Some(format!(
        "{} and {} show the same files of the store ({} and {}): each overlay has its own write log and would not know what \
         the other has not written yet: choose directories side by side, or set read_only = true for all but one",
        earlier.mountpoint.display(),
        later.mountpoint.display(),
        shown(old),
        shown(new)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OverlayConfig;

    fn hot(mountpoint: &str, path: &str, read_only: bool) -> HotPath {
        let overlay = OverlayConfig { read_only, ..OverlayConfig::default() };
        HotPath { mountpoint: mountpoint.into(), path: path.into(), slot: 0, overlay }
    }

    fn conflicts(overlays: &[HotPath]) -> Vec<(usize, usize)> {
        between(overlays).into_iter().map(|(later, earlier, _)| (later, earlier)).collect()
    }

    #[test]
    fn directories_side_by_side_are_fine() {
        let all =
            [hot("/a", "x", false), hot("/ab", "xy", false), hot("/c/a", "y/x", false), hot("/c/b", "y/z", false)];
        assert_eq!(conflicts(&all), []);
    }

    #[test]
    fn one_writer_at_most_has_a_directory() {
        let both =
            |first: bool, second: bool, other: &str| conflicts(&[hot("/a", "x", first), hot("/b", other, second)]);
        for other in ["x", "x/y", ""] {
            assert_eq!(both(false, false, other), [(1, 0)], "{other}");
            assert_eq!(both(true, false, other), []);
            assert_eq!(both(false, true, other), []);
            assert_eq!(both(true, true, other), []);
        }
        // Two writers below one reader do not meet.
        assert_eq!(conflicts(&[hot("/a", "", true), hot("/b", "x", false), hot("/c", "y", false)]), []);
    }

    #[test]
    fn a_mountpoint_inside_another_is_refused() {
        assert_eq!(conflicts(&[hot("/a", "x", true), hot("/a/b", "y", true)]), [(1, 0)]);
        assert_eq!(conflicts(&[hot("/a/b", "x", true), hot("/a", "y", true)]), [(1, 0)]);
        assert_eq!(conflicts(&[hot("/a", "x", true), hot("/a", "y", true)]), [(1, 0)]);
    }

    #[test]
    fn a_directory_is_not_mounted_on_itself() {
        let source = Source::Dir { path: "/srv/x".into() };
        for (place, fits) in [("/srv", false), ("/srv/x", false), ("/srv/x/y", false), ("/srv/y", true)] {
            assert_eq!(with_source(&hot(place, "", false), &source).is_none(), fits, "{place}");
        }
    }
}
