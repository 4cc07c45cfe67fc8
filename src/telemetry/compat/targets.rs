//! Which hot paths are well, in the other watchdog's terms: an errno each.

use std::time::Duration;

use nix::errno::Errno;

use crate::config::CallPolicy;
use crate::supervisor::Snapshot;
use crate::telemetry::overlays::{Place, Seen};

/// A hot path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// It.
    pub path: String,
    /// What whoever uses it gets; none if it is well.
    pub errno: Option<Errno>,
}

/// All hot paths. Not well is one whose mount is gone, though the local directory below can be read; one that something else
/// is mounted on; and each in an outage, whatever that began with: silence and EIO no less than ENOTCONN.
pub fn targets(overlays: &[Seen], snapshot: &Snapshot, outage: Duration, calls: &CallPolicy) -> Vec<Target> {
    let all = backing(snapshot, outage, calls);
    let target = |seen: &Seen| Target {
        path: seen.mountpoint.display().to_string(),
        errno: match seen.place {
            Place::Overlay => all,
            // What a job gets that still has its files open.
            Place::Nothing => Some(Errno::ENOTCONN),
            Place::Other => Some(Errno::ESTALE),
        },
    };
    overlays.iter().map(target).collect()
}

/// What calls that need the backing get at present; `outage` is the age of the outage.
pub fn backing(snapshot: &Snapshot, outage: Duration, calls: &CallPolicy) -> Option<Errno> {
    let waits = outage < calls.deadline + calls.hold;
    match snapshot.state {
        "live" | "suspect" => None,
        _ if waits => Some(Errno::ETIMEDOUT),
        _ => Some(calls.outage_errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::Counts;

    #[test]
    fn whatever_is_wrong_is_seen() {
        let calls = CallPolicy { outage_errno: Errno::EIO, ..CallPolicy::default() };
        let seen = |place| Seen { mountpoint: "/hot".into(), counts: Counts::default(), place };
        let errno = |state, place, age| {
            let snapshot = Snapshot { state, ..Snapshot::default() };
            targets(&[seen(place)], &snapshot, Duration::from_secs(age), &calls)[0].errno
        };
        for state in ["live", "suspect"] {
            assert_eq!(errno(state, Place::Overlay, 0), None);
            assert_eq!(errno(state, Place::Nothing, 0), Some(Errno::ENOTCONN), "the empty directory below");
            assert_eq!(errno(state, Place::Other, 0), Some(Errno::ESTALE), "a wrong filesystem");
        }
        for state in
            ["adopting", "reaching", "starting", "restoring", "retiring", "waiting", "held", "halted", "stopping"]
        {
            assert_eq!(errno(state, Place::Overlay, 4), Some(Errno::ETIMEDOUT), "{state}: callers hang");
            assert_eq!(errno(state, Place::Overlay, 5), Some(Errno::EIO), "{state}: callers fail");
        }
    }
}
