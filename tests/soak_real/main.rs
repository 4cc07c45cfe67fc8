//! The randomised crash test on the real thing: programs of file operations on a mount of the steadfs binary, over a real
//! sshfs and a real sftp-server, and on a model of POSIX, while sshfs, ssh and the server are killed and frozen, the link is
//! cut and steadfs itself is killed at random moments. Needs root, /dev/fuse, sshfs, sftp-server and sshd.
//!
//! Programs, model and comparison are those of `tests/soak`. A failure names the seed of its program;
//! `STEADFS_SOAK_SEED` and its like run it again, as there. Processes make two runs of a seed differ in what is hit.
#![allow(clippy::unwrap_used)]

#[path = "../lab/mod.rs"]
mod lab;
mod mishap;
mod scene;
#[path = "../soak/shared/mod.rs"]
mod shared;
mod site;
mod user;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mishap::Mishap;
use scene::RealScene;
use shared::play::{play, trees_differ};
use shared::program::{How, Op, Program, Step};
use shared::seeds::{Ordinary, soak};
use user::Remote;

/// Of an ordinary test. Most of a run is waiting, so several go on at once.
const ORDINARY: Ordinary = Ordinary { runs: 80, limit: Duration::from_secs(42), lanes: 5 };
/// One program in so many has a network between sshfs and its server.
const NETWORKS: u64 = 16;
/// Outages of all runs.
static OUTAGES: AtomicU64 = AtomicU64::new(0);
/// What sshd takes from the modes of new files whatever it is told (sshd.c); the overlay passes modes on as they are.
const SERVER_MASK: u32 = 0o022;

lab::also_runs_as!(relay_process: lab::relay::main);

lab::also_runs_as!(user_process: user::main);

/// The program of a seed, without what sshfs cannot do.
fn program(seed: u64) -> Program<Mishap> {
    let any = shared::program::program(mishap::mishap(), 5, 20..120);
    let Program { long, caching, log, gather, steps, .. } = shared::seeds::program(seed, any);
    let steps = steps.into_iter().map(|Step { mishap, op }| Step { mishap, op: over_sshfs(op) }).collect();
    Program { like_sshfs: true, long, caching, log, gather, steps }
}

fn over_sshfs(op: Op) -> Op {
    match op {
        Op::Open { slot, name, how } => Op::Open { slot, name, how: How { mode: how.mode & !SERVER_MASK, ..how } },
        Op::MakeDirectory { name, mode } => Op::MakeDirectory { name, mode: mode & !SERVER_MASK },
        other => other,
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Plays a program on a mount of its own, from mounting to unmounting.
fn run(seed: u64, program: &Program<Mishap>) -> Result<(), String> {
    let scene = RealScene::new(program, seed.is_multiple_of(NETWORKS));
    let user = Remote::start(scene.hot(), scene.directory());
    let tree = play(program, &scene, user).map_err(|words| format!("{words}\nthe daemon said:\n{}", scene.log()))?;
    OUTAGES.fetch_add(scene.outages(), Relaxed);
    let store = scene.end();
    let left = scene::stored(&store.path).map_err(|error| format!("the store after unmounting: {error}"))?;
    match trees_differ(&tree, &left, true) {
        Some(words) => Err(format!("the store after unmounting: {words}")),
        None => Ok(()),
    }
}

#[test]
fn programs_do_not_notice_what_goes_wrong_with_a_real_sshfs() {
    soak(ORDINARY, |seed| {
        let program = program(seed);
        let result = catch_unwind(AssertUnwindSafe(|| run(seed, &program)));
        (program, result.unwrap_or_else(|panic| Err(words(&*panic))))
    });
    println!("{} outages, {} deaths of steadfs itself", OUTAGES.load(Relaxed), scene::DEATHS.load(Relaxed));
}
