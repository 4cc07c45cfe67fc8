//! Eight processes at once, on the real binary, while its backing and itself come to harm. Each does calls from a seed on names
//! of its own, in the overlay and in a plain directory on the same filesystem: that is the model, and every answer, attribute
//! and byte has to be the same. In a directory that all share, what each did has to add up.
//!
//! `STEADFS_CONCURRENT_SEED` and `STEADFS_CONCURRENT_SECONDS` choose another run and a longer one. Needs root, /dev/fuse, sshfs.
#![allow(clippy::unwrap_used)]

#[path = "../lab/mod.rs"]
mod lab;

#[path = "../soak/shared/dice.rs"]
#[allow(dead_code, missing_docs)]
mod dice;
#[path = "../local/rig.rs"]
#[allow(dead_code)]
mod rig;

mod call;
mod hand;
mod shared;
mod site;
mod sys;
mod worker;

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use site::Site;
use worker::{Order, Report};

lab::also_runs_as!(worker_process: worker::main);
lab::also_runs_as!(relay_process: lab::relay::main);

const PROCESSES: u64 = 8;
/// How long an ordinary run works.
const ORDINARY: u64 = 8;
/// A process that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Works at a site, and says what came of it. The site stays mounted.
fn work(site: &Site, seed: u64, time: Duration) -> Vec<Report> {
    let (hot, plain) = (site.hot(), site.plain());
    // A plain directory has to look to nobody like that of the overlay.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    shared::prepare(&hot.join("shared"));
    let orders: Vec<_> = (0..PROCESSES)
        .map(|me| {
            for root in [&hot, &plain] {
                std::fs::create_dir(root.join(me.to_string())).unwrap();
            }
            let report = site.directory().join(format!("report-{me}"));
            let local = site.is_local();
            Order { me, seed: seed * 1000 + me, local, hot: hot.clone(), plain: plain.clone(), time, report }
        })
        .collect();
    let children: Vec<_> = orders.iter().map(worker::start).collect();
    let harm = site.harm_until(seed, Instant::now() + time);
    let reports: Vec<_> = orders.iter().zip(children).map(|(order, child)| report_of(order, child)).collect();
    println!(
        "seed {seed}: {} calls, {} of them done, {} in the shared directory, {} descriptors without a name lost; {harm}",
        reports.iter().map(|report| report.calls).sum::<u64>(),
        reports.iter().map(|report| report.done).sum::<u64>(),
        reports.iter().map(|report| report.tally.duties).sum::<u64>(),
        reports.iter().map(|report| report.lost + report.tally.lost).sum::<u64>(),
    );
    reports
}

fn report_of(order: &Order, mut child: Child) -> Report {
    let until = Instant::now() + PATIENCE;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > until {
            // One that hangs in the mount may not even die, so nobody waits for it.
            let _ = child.kill();
            return Report { failure: Some("it hangs".into()), ..Report::default() };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = std::fs::read(&order.report).unwrap_or_default();
    let died = || Report { failure: Some("it died without a report".into()), ..Report::default() };
    serde_json::from_slice(&text).unwrap_or_else(|_| died())
}

/// The model's trees, there.
fn agrees(plain: &Path, there: &Path, local: bool) -> Result<(), String> {
    for me in 0..PROCESSES {
        let (wanted, found) =
            (hand::tree(&plain.join(me.to_string()), local)?, hand::tree(&there.join(me.to_string()), local)?);
        if let Some((wanted, found)) = wanted.iter().zip(&found).find(|(wanted, found)| wanted != found) {
            return Err(format!("{me}: {found} instead of {wanted}"));
        }
        if wanted.len() != found.len() {
            return Err(format!("{me}: {found:#?} instead of {wanted:#?}"));
        }
    }
    Ok(())
}

fn run(site: Site, time: Duration) {
    let seed = number("STEADFS_CONCURRENT_SEED", 1);
    let time = Duration::from_secs(number("STEADFS_CONCURRENT_SECONDS", time.as_secs()));
    let again = format!("run it again with STEADFS_CONCURRENT_SEED={seed}");
    let reports = work(&site, seed, time);
    for (me, report) in reports.iter().enumerate() {
        if let Some(words) = &report.failure {
            panic!("process {me} (seed {}): {words}\n{again}", seed * 1000 + me as u64);
        }
    }
    let tallies: Vec<_> = reports.into_iter().map(|report| report.tally).collect();
    let (plain, is_local) = (site.plain(), site.is_local());
    let check = |what: &str, there: &Path, links: bool| {
        agrees(&plain, there, is_local).unwrap_or_else(|words| panic!("{what}: {words}\n{again}"));
        shared::check(&there.join("shared"), &tallies, links)
            .unwrap_or_else(|words| panic!("{what}: {words}\n{again}"));
    };
    site.settle();
    check("in the overlay", &site.hot(), is_local);
    let site = site.umount();
    check("on the store", &site.cold(), true);
}

#[test]
fn eight_processes_over_a_directory_see_what_a_plain_directory_shows_whatever_dies() {
    run(Site::local(), Duration::from_secs(ORDINARY));
}

/// sshfs remembers the size from before where another file is written meanwhile.
#[test]
fn a_file_that_an_open_truncates_is_empty_whoever_writes_elsewhere() {
    let site = Site::sshfs();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let path = site.hot().join(format!("f{number}"));
            scope.spawn(move || {
                for turn in 0..150 {
                    let mut file = std::fs::File::create(&path).unwrap();
                    assert_eq!(file.metadata().unwrap().len(), 0, "turn {turn}");
                    std::io::Write::write_all(&mut file, &vec![1; 7000 + turn]).unwrap();
                    drop(file);
                    assert_eq!(path.metadata().unwrap().len(), 7000 + turn as u64);
                }
            });
        }
    });
    drop(site.umount());
}

#[test]
fn eight_processes_over_sshfs_see_what_a_plain_directory_shows_whatever_dies() {
    run(Site::sshfs(), Duration::from_secs(ORDINARY));
}
