//! Appends of two who do not know of each other: one in the overlay, one on the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::lab::Lab;
use crate::{over_directory, plain};

fn appending(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).unwrap()
}

/// All of it is on the store when this returns; `wait` passes between what others do and the next append.
fn take_turns(lab: &Lab, name: &str, wait: Duration) -> String {
    let (hot, cold) = (lab.hot.join(name), lab.store.join(name));
    let (mut ours, mut again) = (appending(&hot), appending(&hot));
    ours.write_all(b"a").unwrap();
    ours.sync_all().unwrap();
    let mut theirs = appending(&cold);
    theirs.write_all(b"b").unwrap();
    std::thread::sleep(wait);
    ours.write_all(b"c").unwrap();
    // One that follows at once, and one by another descriptor.
    ours.write_all(b"d").unwrap();
    again.write_all(b"e").unwrap();
    ours.sync_all().unwrap();
    theirs.write_all(b"f").unwrap();
    std::thread::sleep(wait);
    again.write_all(b"g").unwrap();
    drop((ours, again));
    let found = std::fs::read_to_string(cold).unwrap();
    std::thread::sleep(wait);
    assert_eq!(std::fs::read_to_string(hot).unwrap(), found, "what is read is what is there");
    found
}

#[test]
fn appends_of_others_on_the_store_are_not_overwritten() {
    for gather in ["gather=50ms", "gather=0"] {
        // Beside a filesystem of this machine nothing is believed that can be asked.
        let lab = over_directory(gather);
        assert_eq!(take_turns(&lab, "log", Duration::ZERO), "abcdefg", "dir:, {gather}");
        for (fresh, wait) in [("0", Duration::ZERO), ("1s", Duration::from_millis(1100))] {
            let lab = Lab::new(&format!("attr_timeout={fresh},{gather}"));
            assert_eq!(take_turns(&lab, "log", wait), "abcdefg", "sshfs, attr_timeout={fresh}, {gather}");
        }
    }
    assert_eq!(take_turns(&plain("dir_cache=no"), "log", Duration::from_millis(1100)), "abcdefg", "sshfs alone");
}

#[test]
fn a_log_that_is_copied_and_cut_on_the_store_goes_on_at_its_new_end() {
    let run = |lab: &Lab| {
        let mut ours = appending(&lab.hot.join("log"));
        ours.write_all(b"before").unwrap();
        ours.sync_all().unwrap();
        File::options().write(true).truncate(true).open(lab.store.join("log")).unwrap();
        ours.write_all(b"after").unwrap();
        ours.sync_all().unwrap();
        std::fs::read_to_string(lab.store.join("log")).unwrap()
    };
    for gather in ["gather=50ms", "gather=0"] {
        assert_eq!(run(&over_directory(gather)), "after", "dir:, {gather}");
        assert_eq!(run(&Lab::new(&format!("attr_timeout=0,{gather}"))), "after", "sshfs, {gather}");
    }
    assert_eq!(run(&plain("dir_cache=no")), "after", "sshfs alone");
}

/// Bytes a second of appends of that size, all of it on the store.
fn rate(lab: &Lab, name: &str, size: usize, count: usize) -> f64 {
    let mut file = appending(&lab.hot.join(name));
    let data = vec![7; size];
    let start = std::time::Instant::now();
    for _ in 0..count {
        file.write_all(&data).unwrap();
    }
    file.sync_all().unwrap();
    (size * count) as f64 / start.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement, not a test"]
fn what_looking_for_the_end_costs() {
    let labs = ["exclusive", "20s", "0"].map(|fresh| {
        let mut lab = Lab::untimed();
        let command = lab.mount_command("-f", &format!("attr_timeout={fresh}"));
        lab.serve(command);
        lab.wait_state("live");
        (fresh, lab, [Vec::new(), Vec::new()])
    });
    let mut labs = labs;
    for round in 0..9 {
        for (_, lab, rates) in &mut labs {
            for (rates, (size, count)) in rates.iter_mut().zip([(200, 20_000), (16 << 10, 2000)]) {
                rates.push(rate(lab, &format!("{size}-{round}"), size, count));
            }
        }
    }
    for (fresh, _, rates) in &mut labs {
        let of = |at: fn(usize) -> usize, rates: &mut [Vec<f64>; 2]| {
            rates.each_mut().map(|rates| {
                rates.sort_by(f64::total_cmp);
                rates[at(rates.len())]
            })
        };
        let (median, best) = (of(|count| count / 2, rates), of(|count| count - 1, rates));
        let shown =
            |[lines, records]: [f64; 2]| format!("{:.0} lines, {:.0} records", lines / 200.0, records / 16384.0);
        println!("attr_timeout={fresh}: {} a second; the best of them {}", shown(median), shown(best));
    }
}
