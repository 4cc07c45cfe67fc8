//! Slow is not dead: a saturated link of 1 Mbit/s yields no outage and no error (promises P1 and P3).

mod lab;

use lab::Lab;
use lab::agent::{Agent, Call};
use lab::scenario::CALL;

/// Longest a read, write, fsync or close may take while bytes move, in seconds, with its margin.
const WHILE_BYTES_MOVE: f64 = 30.5;

#[test]
#[ignore = "a process of other tests, not a test"]
fn agent_process() {
    lab::agents::main();
}

#[test]
fn a_slow_link_that_is_saturated_is_no_outage() {
    let lab = Lab::new("");
    lab.net.shape("1mbit");
    let bulk = Agent::start("bulk", &lab.hot.join("bulk"), lab.directory()).at_work();
    let prober = Agent::start("prober", &lab.hot, lab.directory());
    lab::sleep_secs(60.0);
    let status = lab.status();
    let (prober, bulk) = (prober.finish(), bulk.finish());
    let longest_sync = bulk.longest(Call::syncs).max(prober.longest(Call::syncs));
    println!(
        "== 1 Mbit/s for 60 s: {} KiB written and synced, longest write of 128 KiB {:.2} s, longest fsync or close \
         {longest_sync:.2} s; beside it {} calls, longest of names and attributes {:.2} s",
        bulk.synced >> 10,
        bulk.longest(|call| call.name == "write"),
        prober.calls.len(),
        prober.longest(|call| !call.syncs()),
    );
    assert_eq!((&bulk.hanging, &prober.hanging), (&vec![], &vec![]));
    assert_eq!((bulk.errors(), prober.errors()), (vec![], vec![]));
    // 1 Mbit/s is 122 KiB/s: less than a third of it would not have been saturated.
    assert!(bulk.synced >> 10 > 60 * 122 / 3, "only {} KiB were written", bulk.synced >> 10);
    assert!(bulk.longest(|_| true) <= WHILE_BYTES_MOVE, "{}", bulk.longest(|_| true));
    assert!(prober.longest(|call| !call.syncs()) <= CALL, "{}", prober.longest(|call| !call.syncs()));
    assert!(prober.longest(|_| true) <= WHILE_BYTES_MOVE);
    let after = lab.status();
    for status in [&status, &after] {
        assert_eq!((&status["outages_total"], &status["generation"]), (&0.into(), &1.into()), "{status}");
    }
    lab.net.unshape();
    lab.umount();
}
