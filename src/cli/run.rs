//! `steadfs run`: one backing and any number of overlays, as a file says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::file::{self, Loaded};
use super::mount::{self, Prepared, machine};
use super::{complain, exit_code};
use crate::config::{DaemonConfig, Source};
use crate::daemon::MountError;
use crate::mountpoint::claim::Claim;
use crate::mountpoint::{dead, place};

/// Arguments of `steadfs run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// The configuration: see steadfs.toml(5).
    pub config: PathBuf,
    /// Stay in the foreground and log to stderr; tells systemd when it is ready.
    #[arg(short, long)]
    pub foreground: bool,
    /// Log in detail; implies --foreground.
    #[arg(short, long)]
    pub debug: bool,
}

/// Mounts all overlays. In the background the process returns when they answer. Exit codes: those of mount(8); 78 for mistakes in
/// the file, 66 if it cannot be read (sysexits.h).
pub fn run(args: &RunArgs) -> ExitCode {
    mount::start(args.foreground, args.debug, || prepare(&args.config))
}

fn prepare(path: &Path) -> Result<Prepared, ExitCode> {
    let Loaded { config, nonempty, notes, .. } = file::load(path).map_err(|error| {
        complain(&error.to_string());
        ExitCode::from(error.exit_code())
    })?;
    checked(config, |mountpoint| nonempty.contains(mountpoint), notes).map_err(|error| {
        complain(&error.to_string());
        ExitCode::from(exit_code(&error))
    })
}

/// Everything that can be found out before anything is changed, but for dead mounts of ours that are in the way.
fn checked(
    config: DaemonConfig,
    nonempty: impl Fn(&Path) -> bool,
    mut notes: Vec<String>,
) -> Result<Prepared, MountError> {
    let config = resolved(config)?;
    if let Source::Sshfs { .. } = config.source {
        machine::sshfs(&config.sshfs_options)?;
    }
    machine::fuse(config.overlays.iter().any(|hot| hot.overlay.allow_other))?;
    for hot in &config.overlays {
        if let Source::Dir { path } = &config.source {
            place::check_source(path, &hot.mountpoint)?;
        }
        if dead::clear(&hot.mountpoint, &hot.overlay.subtype)? {
            notes.push(format!("the dead mount of an earlier steadfs on {} is detached", hot.mountpoint.display()));
        }
        place::check(&hot.mountpoint, nonempty(&hot.mountpoint))?;
    }
    let claim = Claim::take(&config.home)?;
    Ok(Prepared { config, notes, claim })
}

/// With links resolved in all mountpoints, and a number for each overlay.
pub(super) fn resolved(mut config: DaemonConfig) -> Result<DaemonConfig, MountError> {
    let mut done = Vec::with_capacity(config.overlays.len());
    for (hot, slot) in std::mem::take(&mut config.overlays).into_iter().zip(1..) {
        let mountpoint = place::resolve(&hot.mountpoint)?;
        let hot = crate::config::HotPath { mountpoint, slot, ..hot };
        // Links may have led to the same place.
        crate::daemon::overlaps(&done, &hot)?;
        done.push(hot);
    }
    config.overlays = done;
    Ok(config)
}
