//! Another executable in the place of the daemon, under load (promise P6): a good one, and those that are none.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::{Lab, process, wait};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// A program that says that it is steadfs; then `serve` is what it does. `real()` runs the steadfs under test, in the same
/// process, and `later(n)` sends it that signal after half a second.
fn program(lab: &Lab, name: &str, serve: &str) -> PathBuf {
    let (source, path) = (lab.path("program.c"), lab.path(name));
    let text = format!(
        r#"#define _GNU_SOURCE
        #include <signal.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/resource.h>
        #include <unistd.h>
        static char **arguments;
        static void real(void) {{ execv("{}", arguments); _exit(98); }}
        static void later(int number) {{
            pid_t me = getpid();
            if (fork() == 0) {{ usleep(700000); kill(me, number); _exit(0); }}
        }}
        int main(int count, char **words) {{
            arguments = words;
            if (count > 1 && !strcmp(words[1], "--version")) {{ puts("steadfs 9.9.9"); return 0; }}
            (void)real; (void)later;
            {serve}
            return 97;
        }}"#,
        env!("CARGO_BIN_EXE_steadfs")
    );
    std::fs::write(&source, text).unwrap();
    let output = Command::new("cc").args(["-o", path.to_str().unwrap(), source.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    path
}

/// Writes and syncs records through one descriptor until it is told to stop.
struct Load {
    over: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Duration)>,
}

impl Load {
    fn begin(path: PathBuf) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !stop.load(SeqCst) {
                let begun = Instant::now();
                file.write_all(&record(count)).unwrap();
                file.sync_data().unwrap();
                longest = longest.max(begun.elapsed());
                count += 1;
            }
            (count, longest)
        });
        Load { over, thread }
    }

    /// How many records there are, and how long one took at most.
    fn end(self) -> (u64, Duration) {
        self.over.store(true, SeqCst);
        self.thread.join().expect("no call failed")
    }
}

fn record(number: u64) -> Vec<u8> {
    format!("{number:0>99}\n").into_bytes()
}

fn assert_whole(path: &Path, count: u64) {
    let expected: Vec<u8> = (0..count).flat_map(record).collect();
    assert!(std::fs::read(path).unwrap() == expected, "{}", path.display());
}

fn upgrade(lab: &Lab, executable: &Path) -> Output {
    let words = ["upgrade", lab.hot.to_str().unwrap(), "--executable", executable.to_str().unwrap()];
    lab.steadfs(&words).output().unwrap()
}

fn kept(options: &str) -> Lab {
    kept_with(options, |_| {})
}

