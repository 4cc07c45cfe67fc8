//! Slow is not dead: a saturated link of 1 Mbit/s yields no outage and no error (promises P1 and P3).

mod lab;

use lab::Lab;
use lab::agent::{Agent, Call};
use lab::scenario::CALL;

/// Longest a read, write, fsync or close may take while bytes move, in seconds, with its margin.
const WHILE_BYTES_MOVE: f64 = 30.5;

lab::also_runs_as!(agent_process: lab::agents::main);

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

#[test]
fn two_writers_share_a_slow_link_and_a_stat_does_not_wait_for_them() {
    let lab = Lab::new("");
    lab.net.shape("1mbit");
    let start = |path: &str| Agent::start("bulk", &lab.hot.join(path), lab.directory());
    let first = start("first").at_work();
    lab::sleep_secs(5.0);
    let second = start("second").at_work();
    let known = lab.hot.join("another");
    let stats = Agent::start("stat", &known, lab.directory()).at_work();
    lab::sleep_secs(30.0);
    let (stats, second, first) = (stats.finish(), second.finish(), first.finish());
    let longest = stats.longest(|call| call.name == "stat");
    println!(
        "== 1 Mbit/s, two writers: {} and {} KiB; a stat of another file took {longest:.2} s at most, {} calls",
        first.synced >> 10,
        second.synced >> 10,
        stats.calls.len()
    );
    for report in [&first, &second, &stats] {
        assert_eq!((&report.hanging, report.errors()), (&vec![], vec![]));
    }
    assert!(longest <= 2.0, "{longest:.2}");
    // The first had 5 s more; of 30 s a fair share would be half.
    assert!(second.synced * 3 >= first.synced, "{} and {}", first.synced, second.synced);
    assert_eq!(lab.status()["outages_total"], 0);
    lab.net.unshape();
    lab.umount();
}
