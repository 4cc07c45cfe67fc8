//! How long an sshfs and the kernel above it may answer from what they remember, so that `attr_timeout=` holds as a whole.
//!
//! Three caches lie on top of each other: sshfs's own (`dcache_timeout=`, filled by each listing, which makes a walk cheap), the
//! kernel's for the sshfs mount, and the kernel's for the overlay. What the upper ones believe may be as old as the lower ones
//! allow, so their times add up.

use std::time::Duration;

/// Of what is allowed in all, what sshfs's own cache gets: a walk looks at what was listed within seconds.
const SHARE: u32 = 4;
/// Nor more than sshfs takes by itself (sshfs(1)).
const MOST: u64 = 20;
/// libfuse's own value for the kernel above sshfs (mount.fuse3(8)).
const KERNEL: Duration = Duration::from_secs(1);
/// sshfs counts whole seconds and takes the last one for good (cache_getattr in cache.c).
const ROUNDING: Duration = Duration::from_secs(1);
/// sshfs's own value of `dcache_timeout`.
const DEFAULT: u64 = 20;

/// What is cached below the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caches {
    /// Options for sshfs, one `-o` value each.
    pub options: Vec<String>,
    /// Age of the oldest answer that may come from there.
    pub oldest: Duration,
}

impl Caches {
    /// What may be cached if nothing is to be older than `fresh` in all, and there is to be something left of it for the overlay.
    /// What the user has said of sshfs's caches stays; it is then counted as it is.
    pub fn within(fresh: Duration, user: &[String]) -> Caches {
        let share = fresh.as_secs() / u64::from(SHARE);
        let (kernel, mut options) = match share {
            // Too little to be counted in seconds: the two kernels share it.
            0 => (fresh / 2, vec![format!("attr_timeout={0:.3},entry_timeout={0:.3}", (fresh / 2).as_secs_f64())]),
            _ => (KERNEL, Vec::new()),
        };
        let own = match (said(user), share) {
            (Some(seconds), _) => seconds,
            (None, 0) => {
                options.push("dir_cache=no".into());
                0
            }
            (None, _) => {
                options.push(format!("dcache_timeout={}", share.min(MOST)));
                share.min(MOST)
            }
        };
        let own = if own == 0 { Duration::ZERO } else { Duration::from_secs(own) + ROUNDING };
        let options = options.iter().flat_map(|option| option.split(',')).map(str::to_owned).collect();
        Caches { options, oldest: kernel + own }
    }
}

/// Seconds that sshfs's cache may be old if the user has said anything of it.
fn said(user: &[String]) -> Option<u64> {
    let mut found = None;
    for option in user {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name.strip_prefix('d').unwrap_or(name) {
            "ir_cache" | "cache" if value == "no" => return Some(0),
            "ir_cache" | "cache" => found = found.max(Some(DEFAULT)),
            "cache_timeout" | "cache_stat_timeout" | "cache_dir_timeout" | "cache_link_timeout" => {
                found = found.max(value.parse().ok());
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn within(fresh: f64, user: &[&str]) -> Caches {
        Caches::within(
            Duration::from_secs_f64(fresh),
            &user.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn what_is_allowed_is_shared_among_all_caches() {
        let plenty = within(20.0, &[]);
        assert_eq!((plenty.options, plenty.oldest), (vec!["dcache_timeout=5".into()], Duration::from_secs(7)));
        assert_eq!(within(86400.0, &[]).options, ["dcache_timeout=20"]);
        let little = within(1.0, &[]);
        assert_eq!(little.options, ["attr_timeout=0.500", "entry_timeout=0.500", "dir_cache=no"]);
        assert_eq!(little.oldest, Duration::from_millis(500));
        let nothing = within(0.0, &[]);
        assert_eq!(nothing.options, ["attr_timeout=0.000", "entry_timeout=0.000", "dir_cache=no"]);
        assert_eq!(nothing.oldest, Duration::ZERO);
    }

    #[test]
    fn what_the_user_says_of_sshfs_s_caches_stays_and_counts() {
        assert_eq!(within(20.0, &["dcache_stat_timeout=60", "dcache_dir_timeout=3"]).oldest, Duration::from_secs(62));
        assert!(within(20.0, &["cache_timeout=60"]).options.is_empty());
        assert_eq!(within(20.0, &["dir_cache=no", "dcache_timeout=60"]).oldest, KERNEL);
        assert_eq!(within(20.0, &["cache=no"]).oldest, KERNEL);
        assert_eq!(within(20.0, &["dir_cache=yes"]).oldest, Duration::from_secs(22));
    }

    proptest! {
        #[test]
        fn there_is_always_something_left(millis in 0_u64..100_000_000) {
            let fresh = Duration::from_millis(millis);
            prop_assert!(Caches::within(fresh, &[]).oldest <= fresh);
        }
    }
}
