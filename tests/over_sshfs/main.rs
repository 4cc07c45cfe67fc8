//! What programs see over a real sshfs and a real sftp-server, beside a plain sshfs with the same server: whatever works there
//! works, with the same result. Where steadfs is better, that is said. Needs root, /dev/fuse, sshfs and sftp-server.
#![allow(clippy::unwrap_used)]

#[path = "../lab/mod.rs"]
mod lab;

mod extensions;
mod links;
mod many;
mod modes;
mod refused;
mod renames;
mod rig;
mod said;

lab::also_runs_as!(body_process: said::main);
lab::also_runs_as!(relay_process: lab::relay::main);
