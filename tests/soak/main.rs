//! The randomised crash test: programs of file operations on a mounted overlay and on a model of POSIX, while the backing
//! dies, hangs and forgets. Needs root and /dev/fuse.
//!
//! The backing is the fake: a real sshfs cannot be started by a process that serves the mount and uses it at once, since the
//! child between fork(2) and execve(2) closes files of the mount. `soak_real` does the same with one.
//!
//! A failure names the seed of its program; `STEADFS_SOAK_SEED` runs that one again, and `STEADFS_SOAK_RUNS` or
//! `STEADFS_SOAK_SECONDS` as many from there on. Threads make two runs of a seed differ in the order of what happens at
//! the same time.
#![allow(clippy::unwrap_used, missing_docs)]

mod keeper;
mod mishap;
mod run;
mod shared;
mod world;

use std::time::Duration;

use mishap::Mishap;
use shared::dice::Dice;
use shared::model::Model;
use shared::play::User;
use shared::program::{Op, Program};
use shared::real::{Real, tree};
use shared::seeds::{Ordinary, explain, soak};

fn program(seed: u64) -> Program<Mishap> {
    shared::seeds::program(seed, shared::program::program(mishap::mishap(), 15, 5..60))
}

#[test]
fn programs_do_not_notice_what_goes_wrong_beneath_them() {
    soak(Ordinary { runs: 400, limit: Duration::MAX, lanes: 1 }, |seed| {
        let program = program(seed);
        let result = run::run(&program, keeper::plan(&program, Dice(seed)));
        (program, result)
    });
}

/// The model is POSIX as Linux has it: a directory on this machine does the same.
#[test]
fn the_model_does_what_a_local_directory_does() {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    for seed in 1..2000 {
        let program = program(seed);
        let directory = tempfile::tempdir().unwrap();
        let mut model = Model::new();
        let mut real = Real::new(directory.path());
        for (number, step) in program.steps.iter().enumerate() {
            if let Op::Sync { .. } = step.op {
                continue;
            }
            let (expected, found) = (model.apply(&step.op), real.apply(&step.op));
            assert_eq!(expected, found, "{}", explain(seed, &program, &format!("step {number}")));
        }
        assert_eq!(model.tree(), tree(directory.path()).unwrap());
    }
}
