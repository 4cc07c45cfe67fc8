//! A file that is mapped with MAP_SHARED, through outages. The writer is a process of its own: a page fault of the process
//! that serves the mount could wait for itself.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, until};

pub const PAGE: usize = 4096;
pub const PAGES: usize = 16;
const TARGET: &str = "STEADFS_TEST_MAPPED";

/// `set PAGE BYTE`, `sync` (msync), `push` (writes back without a FUSE fsync), `get PAGE`; each is answered with a line.
#[test]
#[ignore = "a process of other tests, not a test"]
fn mapped_writer_process() {
    let Some(path) = std::env::var_os(TARGET) else { return };
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let length = PAGES * PAGE;
    // SAFETY: a new mapping of a file that nobody cuts while it is used.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: the mapping has that length and lives as long as the process; nobody else in it knows of it.
    let memory = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), length) };
    // In an outage a page that was never read cannot be.
    assert!(memory.chunks(PAGE).all(|page| page[0] == 0));
    println!("\nmapped: ready");
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().expect("a number");
        let answer = match words[0] {
            "set" => {
                memory[number(1) * PAGE..][..PAGE].fill(u8::try_from(number(2)).expect("a byte"));
                0
            }
            "get" => i32::from(memory[number(1) * PAGE]),
            // SAFETY: the whole of the mapping.
            "sync" => code(unsafe { libc::msync(map, length, libc::MS_SYNC) }),
            _ => {
                let all =
                    libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
                // SAFETY: only numbers are passed.
                code(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) })
            }
        };
        println!("\nmapped: {answer}");
    }
}

fn code(result: i32) -> i32 {
    if result == 0 { 0 } else { Errno::last_raw() }
}

pub struct Writer {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Writer {
    pub fn start(path: &Path) -> Writer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["mapped::mapped_writer_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(TARGET, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut writer = Writer { child, commands, answers };
        assert_eq!(writer.answer(), "ready");
        writer
    }

    pub fn say(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the writer has ended");
            if let Some(answer) = line.trim_end().strip_prefix("mapped: ") {
                return answer.to_owned();
            }
        }
    }

    pub fn ask(&mut self, command: &str) -> i32 {
        self.say(command);
        self.answer().parse().unwrap()
    }

    fn set(&mut self, page: usize, byte: u8) {
        assert_eq!(self.ask(&format!("set {page} {byte}")), 0);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file_of_zeros(rig: &Rig) -> Writer {
    let file = File::create(rig.hot("f")).unwrap();
    file.set_len((PAGES * PAGE) as u64).unwrap();
    file.sync_all().unwrap();
    drop(file);
    Writer::start(&rig.hot("f"))
}

/// First byte of each page, each page being of one byte.
fn pages(rig: &Rig) -> Vec<u8> {
    let content = std::fs::read(rig.cold("f")).unwrap();
    assert_eq!(content.len(), PAGES * PAGE);
    content.chunks(PAGE).for_each(|page| assert!(page.iter().all(|byte| *byte == page[0])));
    content.chunks(PAGE).map(|page| page[0]).collect()
}

#[test]
fn a_mapped_file_is_written_through_a_replay() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        let mut writer = file_of_zeros(&rig);
        // Before: committed, written back and not committed, still dirty.
        writer.set(0, 10);
        assert_eq!(writer.ask("sync"), 0);
        assert_eq!(rig.overlay.counts().log_bytes, 0, "msync commits");
        let committed = std::fs::read(rig.cold("f")).unwrap();
        writer.set(1, 11);
        assert_eq!(writer.ask("push"), 0);
        assert!(rig.overlay.counts().log_bytes > 0);
        writer.set(2, 12);
        rig.outage();
        std::fs::write(rig.cold("f"), &committed).unwrap();
        // During: a store needs nobody, an msync waits.
        writer.set(3, 13);
        writer.say("sync");
        until(|| rig.gate.load().waiting > 0);
        assert_eq!(rig.repair().failed.len(), 0);
        assert_eq!(writer.answer(), "0");
        assert_eq!(pages(&rig)[..5], [10, 11, 12, 13, 0]);
        // After.
        writer.set(4, 14);
        assert_eq!(writer.ask("sync"), 0);
        assert_eq!(pages(&rig)[..5], [10, 11, 12, 13, 14]);
        assert_eq!(writer.ask("get 2"), 12);
        // What nobody syncs reaches the backing when the mapping goes.
        writer.set(5, 15);
        drop(writer);
        until(|| rig.overlay.counts().open_files == 0 && rig.overlay.counts().log_bytes == 0);
        assert_eq!(pages(&rig)[..6], [10, 11, 12, 13, 14, 15]);
    }
}

#[test]
fn an_msync_in_an_old_outage_says_so_and_later_ones_are_good_again() {
    let rig = Rig::with(SSHFS, Duration::from_millis(400), |_| {});
    let mut writer = file_of_zeros(&rig);
    writer.set(0, 10);
    assert_eq!(writer.ask("push"), 0);
    rig.outage();
    until(|| rig.gate.fails_fast());
    writer.set(1, 11);
    assert_ne!(writer.ask("sync"), 0, "never 0 for what is not there");
    std::fs::write(rig.cold("f"), vec![0; PAGES * PAGE]).unwrap();
    assert_eq!(rig.repair().replayed, 1);
    assert_eq!(pages(&rig)[0], 10, "what had been written back is written again");
    // The page that could not be written has to be stored once more, as with any filesystem.
    writer.set(1, 11);
    let end = std::time::Instant::now() + PATIENCE;
    while writer.ask("sync") != 0 {
        assert!(std::time::Instant::now() < end);
    }
    assert_eq!(pages(&rig)[..3], [10, 11, 0]);
}
