//! The mount of an earlier steadfs that was killed: a service that is started again has nobody to unmount it.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::claim::{self, Holder};
use super::{place, sweep};
use crate::backing::mountinfo::{self, Entry};
use crate::daemon::MountError;

/// How long a mount may take to say that it is dead; it says so at once. One that is silent is alive.
const PATIENCE: Duration = Duration::from_secs(1);

/// Detaches what is mounted at `mountpoint` if it is provably a dead mount of ours; true if it was. Others are left alone. A mount
/// that is silent keeps the thread that asked it until it answers.
pub fn clear(mountpoint: &Path, subtype: &str) -> Result<bool, MountError> {
    clear_if(mountpoint, |entry| {
        // Held until it is detached, so that nobody else begins meanwhile.
        let holder = claim::holder(mountpoint)?;
        let ours = match &holder {
            Holder::Daemon => false,
            Holder::Nobody => entry.fstype == "fuse.steadfs",
            // Another type needs more than a name to be ours.
            Holder::Left(_) => entry.fstype == "fuse.steadfs" || is_of(entry, subtype),
        };
        Ok(ours.then_some(holder))
    })
}

/// The same for whoever has the claim on it from a predecessor, which died over mounting that type and source there: a dead mount
/// of any other is somebody else's, and covers it.
pub fn clear_claimed(mountpoint: &Path, subtype: &str, source: &str) -> Result<bool, MountError> {
    clear_if(mountpoint, |entry| Ok((is_of(entry, subtype) && entry.source == source).then_some(())))
}

fn is_of(entry: &Entry, subtype: &str) -> bool {
    entry.fstype == format!("fuse.{subtype}").as_str()
}

/// `ours` says whether a mount may be detached if it is dead, by something that is kept until it is.
fn clear_if<T>(mountpoint: &Path, ours: impl Fn(&Entry) -> Result<Option<T>, MountError>) -> Result<bool, MountError> {
    let mut cleared = false;
    while let Some(entry) = mountinfo::at(mountpoint).map_err(place::no_mountinfo)?.filter(Entry::is_fuse) {
        let Some(_held) = ours(&entry)? else { break };
        if !is_dead(mountpoint) {
            break;
        }
        sweep::detach(&entry)?;
        cleared = true;
    }
    Ok(cleared)
}

/// True if nobody serves the connection any more. statfs(2) always asks; attributes may still come from the kernel's cache.
fn is_dead(mountpoint: &Path) -> bool {
    let (sender, answer) = channel();
    let path = mountpoint.to_owned();
    let Ok(asking) = std::thread::Builder::new().spawn(move || _ = sender.send(statvfs(&path).err())) else {
        return false;
    };
    let Ok(answered) = answer.recv_timeout(PATIENCE) else { return false };
    // It has only to return.
    let _ = asking.join();
    matches!(answered, Some(Errno::ENOTCONN | Errno::ECONNABORTED))
}