fn kept_with(options: &str, change: impl FnOnce(&mut Command)) -> Lab {
    let mut lab = Lab::unmounted();
    let mut command = lab.mount_command("-f", options);
    change(command.env("STEADFS_TRIAL", "2s"));
    lab.serve(command);
    lab.wait_state("live");
    lab
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn ten_upgrades_under_load_are_a_short_pause_each() {
    let lab = kept("");
    let load = Load::begin(lab.hot.join("file"));
    let mut pids = vec![lab.serving()];
    for round in 0..10 {
        let copy = lab.path(&format!("steadfs-{round}"));
        std::fs::copy(env!("CARGO_BIN_EXE_steadfs"), &copy).unwrap();
        let output = upgrade(&lab, &copy);
        assert!(output.status.success(), "{round}: {output:?}");
        pids.push(lab.serving());
        let runs = std::fs::read_link(format!("/proc/{}/exe", lab.serving())).unwrap();
        assert_eq!(runs, copy);
    }
    pids.dedup();
    assert_eq!(pids.len(), 11, "{pids:?}");
    let (count, longest) = load.end();
    println!("10 upgrades: {count} records, the longest took {longest:?}");
    assert_whole(&lab.hot.join("file"), count);
    lab.umount();
}

/// Linux before 6.9 cannot send again what is in flight: it is answered first.
#[test]
fn upgrades_on_an_older_kernel_harm_nobody_either() {
    let lab = kept_with("", |command| _ = command.env("STEADFS_NO_RESEND", "1"));
    let load = Load::begin(lab.hot.join("file"));
    for round in 0..5 {
        let copy = lab.path(&format!("steadfs-{round}"));
        std::fs::copy(env!("CARGO_BIN_EXE_steadfs"), &copy).unwrap();
        let output = upgrade(&lab, &copy);
        assert!(output.status.success(), "{round}: {output:?}");
    }
    let (count, longest) = load.end();
    println!("5 upgrades on an older kernel: {count} records, the longest took {longest:?}");
    assert_whole(&lab.hot.join("file"), count);
    lab.umount();
}

#[test]
fn what_is_no_steadfs_is_refused_before_anything_is_changed() {
    let lab = kept("");
    let pid = lab.serving();
    for (path, words) in
        [("/bin/false", "does not say its version"), ("/etc/passwd", "not an executable"), ("/absent", "No such file")]
    {
        let output = upgrade(&lab, Path::new(path));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains(words) && stderr(&output).lines().count() == 1, "{output:?}");
    }
    assert_eq!(lab.serving(), pid);
    let output = lab.steadfs(&["upgrade", lab.directory().to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    lab.umount();
    let lab = Lab::new("keeper=no");
    let output = upgrade(&lab, Path::new(env!("CARGO_BIN_EXE_steadfs")));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("no keeper") && stderr(&output).contains("mount it again"), "{output:?}");
    lab.umount();
}

#[test]
fn a_new_executable_that_fails_is_taken_back_and_nobody_gets_an_error() {
    let lab = kept("watchdog=2s,deadline=20s,sync_deadline=30s");
    let old = std::fs::read_link(format!("/proc/{}/exe", lab.serving())).unwrap();
    let file = lab.hot.join("file");
    let kinds = [
        ("exits", "return 1;", "exit code 1"),
        ("crashes at once", "raise(SIGSEGV);", "SIGSEGV"),
        ("never answers", "for (;;) pause();", ""),
        ("stops itself", "raise(SIGSTOP);", ""),
        ("lacks descriptors", "struct rlimit few = {20, 20}; setrlimit(RLIMIT_NOFILE, &few); real();", ""),
        ("serves, then crashes", "later(SIGABRT); real();", "SIGABRT"),
        ("serves, then hangs", "later(SIGSTOP); real();", "no sign of life"),
    ];
    let (mut count, open) = (0, File::create_new(lab.hot.join("uncommitted")).unwrap());
    for (number, &(name, serve, reason)) in kinds.iter().enumerate() {
        let bad = program(&lab, &format!("bad-{number}"), serve);
        let path = lab.hot.join(format!("file-{number}"));
        let load = Load::begin(path.clone());
        wait("it writes", || std::fs::metadata(&path).is_ok_and(|found| found.len() > 0));
        (&open).write_all(b"acknowledged ").unwrap();
        let output = upgrade(&lab, &bad);
        let (records, longest) = load.end();
        println!("{name}: {records} records, the longest took {longest:?}; {}", stderr(&output));
        assert_eq!(output.status.code(), Some(32), "{name}: {output:?}");
        assert!(stderr(&output).contains(&format!("bad-{number} failed: ")), "{name}: {output:?}");
        assert!(stderr(&output).contains(reason), "{name}: {output:?}");
        assert_eq!(std::fs::read_link(format!("/proc/{}/exe", lab.serving())).unwrap(), old, "{name}");
        assert_whole(&path, records);
        count += records;
    }
    // What a candidate that failed had taken over is the old daemon's again, and no candidate has given it up.
    open.sync_all().unwrap();
    drop(open);
    assert_eq!(std::fs::read_to_string(lab.store.join("uncommitted")).unwrap(), "acknowledged ".repeat(kinds.len()));
    assert!(!lab.log().contains("spool"), "{}", lab.log());
    assert!(count > 0 && !file.exists());
    lab.umount();
}

/// What the keeper holds by that name, to write to.
fn memory(daemon: i32) -> File {
    let keeper = process::parent(daemon).unwrap();
    let list = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().flatten().map(|entry| entry.path());
    let is_memory = |path: &PathBuf| {
        let target = std::fs::read_link(path).unwrap_or_default().display().to_string();
        target.contains("memfd:steadfs") && !target.contains("session") && !target.contains("config")
    };
    let found: Vec<_> = list.filter(is_memory).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    OpenOptions::new().read(true).write(true).open(&found[0]).unwrap()
}

#[test]
fn a_memory_that_cannot_be_read_costs_open_descriptors_and_never_gives_wrong_data() {
    // Another layout, with a header that is whole; a header that is not; what the daemon said it could not note.
    for (name, at, bytes) in [
        ("damaged header", 8, [0xff; 8]),
        ("another magic", 0, *b"steadfs\x7f"),
        ("given up", 1040, 1_u64.to_ne_bytes()),
    ] {
        let lab = kept("");
        std::fs::write(lab.hot.join("other"), "other").unwrap();
        let file = OpenOptions::new().create(true).read(true).append(true).open(lab.hot.join("file")).unwrap();
        (&file).write_all(b"committed").unwrap();
        file.sync_all().unwrap();
        let daemon = lab.serving();
        memory(daemon).write_all_at(&bytes, at).unwrap();
        process::signal(daemon, Signal::SIGKILL);
        wait("the next one serves", || lab.status()["pid"].as_i64().is_some_and(|pid| pid != i64::from(daemon)));
        lab.wait_state("live");
        let failed = |error: std::io::Error| error.raw_os_error();
        let mut buffer = [0; 9];
        let refused = (&file).write(b"x").map_err(failed);
        assert_eq!(refused, Err(Some(libc::EIO)), "{name}");
        // What the kernel still has of it was right, and may be read.
        match file.read_at(&mut buffer, 0) {
            Ok(length) => assert_eq!(&buffer[..length], &b"committed"[..length], "{name}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}"),
        }
        for (path, content) in [("file", "committed"), ("other", "other")] {
            assert_eq!(std::fs::read_to_string(lab.hot.join(path)).unwrap(), content, "{name}");
        }
        std::fs::write(lab.hot.join("new"), "new").unwrap();
        let events = lab.status()["events"].to_string();
        assert!(events.contains("files that are open fail"), "{name}: {events}");
        drop(file);
        // The new memory is a good one.
        let next = lab.serving();
        let open = File::open(lab.hot.join("new")).unwrap();
        process::signal(next, Signal::SIGKILL);
        let mut text = [0; 3];
        open.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"new");
        drop(open);
        println!("{name}: held");
        lab.umount();
    }
}
