//! Dying on purpose: `STEADFS_CRASH=N[:STAGE]` in the environment kills the process (SIGKILL) at its N-th append to the
//! tape, so that a test can try every one in turn. Debug builds only; in a release build nothing of it is left.
//!
//! N counts from 1 over all tapes of the process, with the records that a compaction writes. STAGE is `before` (nothing is
//! written), `middle` (the record's header is, its payload is not), `late` (all of it is, but it is not published) or
//! `after` (it is published); `middle` if it is not given.
//!
//! `STEADFS_CRASH=/FILE` reaches successors too: whoever appends takes the order from that file and removes it, so that
//! each order kills one daemon. N counts from there on. Of several orders with blanks between them the first is taken and
//! the others are left when it has been carried out: they are for the successor. The order `count` kills nobody: how many
//! appends there were since is kept in `/FILE.count`.

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

#[cfg(debug_assertions)]
pub(super) use orders::point;

#[cfg(debug_assertions)]
mod orders {
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use parking_lot::Mutex;

    use super::{Stage, parse};

    /// Where orders come from.
    enum Source {
        Environment(Option<(u64, Stage)>),
        File(PathBuf),
    }

    /// What is to be done, and how far that has come.
    #[derive(Default)]
    struct Present {
        order: Option<Order>,
        appends: u64,
    }

    enum Order {
        Count,
        Die { at: (u64, Stage), rest: String },
    }

    /// Dies here if that is what was asked for.
    pub(in super::super) fn point(stage: Stage) {
        static SOURCE: OnceLock<Option<Source>> = OnceLock::new();
        static APPENDS: AtomicU64 = AtomicU64::new(0);
        static PRESENT: Mutex<Present> = Mutex::new(Present { order: None, appends: 0 });

        let source = SOURCE.get_or_init(|| {
            let text = std::env::var("STEADFS_CRASH").ok()?;
            let file = text.starts_with('/');
            Some(if file { Source::File(text.into()) } else { Source::Environment(parse(&text)) })
        });
        match source {
            None => {}
            Some(Source::Environment(wanted)) => {
                let now = match stage {
                    Stage::Before => APPENDS.fetch_add(1, Relaxed) + 1,
                    _ => APPENDS.load(Relaxed),
                };
                if *wanted == Some((now, stage)) {
                    die();
                }
            }
            Some(Source::File(path)) => PRESENT.lock().pass(path, stage),
        }
    }

    impl Present {
        fn pass(&mut self, path: &Path, stage: Stage) {
            if stage == Stage::Before {
                if let Some(order) = take(path) {
                    *self = Present { order: Some(order), appends: 0 };
                }
                self.appends += 1;
            }
            match &self.order {
                Some(Order::Count) if stage == Stage::After => {
                    let _ = std::fs::write(path.with_extension("count"), self.appends.to_string());
                }
                Some(Order::Die { at, rest }) if *at == (self.appends, stage) => {
                    if !rest.is_empty() {
                        let _ = std::fs::write(path, rest);
                    }
                    die();
                }
                _ => {}
            }
        }
    }

    fn take(path: &Path) -> Option<Order> {
        let text = std::fs::read_to_string(path).ok()?;
        let (first, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let order = match first {
            "count" => Order::Count,
            first => Order::Die { at: parse(first)?, rest: rest.to_owned() },
        };
        std::fs::remove_file(path).ok()?;
        Some(order)
    }

    fn die() {
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
