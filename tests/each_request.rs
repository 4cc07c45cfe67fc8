//! Kills a real sftp-server at each request of a program in turn, before it sees the request and after it has done it.
//! The outage is short, so nothing may show: every call has the result that a local directory gives, and afterwards the
//! store holds what the local directory holds. Needs root, /dev/fuse, sshfs and sftp-server.
#![allow(clippy::unwrap_used)]

mod lab;

use std::sync::Mutex;
use std::time::Instant;

use lab::program::{self, Step};
use lab::relay::{Moment, Relay};
use lab::relayed::Relayed;
use lab::tree::{self, Tree};

/// Mounts that are struck at the same time: most of a run is waiting.
const MOUNTS: usize = 3;
/// Requests at the end of a program that may come or not: descriptors are closed when there is time.
const LOOSE_END: usize = 4;
const OPTIONS: &str = "backoff_min=100ms";

#[test]
#[ignore = "a process of other tests, not a test"]
fn relay_process() {
    lab::relay::main();
}

#[test]
#[ignore = "a process of other tests, not a test"]
fn program_process() {
    program::main();
}

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
    let steps = program::run(name, &fresh.hot, mount.directory.path());
    let mut wrong: Vec<_> = mount.settle().err().into_iter().collect();
    match steps {
        Ok(steps) => wrong.extend(program::differences(&model.steps, &steps)),
        Err(error) => wrong.push(error),
    }
    mount.relay.disarm();
    wrong.extend(tree::differences(&model.tree, &tree::of(&fresh.store)));
    wrong.extend(mount.strangers().into_iter().map(|name| format!("{name} is left on the store")));
    (fresh.run, wrong)
}

fn requests_of(relay: &Relay, run: u64) -> usize {
    relay.seen(run).len()
}

fn strike_each(name: &str) {
    let begun = Instant::now();
    let model = model(name);
    let mut first = Relayed::new(OPTIONS);
    let (run, wrong) = compare(&mut first, name, &model, None);
    assert!(wrong.is_empty(), "{name}, undisturbed:\n{}", wrong.join("\n"));
    let total = requests_of(&first.relay, run);
    assert!(total > 20, "{name}: only {total} requests were seen");

    let mut all: Vec<_> = (1..=total).rev().flat_map(|n| [(n, Moment::After), (n, Moment::Before)]).collect();
    let planned = all.len();
    if let Ok(only) = std::env::var("EACH_REQUEST") {
        let (wanted, times) = only.rsplit_once(' ').expect("EACH_REQUEST is like `17 Before 20`");
        all.retain(|(n, moment)| format!("{n} {moment:?}") == wanted);
        all = all.repeat(times.parse().unwrap());
    }
    let (queue, failures, missed) = (Mutex::new(all), Mutex::new(Vec::new()), Mutex::new(0));
    std::thread::scope(|scope| {
        let (queue, failures, missed, model) = (&queue, &failures, &missed, &model);
        let mut first = Some(first);
        for _ in 0..MOUNTS {
            let mount = first.take();
            scope.spawn(move || {
                let mut mount = mount.unwrap_or_else(|| Relayed::new(OPTIONS));
                let next = || queue.lock().unwrap().pop();
                while let Some((number, moment)) = next() {
                    let (run, wrong) = compare(&mut mount, name, model, Some((number, moment)));
                    let request = mount.relay.struck(run);
                    if request.is_none() {
                        *missed.lock().unwrap() += 1;
                        if number + LOOSE_END < total {
                            failures.lock().unwrap().push(format!("{name}: request {number} was never made"));
                        }
                    }
                    if !wrong.is_empty() && std::env::var("EACH_REQUEST_LOG").is_ok() {
                        println!("{}\n{}", mount.log(), mount.relay.seen(run).join("\n"));
                    }
                    if !wrong.is_empty() {
                        let what = request.as_deref().unwrap_or("not struck");
                        let text =
                            format!("{name}: {number} of {total}, {moment:?}: {what}\n    {}", wrong.join("\n    "));
                        failures.lock().unwrap().push(text);
                    }
                }
                mount.umount();
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!(
        "{name}: {total} requests, {planned} strikes, {} not reached, {} failed, {:.1} s",
        missed.into_inner().unwrap(),
        failures.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
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
