mod abandoned;
mod asynchronous;
mod data;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use super::*;
use crate::backing::{StatFs, Tree, Vitals};

const MS: Duration = Duration::from_millis(1);
/// Longer than anything takes on a loaded machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A generation that only has a number: the work in these tests does not call into it.
struct Numbered(u64);

impl Generation for Numbered {
    fn number(&self) -> u64 {
        self.0
    }
    fn tree(&self) -> &dyn Tree {
        unreachable!("no test of the gate calls the backing")
    }
    fn probe(&self) -> OpResult<StatFs> {
        Ok(StatFs::default())
    }
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }
    fn abort(&self) {}
    fn retire(&self) -> Result<(), String> {
        Ok(())
    }
}

fn generation(number: u64) -> Arc<dyn Generation> {
    Arc::new(Numbered(number))
}

struct Rig {
    gate: Arc<Gate>,
    complaints: Receiver<(u64, Complaint)>,
}

fn rig(deadline: Duration) -> Rig {
    rig_of(CallPolicy { deadline, sync_deadline: deadline * 4, ..CallPolicy::default() })
}

fn rig_of(policy: CallPolicy) -> Rig {
    let (sender, complaints) = channel();
    let sender = Mutex::new(sender);
    let gate = Gate::new(policy, move |generation, complaint| _ = sender.lock().send((generation, complaint)));
    Rig { gate: gate.expect("a thread can be started"), complaints }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.gate.stop();
    }
}

/// Submits and hands back the channel on which every reply arrives.
fn submit<T: Send + 'static>(
    gate: &Gate,
    work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
) -> Receiver<OpResult<T>> {
    let (sender, replies) = channel();
    gate.submit(Op::Getattr, Class::Meta, 0, work, move |result| _ = sender.send(result));
    replies
}

/// A place where threads are stuck until it opens.
#[derive(Clone, Default)]
struct Trap(Arc<(Mutex<bool>, Condvar)>);

impl Trap {
    fn wait(&self) {
        let mut open = self.0.0.lock();
        while !*open {
            self.0.1.wait(&mut open);
        }
    }
    fn open(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }
}

fn until(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it never came about");
        std::thread::sleep(MS);
    }
}

#[test]
fn a_call_waits_for_the_gate_and_is_answered_once() {
    let rig = rig(PATIENCE);
    let replies = submit(&rig.gate, |context| Ok(context.generation.number()));
    assert_eq!(replies.recv_timeout(50 * MS), Err(RecvTimeoutError::Timeout));
    rig.gate.open(generation(7));
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(7)));
    assert_eq!(replies.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected), "one reply");
    until(|| rig.gate.stats().result(Op::Getattr, Outcome::Ok) == 1);
}

#[test]
fn a_deadline_answers_in_place_of_a_stuck_thread_and_its_result_is_dropped() {
    let rig = rig(100 * MS);
    rig.gate.open(generation(1));
    let (trap, dropped) = (Trap::default(), Arc::new(AtomicBool::new(false)));
    struct Noticed(Arc<AtomicBool>);
    impl Drop for Noticed {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let (inside, flag) = (trap.clone(), Arc::clone(&dropped));
    let replies = submit(&rig.gate, move |_| {
        inside.wait();
        Ok(Noticed(Arc::clone(&flag)))
    });
    let reply = replies.recv_timeout(PATIENCE).expect("a reply");
    assert_eq!(reply.err(), Some(Errno::ETIMEDOUT));
    assert_eq!(rig.gate.load().stuck, 1);
    assert_eq!(rig.complaints.recv_timeout(PATIENCE), Ok((1, Complaint::Late(Op::Getattr))));
    trap.open();
    until(|| dropped.load(SeqCst) && rig.gate.load().stuck == 0);
    until(|| rig.gate.stats().result(Op::Getattr, Outcome::Deadline) == 1);
}

#[test]
fn an_old_outage_fails_what_waits_and_what_comes_at_once_with_its_errno() {
    let rig = rig(100 * MS);
    rig.gate.open(generation(1));
    let trap = Trap::default();
    let inside = trap.clone();
    let (sender, replies) = channel();
    let work = move |_: &Context<'_>| {
        inside.wait();
        Err::<(), _>(Errno::ENOTCONN)
    };
    rig.gate.submit(Op::Fsync, Class::Sync, 0, work, move |result| _ = sender.send(result));
    until(|| rig.gate.inside().sync.is_some());
    rig.gate.close(Instant::now());
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Err(Errno::ENOTCONN)), "an fsync does not wait for its own deadline");
    assert!(rig.gate.fails_fast());
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let replies = submit(&rig.gate, move |_| {
        flag.store(true, SeqCst);
        Ok(())
    });
    assert_eq!(replies.try_recv(), Ok(Err(Errno::ENOTCONN)), "answered before submit returns");
    rig.gate.open(generation(2));
    trap.open();
    assert!(!ran.load(SeqCst));
    assert_eq!(submit(&rig.gate, |_| Ok(5)).recv_timeout(PATIENCE), Ok(Ok(5)));
}

#[test]
fn a_doubtful_error_waits_for_the_verdict_alive() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let replies = submit(&rig.gate, |_| Err::<(), _>(Errno::EIO));
    assert_eq!(rig.complaints.recv_timeout(PATIENCE), Ok((1, Complaint::Failed(Op::Getattr, Errno::EIO))));
    rig.gate.settle(1, Instant::now() - PATIENCE);
    assert_eq!(replies.recv_timeout(50 * MS), Err(RecvTimeoutError::Timeout), "a probe from before proves nothing");
    rig.gate.settle(1, Instant::now());
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Err(Errno::EIO)));
}

