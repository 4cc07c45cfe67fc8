//! Thousands of files that are open when the sshfs dies.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::rig::Pair;

const FILES: usize = 5_000;

#[test]
fn thousands_of_files_over_sshfs_are_reopened_at_their_offsets() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let pair = Pair::new("");
    let begun = Instant::now();
    let lap = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    std::fs::create_dir(pair.stored("d")).unwrap();
    for number in 0..FILES {
        std::fs::write(pair.stored(&format!("d/{number}")), format!("{number:8}{:8}", number + 1)).unwrap();
    }
    lap("made");
    let open = |number: usize| {
        let mut file = File::open(pair.hot.join(format!("d/{number}"))).unwrap();
        file.seek(SeekFrom::Start(8)).unwrap();
        file
    };
    let mut files: Vec<File> = (0..FILES).map(open).collect();
    lap("opened");
    pair.kill_sshfs();
    lap("repaired");
    for (number, file) in files.iter_mut().enumerate() {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{:8}", number + 1), "{number}");
    }
    lap("read at their offsets");
    drop(files);
    pair.end();
    lap("closed");
}
