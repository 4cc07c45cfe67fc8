//! What holds a repair back, in words, with the remedy.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{EnableLook, HeldBy, Hold, LockLook, Permit, Sight};

const ANYWAY: &str = "or `steadfs recover --apply`";

impl Permit {
    /// One line about a hold that [`Permit::holds`] has found.
    pub fn describe(&self, hold: Hold, now: Instant, sight: &Sight) -> String {
        let config = self.config();
        let ago = |at: Instant| secs(now.saturating_duration_since(at));
        let shown = |path: &Option<std::path::PathBuf>| path.as_deref().unwrap_or(Path::new("?")).display().to_string();
        let by = match hold.by {
            HeldBy::DeployLock => {
                let path = shown(&config.deploy_lock);
                let how = match self.lock.as_ref().map(|seen| &seen.what) {
                    Some(LockLook::Unprobed { why, .. }) => {
                        let left = hold.until.map_or(0, |until| secs(until.saturating_duration_since(now)));
                        format!("it cannot be probed: {why}; it counts for another {left} s")
                    }
                    _ => format!("held for {} s", self.lock_held_since().map_or(0, ago)),
                };
                format!("deploy_lock {path} ({how}): finish the deploy,")
            }
            HeldBy::EnableFile => {
                let path = shown(&config.enable_file);
                match self.enable.as_ref().map(|seen| &seen.what) {
                    Some(EnableLook::Unknown(why)) => {
                        format!("enable_file {path}, which cannot be seen ({why}): mend it,")
                    }
                    _ => format!("enable_file {path}, which is not there: make it,"),
                }
            }
            HeldBy::Confirmations => {
                let looks = self.confirmed.map_or(1, |(looks, _)| looks);
                let wanted = config.confirmations;
                format!("confirmations ({looks} of {wanted} looks have found the backing dead): wait,")
            }
            HeldBy::MinAge => {
                let (age, wanted) = (ago(sight.outage_since), secs(config.min_age));
                format!("min_age (the outage is {age} s old and has to be {wanted} s): wait,")
            }
            HeldBy::CoolDown => {
                let (last, wanted) = (self.starts.last().map_or(0, |&last| ago(last)), secs(config.cool_down));
                format!("cool_down (the last repair started {last} s ago, the next may after {wanted} s): wait,")
            }
            HeldBy::HourlyLimit => {
                format!("max_per_hour ({} within an hour): find out what dies so often, wait,", config.max_per_hour)
            }
            HeldBy::DailyLimit => {
                format!("max_per_day ({} within 24 hours): find out what dies so often, wait,", config.max_per_day)
            }
        };
        format!("held back by {by} {ANYWAY}")
    }
}

fn secs(duration: Duration) -> u64 {
    duration.as_secs()
}
