//! The overlay over real FUSE: mounted by the library, in front of a directory that fails on command.
//! Needs root and /dev/fuse.
#![allow(clippy::unwrap_used)]

mod acl;
mod appends;
mod below;
mod doubt;
mod every_call;
mod files;
mod gather;
mod hidden;
mod hidden_journal;
mod lasting;
mod log;
mod mapped;
mod mounting;
mod names;
mod outage;
mod races;
mod replay;
mod rig;
