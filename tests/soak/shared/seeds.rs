//! Programs from seeds, one after the other.

use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::dice::Dice;
use super::program::Program;

/// The program of a seed.
pub fn program<M: Debug>(seed: u64, any: impl Strategy<Value = Program<M>>) -> Program<M> {
    let mut dice = Dice(seed);
    let bytes: Vec<u8> = (0..4).flat_map(|_| dice.next().to_le_bytes()).collect();
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    any.new_tree(&mut runner).expect("a strategy that rejects nothing").current()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// A failure, as somebody needs it who looks into it.
pub fn explain<M: Debug>(seed: u64, program: &Program<M>, words: &str) -> String {
    let Program { like_sshfs, long, caching, log, gather, steps } = program;
    let mut text = format!(
        "{words}\nrun it again with STEADFS_SOAK_SEED={seed} cargo test --test {}\n\
         like sshfs: {like_sshfs}, long outages: {long}, the kernel caches: {caching}, log of {log} bytes, \
         gathering: {gather}\n",
        env!("CARGO_CRATE_NAME")
    );
    for (number, step) in steps.iter().enumerate() {
        let mishap = step.mishap.as_ref().map(|mishap| format!("{mishap:?}: ")).unwrap_or_default();
        text += &format!("{number:4} {mishap}{:?}\n", step.op);
    }
    text
}

/// How much an ordinary test does.
pub struct Ordinary {
    /// Programs.
    pub runs: u64,
    /// It stops there, however many it has run.
    pub limit: Duration,
    /// Programs at once.
    pub lanes: usize,
}

/// Runs programs from the first seed on.
pub fn soak<M: Debug>(ordinary: Ordinary, go: impl Fn(u64) -> (Program<M>, Result<(), String>) + Sync) {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let (first, seconds) = (number("STEADFS_SOAK_SEED"), number("STEADFS_SOAK_SECONDS"));
    let given = number("STEADFS_SOAK_RUNS").or(if first.is_some() && seconds.is_none() { Some(1) } else { None });
    let (runs, limit) = match (given, seconds) {
        (None, None) => (ordinary.runs, ordinary.limit),
        (runs, seconds) => (runs.unwrap_or(u64::MAX), seconds.map_or(Duration::MAX, Duration::from_secs)),
    };
    // How many failures to look for.
    let most = number("STEADFS_SOAK_FAILURES").unwrap_or(1) as usize;
    let (started, next, failed) = (Instant::now(), AtomicU64::new(0), Mutex::new(Vec::new()));
    let done = AtomicU64::new(0);
    let lane = || {
        while failed.lock().unwrap().len() < most && started.elapsed() < limit {
            let number = next.fetch_add(1, Relaxed);
            if number >= runs {
                break;
            }
            let seed = first.unwrap_or(1) + number;
            let (program, result) = go(seed);
            if let Err(words) = result {
                println!("{}", explain(seed, &program, &words));
                failed.lock().unwrap().push(seed);
            }
            done.fetch_add(1, Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..ordinary.lanes {
            scope.spawn(lane);
        }
    });
    let (done, failed) = (done.into_inner(), failed.into_inner().unwrap());
    println!("{done} runs in {:.1} s", started.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "of {done} runs these failed: {failed:?}");
}
