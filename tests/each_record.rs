//! Kills the daemon at each record that it writes for its successor in turn: before anything of it is there, half written,
//! and published. Some strikes hit the successor too, while it takes over. The kernel keeps what is asked meanwhile, so
//! nothing may show: every call has the result that a local directory gives, and afterwards the store holds what the local
//! directory holds. Needs root, /dev/fuse, sshfs, sftp-server and a debug build.
//!
//! `EACH_RECORD_STRIKES` is how many of the strikes are made, spread evenly; `all` makes every one. `EACH_RECORD="ORDER TIMES"`
//! repeats one strike (an order is as in `src/handover/crash.rs`).
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lab::program::{self, Step};
use lab::relayed::{Fresh, Relayed};
use lab::tree::{self, Tree};
use nix::sys::signal::Signal;

/// Mounts that are struck at the same time: most of a run is waiting.
const MOUNTS: usize = 3;
/// Records at the end of a program that may come or not: the kernel forgets and releases when it likes.
const LOOSE_END: u64 = 24;
/// How long the removal of a hidden name may take that nobody waits for, and how often to look.
const CLEAN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// Strikes of an ordinary test.
const STRIKES: usize = 12;
/// Calls are to be found unanswered. Daemons that die young make the next one wait, so a run is as short as can be.
const OPTIONS: &str = "backoff_min=100ms,backoff_max=100ms,deadline=30s";

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

fn orders(directory: &Path) -> PathBuf {
    directory.join("crash")
}

fn mount() -> Relayed {
    Relayed::with(OPTIONS, |command, directory| _ = command.env("STEADFS_CRASH", orders(directory)))
}

fn give(mount: &Relayed, order: &str) {
    let (path, part) = (orders(mount.directory()), mount.directory().join("crash.part"));
    std::fs::write(&part, order).unwrap();
    std::fs::rename(part, path).unwrap();
}

fn daemon(mount: &Relayed) -> u64 {
    let mut pid = 0;
    lab::wait("the daemon answers", || {
        pid = mount.status()["pid"].as_u64().unwrap_or(0);
        pid != 0
    });
    pid
}

/// Runs a program; what was not as it should be.
fn compare(mount: &Relayed, fresh: &Fresh, name: &str, model: &Model) -> Vec<String> {
    let steps = program::run(name, &fresh.hot, mount.directory());
    let mut wrong: Vec<_> = mount.settle().err().into_iter().collect();
    match steps {
        Ok(steps) => wrong.extend(program::differences(&model.steps, &steps)),
        Err(error) => wrong.push(error),
    }
    wrong.extend(tree::differences(&model.tree, &tree::of(&fresh.store)));
    wrong.extend(mount.strangers().into_iter().map(|name| format!("{name} is left on the store")));
    wrong
}

struct Score<'a> {
    name: &'a str,
    model: Model,
    total: u64,
    queue: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
    struck: AtomicUsize,
    stall: Mutex<f64>,
}

impl Score<'_> {
    fn work(&self, mut mount: Relayed) {
        let next = || self.queue.lock().unwrap().pop();
        while let Some(order) = next() {
            let (fresh, before) = (mount.fresh(), daemon(&mount));
            give(&mount, &order);
            let begun = Instant::now();
            let wrong = compare(&mount, &fresh, self.name, &self.model);
            let took = begun.elapsed().as_secs_f64();
            let struck = daemon(&mount) != before;
            let left = std::fs::remove_file(orders(mount.directory())).is_ok();
            let number: u64 = order.split([':', ' ']).next().unwrap().parse().unwrap();
            let place = format!("{}: {order} of {}", self.name, self.total);
            if !wrong.is_empty() {
                self.failures.lock().unwrap().push(format!("{place}\n    {}", wrong.join("\n    ")));
                if std::env::var("EACH_RECORD").is_ok() {
                    println!("{place}\n{}", mount.log());
                }
            } else if !struck && number + LOOSE_END < self.total {
                self.failures.lock().unwrap().push(format!("{place}: not struck (order left: {left})"));
            }
            self.struck.fetch_add(usize::from(struck), Relaxed);
            let mut stall = self.stall.lock().unwrap();
            *stall = stall.max(took);
        }
        let sshfs = |pids: Vec<i32>| pids.into_iter().filter(|&pid| lab::process::name(pid) == "sshfs").count();
        // The last order may strike as late as now.
        lab::wait("there is one of each", || {
            let parts = mount.parts();
            (parts.daemons().len(), parts.keepers().len(), sshfs(mount.family())) == (1, 1, 1)
        });
        mount.umount();
    }
}

