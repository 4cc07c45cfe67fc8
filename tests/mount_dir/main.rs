//! The overlay over real FUSE: mounted by the library, in front of a directory that fails on command.
//! Needs root and /dev/fuse.
#![allow(clippy::unwrap_used)]

mod doubt;
mod files;
mod hidden;
mod mounting;
mod names;
mod outage;
mod rig;
