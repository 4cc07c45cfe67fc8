//! `steadfs daemon`, which only a keeper starts: see [`crate::keeper`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::mount::logging;
use super::{exit_code, finish};
use crate::config::DaemonConfig;
use crate::daemon::link::{Link, Request, Start};
use crate::daemon::stored::{CONFIG, read_config};
use crate::daemon::{self, MountError};
use crate::keeper::message::Why;
use crate::mountpoint::claim;
use crate::rundir;

/// Arguments of `steadfs daemon`.
#[derive(Debug, Clone, clap::Args)]
pub struct DaemonArgs {
    /// Log into this file, and to stderr until the overlay answers.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Log in detail.
    #[arg(long)]
    debug: bool,
}

/// Serves a mount.
pub fn run(args: DaemonArgs) -> ExitCode {
    finish(serve(args))
}

fn serve(args: DaemonArgs) -> Result<(), MountError> {
    let system = |error: std::io::Error| MountError::System(format!("the daemon: {error}"));
    let detached = Arc::new(AtomicBool::new(false));
    let log = match &args.log {
        Some(path) => logging::to_file(path, Arc::clone(&detached)).map_err(|error| (path, error)).map(Some),
        None => {
            logging::to_stderr(args.debug);
            Ok(None)
        }
    };
    // A full disk must not keep a successor from serving.
    let log = log.unwrap_or_else(|(path, error)| {
        logging::to_stderr(args.debug);
        tracing::error!(%error, path = %path.display(), "cannot log there");
        None
    });
    // What is handed over needs some already.
    daemon::limits::raise_descriptors();
    std::env::set_current_dir("/").map_err(system)?;
    // It was run through a descriptor, which would be its name.
    let _ = nix::sys::prctl::set_name(c"steadfs");
    let accepted = Link::accept().map_err(system)?;
    let handshake = accepted.ok_or_else(|| MountError::Usage("only steadfs itself starts `steadfs daemon`".into()))?;
    let life = daemon::Life::default();
    let asked = life.clone();
    let heed = Box::new(move |request| heed(&asked, request));
    let (link, start) = handshake.begin(life.alive(), heed, None).map_err(system)?;
    let config = read(&start).map_err(|error| MountError::System(format!("its configuration: {error}")))?;
    if start.why == Why::Successor {
        detached.store(true, Ordering::SeqCst);
    }
    let ready = move || {
        detached.store(true, Ordering::SeqCst);
        if let Some(Err(error)) = log.map(|log| log.to_stderr()) {
            tracing::warn!(%error, "cannot leave the terminal");
        }
    };
    let (last, first, mountpoint) = (link.clone(), start.why == Why::First, config.home.clone());
    let result = daemon::run_kept(config, life, link, start, ready);
    match &result {
        Ok(()) => {
            // Before the keeper is told, which may be dead already.
            claim::remove(&rundir::of(&mountpoint));
            last.ended(0);
        }
        // There is nothing to go on with.
        Err(error) if first => last.ended(exit_code(error)),
        // A successor that failed leaves everything to the next, or to the old executable if this one was new.
        Err(_) => {}
    }
    result
}

/// What the keeper wants.
fn heed(life: &daemon::Life, request: Request) {
    match request {
        Request::Yield => life.end(),
        Request::Upgraded { accepted: true, .. } => tracing::info!("this is the new executable"),
        Request::Upgraded { accepted: false, reason } => tracing::error!(reason, "the upgrade was taken back"),
    }
}

fn read(start: &Start) -> std::io::Result<DaemonConfig> {
    let found = start.held.iter().find(|(name, _)| name == CONFIG);
    let (_, descriptor) = found.ok_or_else(|| std::io::Error::other("the keeper has none"))?;
    read_config(descriptor)
}
