//! `steadfs umount`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{attach, complain, daemons, finish, status};
use crate::backing::mountinfo::{self, Entry};
use crate::daemon::MountError;
use crate::mountpoint::claim::{self, Claim, Holder, Watching};
use crate::mountpoint::{place, sweep};
use crate::rundir;
use crate::telemetry::sockets;
use crate::worker;

/// Arguments of `steadfs umount`.
#[derive(Debug, Clone, clap::Args)]
pub struct UmountArgs {
    /// The hot path; or the name of a `steadfs run`, to unmount all of its overlays and end it.
    pub mountpoint: PathBuf,
    /// Detach now, even if it is in use; what is open goes on until it is closed.
    #[arg(short, long)]
    pub lazy: bool,
}

/// How long a daemon may take to end after the overlay is gone.
const PATIENCE: Duration = Duration::from_secs(15);

/// Unmounts.
pub fn run(args: &UmountArgs) -> ExitCode {
    finish(umount(args))
}

fn umount(args: &UmountArgs) -> Result<(), MountError> {
    let home = daemons::named(&args.mountpoint);
    if home.is_relative() && !args.mountpoint.is_absolute() && !is_path(&args.mountpoint) {
        return end(&home, args.lazy);
    }
    let path = daemons::hot_path(&args.mountpoint)?;
    let shown = path.display();
    if daemons::leads_to(&path).is_some_and(|home| claim::is_alive(&home)) {
        let watching = Watching::of(&path);
        attach::try_detach(&path, args.lazy)?;
        // What is open goes on until it is closed.
        return if args.lazy { Ok(()) } else { wait_for_end(&path, &watching) };
    }
    let entry = mountinfo::at(&path).map_err(place::no_mountinfo)?;
    match (entry, claim::holder(&path)?) {
        (None, Holder::Daemon) => {
            // Unless it is ending already it is still starting; then nobody listens, or it does as it is told.
            let watching = Watching::of(&path);
            let _ = status::umount_request(&path, false);
            wait_for_end(&path, &watching)?;
            // One that was killed meanwhile has cleaned nothing up.
            match claim::holder(&path)? {
                Holder::Left(claim) => clean_up_as(&path, claim).map(drop),
                Holder::Nobody | Holder::Daemon => Ok(()),
            }
        }
        (None, Holder::Nobody) if !worker::is_noted(&path) => Err(MountError::Mount(format!("{shown} is not mounted"))),
        (None, holder) => {
            clean_up(&path, holder)?;
            Err(MountError::Mount(format!("{shown} is not mounted; what an earlier steadfs left behind is gone now")))
        }
        (Some(entry), Holder::Nobody) if entry.fstype != OsStr::new("fuse.steadfs") => Err(MountError::Usage(format!(
            "{shown} is not a mount of steadfs but {}: run umount {shown}",
            describe(&entry)
        ))),
        (Some(entry), Holder::Daemon) if args.lazy => sweep::detach(&entry),
        (Some(_), Holder::Daemon) => {
            let watching = Watching::of(&path);
            ask(&path)?;
            wait_for_end(&path, &watching)
        }
        (Some(entry), holder) => {
            sweep::detach(&entry)?;
            let worker = if clean_up(&path, holder)? { ", and its worker let go" } else { "" };
            complain(&format!("the steadfs of {shown} was gone: its mount has been detached{worker}"));
            Ok(())
        }
    }
}

/// Ends the daemon of that name.
fn end(home: &Path, lazy: bool) -> Result<(), MountError> {
    let shown = home.display();
    if !claim::is_own(home)? || !claim::is_alive(home) {
        return Err(MountError::Mount(format!("no steadfs of the name {shown} runs: see steadfs status")));
    }
    let watching = Watching::of(home);
    status::umount_request(home, lazy).map_err(|text| MountError::Mount(format!("{shown}: {text}")))?;
    // What is open goes on until it is closed.
    if lazy { Ok(()) } else { wait_for_end(home, &watching) }
}

/// True for what can only be a path.
fn is_path(given: &Path) -> bool {
    given.components().count() > 1 || given.as_os_str().as_encoded_bytes().contains(&b'/')
}

/// Does what a daemon that was killed can no longer do: lets the worker go, and removes what was left. True if there was
/// a worker to let go.
fn clean_up(path: &Path, holder: Holder) -> Result<bool, MountError> {
    // Held meanwhile, so that no daemon begins.
    clean_up_as(
        path,
        match holder {
            Holder::Left(claim) => claim,
            Holder::Nobody | Holder::Daemon => Claim::take(path)?,
        },
    )
}

/// The same for whoever has the claim.
pub fn clean_up_as(path: &Path, claim: Claim) -> Result<bool, MountError> {
    let worker = worker::let_go(path).map_err(MountError::Mount);
    // What can be removed is, whatever became of the worker.
    claim.sweep()?;
    worker
}

fn ask(path: &Path) -> Result<(), MountError> {
    let shown = path.display();
    // Told apart from a refusal: nobody listens while the daemon starts or ends.
    if sockets::connect(&rundir::control_socket(path)).is_err() {
        return match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(busy(path)),
            Err(errno) => Err(MountError::Mount(format!("{shown}: its daemon does not answer, and: {}", errno.desc()))),
        };
    }
    status::umount_request(path, false).map_err(|text| match text.to_ascii_lowercase().contains("busy") {
        true => busy(path),
        false => MountError::Mount(format!("{shown}: {text}")),
    })
}

fn busy(path: &Path) -> MountError {
    let shown = path.display();
    MountError::Mount(format!("{shown}: target is busy: see fuser -vm {shown}, or run steadfs umount --lazy {shown}"))
}

fn wait_for_end(path: &Path, watching: &Watching) -> Result<(), MountError> {
    let until = Instant::now() + PATIENCE;
    while watching.is_alive() {
        if Instant::now() >= until {
            let shown = path.display();
            return Err(MountError::Mount(format!(
                "the daemon of {shown} has not ended yet: see steadfs status {shown}"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn describe(entry: &Entry) -> String {
    format!("{} ({})", entry.fstype.to_string_lossy(), entry.source.to_string_lossy())
}
