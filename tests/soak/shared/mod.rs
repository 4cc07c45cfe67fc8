//! What the soak on the fake backing and the one on a real sshfs share: programs, the model, and how one is played on both.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod dice;
pub mod model;
pub mod outcome;
pub mod play;
pub mod program;
pub mod real;
pub mod seeds;
