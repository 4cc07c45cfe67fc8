//! Reads and writes: the window, and what it must never hold up.

use super::*;

/// A call of class Data with that payload; the channel gets its reply.
pub(super) fn submit_data<T: Send + 'static>(
    gate: &Gate,
    bytes: u64,
    work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
) -> Receiver<OpResult<T>> {
    let (sender, replies) = channel();
    gate.submit(Op::Write, Class::Data, bytes, work, move |result| _ = sender.send(result));
    replies
}

/// Runs `test` in a thread of its own, so that a deadlock is a failure and not a test that never ends.
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (sender, done) = channel();
    std::thread::spawn(move || {
        test();
        _ = sender.send(());
    });
    assert_eq!(done.recv_timeout(PATIENCE), Ok(()), "stuck, or failed above");
}

#[test]
fn load_and_repairs_never_lock_out_writers_that_wait_for_room() {
    in_time(|| {
        let rig = rig(PATIENCE);
        let over = Arc::new(AtomicBool::new(false));
        let (watched, end) = (Arc::clone(&rig.gate), Arc::clone(&over));
        let watcher = std::thread::spawn(move || {
            while !end.load(SeqCst) {
                _ = (watched.load(), watched.inside());
            }
        });
        for round in 1..=20_u64 {
            rig.gate.open(generation(round));
            let replies: Vec<_> = (0..50)
                .map(|_| {
                    submit_data(&rig.gate, 200 << 10, |_| {
                        std::thread::sleep(MS);
                        Ok(())
                    })
                })
                .collect();
            std::thread::sleep(10 * MS);
            rig.gate.close(Instant::now());
            rig.gate.open(generation(1000 + round));
            for replies in replies {
                assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
            }
            rig.gate.close(Instant::now());
        }
        over.store(true, SeqCst);
        watcher.join().expect("the watcher ends");
    });
}

#[test]
fn bytes_that_are_stuck_in_a_dead_generation_leave_the_next_one_its_room() {
    let rig = rig(2 * Duration::from_secs(1));
    rig.gate.open(generation(1));
    let trap = Trap::default();
    let inside = trap.clone();
    let stuck = submit_data(&rig.gate, window::MAX, move |_| {
        inside.wait();
        Ok(())
    });
    until(|| rig.gate.load().bytes_in_flight == window::MAX);
    rig.gate.close(Instant::now());
    rig.gate.open(generation(2));
    assert_eq!(rig.gate.load().bytes_in_flight, 0);
    assert_eq!(submit_data(&rig.gate, 4096, |_| Ok(7)).recv_timeout(PATIENCE), Ok(Ok(7)));
    trap.open();
    stuck.recv_timeout(PATIENCE).expect("a reply").expect("it was done");
    until(|| rig.gate.load().stuck == 0);
    assert_eq!(rig.gate.load().bytes_in_flight, 0, "what a dead generation lets go of is not the live one's");
}

#[test]
fn names_are_answered_while_data_has_no_room_and_data_while_it_never_ends() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let trap = Trap::default();
    let data: Vec<_> = [200 << 10, 4096]
        .into_iter()
        .flat_map(|bytes| std::iter::repeat_n(bytes, 2 * MAX_THREADS))
        .map(|bytes| {
            let inside = trap.clone();
            submit_data(&rig.gate, bytes, move |_| {
                inside.wait();
                Ok(())
            })
        })
        .collect();
    until(|| rig.gate.load().bytes_in_flight > 0);
    let asked = Instant::now();
    for _ in 0..20 {
        assert_eq!(submit(&rig.gate, |_| Ok(1)).recv_timeout(PATIENCE), Ok(Ok(1)));
    }
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(rig.gate.load().threads < MAX_THREADS / 2, "what waits for room holds no thread");
    trap.open();
    for replies in data {
        assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
    }
    until(|| rig.gate.load().bytes_in_flight == 0);
}

#[test]
fn small_writes_that_get_stuck_leave_threads_to_the_names() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let trap = Trap::default();
    let data: Vec<_> = (0..2 * MAX_THREADS)
        .map(|_| {
            let inside = trap.clone();
            submit_data(&rig.gate, 1, move |_| {
                inside.wait();
                Ok(())
            })
        })
        .collect();
    assert_eq!(submit(&rig.gate, |_| Ok(1)).recv_timeout(PATIENCE / 2), Ok(Ok(1)));
    trap.open();
    for replies in data {
        assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
    }
}

#[test]
fn a_second_writer_gets_its_share() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let order = Arc::new(Mutex::new(Vec::new()));
    let replies: Vec<_> = (0..40)
        .map(|number| {
            let order = Arc::clone(&order);
            // Bigger than the window each, so that they go one at a time.
            submit_data(&rig.gate, window::MAX, move |_| {
                order.lock().push(number);
                Ok(())
            })
        })
        .collect();
    for replies in replies {
        assert_eq!(replies.recv_timeout(PATIENCE), Ok(Ok(())));
    }
    assert_eq!(*order.lock(), (0..40).collect::<Vec<_>>());
}
