//! steadfs itself dies, again and again: the daemon, the keeper, and either together with what is below. Nobody above
//! notices more than a pause, nothing is lost, and nothing is left behind (promise P6).
//!
//! `STEADFS_KILLS` is how often the long test kills the daemon, once in two seconds: 150 are five minutes.
#![allow(clippy::unwrap_used)]

mod lab;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::agent::{Agent, Call, Report, now};
use lab::agents::{QUICK, verify};
use lab::parts::Part;
use lab::tidy::verify_lines;
use lab::{Lab, PATIENCE, process, wait};
use nix::sys::signal::Signal;

/// Kills of the long test.
const KILLS: usize = 8;
/// Between two kills.
const PAUSE: f64 = 2.0;
/// What a busy machine with two cores may make of the promised second, in the worst case and in the middle, in seconds.
const WORST: f64 = 3.0;
const MEDIAN: f64 = 1.0;

lab::also_runs_as!(agent_process: lab::agents::main);

/// What a daemon needs at rest.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "shown")]
struct Needs {
    descriptors: usize,
    threads: u64,
    /// Of its own.
    anonymous_kib: u64,
    /// Of the memory that outlives it.
    shared_kib: u64,
}

fn needs(lab: &Lab) -> Needs {
    let daemon = lab.status()["pid"].as_i64().unwrap() as i32;
    Needs {
        descriptors: process::descriptors(daemon).len(),
        threads: process::status_number(daemon, "Threads"),
        anonymous_kib: process::status_number(daemon, "RssAnon"),
        shared_kib: process::status_number(daemon, "RssShmem"),
    }
}

/// Kills a part of steadfs and waits until the daemon that then serves answers. When, in seconds since the epoch.
fn kill(lab: &Lab, part: Part) -> f64 {
    let at = now();
    assert!(
        lab.parts().kill(part).is_some(),
        "there is no {part:?} to be killed, or it would be the end:\n{}",
        lab.log()
    );
    wait("a daemon answers", || lab.status()["pid"].is_u64());
    at
}

/// Users that do not stop.
struct Crowd {
    synced: (PathBuf, Agent),
    closed: Agent,
    log: Agent,
    names: (PathBuf, Agent),
}

impl Crowd {
    fn start(lab: &Lab) -> Crowd {
        let start = |kind: &str, name: &str| Agent::start(kind, &lab.hot.join(name), lab.directory());
        std::fs::create_dir(lab.store.join("names")).unwrap();
        Crowd {
            synced: (lab.store.join("synced"), start("unpaced-lean", "synced")),
            closed: start("stream-lean", "closed"),
            log: start("tail-lean", "log"),
            names: (lab.store.join("names"), start("names-lean", "names")),
        }
        .at_work()
    }

    fn at_work(self) -> Crowd {
        let Crowd { synced: (file, synced), closed, log, names: (directory, names) } = self;
        let (synced, closed, log, names) = (synced.at_work(), closed.at_work(), log.at_work(), names.at_work());
        Crowd { synced: (file, synced), closed, log, names: (directory, names) }
    }

