//! `steadfs umount`.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::mount::{claim, place};
use super::{complain, exit_code, status};
use crate::backing::mountinfo::{self, Entry};
use crate::daemon::MountError;
use crate::rundir;

/// Arguments of `steadfs umount`.
#[derive(Debug, Clone, clap::Args)]
pub struct UmountArgs {
    /// The hot path.
    pub mountpoint: PathBuf,
    /// Detach now, even if it is in use; what is open goes on until it is closed.
    #[arg(short, long)]
    pub lazy: bool,
}

/// How long a daemon may take to end after the overlay is gone.
const PATIENCE: Duration = Duration::from_secs(15);

/// Unmounts.
pub fn run(args: &UmountArgs) -> ExitCode {
    match umount(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(exit_code(&error))
        }
    }
}

fn umount(args: &UmountArgs) -> Result<(), MountError> {
    let path = place::resolve(&args.mountpoint)?;
    let shown = path.display();
    let entry = mountinfo::at(&path).map_err(place::no_mountinfo)?;
    let alive = claim::is_alive(&path);
    let known = alive || rundir::of(&path).exists();
    match entry {
        None if alive => wait_for_end(&path),
        None if known => {
            sweep(&path);
            Err(MountError::Mount(format!("{shown} is not mounted; what an earlier steadfs left behind is gone now")))
        }
        None => Err(MountError::Mount(format!("{shown} is not mounted"))),
        Some(entry) if !known && entry.fstype != OsStr::new("fuse.steadfs") => Err(MountError::Usage(format!(
            "{shown} is not a mount of steadfs but {}: run umount {shown}",
            describe(&entry)
        ))),
        Some(_) if !alive => {
            detach(&path)?;
            sweep(&path);
            complain(&format!("the steadfs of {shown} was gone: its mount has been detached"));
            Ok(())
        }
        Some(_) if args.lazy => detach(&path),
        Some(_) => {
            ask(&path)?;
            wait_for_end(&path)
        }
    }
}

fn ask(path: &Path) -> Result<(), MountError> {
    let shown = path.display();
    // Told apart from a refusal: nobody listens while the daemon starts or ends.
    if UnixStream::connect(rundir::control_socket(path)).is_err() {
        return match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(busy(path)),
            Err(errno) => Err(MountError::Mount(format!("{shown}: its daemon does not answer, and: {}", errno.desc()))),
        };
    }
    status::umount_request(path).map_err(|text| match text.to_ascii_lowercase().contains("busy") {
        true => busy(path),
        false => MountError::Mount(format!("{shown}: {text}")),
    })
}

fn busy(path: &Path) -> MountError {
    let shown = path.display();
    MountError::Mount(format!("{shown}: target is busy: see fuser -vm {shown}, or run steadfs umount --lazy {shown}"))
}

fn detach(path: &Path) -> Result<(), MountError> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    let Err(errno) = umount2(path, flags) else { return Ok(()) };
    if errno != Errno::EPERM {
        return Err(MountError::Mount(format!("{}: {}", path.display(), errno.desc())));
    }
    // Others than root go through the helper that mounted.
    let output = std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(path).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(MountError::Mount(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(MountError::System(format!("fusermount3: {error}: run apt install fuse3"))),
    }
}

fn wait_for_end(path: &Path) -> Result<(), MountError> {
    let until = Instant::now() + PATIENCE;
    while claim::is_alive(path) {
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

/// Removes what a killed daemon left: its private mounts are detached first, and only empty directories and plain
/// files of the runtime directory itself are removed, so that nothing on a mount can be touched.
fn sweep(path: &Path) {
    let dir = rundir::of(path);
    let Ok(table) = mountinfo::entries() else { return };
    for entry in table.iter().rev().filter(|entry| entry.mountpoint.starts_with(&dir)) {
        if let Err(error) = detach(&entry.mountpoint) {
            complain(&error.to_string());
            return;
        }
    }
    let Ok(entries) = std::fs::read_dir(&dir) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // What cannot be removed shows as the directory that stays.
        let _ = if is_dir { std::fs::remove_dir(entry.path()) } else { std::fs::remove_file(entry.path()) };
    }
    if let Err(error) = std::fs::remove_dir(&dir) {
        complain(&format!("{}: {error}", dir.display()));
    }
}

fn describe(entry: &Entry) -> String {
    format!("{} ({})", entry.fstype.to_string_lossy(), entry.source.to_string_lossy())
}
