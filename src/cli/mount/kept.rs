//! A mount whose daemon is a process of its own that this one keeps.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::Prepared;
use crate::cli::keeper;
use crate::config::DaemonConfig;
use crate::daemon::MountError;
use crate::daemon::stored::{self, CLAIM, CONFIG};
use crate::keeper::executable::Executable;
use crate::keeper::is_device;
use crate::keeper::notify::Manager;
use crate::keeper::run::{self, Setup};
use crate::mountpoint::claim::{self, Claim};

/// Where the daemon logs.
pub enum Log {
    /// To stderr.
    Stderr,
    /// To stderr, in detail.
    Debug,
    /// Into that file, once the overlay answers.
    File(PathBuf),
}

/// Keeps a daemon until the overlay is gone. Returns the exit code of the last one, which has said what was wrong.
pub(super) fn run(prepared: Prepared, log: &Log, ready: impl FnOnce() + 'static) -> Result<u8, MountError> {
    let Prepared { config, notes, claim } = prepared;
    for note in notes {
        tracing::debug!("{note}");
    }
    let lock = claim.as_fd().try_clone_to_owned().map_err(system)?;
    let held = vec![(CONFIG.to_owned(), stored::write_config(&config).map_err(system)?), (CLAIM.to_owned(), lock)];
    keep(&config, Some(claim), held, log, ready)
}

/// A mount whose keeper and daemon have both died, and whose descriptors a service manager has kept.
pub struct Orphaned {
    /// As it was mounted: what the command line says now counts at the next mount.
    config: DaemonConfig,
    claim: Option<Claim>,
    held: Vec<(String, OwnedFd)>,
}

impl Orphaned {
    /// Whether this is one. If not, the manager is told to keep nothing of it, since the lock on the runtime directory may
    /// be among it. The mount is not touched: it hangs until somebody serves it.
    pub fn of(held: Vec<(String, OwnedFd)>) -> Option<Orphaned> {
        if held.is_empty() {
            return None;
        }
        let get = |wanted: &str| held.iter().find(|(name, _)| name == wanted).map(|(_, descriptor)| descriptor);
        let is_served = held.iter().any(|(name, _)| is_device(name));
        let config = get(CONFIG).filter(|_| is_served).map(stored::read_config);
        let lock = get(CLAIM).and_then(|lock| lock.try_clone().ok());
        if let Some(Ok(config)) = config {
            let claim = lock.map(|lock| Claim::of(lock, &config.home));
            return Some(Orphaned { config, claim, held });
        }
        tracing::warn!("what the service manager kept is not enough to go on with; mounting anew");
        lock.iter().for_each(claim::unlock);
        let manager = Manager::of_environment();
        held.iter().for_each(|(name, _)| manager.forget(name));
        None
    }

    /// Goes on with it, as [`run`] does.
    pub fn run(self, log: &Log, ready: impl FnOnce() + 'static) -> Result<u8, MountError> {
        let Orphaned { config, claim, held } = self;
        tracing::warn!(mountpoint = %config.home.display(), "keeper and daemon died; going on in their place");
        keep(&config, claim, held, log, ready)
    }
}

fn system(error: io::Error) -> MountError {
    MountError::System(format!("cannot keep a daemon: {error}"))
}

fn keep(
    config: &DaemonConfig,
    claim: Option<Claim>,
    held: Vec<(String, OwnedFd)>,
    log: &Log,
    ready: impl FnOnce() + 'static,
) -> Result<u8, MountError> {
    let mut arguments: Vec<OsString> = vec!["daemon".into()];
    match log {
        Log::Stderr => {}
        Log::Debug => arguments.push("--debug".into()),
        Log::File(path) => arguments.extend(["--log".into(), path.into()]),
    }
    crate::daemon::limits::raise_descriptors();
    let setup = Setup {
        executable: Executable::current().map_err(system)?,
        arguments: arguments.clone(),
        policy: keeper::policy(&config.keeper),
        keeper: keeper::again(&config.keeper, &config.home, &arguments),
        held,
        ready: Some(Box::new(ready)),
    };
    let code = run::run(setup).map_err(system);
    // Of a keeper that failed the daemon may live.
    if let (Ok(_), Some(claim)) = (&code, claim) {
        keeper::clean_up(&config.home, claim);
    }
    code
}
