//! Writes that return before the server has seen their data.

use super::data::submit_data;
use super::*;
use crate::backing::fake::{Call, FakeBacking, FakeControl, Fault, What};
use crate::backing::{Backing, ExitSink};

const KIB: u64 = 1 << 10;

struct Asynchronous {
    rig: Rig,
    backing: FakeBacking,
}

impl Asynchronous {
    /// An open gate in front of a server that takes so long for a barrier.
    fn new(deadline: Duration, barrier: Duration) -> Asynchronous {
        let backing = FakeBacking::new().expect("a directory");
        backing.control().inject(Fault::new(What::Late(barrier)).on(&[Call::Probe]));
        let rig = rig(deadline);
        rig.gate.writes_are_asynchronous(true);
        let all = Asynchronous { rig, backing };
        all.open(1);
        all
    }

    fn open(&self, number: u64) {
        let exits: ExitSink = Arc::new(|_| {});
        self.rig.gate.open(self.backing.start(number, PATIENCE, exits).expect("it starts"));
    }

    fn control(&self) -> FakeControl {
        self.backing.control()
    }

    /// Writes at once so many times so much, and waits for the replies; what was in flight is checked meanwhile.
    fn write(&self, count: usize, bytes: u64) {
        let watched = Arc::clone(&self.rig.gate);
        let most = Arc::new(Mutex::new((0, 0)));
        let seen = Arc::clone(&most);
        let work = move |_: &Context<'_>| {
            let load = watched.load();
            let mut seen = seen.lock();
            *seen = (load.bytes_in_flight, load.window).max(*seen);
            assert!(load.bytes_in_flight <= load.window.max(bytes), "{load:?}");
            Ok(())
        };
        let replies: Vec<_> = (0..count).map(|_| submit_data(&self.rig.gate, bytes, work.clone())).collect();
        for replies in replies {
            assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
        }
        assert!(most.lock().0 > 0);
    }
}

#[test]
fn a_quick_server_makes_the_window_grow_and_what_is_in_flight_never_exceeds_it() {
    let all = Asynchronous::new(PATIENCE, 2 * MS);
    let before = all.rig.gate.load().window;
    all.write(200, 64 * KIB);
    assert!(all.rig.gate.load().window >= 4 * before, "{:?}", all.rig.gate.load());
    let barriers = all.control().calls(Call::Probe);
    assert!((3..=150).contains(&barriers), "many writes share a barrier: {barriers}");
    // The last one leaves less than half in flight.
    until(|| all.rig.gate.load().bytes_in_flight * 2 <= all.rig.gate.load().window);
    until(|| Op::ALL.iter().map(|&op| all.rig.gate.stats().result(op, Outcome::Ok)).sum::<u64>() == 200);
}

#[test]
fn a_slow_server_makes_it_shrink_and_a_new_generation_begins_anew() {
    let all = Asynchronous::new(PATIENCE, 900 * MS);
    let before = all.rig.gate.load().window;
    all.write(6, 64 * KIB);
    until(|| all.rig.gate.load().window < before);
    assert_eq!(all.rig.gate.load().waiting, 0, "a barrier is no call of anybody");
    all.rig.gate.close(Instant::now());
    all.open(2);
    let load = all.rig.gate.load();
    assert_eq!((load.window, load.bytes_in_flight), (before, 0));
}

#[test]
fn a_write_bigger_than_the_room_brings_about_the_barrier_it_waits_for() {
    let all = Asynchronous::new(PATIENCE, 2 * MS);
    all.write(1, 100 * KIB);
    assert_eq!((all.rig.gate.load().bytes_in_flight, all.control().calls(Call::Probe)), (100 * KIB, 0));
    all.write(1, 1024 * KIB);
}

#[test]
fn a_barrier_that_never_comes_back_is_late_and_dies_with_its_generation() {
    let all = Asynchronous::new(100 * MS, Duration::ZERO);
    all.control().clear_faults();
    all.control().inject(Fault::new(What::Hang).on(&[Call::Probe]));
    all.write(1, 200 * KIB);
    assert_eq!(all.rig.complaints.recv_timeout(PATIENCE), Ok((1, Complaint::Late(Op::Statfs))));
    assert!(all.rig.gate.load().bytes_in_flight > 0, "it is not known what has become of it");
    all.rig.gate.close(Instant::now());
    all.control().kill_generation();
    all.control().clear_faults();
    all.open(2);
    all.write(20, 64 * KIB);
    assert_eq!(all.rig.gate.stats().total(Outcome::Deadline), 0, "nobody was refused");
}

