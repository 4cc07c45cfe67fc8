//! The randomised crash test: programs of file operations on a mounted overlay and on a model of POSIX, while the backing
//! dies, hangs and forgets. Needs root and /dev/fuse.
//!
//! The backing is the fake: a real sshfs cannot be started by a process that serves the mount and uses it at once, since the
//! child between fork(2) and execve(2) closes files of the mount. `each_request.rs` and `fault_*.rs` play that.
//!
//! A failure names the seed of its program; `STEADFS_SOAK_SEED` runs that one again, and `STEADFS_SOAK_RUNS` or
//! `STEADFS_SOAK_SECONDS` as many from there on. Threads make two runs of a seed differ in the order of what happens at
//! the same time.
#![allow(clippy::unwrap_used, missing_docs)]

mod dice;
mod keeper;
mod model;
mod outcome;
mod program;
mod real;
mod run;
mod world;

use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use dice::Dice;
use program::Program;

/// Runs in an ordinary test.
const RUNS: u64 = 400;

/// The program of a seed.
fn program(seed: u64) -> Program {
    let mut dice = Dice(seed);
    let bytes: Vec<u8> = (0..4).flat_map(|_| dice.next().to_le_bytes()).collect();
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    program::program().new_tree(&mut runner).expect("a strategy that rejects nothing").current()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

fn explain(seed: u64, program: &Program, words: &str) -> String {
    let Program { like_sshfs, long, caching, log, gather, steps } = program;
    let mut text = format!(
        "{words}\nrun it again with STEADFS_SOAK_SEED={seed}\n\
         like sshfs: {like_sshfs}, long outages: {long}, the kernel caches: {caching}, \
         log of {log} bytes, gathering: {gather}\n"
    );
    for (number, step) in steps.iter().enumerate() {
        let mishap = step.mishap.map(|mishap| format!("{mishap:?}: ")).unwrap_or_default();
        text += &format!("{number:4} {mishap}{:?}\n", step.op);
    }
    text
}

/// Runs programs from the first seed on.
fn soak(runs: u64, go: impl Fn(u64) -> (Program, Result<(), String>)) {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let (seed, limit) = (number("STEADFS_SOAK_SEED"), number("STEADFS_SOAK_SECONDS").map(Duration::from_secs));
    let runs = if limit.is_some() { u64::MAX } else { runs };
    let runs = number("STEADFS_SOAK_RUNS").unwrap_or(if seed.is_some() { 1 } else { runs });
    // How many failures to look for.
    let most = number("STEADFS_SOAK_FAILURES").unwrap_or(1) as usize;
    let (started, mut done, mut failed) = (Instant::now(), 0, Vec::new());
    while done < runs && failed.len() < most && limit.is_none_or(|limit| started.elapsed() < limit) {
        let seed = seed.unwrap_or(1) + done;
        let (program, result) = go(seed);
        if let Err(words) = result {
            println!("{}", explain(seed, &program, &words));
            failed.push(seed);
        }
        done += 1;
    }
    println!("{done} runs in {:.1} s", started.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "of {done} runs these failed: {failed:?}");
}

#[test]
fn programs_do_not_notice_what_goes_wrong_beneath_them() {
    soak(RUNS, |seed| {
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
        let mut model = model::Model::new();
        let mut real = real::Real::new(directory.path());
        for (number, step) in program.steps.iter().enumerate() {
            if let program::Op::Sync { .. } = step.op {
                continue;
            }
            let (expected, found) = (model.apply(&step.op), real.apply(&step.op));
            assert_eq!(expected, found, "{}", explain(seed, &program, &format!("step {number}")));
        }
        assert_eq!(model.tree(), real::tree(directory.path()).unwrap());
    }
}