/// The strikes of a program of so many records, in the order in which they are made.
fn strikes(total: u64) -> Vec<String> {
    let mut all = Vec::new();
    for number in 1..=total {
        for stage in ["before", "middle", "late", "after"] {
            all.push(format!("{number}:{stage}"));
        }
        // Its successor dies as well, somewhere in what it notes first.
        all.push(format!("{number}:after {}:late", 1 + number % 9));
    }
    let wanted = match std::env::var("EACH_RECORD_STRIKES").as_deref() {
        Ok("all") => all.len(),
        Ok(text) => text.parse().expect("EACH_RECORD_STRIKES is a number or `all`"),
        Err(_) => STRIKES,
    };
    let wanted = wanted.min(all.len());
    (0..wanted).map(|n| all[(n * all.len() + all.len() / 2) / wanted].clone()).collect()
}

fn strike_each(name: &str) {
    let begun = Instant::now();
    let (model, mut first) = (model(name), mount());
    let fresh = first.fresh();
    give(&first, "count");
    let wrong = compare(&first, &fresh, name, &model);
    assert!(wrong.is_empty(), "{name}, undisturbed:\n{}", wrong.join("\n"));
    let count = std::fs::read_to_string(first.directory().join("crash.count")).expect("a debug build counts");
    let total: u64 = count.parse().unwrap();
    assert!(total > 60, "{name}: only {total} records");
    // Popped from the end: from the first record to the last.
    let mut all = strikes(total);
    if let Ok(only) = std::env::var("EACH_RECORD") {
        let (order, times) = only.rsplit_once(' ').expect("EACH_RECORD is like `17:late 20`");
        all = vec![order.to_owned(); times.parse().unwrap()];
    }
    all.reverse();
    let planned = all.len();
    let (queue, failures) = (Mutex::new(all), Mutex::default());
    let score = Score { name, model, total, queue, failures, struck: 0.into(), stall: Mutex::default() };
    std::thread::scope(|scope| {
        scope.spawn(|| score.work(first));
        for _ in 1..MOUNTS {
            scope.spawn(|| score.work(mount()));
        }
    });
    let failures = score.failures.into_inner().unwrap();
    println!(
        "{name}: {total} records, {} of {planned} strikes, {} failed, longest run {:.2} s, {:.1} s",
        score.struck.into_inner(),
        failures.len(),
        score.stall.into_inner().unwrap(),
        begun.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Kills sshfs and waits until there is another.
fn next_generation(mount: &Relayed) {
    // An order may strike in this very moment.
    let mut found = None;
    lab::wait("there is an sshfs", || {
        let before = mount.status()["generation"].as_u64();
        let sshfs = mount.family().into_iter().find(|&pid| lab::process::name(pid) == "sshfs");
        found = before.zip(sshfs);
        found.is_some()
    });
    let (before, sshfs) = found.unwrap();
    lab::process::signal(sshfs, Signal::SIGKILL);
    lab::wait("there is another generation", || {
        let status = mount.status();
        status["state"] == "live" && status["generation"].as_u64() > Some(before)
    });
}

/// Writes a file, gets an order, removes the file's name, and goes on with the descriptor after one more repair.
fn lose_a_name(mount: &Relayed, fresh: &Fresh, by_rename: bool, order: &str) -> Vec<String> {
    let (path, other) = (fresh.hot.join("f"), fresh.hot.join("g"));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"not committed", 0).unwrap();
    std::fs::write(&other, "another").unwrap();
    give(mount, order);
    let mut wrong = Vec::new();
    let lost = if by_rename { std::fs::rename(&other, &path) } else { std::fs::remove_file(&path) };
    wrong.extend(lost.err().map(|error| format!("the call: {error}")));
    // What a successor sweeps it sweeps after its first repair.
    daemon(mount);
    next_generation(mount);
    let mut text = [0; 13];
    match file.read_exact_at(&mut text, 0) {
        Ok(()) if &text == b"not committed" => {}
        Ok(()) => wrong.push(format!("it reads {text:?}")),
        Err(error) => wrong.push(format!("reading: {error}")),
    }
    wrong.extend(file.write_all_at(b"and goes on", 13).err().map(|error| format!("writing: {error}")));
    wrong.extend(file.sync_all().err().map(|error| format!("fsync: {error}")));
    wrong.extend(nix::unistd::close(file.into_raw_fd()).err().map(|error| format!("close: {error}")));
    wrong.extend(mount.settle().err());
    let left =
        || -> Vec<_> { std::fs::read_dir(&fresh.store).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    let is_clean = || left() == [if by_rename { "f" } else { "g" }];
    // Nobody waits for the removal.
    let until = Instant::now() + CLEAN;
    while !is_clean() && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
    if !is_clean() {
        wrong.push(format!("the store has {:?}", left()));
    }
    wrong
}

/// A regression: the successor swept the hidden name of an open file if its predecessor had died before it noted that the
/// file had it.
#[test]
fn a_file_that_loses_its_name_in_the_moment_of_a_death_goes_on() {
    let mut mount = mount();
    for by_rename in [false, true] {
        let fresh = mount.fresh();
        assert_eq!(lose_a_name(&mount, &fresh, by_rename, "count"), Vec::<String>::new());
        for number in 1..=7 {
            let fresh = mount.fresh();
            let wrong = lose_a_name(&mount, &fresh, by_rename, &format!("{number}:before"));
            let _ = std::fs::remove_file(orders(mount.directory()));
            assert!(wrong.is_empty(), "by rename: {by_rename}, {number}: {}\n{}", wrong.join(", "), mount.log());
        }
    }
    mount.umount();
}

/// Linux before 6.9 does not send a release again, and has let go of the handle.
#[test]
fn what_was_being_released_on_an_older_kernel_is_released() {
    let mut mount = Relayed::with(OPTIONS, |command, directory| {
        _ = command.env("STEADFS_CRASH", orders(directory)).env("STEADFS_NO_RESEND", "1");
    });
    let fresh = mount.fresh();
    std::fs::write(fresh.hot.join("f"), "text").unwrap();
    for (what, path) in [("open_files", fresh.hot.join("f")), ("open_dirs", fresh.hot.clone())] {
        let (before, open) = (daemon(&mount), File::open(path).unwrap());
        // The release of what was written comes when it likes.
        lab::wait(&format!("{what}: one is open"), || mount.status()[what] == 1);
        // What closing notes is that the handle is gone.
        give(&mount, "1:before");
        drop(open);
        lab::wait("the daemon dies of it and the next one serves", || {
            daemon(&mount) != before && mount.status()["state"] == "live"
        });
        lab::wait(&format!("{what}: the handle is gone"), || mount.status()[what] == 0);
    }
    mount.umount();
}

#[test]
fn names_agree_after_a_death_at_each_record() {
    strike_each("names");
}

#[test]
fn data_agrees_after_a_death_at_each_record() {
    strike_each("data");
}

#[test]
fn a_crawl_agrees_after_a_death_at_each_record() {
    strike_each("crawl");
}
