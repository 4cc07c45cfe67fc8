//! The daemon's configuration as the keeper holds it for the next daemon: JSON in a piece of memory.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::de::DeserializeOwned;

use crate::config::DaemonConfig;

/// Name under which it is held.
pub const CONFIG: &str = "config";
/// Name under which the lock on a runtime directory is held, so that it lasts as long as any of the processes does.
pub const CLAIM: &str = "claim";

/// Writes one.
pub fn write_config(config: &DaemonConfig) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"steadfs-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(config)?)?;
    Ok(file.into())
}

/// Reads one.
pub fn read_config(descriptor: &OwnedFd) -> io::Result<DaemonConfig> {
    read(descriptor.try_clone()?)
}

/// What is held as JSON in a piece of memory.
pub(super) fn read<T: DeserializeOwned>(held: OwnedFd) -> io::Result<T> {
    let mut file = File::from(held);
    // Its offset is shared with whoever read it before.
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