    /// Ends them and checks what they saw and what the store has. Their calls that were not quick.
    fn finish(self, lab: &Lab) -> Vec<Call> {
        let (synced, closed) = (self.synced.1.finish(), self.closed.finish());
        let (log, names) = (self.log.finish(), self.names.1.finish());
        let all = [("synced", &synced), ("closed", &closed), ("log", &log), ("names", &names)];
        for (who, report) in all {
            let worst = report.calls.iter().max_by(|one, other| one.took.total_cmp(&other.took));
            let worst = worst.map_or(String::new(), |call| format!("{} took {:.3} s", call.name, call.took));
            println!("   {who}: {} calls, {worst}", report.quick + report.calls.len() as u64);
        }
        for (who, report) in all {
            assert_eq!(report.hanging, Vec::new(), "{who}: calls that hang\n{}", lab.log());
            assert_eq!(report.errors(), Vec::<&Call>::new(), "{who}: errors\n{}", lab.log());
            assert_eq!(report.wrong, Vec::<String>::new(), "{who}: wrong results\n{}", lab.log());
        }
        assert!(synced.afterwards >= 32, "the descriptor does not write any more");
        verify(&self.synced.0, synced.synced);
        for stream in closed.streams {
            assert!(stream.closed && stream.afterwards >= 32, "{stream:?}");
            verify(&lab.store.join(stream.path.file_name().unwrap()), stream.written);
        }
        for stream in log.streams {
            assert!(stream.closed);
            verify_lines(&lab.store.join("log"), stream.written);
        }
        let left: Vec<_> = std::fs::read_dir(&self.names.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let last_round = |name: &&std::ffi::OsString| *name != "crowded" && !is_libfuses(Path::new(name));
        wait("only the crowded directory is left", || {
            let left: Vec<_> =
                std::fs::read_dir(&self.names.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            left.iter().filter(last_round).count() == 0
        });
        assert!(left.iter().any(|name| name == "crowded"));
        [synced.calls, closed.calls, log.calls, names.calls].concat()
    }
}

/// A file that an sshfs hid in its own way; one that dies in that moment leaves it (docs/semantics.md).
fn is_libfuses(path: &Path) -> bool {
    path.file_name().unwrap().to_str().unwrap().starts_with(".fuse_hidden")
}

/// For each of these moments the longest call that was under way in it or began soon after, in ascending order.
fn stalls(calls: &[Call], moments: &[f64]) -> Vec<f64> {
    let concerns = |call: &&Call, at: f64| call.end() >= at && call.start <= at + 0.5;
    let longest =
        |&at: &f64| calls.iter().filter(|call| concerns(call, at)).map(|call| call.took).fold(QUICK, f64::max);
    let mut all: Vec<f64> = moments.iter().map(longest).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// Says them; `STEADFS_KILLS_LOG` is a file for the log up to here.
fn print_stalls(lab: &Lab, name: &str, stalls: &[f64]) -> (f64, f64) {
    let (median, worst) = (stalls[stalls.len() / 2], *stalls.last().unwrap());
    if let Some(path) = std::env::var_os("STEADFS_KILLS_LOG") {
        std::fs::write(path, lab.log()).unwrap();
    }
    println!("== {name}: {} deaths, stall median {median:.3} s, worst {worst:.3} s", stalls.len());
    (median, worst)
}

/// Waits until nobody has anything and the kernel has forgotten everything, and compares with what was needed before.
fn check_at_rest(lab: &Lab, before: Needs) {
    wait("nothing is open, and every name is forgotten", || {
        // 2: dentries and inodes (Documentation/admin-guide/sysctl/vm.rst).
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        let status = lab.status();
        let zero = ["/open_files", "/open_dirs", "/calls/waiting", "/log/bytes", "/log/files", "/threads_stuck"];
        let zero = zero.iter().all(|field| status.pointer(field) == Some(&0.into()));
        let rest = zero && status["nodes"].as_u64().is_some_and(|nodes| nodes <= 2) && status["state"] == "live";
        if !rest {
            std::thread::sleep(Duration::from_millis(100));
        }
        rest
    });
    let status = lab.status();
    assert_eq!((&status["log"]["spooled_files_total"], &status["log"]["lost_files_total"]), (&0.into(), &0.into()));
    // What malloc(3) keeps is given back after some time without work.
    wait("memory is given back", || needs(lab).anonymous_kib <= before.anonymous_kib + GIVEN_BACK);
    // Threads without work end after some seconds.
    wait("threads and descriptors are given back", || {
        let now = needs(lab);
        now.descriptors <= before.descriptors + 8 && now.threads <= before.threads + 24
    });
    println!("   at rest before: {before:?}\n   at rest after:  {:?}", needs(lab));
    let parts = lab.parts();
    assert_eq!((parts.keepers().len(), parts.daemons().len()), (1, 1));
    assert_eq!((lab.clients("sshfs").len(), lab.clients("ssh").len()), (1, 1));
    // Nobody waits for the removal.
    wait("no hidden name is left", || lab::tree::named_below(&lab.store, ".steadfs-hidden").is_empty());
}

/// KiB of anonymous memory that a daemon may have more when it is at rest than before it did anything.
const GIVEN_BACK: u64 = 64 << 10;

/// What a daemon needs that has succeeded another, before anybody uses the mount.
fn needs_at_first(lab: &Lab) -> Needs {
    kill(lab, Part::Daemon);
    lab.wait_state("live");
    needs(lab)
}

#[test]
fn a_daemon_that_is_killed_every_two_seconds_is_not_noticed() {
    let kills = std::env::var("STEADFS_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let lab = Lab::new("");
    let before = needs_at_first(&lab);
    let mount = lab::mount_of(&lab.hot);
    let crowd = Crowd::start(&lab);
    let mut moments = Vec::new();
    for _ in 0..kills {
        lab::sleep_secs(PAUSE);
        moments.push(kill(&lab, Part::Daemon));
    }
    let calls = crowd.finish(&lab);
    let (median, worst) = print_stalls(&lab, "daemon killed every two seconds", &stalls(&calls, &moments));
    assert_eq!(lab::mount_of(&lab.hot), mount, "another mount");
    check_at_rest(&lab, before);
    assert!(median < MEDIAN && worst < WORST, "{median} {worst}");
    lab.umount();
}

/// What else happens in the moment in which a part of steadfs dies.
type Fault = (&'static str, Option<(&'static str, Signal)>);

const FAULTS: [Fault; 5] = [
    ("alone", None),
    ("with sshfs killed", Some(("sshfs", Signal::SIGKILL))),
    ("with ssh killed", Some(("ssh", Signal::SIGKILL))),
    ("with sshfs frozen", Some(("sshfs", Signal::SIGSTOP))),
    ("with ssh frozen", Some(("ssh", Signal::SIGSTOP))),
];

#[test]
fn keeper_and_daemon_die_in_turn_with_and_without_what_is_below() {
    // A frozen sshfs takes 3 s to be noticed.
    let lab = Lab::new("deadline=15s");
    let before = needs_at_first(&lab);
    let crowd = Crowd::start(&lab);
    let mut moments = Vec::new();
    for (number, (name, fault)) in (0..).zip(FAULTS) {
        for part in [Part::Keeper, Part::Daemon] {
            lab::sleep_secs(1.0);
            lab.wait_state("live");
            // Which of the two comes first is left to chance, but not to luck.
            let first = number % 2 == 0;
            if let (true, Some((program, signal))) = (first, fault) {
                lab.signal(program, signal);
            }
            let at = kill(&lab, part);
            // It may end in this moment: what is hit is what was found.
            if let (false, Some((program, signal))) = (first, fault)
                && let [pid] = lab.clients(program)[..]
            {
                lab::process::signal(pid, signal);
            }
            moments.push((format!("{part:?} killed {name}"), at));
        }
    }
    lab::sleep_secs(1.0);
    lab.wait_state("live");
    let calls = crowd.finish(&lab);
    for (name, at) in &moments {
        print_stalls(&lab, name, &stalls(&calls, &[*at]));
    }
    check_at_rest(&lab, before);
    lab.umount();
}

#[test]
fn fio_finds_every_checksum_while_the_daemon_is_killed() {
    let lab = Lab::new("");
    let output = std::fs::File::create(lab.path("fio")).unwrap();
    let mut fio = lab::tools::fio(&lab.hot);
    let mut fio = fio.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
    let mut kills = 0;
    while fio.try_wait().unwrap().is_none() {
        lab::sleep_secs(1.0);
        kill(&lab, Part::Daemon);
        kills += 1;
        assert!(kills < 120, "fio does not end");
    }
    let status = fio.wait().unwrap();
    println!("== fio: {kills} deaths");
    assert!(status.success() && kills >= 3, "{status}, {kills}: {}", std::fs::read_to_string(lab.path("fio")).unwrap());
    lab.umount();
}

#[test]
fn a_frozen_daemon_is_noticed_and_replaced() {
    let lab = Lab::new("watchdog=2s");
    let before = needs_at_first(&lab);
    let crowd = Crowd::start(&lab);
    let at = now();
    let frozen = lab.parts().signal(Part::Daemon, Signal::SIGSTOP).unwrap();
    wait("another daemon serves", || {
        let daemons = lab.parts().daemons();
        !daemons.is_empty() && !daemons.contains(&frozen)
    });
    wait("it answers", || lab.status()["pid"].is_u64());
    lab::sleep_secs(1.0);
    let calls = crowd.finish(&lab);
    let (_, worst) = print_stalls(&lab, "daemon frozen", &stalls(&calls, &[at]));
    assert!((1.0..7.0).contains(&worst), "{worst}");
    let log = lab.log();
    assert!(log.contains("gives no sign of life"), "{log}");
    assert!(log.contains("steadfs-") || log.contains("tid"), "its threads are in the log: {log}");
    check_at_rest(&lab, before);
    lab.umount();
}

/// Linux before 6.9 cannot send again what a dead daemon had read.
#[test]
fn an_older_kernel_costs_calls_in_flight_an_error_and_nothing_else() {
    let mut lab = Lab::unmounted();
    let mut command = lab.mount_command("-f", "");
    command.env("STEADFS_NO_RESEND", "1");
    lab.serve(command);
    lab.wait_state("live");
    let before = needs_at_first(&lab);
    let mut agents = Vec::new();
    for kind in ["unpaced-lean", "prober-lean"] {
        let target = if kind == "prober-lean" { lab.hot.clone() } else { lab.hot.join("records") };
        agents.push(Agent::start(kind, &target, lab.directory()).at_work());
    }
    for _ in 0..6 {
        lab::sleep_secs(1.0);
        kill(&lab, Part::Daemon);
    }
    let reports: Vec<_> = agents.into_iter().map(Agent::finish).collect();
    let errors: Vec<_> = reports.iter().flat_map(Report::errors).collect();
    println!("== no resend: {} errors in 6 deaths: {errors:?}", errors.len());
    for report in &reports {
        assert_eq!(report.hanging, Vec::new(), "{}", lab.log());
    }
    // One call of each agent at a time; a create that failed had made its file, so nothing follows of it.
    assert!(errors.len() <= 12, "{errors:?}");
    assert!(errors.iter().all(|call| call.errno == libc::EIO), "{errors:?}");
    verify(&lab.store.join("records"), reports[0].synced);
    assert!(reports[0].afterwards >= 32);
    check_at_rest(&lab, before);
    lab.umount();
}

#[test]
fn callers_and_the_worker_are_let_go_when_no_daemon_can_go_on() {
    let lab = Lab::unmounted();
    let (orders, pause) = (lab.path("crash"), lab.path("pause"));
    let mut command = lab.mount_command("-f", &format!("keeper_deadline=3s,pause_file={}", pause.display()));
    let log = std::fs::File::create(lab.path("log")).unwrap();
    command.env("STEADFS_CRASH", &orders).stdin(Stdio::null()).stderr(log);
    let mut keeper = command.spawn().unwrap();
    wait("the mount is there", || lab::mount_of(&lab.hot).is_some());
    lab.wait_state("live");
    let writer = Agent::start("writer", &lab.hot.join("records"), lab.directory()).at_work();
    // The worker is paused, since the server is away for longer than the deadline.
    lab.net.cut();
    wait("the worker is paused", || pause.exists());
    // Each daemon, this one first, dies of the first thing that it notes.
    std::fs::write(&orders, vec!["1:before"; 200].join(" ")).unwrap();
    let begun = Instant::now();
    lab.parts().kill(Part::Daemon).unwrap();
    let mut ended = None;
    wait("the keeper gives up", || {
        ended = keeper.try_wait().unwrap();
        ended.is_some()
    });
    let took = begun.elapsed();
    let ended = ended.unwrap();
    println!("== given up after {took:?}: {ended}");
    lab.net.heal();
    assert_eq!((ended.code(), ended.signal()), (Some(32), None), "{}", lab.log());
    assert!(took >= Duration::from_secs(2) && took < PATIENCE, "{took:?}");
    assert_eq!(lab::mount_of(&lab.hot), None, "the mount is left");
    let report = writer.finish();
    assert_eq!(report.hanging, Vec::new(), "callers that wait");
    assert!(!report.errors().is_empty());
    assert!(!pause.exists(), "the worker is paused for ever\n{}", lab.log());
    assert_eq!(lab.parts().daemons(), Vec::<i32>::new());
    for name in ["sshfs", "ssh"] {
        assert_eq!(lab.clients(name), Vec::<i32>::new(), "{name} is left");
    }
    assert_eq!(lab::sweep::mounts_below(lab.directory()), Vec::<String>::new());
}
