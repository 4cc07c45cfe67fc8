//! Kills a real sftp-server at each request of a program in turn, before it sees the request and after it has done it.
//! The outage is short, so nothing may show: every call has the result that a local directory gives, and afterwards the
//! store holds what the local directory holds. Needs root, /dev/fuse, sshfs and sftp-server.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use lab::program::{self, Step};
use lab::relay::Moment;
use lab::relayed::Relayed;
use lab::tree::{self, Tree};

/// Mounts that are struck at the same time: most of a run is waiting.
const MOUNTS: usize = 3;
/// Requests at the end of a program that may come or not: descriptors are closed when there is time.
const LOOSE_END: usize = 4;
/// Strikes of a program that may leave a name of libfuse's (`.fuse_hidden…`) on the store, and nothing else: close(2) does not
/// wait for the FUSE_RELEASE below, so now and then sshfs takes a file for open that is being removed, and dies before it
/// removes its own name for it. It is a stray file that nobody sees; docs/semantics.md says so.
const STRAYS: usize = 4;
/// A generation that dies young makes the next one wait, and here all of them do.
const OPTIONS: &str = "backoff_min=100ms,backoff_max=100ms";

lab::also_runs_as!(relay_process: lab::relay::main);

lab::also_runs_as!(program_process: program::main);

/// What a program does to a plain directory.
struct Model {
    steps: Vec<Step>,
    tree: Tree,
}

fn model(name: &str) -> Model {
    let (outside, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let steps = program::run(name, plain.path(), outside.path()).unwrap();
    Model { steps, tree: tree::of(plain.path()) }
}

/// Runs a program on a mount, struck or not; what was not as it should be.
fn compare(mount: &mut Relayed, name: &str, model: &Model, strike: Option<(usize, Moment)>) -> (u64, Vec<String>) {
    let fresh = mount.fresh();
    mount.relay.arm(fresh.run, strike);
    let steps = program::run(name, &fresh.hot, mount.directory());
    let mut wrong: Vec<_> = mount.settle().err().into_iter().collect();
    match steps {
        Ok(steps) => {
            let differing = program::differences(&model.steps, &steps);
            wrong.extend(differing);
        }
        Err(error) => wrong.push(error),
    }
    mount.relay.disarm();
    wrong.extend(tree::differences(&model.tree, &tree::of(&fresh.store)));
    wrong.extend(mount.strangers().into_iter().map(|name| format!("{name} is left on the store")));
    (fresh.run, wrong)
}

/// What is to be struck yet, and what came of the strikes so far.
struct Score<'a> {
    name: &'a str,
    model: Model,
    total: usize,
    queue: Mutex<Vec<(usize, Moment)>>,
    failures: Mutex<Vec<String>>,
    strays: AtomicUsize,
    struck: AtomicUsize,
}

impl Score<'_> {
    fn fail(&self, words: String) {
        self.failures.lock().unwrap().push(words);
    }

    /// Strikes one request after another on one mount. Each costs one generation, and no more than that.
    fn work(&self, mut mount: Relayed) {
        let mut generations = 1;
        let next = || self.queue.lock().unwrap().pop();
        while let Some((number, moment)) = next() {
            let (run, wrong) = compare(&mut mount, self.name, &self.model, Some((number, moment)));
            let place = format!("{}: {number} of {}, {moment:?}", self.name, self.total);
            match mount.relay.struck(run) {
                Some(request) if !wrong.is_empty() && wrong.iter().all(|line| line.contains("/.fuse_hidden")) => {
                    println!("{place}: {request}\n    {}", wrong.join("\n    "));
                    self.strays.fetch_add(1, Relaxed);
                }
                Some(request) if !wrong.is_empty() => {
                    self.fail(format!("{place}: {request}\n    {}", wrong.join("\n    ")));
                }
                Some(_) => {}
                None if number + LOOSE_END < self.total || !wrong.is_empty() => {
                    self.fail(format!("{place}: not struck\n    {}", wrong.join("\n    ")));
                }
                None => continue,
            }
            generations += 1;
            self.struck.fetch_add(1, Relaxed);
            if !wrong.is_empty() && std::env::var("EACH_REQUEST").is_ok() {
                println!("{}\n{}", mount.log(), mount.relay.seen(run).join("\n"));
            }
        }
        lab::wait("the last generation is live", || {
            let status = mount.status();
            status["state"] == "live" && status["generation"] == generations
        });
        mount.umount();
    }
}

