//! The run that all faults have in common: a writer, a prober, a container and the usual programs go through a fault, and
//! what holds for every fault is checked.

use super::agent::{Agent, Call, Report, now};
use super::agents::verify;
use super::container::Container;
use super::tools::{LIMIT, Seen, Watch};
use super::{Lab, mount_of, process, wait};

/// Longest a call may take (promise P1 and its margin), in seconds.
pub const CALL: f64 = 5.5;
/// Longest an fsync or a close may take in an outage that had to be detected first, in seconds.
pub const SYNC: f64 = 8.5;
/// What a busy machine with two cores may add to a recovery.
pub const NOISE: f64 = 1.5;

/// When things happened, in seconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub began: f64,
    /// The server could be reached again; the same as `began` if it always could.
    pub healed: f64,
}

impl Fault {
    /// A fault that leaves the server within reach.
    pub fn once(inject: impl FnOnce()) -> Fault {
        inject();
        let began = now();
        Fault { began, healed: began }
    }

    /// A fault that is there for a time.
    pub fn lasting(seconds: f64, inject: impl FnOnce(), heal: impl FnOnce()) -> Fault {
        let began = now();
        inject();
        super::sleep_secs((began + seconds - now()).max(0.0));
        heal();
        Fault { began, healed: now() }
    }
}

/// What was seen.
pub struct Outcome {
    pub name: String,
    pub fault: Fault,
    pub writer: Report,
    pub prober: Report,
    pub seen: Seen,
    /// `steadfs status` at the end.
    pub status: serde_json::Value,
}

/// Plays a fault and checks what holds for every one. `patience` is how long after the healing everything must be
/// live again, in seconds, the margin for noise not included.
pub fn survive(name: &str, patience: f64, fault: impl FnOnce(&mut Lab) -> Fault) -> Outcome {
    let mut lab = Lab::new("");
    let outcome = survive_in(&mut lab, name, patience, fault);
    lab.umount();
    outcome
}

/// The same with a laboratory that is mounted already and stays so.
pub fn survive_in(lab: &mut Lab, name: &str, patience: f64, fault: impl FnOnce(&mut Lab) -> Fault) -> Outcome {
    let container = Container::new();
    let (mount, inside) = (mount_of(&lab.hot), container.mount_of(&lab.hot));
    assert!(mount.is_some() && inside.is_some());
    let writer = Agent::start("writer", &lab.hot.join("records"), lab.directory()).at_work();
    let prober = Agent::start("prober", &lab.hot, lab.directory()).at_work();
    let watch = Watch::start(lab);
    let fault = fault(lab);
    lab.wait_state("live");
    super::sleep_secs(2.0);
    let seen = watch.finish();
    let (writer, prober) = (writer.finish(), prober.finish());
    let status = lab.status();
    let outcome = Outcome { name: name.into(), fault, writer, prober, seen, status };
    outcome.print();
    outcome.check(patience);
    verify(&lab.store.join("records"), outcome.writer.synced);
    assert_eq!(process::stuck(&lab.family()), Vec::<String>::new(), "{name}: stuck");
    assert_eq!((mount_of(&lab.hot), container.mount_of(&lab.hot)), (mount, inside), "{name}: another mount");
    let known = lab.hot.join("known");
    let answer = container.ask(&["cat", known.to_str().unwrap()], LIMIT);
    assert_eq!(answer.stdout, "here", "{name}: from the container: {answer:?}");
    outcome
}

impl Outcome {
    fn reports(&self) -> [&Report; 2] {
        [&self.writer, &self.prober]
    }

    /// Longest call of the writer and the prober.
    pub fn longest(&self, which: impl Fn(&Call) -> bool) -> f64 {
        self.reports().iter().map(|report| report.longest(&which)).fold(0.0, f64::max)
    }

    /// Seconds from the healing until both the writer and the prober got something done again.
    pub fn recovery(&self) -> Option<f64> {
        let Fault { began, healed } = self.fault;
        // A call that was under way when a process was killed may have been done already; one that was under way at
        // the healing cannot.
        let counts = |call: &Call| if healed > began { call.end() > healed } else { call.start > began };
        let both = self.reports().map(|report| report.first_success(counts));
        both.into_iter().collect::<Option<Vec<_>>>().map(|ends| ends.into_iter().fold(0.0, f64::max) - healed)
    }

    /// All calls of the writer and the prober that began when the outage was older than the deadline, and ended in it.
    pub fn overdue(&self) -> Vec<f64> {
        // Detection may take 3 s, then the outage has to get older than the deadline.
        let old = self.fault.began + 8.5;
        let within = |call: &&Call| call.start > old && call.end() < self.fault.healed;
        let mut took: Vec<f64> =
            self.reports().iter().flat_map(|report| report.calls.iter().filter(within)).map(|call| call.took).collect();
        took.sort_by(f64::total_cmp);
        took
    }

