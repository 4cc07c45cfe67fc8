//! What the canary has from an overlay that it is to be like: the times and sizes of that overlay and of its daemon, which decide
//! how soon a fault is noticed and what programs see of it. Names, paths, workers and permits stay production's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{daemons, options, status};
use crate::config::DaemonConfig;
use crate::plain::plain;

/// The `-o` options of a canary like the overlay at `given`, which one of these daemons must have. The error says which overlays
/// there are.
pub fn options(homes: &[PathBuf], given: &Path) -> Result<Vec<String>, String> {
    let asked = homes.iter().map(|home| status::config(home).map_err(|error| format!("{}: {error}", home.display())));
    let (configs, silent): (Vec<_>, Vec<_>) = asked.partition(Result::is_ok);
    let configs: Vec<DaemonConfig> = configs.into_iter().flatten().collect();
    let hot = daemons::hot_path(given).unwrap_or_else(|_| given.to_owned());
    find(&configs, &hot).map_err(|words| {
        let silent =
            silent.into_iter().filter_map(Result::err).map(|error| format!("; no answer from {}", plain(&error)));
        words + &silent.collect::<String>()
    })
}

/// How long these options let calls and starts of sshfs wait.
pub fn allowed(options: &[String]) -> Duration {
    let read = options::parse(options.iter().map(String::as_str)).unwrap_or_default();
    read.calls.deadline + read.calls.hold + read.repair.backoff_max + read.repair.start_deadline
}

fn find(configs: &[DaemonConfig], hot: &Path) -> Result<Vec<String>, String> {
    let overlays = || configs.iter().flat_map(|config| config.overlays.iter().map(move |overlay| (config, overlay)));
    match overlays().find(|(_, overlay)| overlay.mountpoint == hot) {
        Some((config, overlay)) => Ok(options::times_and_sizes(config, &overlay.overlay)),
        None => {
            let all: Vec<String> = overlays().map(|(_, overlay)| overlay.mountpoint.display().to_string()).collect();
            let there = if all.is_empty() { "there is none".into() } else { format!("there are {}", all.join(", ")) };
            Err(format!("--like {} is no overlay: {there}", hot.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallPolicy, HotPath, OverlayConfig, Source};

    fn config() -> DaemonConfig {
        let hot = |path: &str, seconds| HotPath {
            mountpoint: path.into(),
            path: path.trim_start_matches('/').into(),
            slot: 1,
            overlay: OverlayConfig { attr_timeout: Duration::from_secs(seconds), ..OverlayConfig::default() },
        };
        let calls = CallPolicy {
            deadline: Duration::from_millis(1500),
            outage_errno: nix::errno::Errno::EIO,
            ..CallPolicy::default()
        };
        DaemonConfig {
            overlays: vec![hot("/a", 7), hot("/b", 9)],
            calls,
            ..DaemonConfig::of_one(Source::Sshfs { target: "h:".into() }, "@box".into(), OverlayConfig::default())
        }
    }

    #[test]
    fn the_canary_gets_the_times_and_sizes_of_the_one_that_is_named() {
        let config = config();
        let given = find(std::slice::from_ref(&config), Path::new("/b")).expect("there is one");
        let read = options::parse(given.iter().map(String::as_str)).expect("they are options");
        assert_eq!((read.calls, read.repair, read.log), (config.calls, config.repair, config.log.clone()));
        assert_eq!(read.overlay.attr_timeout, Duration::from_secs(9));
        assert_eq!(read.overlay.subtype, "steadfs", "names stay production's");
        let waits = allowed(&given);
        assert_eq!(waits, config.calls.deadline + config.repair.backoff_max + config.repair.start_deadline);
    }

    #[test]
    fn an_unknown_one_is_refused_with_those_there_are() {
        let said = find(&[config()], Path::new("/c")).expect_err("there is none");
        assert_eq!(said, "--like /c is no overlay: there are /a, /b");
    }
}