#[test]
fn a_barrier_that_failed_waits_for_the_verdict_and_gives_its_room_back() {
    let all = Asynchronous::new(PATIENCE, Duration::ZERO);
    all.control().clear_faults();
    all.control().inject(Fault::new(What::Errno(Errno::EIO)).on(&[Call::Probe]).times(1));
    all.write(1, 200 * KIB);
    assert_eq!(all.rig.complaints.recv_timeout(PATIENCE), Ok((1, Complaint::Failed(Op::Statfs, Errno::EIO))));
    std::thread::sleep(50 * MS);
    assert_eq!(all.control().calls(Call::Probe), 1, "no busy loop");
    assert_eq!(all.rig.gate.load().bytes_in_flight, 200 * KIB);
    all.rig.gate.settle(1, Instant::now());
    assert_eq!(all.rig.gate.load().bytes_in_flight, 0);
    all.write(20, 64 * KIB);
    assert_eq!(all.rig.gate.stats().total(Outcome::Error), 0, "it is no call of anybody");
}

#[test]
fn a_read_gives_its_room_back_when_it_returns() {
    let all = Asynchronous::new(PATIENCE, Duration::ZERO);
    let (sender, replies) = channel();
    all.rig.gate.submit(Op::Read, Class::Data, 200 * KIB, |_| Ok(()), move |result| _ = sender.send(result));
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
    until(|| all.rig.gate.load().bytes_in_flight == 0);
    assert_eq!(all.control().calls(Call::Probe), 0);
}

#[test]
fn outages_at_random_moments_leave_each_write_with_one_reply_and_no_room_lost() {
    let rig = rig(PATIENCE);
    rig.gate.writes_are_asynchronous(true);
    storm(&rig.gate, |number, work| submit_data(&rig.gate, (number + 1) * 8 * KIB, work));
    until(|| rig.gate.load().bytes_in_flight * 2 <= rig.gate.load().window);
    assert_eq!(rig.gate.load().waiting, 0);
}

#[test]
fn what_is_kept_takes_no_room_and_what_is_sent_for_others_does() {
    let all = Asynchronous::new(PATIENCE, Duration::ZERO);
    let kept = submit_data(&all.rig.gate, 16 * KIB, |context| {
        context.keeps_its_payload();
        Ok(())
    });
    assert_eq!(kept.recv_timeout(PATIENCE), Ok(Ok(())));
    until(|| all.rig.gate.load().bytes_in_flight == 0);
    let sent = submit(&all.rig.gate, |context| {
        context.sends_for_others(16 * KIB);
        Ok(())
    });
    assert_eq!(sent.recv_timeout(PATIENCE), Ok(Ok(())));
    until(|| all.rig.gate.load().bytes_in_flight == 16 * KIB);
    // A barrier gives it back when room gets scarce; what comes with it may stay, since the window may have grown by then.
    all.write(1, 200 * KIB);
    until(|| all.rig.gate.load().bytes_in_flight <= 200 * KIB);
}

#[test]
fn a_call_is_answered_at_once_only_where_nothing_speaks_against_it() {
    let rig = rig(PATIENCE);
    assert_eq!(rig.gate.at_once(Op::Write, Some), None, "closed");
    rig.gate.open(generation(7));
    assert_eq!(rig.gate.at_once(Op::Write, Some), Some(7));
    assert_eq!(rig.gate.stats().result(Op::Write, Outcome::Ok), 1);
    assert_eq!(rig.gate.at_once(Op::Write, |_| None::<()>), None);
    assert_eq!(rig.gate.stats().result(Op::Write, Outcome::Ok), 1, "that is submitted yet");
    rig.gate.suspect(Some(Instant::now()));
    assert_eq!(rig.gate.at_once(Op::Write, Some), None, "suspected");
    rig.gate.suspect(None);
    assert!(rig.gate.at_once(Op::Write, Some).is_some());
    rig.gate.stop();
    assert_eq!(rig.gate.at_once(Op::Write, Some), None, "stopped");
}
