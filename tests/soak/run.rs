//! One run on the fake backing, with somebody who ends it when a call gets lost.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::mishap::Mishap;
use crate::shared::play::play;
use crate::shared::program::Program;
use crate::shared::real::Real;
use crate::world::{Plan, World};

/// Longest time of one run; after that a call has got lost.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program. The error says what went wrong, and how far the program had come.
pub fn run(program: &Program<Mishap>, plan: Plan) -> Result<(), String> {
    let world = World::new(program, plan);
    let mount = Arc::clone(&world.mount);
    let (over, ended) = channel::<()>();
    let watch = std::thread::spawn(move || {
        let hung = ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
        if hung {
            mount.abort();
        }
        hung
    });
    let result = play(program, &world, Real::new(world.hot())).map(drop);
    let result = result.map_err(|words| match world.notices().as_slice() {
        [] => words,
        notices => format!("{words}\nthe overlay said: {}", notices.join("; ")),
    });
    drop(over);
    drop(world);
    match watch.join() {
        Ok(true) => Err(format!("it hung: {}", result.err().unwrap_or_default())),
        _ => result,
    }
}
