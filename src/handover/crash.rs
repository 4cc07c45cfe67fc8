//! Dying on purpose: `STEADFS_CRASH=N[:STAGE]` in the environment kills the process (SIGKILL) at its N-th append to the
//! tape, so that a test can try every one in turn. Debug builds only; in a release build nothing of it is left.
//!
//! N counts from 1 over all tapes of the process, with the records that a compaction writes. STAGE is `before` (nothing is
//! written), `middle` (the record's header is, its payload is not), `late` (all of it is, but it is not published) or
//! `after` (it is published); `middle` if it is not given.

/// Where in an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Before,
    Middle,
    Late,
    After,
}

#[cfg(not(debug_assertions))]
pub(super) fn point(_: Stage) {}

/// Dies here if that is what was asked for.
#[cfg(debug_assertions)]
pub(super) fn point(stage: Stage) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    static WANTED: OnceLock<Option<(u64, Stage)>> = OnceLock::new();
    static APPENDS: AtomicU64 = AtomicU64::new(0);

    let Some((number, at)) = WANTED.get_or_init(|| parse(&std::env::var("STEADFS_CRASH").ok()?)) else { return };
    let now = match stage {
        Stage::Before => APPENDS.fetch_add(1, Relaxed) + 1,
        _ => APPENDS.load(Relaxed),
    };
    if (now, stage) == (*number, *at) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(any(debug_assertions, test))]
fn parse(text: &str) -> Option<(u64, Stage)> {
    let (number, stage) = text.split_once(':').unwrap_or((text, "middle"));
    let stage = match stage {
        "before" => Stage::Before,
        "middle" => Stage::Middle,
        "late" => Stage::Late,
        "after" => Stage::After,
        _ => return None,
    };
    Some((number.parse().ok()?, stage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_die_is_a_number_and_a_stage() {
        assert_eq!(parse("3"), Some((3, Stage::Middle)));
        assert_eq!(parse("12:after"), Some((12, Stage::After)));
        assert_eq!((parse("x"), parse("1:never")), (None, None));
    }
}
