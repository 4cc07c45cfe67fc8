//! A mount whose daemon is a process of its own that this one keeps.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Prepared;
use crate::cli::daemon::CONFIG;
use crate::cli::keeper;
use crate::daemon::MountError;
use crate::keeper::executable::Executable;
use crate::keeper::run::{self, Setup};

/// Name under which the lock on the runtime directory is held, so that it lasts as long as any of the processes does.
const CLAIM: &str = "claim";

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
pub fn run(prepared: Prepared, log: &Log, ready: impl FnOnce() + 'static) -> Result<u8, MountError> {
    let Prepared { config, notes, claim } = prepared;
    for note in notes {
        tracing::debug!("{note}");
    }
    let system = |error: io::Error| MountError::System(format!("cannot keep a daemon: {error}"));
    let mut arguments: Vec<OsString> = vec!["daemon".into()];
    match log {
        Log::Stderr => {}
        Log::Debug => arguments.push("--debug".into()),
        Log::File(path) => arguments.extend(["--log".into(), path.into()]),
    }
    let mountpoint = config.mountpoint.clone();
    let setup = Setup {
        executable: Executable::current().map_err(system)?,
        arguments: arguments.clone(),
        policy: keeper::policy(&config.keeper),
        keeper: keeper::again(&config.keeper, &config.mountpoint, &arguments),
        held: vec![
            (CONFIG.to_owned(), written(&serde_json::to_vec(&config).map_err(|e| system(e.into()))?).map_err(system)?),
            (CLAIM.to_owned(), claim.as_fd().try_clone_to_owned().map_err(system)?),
        ],
        ready: Some(Box::new(ready)),
    };
    let code = run::run(setup).map_err(system);
    keeper::clean_up(&mountpoint, claim);
    code
}

fn written(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"steadfs-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}
