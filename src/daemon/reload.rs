//! What has to be done so that a daemon that runs is as another configuration says: a pure comparison.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{DaemonConfig, HotPath, OverlayConfig};

/// What there is to do, in that order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Overlays that go.
    pub detach: Vec<PathBuf>,
    /// Overlays that stay and look otherwise; with the present number.
    pub change: Vec<HotPath>,
    /// Overlays that go and come back otherwise: unmounted meanwhile.
    pub replace: Vec<HotPath>,
    /// Overlays that come.
    pub attach: Vec<HotPath>,
    /// What is different and is taken over at the next start only.
    pub later: Vec<&'static str>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Hot paths that are gone.
    pub detached: Vec<String>,
    /// Hot paths that look otherwise.
    pub changed: Vec<String>,
    /// Hot paths that are new.
    pub attached: Vec<String>,
    /// What could not be done, and why.
    pub failed: Vec<String>,
    /// Sections that are taken over at the next start only.
    pub later: Vec<String>,
}

impl Reloaded {
    /// True if all of it was done.
    pub fn is_whole(&self) -> bool {
        self.failed.is_empty()
    }
}

/// Compares. Of `wanted` all mountpoints are resolved; an error says what cannot be changed while it runs, and nothing is done.
pub fn plan(present: &DaemonConfig, wanted: &DaemonConfig) -> Result<Plan, String> {
    for (name, is, shall) in [
        ("name", present.home.display().to_string(), wanted.home.display().to_string()),
        ("source", present.source.label(), wanted.source.label()),
    ] {
        if is != shall {
            return Err(format!(
                "{name} is {is} and cannot become {shall} while it runs: start another daemon, or stop this one first"
            ));
        }
    }
    let mut plan = Plan::default();
    for hot in &present.overlays {
        if !wanted.overlays.iter().any(|other| other.mountpoint == hot.mountpoint) {
            plan.detach.push(hot.mountpoint.clone());
        }
    }
    for hot in &wanted.overlays {
        match present.overlays.iter().find(|other| other.mountpoint == hot.mountpoint) {
            None => plan.attach.push(hot.clone()),
            Some(there) if there.path == hot.path && asked(&there.overlay) == asked(&hot.overlay) => {}
            Some(there) if there.path == hot.path && is_live(&there.overlay, &hot.overlay) => {
                plan.change.push(HotPath { slot: there.slot, ..hot.clone() });
            }
            Some(_) => plan.replace.push(hot.clone()),
        }
    }
    let sections = [
        ("sshfs", present.sshfs_options != wanted.sshfs_options),
        ("log", present.log != wanted.log),
        ("telemetry", present.telemetry != wanted.telemetry),
        ("evidence", present.evidence != wanted.evidence),
        ("keeper", present.keeper != wanted.keeper),
    ];
    plan.later = sections.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
    Ok(plan)
}

/// What somebody has asked for; which directory it was found to be is not.
fn asked(config: &OverlayConfig) -> OverlayConfig {
    OverlayConfig { directory: None, ..config.clone() }
}

/// True if a mount can be made the one from the other while it is in use: the kernel is told of some things once only.
fn is_live(present: &OverlayConfig, wanted: &OverlayConfig) -> bool {
    let fixed = |config: &OverlayConfig| {
        let OverlayConfig { subtype, fsname, allow_other, gather, guard, .. } = config.clone();
        (subtype, fsname, allow_other, gather, guard)
    };
    fixed(present) == fixed(wanted)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Source;

    fn config(overlays: &[(&str, &str, OverlayConfig)]) -> DaemonConfig {
        let source = Source::Sshfs { target: "h:d".into() };
        let overlays = overlays.iter().zip(7..).map(|((mountpoint, path, overlay), slot)| HotPath {
            mountpoint: mountpoint.into(),
            path: path.into(),
            slot,
            overlay: overlay.clone(),
        });
        DaemonConfig {
            home: "@box".into(),
            overlays: overlays.collect(),
            ..DaemonConfig::of_one(source, "/x".into(), OverlayConfig::default())
        }
    }

    #[test]
    fn what_is_the_same_is_not_touched() {
        let all = config(&[("/a", "a", OverlayConfig::default()), ("/b", "b", OverlayConfig::default())]);
        let mut other = all.clone();
        // Numbers are the daemon's own.
        other.overlays[0].slot = 99;
        other.overlays.swap(0, 1);
        assert_eq!(plan(&all, &other), Ok(Plan::default()));
    }

    #[test]
    fn overlays_come_go_change_and_are_replaced() {
        let plain = OverlayConfig::default();
        let shown = OverlayConfig { read_only: true, umask: Some(0o27), ..plain.clone() };
        let kind = OverlayConfig { subtype: "sshfs".into(), ..plain.clone() };
        let present = config(&[
            ("/a", "a", plain.clone()),
            ("/b", "b", plain.clone()),
            ("/c", "c", plain.clone()),
            ("/d", "d", plain.clone()),
        ]);
        let wanted =
            config(&[("/b", "b", shown), ("/c", "c", kind), ("/d", "other", plain.clone()), ("/e", "e", plain)]);
        let plan = plan(&present, &wanted).expect("possible");
        let names = |all: &[HotPath]| all.iter().map(|hot| hot.mountpoint.display().to_string()).collect::<Vec<_>>();
        assert_eq!(plan.detach, [Path::new("/a")]);
        assert_eq!(names(&plan.change), ["/b"]);
        assert_eq!(plan.change[0].slot, 8, "it stays the one it is");
        assert_eq!(names(&plan.replace), ["/c", "/d"]);
        assert_eq!(names(&plan.attach), ["/e"]);
    }

    #[test]
    fn another_backing_is_another_daemon() {
        let present = config(&[]);
        let mut wanted = present.clone();
        wanted.source = Source::Sshfs { target: "other:d".into() };
        let words = plan(&present, &wanted).expect_err("refused");
        assert!(words.contains("h:d") && words.contains("other:d"), "{words}");
        let mut wanted = present.clone();
        wanted.sshfs_options = vec!["port=23".into()];
        wanted.log.size += 1;
        assert_eq!(plan(&present, &wanted).expect("possible").later, ["sshfs", "log"]);
    }
}