    /// Calls that failed, by errno; those of an fsync or a close apart.
    pub fn errors(&self) -> (Vec<&Call>, Vec<&Call>) {
        self.reports().into_iter().flat_map(Report::errors).partition(|call| !call.syncs())
    }

    fn print(&self) {
        let count = |errors: &[&Call]| {
            let mut by_errno = std::collections::BTreeMap::<String, usize>::new();
            for call in errors {
                let errno = format!("{:?}", nix::errno::Errno::from_raw(call.errno));
                *by_errno.entry(format!("{} {errno}", call.name)).or_default() += 1;
            }
            by_errno
        };
        let (errors, sync_errors) = self.errors();
        let overdue = self.overdue();
        let median = overdue.get(overdue.len() / 2).map_or("-".into(), |s| format!("{:.3} ms", s * 1e3));
        println!("== {}", self.name);
        for (name, which) in [
            ("write", (|c: &Call| c.name == "write") as fn(&Call) -> bool),
            ("stat, create, unlink", |c: &Call| matches!(c.name.as_str(), "stat" | "create" | "unlink")),
            ("fsync, close", Call::syncs),
        ] {
            println!("   longest {name}: {:.3} s", self.longest(which));
        }
        println!("   recovery: {:?} s after the fault was over", self.recovery());
        println!("   errors: {:?} {:?}", count(&errors), count(&sync_errors));
        println!("   calls in the old outage: {}, median {median}", overdue.len());
        println!("   {} records synced, {} of them afterwards", self.writer.synced, self.writer.afterwards);
        println!("   programs: {:?}", self.seen.longest);
        println!("   states: {:?}, generation {}", self.seen.states, self.status["generation"]);
    }

    fn check(&self, patience: f64) {
        let name = &self.name;
        for report in self.reports() {
            assert_eq!(report.hanging, Vec::new(), "{name}: calls that hang");
        }
        let (call, sync) = (self.longest(|call| !call.syncs()), self.longest(Call::syncs));
        let late: Vec<&Call> = self
            .reports()
            .into_iter()
            .flat_map(|report| &report.calls)
            .filter(|call| !call.syncs() && call.took > CALL)
            .collect();
        assert!(call <= CALL, "{name}: a call took {call:.2} s: {late:?}");
        assert!(sync <= SYNC, "{name}: an fsync or close took {sync:.2} s");
        let recovery = self.recovery().unwrap_or_else(|| panic!("{name}: nothing succeeded afterwards"));
        assert!(recovery <= patience * NOISE, "{name}: back only {recovery:.2} s after the fault was over");
        assert!(
            self.writer.afterwards >= 32,
            "{name}: the descriptor does not write: {:?}",
            self.writer.errors().last()
        );
        assert_eq!(self.seen.bad, Vec::<String>::new(), "{name}: programs that were late or wrong");
        assert_eq!(self.status["threads_stuck"], 0, "{name}: {}", self.status);
    }

    /// An outage shorter than the deadline: nobody sees an error.
    pub fn was_invisible(&self) -> &Outcome {
        let (errors, sync_errors) = self.errors();
        assert_eq!((errors, sync_errors), (vec![], vec![]), "{}", self.name);
        self
    }

    /// An outage that failed calls: all with the outage errno, and at once when it was old.
    pub fn failed_fast(&self) -> &Outcome {
        let name = &self.name;
        let (errors, sync_errors) = self.errors();
        assert!(!errors.is_empty(), "{name}: the fault did not bite");
        let strange: Vec<_> = errors.iter().filter(|call| call.errno != libc::ENOTCONN).collect();
        assert!(strange.is_empty(), "{name}: {strange:?}");
        let strange: Vec<_> = sync_errors.iter().filter(|call| call.errno != libc::ENOTCONN).collect();
        assert!(strange.is_empty(), "{name}: {strange:?}");
        let overdue = self.overdue();
        if self.fault.healed - self.fault.began > 9.0 {
            assert!(overdue.len() >= 10, "{name}: only {} calls in the old outage", overdue.len());
            let median = overdue[overdue.len() / 2];
            assert!(median < 0.001, "{name}: the median call in an old outage takes {:.3} ms", median * 1e3);
        }
        self
    }
}

/// Waits until a later generation than this one is live.
pub fn wait_for_successor(lab: &Lab, generation: u64) {
    wait("the next generation", || lab.live().is_some_and(|number| number > generation));
}
