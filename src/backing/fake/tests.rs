use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::*;
use crate::backing::{File, ProcessExit};

const LIMIT: Duration = Duration::from_secs(10);
/// Short beside what a hang would take, long beside what a loaded machine does.
const SOON: Duration = Duration::from_secs(2);

fn quiet() -> ExitSink {
    Arc::new(|_: ProcessExit| {})
}

fn p(path: &str) -> &Path {
    Path::new(path)
}

/// A backing with a file `f` in it, its switches, and its first generation.
fn fake() -> (FakeBacking, FakeControl, Arc<dyn Generation>) {
    let backing = FakeBacking::new().expect("tempdir");
    std::fs::write(backing.path().join("f"), "12345").expect("write");
    let generation = backing.start(1, LIMIT, quiet()).expect("starts");
    let control = backing.control();
    (backing, control, generation)
}

fn open(generation: &Arc<dyn Generation>) -> Box<dyn File> {
    generation.tree().open(p("f"), libc::O_RDWR).expect("opens")
}

/// Runs a call in a thread, waits until it is inside, does something, and says what the call gave.
fn meanwhile<T: Send>(control: &FakeControl, call: impl FnOnce() -> T + Send, act: impl FnOnce()) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(call);
        assert!(control.wait_inside(1, LIMIT), "the call is inside");
        std::thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished(), "it hangs");
        act();
        let began = Instant::now();
        let result = thread.join().expect("no panic");
        assert!(began.elapsed() < SOON, "freed at once");
        result
    })
}

#[test]
fn without_faults_it_is_the_directory() {
    let (backing, control, generation) = fake();
    let file = open(&generation);
    assert_eq!(file.write_at(b"ab", 1), Ok(2));
    assert_eq!(file.sync(false), Ok(()));
    assert_eq!(std::fs::read(backing.path().join("f")).expect("read"), b"1ab45");
    assert!(generation.probe().is_ok());
    assert_eq!(generation.number(), 1);
    assert_eq!((control.calls(Call::Open), control.calls(Call::Write), control.calls(Call::Probe)), (1, 1, 1));
    assert_eq!((control.starts(), control.started(), control.inside()), (1, 1, 0));
    let path = backing.path().to_owned();
    drop(file);
    assert_eq!((control.calls(Call::Close), control.all_calls()), (1, 5));
    drop(backing);
    assert!(!path.exists());
}

#[test]
fn errors_by_call_path_and_count() {
    let (_backing, control, generation) = fake();
    let tree = generation.tree();
    control.inject(Fault::new(What::Errno(Errno::EIO)).on(&[Call::Stat, Call::Mkdir]).path("bad").after(1).times(2));
    assert_eq!(tree.stat(p("f")).map(|a| a.size), Ok(5));
    assert_eq!(tree.mkdir(p("bad1"), 0o700), Ok(()), "the first matching one passes");
    assert_eq!(tree.mkdir(p("bad2"), 0o700), Err(Errno::EIO));
    assert_eq!(tree.read_dir(p("bad1")), Ok(Vec::new()), "another call");
    assert_eq!(tree.stat(p("bad1")).err(), Some(Errno::EIO));
    assert!(tree.stat(p("bad1")).is_ok(), "used up");
    assert_eq!(tree.stat(p("bad2")).err(), Some(Errno::ENOENT), "it was not done");
}

#[test]
fn chance_is_fair_and_the_same_each_time() {
    let run = || {
        let (_backing, control, generation) = fake();
        control.inject(Fault::new(What::Errno(Errno::EIO)).on(&[Call::Stat]).chance(0.25));
        (0..2000).map(|_| generation.tree().stat(p("f")).is_err()).collect::<Vec<_>>()
    };
    let first = run();
    let struck = first.iter().filter(|&&e| e).count();
    assert!((400..600).contains(&struck), "{struck} of 2000");
    assert_eq!(first, run());
}

#[test]
fn a_hang_ends_by_abort_and_nothing_was_done() {
    let (backing, control, generation) = fake();
    control.inject(Fault::new(What::Hang).on(&[Call::Mkdir]));
    let made = meanwhile(&control, || generation.tree().mkdir(p("d"), 0o700), || generation.abort());
    assert_eq!(made, Err(Errno::ECONNABORTED));
    assert!(!backing.path().join("d").exists());
    assert_eq!(generation.tree().stat(p("f")), Err(Errno::ECONNABORTED), "for ever");
    assert_eq!(generation.retire(), Ok(()));
    assert_eq!((control.aborts(), control.retires(), control.inside()), (1, 1, 0));
}