fn strike_each(name: &str) {
    let begun = Instant::now();
    let (model, mut first) = (model(name), Relayed::new(OPTIONS));
    let (run, wrong) = compare(&mut first, name, &model, None);
    assert!(wrong.is_empty(), "{name}, undisturbed:\n{}", wrong.join("\n"));
    let requests = first.relay.seen(run);
    assert!(requests.len() > 20, "{name}: only {requests:?} were seen");
    // Popped from the end: from the first request to the last.
    let mut all: Vec<_> = (1..=requests.len()).rev().flat_map(|n| moments(n, &requests[n - 1])).collect();
    // For looking into one failure.
    if let Ok(only) = std::env::var("EACH_REQUEST") {
        let (wanted, times) = only.rsplit_once(' ').expect("EACH_REQUEST is like `17 Before 20`");
        all.retain(|(n, moment)| format!("{n} {moment:?}") == wanted);
        all = all.repeat(times.parse().unwrap());
    }
    let planned = all.len();
    let (queue, failures) = (Mutex::new(all), Mutex::default());
    let (strays, struck) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let score = Score { name, model, total: requests.len(), queue, failures, strays, struck };
    std::thread::scope(|scope| {
        scope.spawn(|| score.work(first));
        for _ in 1..MOUNTS {
            scope.spawn(|| score.work(Relayed::new(OPTIONS)));
        }
    });
    let failures = score.failures.into_inner().unwrap();
    println!(
        "{name}: {} requests, {} of {planned} strikes, {} failed, {:.1} s",
        requests.len(),
        score.struck.into_inner(),
        failures.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let strays = score.strays.into_inner();
    assert!(strays <= STRAYS, "{strays} strikes left a name of libfuse's on the store");
}

/// In which ways a request is struck. Only writes are followed by others that do not wait for them, and what is read comes
/// after these.
fn moments(number: usize, request: &str) -> Vec<(usize, Moment)> {
    let burst = (request == "WRITE").then_some(Moment::Burst);
    let deaf = ["OPEN", "READ"].iter().any(|before| request.starts_with(before)).then_some(Moment::Deaf);
    let both = [Moment::After, Moment::Before];
    burst.into_iter().chain(deaf).chain(both).map(|moment| (number, moment)).collect()
}

#[test]
fn names_agree_after_the_death_of_each_request() {
    strike_each("names");
}

#[test]
fn data_agrees_after_the_death_of_each_request() {
    strike_each("data");
}

#[test]
fn a_crawl_agrees_after_the_death_of_each_request() {
    strike_each("crawl");
}

/// An sshfs that dies takes READs that had no answer for the end of the file, and its kernel side fills pages with zeros up
/// to the size: a regression.
#[test]
fn a_dying_sshfs_is_not_believed_that_a_file_holds_nothing() {
    const PIECE: usize = 128 << 10;
    let mut mount = Relayed::new(OPTIONS);
    for round in 0..24 {
        let fresh = mount.fresh();
        let text: Vec<u8> = (0..16 * PIECE).map(|at| (at / 7 + round) as u8 | 1).collect();
        std::fs::write(fresh.store.join("f"), &text).unwrap();
        let file = File::open(fresh.hot.join("f")).unwrap();
        let moment = [Moment::Before, Moment::After, Moment::Deaf][round % 3];
        mount.relay.arm(fresh.run, Some((1 + round, moment)));
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (file, text, mount) = (&file, &text, &mount);
                scope.spawn(move || {
                    let mut read = vec![0; PIECE];
                    for piece in [12 + first, 4 + first, 8 + first, first] {
                        file.read_exact_at(&mut read, (piece * PIECE) as u64).unwrap();
                        let same = read == text[piece * PIECE..][..PIECE];
                        assert!(same, "round {round}, piece {piece}\n{}", mount.log());
                    }
                });
            }
        });
        let struck = mount.relay.struck(fresh.run);
        assert!(struck.is_some_and(|request| request.starts_with("READ")), "round {round}");
        mount.relay.disarm();
    }
    mount.umount();
}
