//! Over `dir:` on this machine's own filesystem nothing is lost that a good passthrough keeps. Most of it is shown by running the
//! same calls beside: in a plain directory, and in the overlay.
#![allow(clippy::unwrap_used)]

mod lab;

#[path = "local/attributes.rs"]
mod attributes;
#[path = "local/calls.rs"]
mod calls;
#[path = "local/compare.rs"]
mod compare;
#[path = "local/deep.rs"]
mod deep;
#[path = "local/full.rs"]
mod full;
#[path = "local/large.rs"]
mod large;
#[path = "local/locks.rs"]
mod locks;
#[path = "local/names.rs"]
mod names;
#[path = "local/open_files.rs"]
mod open_files;
#[path = "local/programs.rs"]
mod programs;
#[path = "local/rig.rs"]
mod rig;
#[path = "local/rights.rs"]
mod rights;
#[path = "local/watched.rs"]
mod watched;

lab::also_runs_as!(body_process: compare::main);
lab::also_runs_as!(actor_process: rig::main);