#[test]
fn a_hang_after_was_done() {
    let (backing, control, generation) = fake();
    control.inject(Fault::new(What::HangAfter).on(&[Call::Mkdir]));
    let abort = || {
        while !backing.path().join("d").exists() {
            std::thread::yield_now();
        }
        generation.abort();
    };
    let made = meanwhile(&control, || generation.tree().mkdir(p("d"), 0o700), abort);
    assert_eq!(made, Err(Errno::ECONNABORTED));
}

#[test]
fn a_hang_ends_when_its_fault_is_taken_away() {
    let (backing, control, generation) = fake();
    let id = control.inject(Fault::new(What::Hang).on(&[Call::Mkdir]).times(1));
    let made = meanwhile(&control, || generation.tree().mkdir(p("d"), 0o700), || control.remove(id));
    assert_eq!(made, Ok(()));
    assert!(backing.path().join("d").exists());
}

#[test]
fn late_is_late_and_an_abort_does_not_wait_for_it() {
    let (_backing, control, generation) = fake();
    control.inject(Fault::new(What::Late(Duration::from_millis(60))).times(1));
    let began = Instant::now();
    assert!(generation.tree().stat(p("f")).is_ok());
    assert!(began.elapsed() >= Duration::from_millis(60));
    control.inject(Fault::new(What::Late(Duration::from_secs(60))));
    let stat = meanwhile(&control, || generation.tree().stat(p("f")), || generation.abort());
    assert_eq!(stat, Err(Errno::ECONNABORTED));
}

#[test]
fn lost_replies_and_short_transfers() {
    let (backing, control, generation) = fake();
    let file = open(&generation);
    control.inject(Fault::new(What::LostReply).on(&[Call::Create, Call::Rmdir]));
    assert_eq!(generation.tree().create(p("new"), libc::O_WRONLY, 0o600).err(), Some(Errno::ENOTCONN));
    assert!(backing.path().join("new").exists());
    assert_eq!(generation.tree().rmdir(p("none")), Err(Errno::ENOTCONN), "an error is lost too");
    control.clear_faults();

    let mut buf = [0; 8];
    control.inject(Fault::new(What::Short(0)).on(&[Call::Read]).times(1));
    assert_eq!(file.read_at(&mut buf, 0), Ok(0), "an end of file that is none");
    assert_eq!(file.read_at(&mut buf, 0), Ok(5));
    control.inject(Fault::new(What::Short(2)).on(&[Call::Write, Call::Copy]));
    assert_eq!(file.write_at(b"abcd", 0), Ok(2));
    assert_eq!(std::fs::read(backing.path().join("f")).expect("read"), b"ab345");
    let to = generation.tree().create(p("to"), libc::O_RDWR, 0o600).expect("create");
    assert_eq!(file.copy_to(0, &*to, 0, 5), Ok(2));
}

#[test]
fn a_killed_generation_tells_and_the_next_one_works() {
    let (backing, control, generation) = fake();
    drop(generation);
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink: ExitSink = {
        let (told, control) = (Arc::clone(&told), control.clone());
        // The sink may use the control.
        Arc::new(move |exit: ProcessExit| told.lock().push((exit.generation, control.started())))
    };
    let second = backing.start(2, LIMIT, sink).expect("starts");
    let file = open(&second);
    control.inject(Fault::new(What::Hang).on(&[Call::Write]));
    let write = meanwhile(&control, || file.write_at(b"x", 0), || control.kill_generation());
    assert_eq!(write, Err(Errno::ENOTCONN));
    assert_eq!(second.probe(), Err(Errno::ENOTCONN));
    control.kill_generation();
    assert_eq!(*told.lock(), [(2, 2)], "once");
    control.clear_faults();
    second.abort();
    let third = backing.start(3, LIMIT, quiet()).expect("starts");
    assert_eq!(open(&third).write_at(b"x", 0), Ok(1));
    assert_eq!(file.write_at(b"y", 0), Err(Errno::ECONNABORTED), "the old descriptor stays dead");
}

#[test]
fn frozen_calls_hang_until_thaw_or_abort() {
    let (backing, control, generation) = fake();
    control.freeze();
    let probe = meanwhile(&control, || generation.probe(), || control.thaw());
    assert!(probe.is_ok());
    control.freeze();
    let probe = meanwhile(&control, || generation.probe(), || generation.abort());
    assert_eq!(probe, Err(Errno::ECONNABORTED));
    let second = backing.start(2, LIMIT, quiet()).expect("only the old one is frozen");
    assert!(second.probe().is_ok());

    control.freeze_server();
    let stat = meanwhile(&control, || second.tree().stat(p("f")), || second.abort());
    assert_eq!(stat, Err(Errno::ECONNABORTED));
    let began = Instant::now();
    let limit = Duration::from_millis(50);
    assert!(matches!(backing.start(3, limit, quiet()).err(), Some(StartError::Unreachable(_))));
    assert!(began.elapsed() >= limit && began.elapsed() < SOON);
    control.thaw();
    assert!(backing.start(4, LIMIT, quiet()).is_ok());
}