#[test]
fn a_doubtful_error_of_a_dead_generation_is_run_again_in_the_next_in_doubt() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let replies = submit(&rig.gate, |context| match context.generation.number() {
        1 => Err(Errno::ENOTCONN),
        number => Ok((number, context.in_doubt)),
    });
    rig.complaints.recv_timeout(PATIENCE).expect("a complaint");
    rig.gate.close(Instant::now());
    rig.gate.open(generation(2));
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok((2, true))));
}

#[test]
fn an_ordinary_error_is_passed_on_without_complaint() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    assert_eq!(submit(&rig.gate, |_| Err::<(), _>(Errno::ENOENT)).recv_timeout(PATIENCE), Ok(Err(Errno::ENOENT)));
    assert!(rig.complaints.try_recv().is_err());
}

#[test]
fn a_panic_answers_the_caller_and_spares_the_pool() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let replies = submit(&rig.gate, |_| -> OpResult<()> { panic!("on purpose") });
    rig.complaints.recv_timeout(PATIENCE).expect("EIO raises a doubt");
    rig.gate.settle(1, Instant::now());
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Err(Errno::EIO)));
    assert_eq!(submit(&rig.gate, |_| Ok(1)).recv_timeout(PATIENCE), Ok(Ok(1)));
}

#[test]
fn more_callers_than_threads_are_all_answered_in_time_while_every_thread_is_stuck() {
    let rig = rig(300 * MS);
    rig.gate.open(generation(1));
    let trap = Trap::default();
    let started = Instant::now();
    let replies: Vec<_> = (0..MAX_THREADS + 50)
        .map(|_| {
            let inside = trap.clone();
            submit(&rig.gate, move |_| {
                inside.wait();
                Ok(())
            })
        })
        .collect();
    for replies in replies {
        assert_eq!(replies.recv_timeout(PATIENCE), Ok(Err(Errno::ETIMEDOUT)));
    }
    assert!(started.elapsed() < Duration::from_secs(3));
    let load = rig.gate.load();
    assert_eq!((load.threads, load.stuck), (MAX_THREADS, MAX_THREADS));
    rig.gate.close(Instant::now());
    trap.open();
    until(|| rig.gate.load().stuck == 0);
    rig.gate.open(generation(2));
    assert_eq!(submit(&rig.gate, |_| Ok(1)).recv_timeout(PATIENCE), Ok(Ok(1)));
}

#[test]
fn calls_never_run_after_they_were_answered() {
    let rig = rig(50 * MS);
    let ran = Arc::new(AtomicUsize::new(0));
    let flag = Arc::clone(&ran);
    let replies = submit(&rig.gate, move |_| {
        flag.fetch_add(1, SeqCst);
        Ok(())
    });
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Err(Errno::ENOTCONN)));
    rig.gate.open(generation(1));
    assert_eq!(submit(&rig.gate, |_| Ok(())).recv_timeout(PATIENCE), Ok(Ok(())));
    assert_eq!(ran.load(SeqCst), 0);
}

type Work = Box<dyn FnMut(&Context<'_>) -> OpResult<()> + Send>;

/// Forty generations that die at random moments, with twenty calls each, which `submit` hands in with a number and their
/// work. Each must have one reply, and that a good one.
fn storm(gate: &Gate, submit: impl Fn(u64, Work) -> Receiver<OpResult<()>>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let mut replies = Vec::new();
    for round in 1..=40_u64 {
        alive.store(round as usize, SeqCst);
        gate.open(generation(round));
        for number in 0..20 {
            let alive = Arc::clone(&alive);
            let work = move |context: &Context<'_>| {
                std::thread::yield_now();
                match context.generation.number() as usize == alive.load(SeqCst) {
                    true => Ok(()),
                    false => Err(Errno::ENOTCONN),
                }
            };
            replies.push(submit(number, Box::new(work)));
        }
        if round % 3 == 0 {
            std::thread::sleep(MS);
        }
        alive.store(0, SeqCst);
        gate.close(Instant::now());
    }
    alive.store(99, SeqCst);
    gate.open(generation(99));
    for replies in replies {
        assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
        assert_eq!(replies.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
}

#[test]
fn outages_at_random_moments_leave_each_call_with_one_reply() {
    let rig = rig(PATIENCE);
    storm(&rig.gate, |_, work| submit(&rig.gate, work));
}

#[test]
fn what_was_held_longer_than_its_deadline_is_done_when_the_outage_is_over() {
    let deadline = 400 * MS;
    let policy = CallPolicy { deadline, sync_deadline: deadline * 4, hold: PATIENCE, ..CallPolicy::default() };
    let rig = rig_of(policy);
    let arrived = Instant::now();
    // Long enough for the clock to look several times.
    let work = |_: &Context<'_>| {
        std::thread::sleep(100 * MS);
        Ok(1)
    };
    let reply = submit(&rig.gate, work);
    while arrived.elapsed() < deadline * 2 {
        std::thread::sleep(10 * MS);
    }
    rig.gate.open(generation(1));
    assert_eq!(reply.recv_timeout(PATIENCE), Ok(Ok(1)));
}
