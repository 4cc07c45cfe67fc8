//! A hundred thousand open files, and fewer descriptors than open files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::rig::{Actor, Local};
use crate::lab::{Lab, process};

/// Open at once.
const FILES: u64 = 100_000;
/// What one of them may cost the daemon in bytes of memory.
const BYTES_A_FILE: u64 = 4096;

fn make(local: &Local, files: u64) {
    std::fs::create_dir(local.cold("d")).unwrap();
    for number in 0..files {
        std::fs::write(local.cold(&format!("d/f{number}")), "x").unwrap();
    }
}

/// As many actors as their own limits make necessary, each with its share of the files.
fn hold(local: &Local, files: u64) -> Vec<(Actor, i64)> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let share = files.div_ceil(4).min(hard - 100) as usize;
    let begins = (0..files).step_by(share);
    let mut actors: Vec<_> = begins
        .map(|begin| {
            let (mut actor, end) = (Actor::start(), files.min(begin + share as u64));
            actor.say(&format!("hold {} {begin} {end}", local.hot("d").display()));
            (actor, (end - begin) as i64)
        })
        .collect();
    for (actor, count) in &mut actors {
        assert_eq!(actor.answer(), *count);
    }
    actors
}

fn all_read(actors: &mut [(Actor, i64)]) {
    actors.iter_mut().for_each(|(actor, _)| actor.say("all"));
    for (actor, count) in actors {
        assert_eq!(actor.answer(), *count);
    }
}

#[test]
fn a_hundred_thousand_files_are_open_at_once_and_go_on() {
    let begun = Instant::now();
    let lap = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    let local = Local::new("");
    make(&local, FILES);
    lap("made");
    let memory = |local: &Local| process::status_number(local.lab.serving(), "VmRSS") * 1024;
    let before = memory(&local);
    let mut actors = hold(&local, FILES);
    lap("opened");
    let cost = memory(&local).saturating_sub(before);
    println!(
        "        {} processes; the daemon has {} descriptors and {} bytes of memory for each file",
        actors.len(),
        process::descriptors(local.lab.serving()).len(),
        cost / FILES
    );
    assert!(cost / FILES < BYTES_A_FILE);
    local.outage();
    lap("repaired");
    all_read(&mut actors);
    lap("read");
    local.succession();
    lap("the successor answers");
    all_read(&mut actors);
    lap("read");
    drop(actors);
    local.end();
    lap("closed");
}

#[test]
fn a_daemon_with_few_descriptors_serves_many_files_and_is_never_in_doubt() {
    let few = 256;
    let local = Local::over(Lab::untimed(), "store", "", |command| {
        // SAFETY: setrlimit(2) may be called after a fork.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, few, few)?)) };
    });
    make(&local, 2000);
    let mut actors = hold(&local, 2000);
    assert!((process::descriptors(local.lab.serving()).len() as u64) < few);
    all_read(&mut actors);
    // Those that are written to, too.
    let open = |number: usize| {
        let path = local.hot(&format!("w{number}"));
        let opened = File::options().read(true).write(true).create(true).truncate(true).open(path);
        opened.unwrap_or_else(|error| panic!("{error}: {:#?}", process::descriptors(local.lab.serving())))
    };
    let files: Vec<File> = (0..500).map(open).collect();
    for round in 0..2_u64 {
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(format!("{number:8}").as_bytes(), round * 8).unwrap();
        }
    }
    for number in (0..500).step_by(7) {
        std::fs::remove_file(local.hot(&format!("w{number}"))).unwrap();
    }
    std::fs::rename(local.hot("w1"), local.hot("w2")).unwrap();
    all_read(&mut actors);
    for (number, file) in files.iter().enumerate() {
        let mut content = [0; 16];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(content, *format!("{number:8}{number:8}").as_bytes());
    }
    local.outage();
    all_read(&mut actors);
    for (number, file) in files.iter().enumerate() {
        let mut content = [0; 8];
        file.read_exact_at(&mut content, 8).unwrap();
        assert_eq!(content, *format!("{number:8}").as_bytes());
        file.sync_all().unwrap();
    }
    assert_eq!(local.lab.generation(), 2, "only the one that was asked for");
    assert!(!local.lab.log().contains("EMFILE"), "{}", local.lab.log());
    drop((actors, files));
    local.end();
}