#[test]
fn starts_fail_on_command() {
    let (backing, control, _generation) = fake();
    control.unreachable(true);
    assert!(backing.reach(LIMIT).is_err());
    assert!(matches!(backing.start(2, LIMIT, quiet()).err(), Some(StartError::Unreachable(_))));
    control.unreachable(false);
    assert_eq!(backing.reach(LIMIT), Ok(()));
    control.refuse(Some("Permission denied (publickey)."));
    let refused = backing.start(3, LIMIT, quiet()).err();
    assert_eq!(refused, Some(StartError::Refused("Permission denied (publickey).".into())));
    control.refuse(None);
    control.set_start_delay(Duration::from_millis(60));
    let began = Instant::now();
    assert!(backing.start(4, LIMIT, quiet()).is_ok());
    assert!(began.elapsed() >= Duration::from_millis(60));
    let slow = backing.start(5, Duration::from_millis(10), quiet()).err();
    assert!(matches!(slow, Some(StartError::Unreachable(_))), "{slow:?}");
    assert_eq!((control.starts(), control.started()), (5, 2));
}

#[test]
fn vitals_are_as_set() {
    let (_backing, control, generation) = fake();
    assert_eq!(generation.vitals(), Vitals::default());
    let vitals = Vitals { progress_at: Some(Instant::now()), stopped: true, link_acked: true };
    control.set_vitals(vitals);
    control.freeze();
    assert_eq!(generation.vitals(), vitals, "even when frozen");
}

#[test]
fn nothing_changes_the_directory_after_retire() {
    let (backing, _control, generation) = fake();
    let file = open(&generation);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| while file.write_at(&written.fetch_add(1, Ordering::Relaxed).to_ne_bytes(), 0).is_ok() {});
        }
        while written.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        generation.abort();
        assert_eq!(generation.retire(), Ok(()));
        std::fs::write(backing.path().join("f"), "newer").expect("write");
    });
    assert!(written.load(Ordering::Relaxed) > 4);
    assert_eq!(std::fs::read(backing.path().join("f")).expect("read"), b"newer");
}

#[test]
fn two_hundred_hanging_calls_are_freed_at_once() {
    let (_backing, control, generation) = fake();
    control.inject(Fault::new(What::Hang));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..200).map(|_| scope.spawn(|| generation.tree().stat(p("f")))).collect();
        assert!(control.wait_inside(200, LIMIT));
        let began = Instant::now();
        generation.abort();
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), Err(Errno::ECONNABORTED));
        }
        assert!(began.elapsed() < SOON);
    });
    assert_eq!(control.inside(), 0);
}

#[test]
fn a_generation_is_taken_over_if_it_lives_and_answers() {
    let (backing, control, generation) = fake();
    let record = generation.record().expect("it has one");
    let told = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&told);
    let sink: ExitSink = Arc::new(move |exit| _ = counted.fetch_add(exit.generation, Ordering::SeqCst));
    let taken = backing.adopt(&record, None, LIMIT, sink).expect("taken over");
    assert_eq!((taken.number(), control.started()), (1, 1));
    assert_eq!(open(&taken).write_at(b"x", 0), Ok(1));
    control.freeze();
    let refused = backing.adopt(&record, None, Duration::from_millis(10), quiet()).err();
    assert!(matches!(refused, Some(AdoptError::Silent(_))), "{refused:?}");
    control.thaw();
    assert_eq!(taken.probe().err(), Some(Errno::ECONNABORTED), "it has been ended");
    let refused = backing.adopt(&record, None, LIMIT, quiet()).err();
    assert!(matches!(refused, Some(AdoptError::Dead(_))), "{refused:?}");
    assert_eq!(told.load(Ordering::SeqCst), 0, "what was asked for is no news");
    let second = backing.start(2, LIMIT, quiet()).expect("starts");
    let record = second.record().expect("it has one");
    let counted = Arc::clone(&told);
    let sink: ExitSink = Arc::new(move |exit| _ = counted.fetch_add(exit.generation, Ordering::SeqCst));
    drop(backing.adopt(&record, None, LIMIT, sink).expect("taken over"));
    control.kill_generation();
    assert_eq!(told.load(Ordering::SeqCst), 2, "the successor is told");
}
