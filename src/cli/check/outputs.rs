//! Where steadfs writes, and what holds its repairs back.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::report::Report;
use super::tool::{self, within};
use crate::config::{CompatConfig, DaemonConfig, MetricsListen, PermitConfig};
use crate::{spool, statedir};

/// What a look at a path says that hangs.
pub const HANGS: &str = "does not answer: it may lie on a mount that is dead";

pub fn check(config: &DaemonConfig, serving: bool, report: &mut Report) {
    let spool_dir = config.log.spool_dir.clone();
    let shown = spool_dir.clone().unwrap_or_else(statedir::base);
    look(format!("spool_dir {}", shown.display()), report, move || match spool_dir {
        Some(dir) => spool::check_directory(&dir).and_then(|()| directory_or_new(&dir)),
        None => Ok("below the state directory".into()),
    });
    let telemetry = &config.telemetry;
    if let Some(dir) = telemetry.textfile.clone() {
        look(format!("textfile {}", dir.display()), report, move || directory(&dir));
    }
    let compat = telemetry.compat.clone().map(|CompatConfig::Healtharchive { state }| state);
    for (name, path) in [("journal", telemetry.journal.clone()), ("compat_state", compat)] {
        if let Some(path) = path {
            look(format!("{name} {}", path.display()), report, move || file(&path));
        }
    }
    if let Some(dir) = config.evidence.dir.clone() {
        look(format!("evidence {}", dir.display()), report, move || directory_or_new(&dir));
    }
    if let Some(path) = config.evidence.manifest.clone() {
        let what = format!("evidence manifest {}", path.display());
        let read = move || File::open(path).map(|_| "can be read".into());
        look(what, report, move || read().map_err(|error: io::Error| format!("{error}: make it, or remove the key")));
    }
    if let Some(listen) = telemetry.listen.clone() {
        metrics(listen, serving, report);
    }
    permit(&config.permit, report);
}

fn look(what: String, report: &mut Report, look: impl FnOnce() -> Result<String, String> + Send + 'static) {
    report.take(what, within(tool::LOOK, look).unwrap_or_else(|| Err(HANGS.into())));
}

/// A directory that exists and that we may make files in.
fn directory(dir: &Path) -> Result<String, String> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => writable(dir).map(|()| "can be written".into()),
        Ok(_) => Err("is not a directory: give another".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("does not exist: run mkdir -p {}", dir.display()))
        }
        Err(error) => Err(format!("{error}: give another")),
    }
}

/// One that exists, or whose parent does.
fn directory_or_new(dir: &Path) -> Result<String, String> {
    if dir.symlink_metadata().is_ok() { directory(dir) } else { parent(dir).map(|()| "can be made".into()) }
}

/// A file that we may write, or make.
fn file(path: &Path) -> Result<String, String> {
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => writable(path).map(|()| "can be written".into()),
        Ok(found) if found.is_symlink() => Err("is a symbolic link: give the file itself".into()),
        Ok(_) => Err("is not a file: give another".into()),
        Err(_) => parent(path).map(|()| "can be made".into()),
    }
}

fn parent(path: &Path) -> Result<(), String> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    directory(parent).map(|_| ()).map_err(|words| format!("{} {words}", parent.display()))
}

/// True for root but on a filesystem that is mounted read-only.
pub fn writable(path: &Path) -> Result<(), String> {
    match access(path, AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(Errno::EROFS) => Err(format!("{} is on a read-only filesystem: give another", path.display())),
        Err(Errno::EACCES) => {
            Err(format!("{} cannot be written by this user: change its owner or mode", path.display()))
        }
        Err(errno) => Err(format!("{}: {}", path.display(), errno.desc())),
    }
}

fn metrics(listen: MetricsListen, serving: bool, report: &mut Report) {
    match listen {
        MetricsListen::Unix(path) => look(format!("metrics unix:{}", path.display()), report, move || {
            parent(&path).map(|()| "can be made".into())
        }),
        MetricsListen::Tcp(address) => {
            let what = format!("metrics {address}");
            match TcpListener::bind(address) {
                Ok(_) => report.ok(what, "is free"),
                // It may be our own.
                Err(error) if serving && error.kind() == io::ErrorKind::AddrInUse => {
                    report.ok(what, "is in use, while the daemon runs")
                }
                Err(error) => {
                    report.error(what, format!("{error}: give another address, or end who has it (ss -lntp)"))
                }
            }
        }
    }
}

fn permit(permit: &PermitConfig, report: &mut Report) {
    if let Some(path) = permit.enable_file.clone() {
        let what = format!("enable_file {}", path.display());
        let remedy = format!("nothing is repaired until it is made: run touch {}", path.display());
        match within(tool::LOOK, move || path.exists()) {
            Some(true) => report.ok(what, "is there"),
            Some(false) => report.warn(what, format!("is not there, so {remedy}")),
            None => report.error(what, HANGS),
        }
    }
    if let Some(path) = permit.deploy_lock.clone() {
        let what = format!("deploy_lock {}", path.display());
        match within(tool::LOOK, move || probe(path)) {
            Some(Ok(Lock::Absent)) => report.ok(what, "is not there, so nobody holds it"),
            Some(Ok(Lock::Free)) => report.ok(what, "is there and nobody holds it"),
            Some(Ok(Lock::Held)) => report.warn(what, "is held now, so nothing is repaired: finish the deploy"),
            Some(Err(error)) => report
                .warn(what, format!("cannot be probed ({error}), so it counts until it is old: let this user read it")),
            None => report.error(what, HANGS),
        }
    }
}

enum Lock {
    Absent,
    Free,
    Held,
}

/// Whether somebody holds a lock. Never waits, and makes no file.
fn probe(path: PathBuf) -> io::Result<Lock> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::Absent),
        Err(error) => return Err(error),
    };
    // SAFETY: a descriptor that lives, and flags. A shared lock, so that two who probe do not meet; it ends with `file`.
    match Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) }) {
        Ok(_) => Ok(Lock::Free),
        Err(Errno::EWOULDBLOCK) => Ok(Lock::Held),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_or_only_lying_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("lock");
        let look = |path: &Path| match probe(path.to_owned()) {
            Ok(Lock::Absent) => "absent",
            Ok(Lock::Free) => "free",
            Ok(Lock::Held) => "held",
            Err(_) => "error",
        };
        assert_eq!(look(&path), "absent");
        let file = File::create(&path).expect("made");
        assert_eq!(look(&path), "free");
        let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).expect("locked");
        assert_eq!(look(&path), "held");
        drop(held);
        assert_eq!(look(&path), "free");
    }

    #[test]
    fn directories_are_there_or_can_be_made() {
        let dir = tempfile::tempdir().expect("tempdir");
        let new = dir.path().join("new");
        assert_eq!(directory_or_new(&new), Ok("can be made".into()));
        assert!(directory(&new).is_err_and(|words| words.contains("mkdir -p")));
        assert!(file(&new.join("f")).is_err());
        assert_eq!(file(&dir.path().join("f")), Ok("can be made".into()));
        assert!(file(dir.path()).is_err());
    }
}
