//! What work can find out about itself while it is still under way.

use super::*;

/// Work that tells over the channel when it finds itself abandoned, and the channel.
fn watchful() -> (impl FnMut(&Context<'_>) -> OpResult<()> + Send + 'static, Receiver<bool>) {
    let (sender, seen) = channel();
    let work = move |context: &Context<'_>| {
        _ = sender.send(context.is_abandoned());
        let end = Instant::now() + PATIENCE;
        while !context.is_abandoned() && Instant::now() < end {
            std::thread::sleep(MS);
        }
        _ = sender.send(context.is_abandoned());
        Err(Errno::ENOENT)
    };
    (work, seen)
}

#[test]
fn a_late_call_is_abandoned_before_its_caller_can_know() {
    let rig = rig(100 * MS);
    rig.gate.open(generation(1));
    let (work, seen) = watchful();
    let (sender, replies) = channel();
    let seen = Mutex::new(seen);
    rig.gate.submit(Op::Write, Class::Data, 1, work, move |_| {
        // As if replying took long.
        let known = |limit| seen.lock().recv_timeout(limit);
        _ = sender.send((known(PATIENCE), known(PATIENCE / 4)));
    });
    assert_eq!(replies.recv_timeout(PATIENCE), Ok((Ok(false), Ok(true))));
}

#[test]
fn a_call_is_abandoned_with_its_generation() {
    let rig = rig(PATIENCE);
    rig.gate.open(generation(1));
    let (work, seen) = watchful();
    let _replies = submit(&rig.gate, work);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(false));
    rig.gate.close(Instant::now());
    rig.gate.open(generation(2));
    assert_eq!(seen.recv_timeout(PATIENCE / 4), Ok(true));
}
