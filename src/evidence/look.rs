//! What a guarded child looks at by itself, and prints as it goes: when it hangs, the last line says where.
//!
//! Only to be called in such a child. Nothing is changed, and of files only names and sizes are told,
//! unless a file was asked for.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::backing::mountinfo;
use crate::moment;

/// Bytes of a file that are shown: its end.
const SHOWN: u64 = 256 << 10;
/// Entries of a directory tree that are listed.
const LISTED: usize = 2000;
/// Threads that look at processes, of which some may have to wait.
const LOOKERS: usize = 8;
/// How long all of these looks may take; each is a file of /proc.
const PATIENCE: Duration = Duration::from_secs(1);
/// Names of programs that have to do with mounts like ours.
const NAMES: [&str; 7] = ["steadfs", "steadfs-keeper", "sshfs", "ssh", "sftp-server", "fusermount3", "rclone"];
/// Those that serve us if nobody says which.
const OURS: [&str; 3] = ["steadfs", "steadfs-keeper", "sshfs"];

/// A kind of look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The machine: versions, load, memory.
    Machine,
    /// Whether paths answer: attributes, figures, entries.
    Path,
    /// Mounts and processes of the generations below these runtime directories.
    Generations,
    /// States and stacks of the threads of these processes and all that they started.
    Threads,
    /// Open descriptors of the same, by name.
    Descriptors,
    /// Command lines of all that have to do with mounts like ours.
    Commands,
    /// The same by their numbers, parents and states.
    Processes,
    /// FUSE connections of the kernel and what waits in them.
    Connections,
    /// Names, modes and sizes below directories.
    Listing,
    /// The end of files.
    Files,
    /// The same of those in these directories whose names begin with one of the words that are no paths.
    Metrics,
    /// What the daemons answer that are named so: asked by whoever has their sockets.
    Status,
}

/// Looks. `without` is the process that collects: neither it nor what it started is of interest.
pub fn look(kind: Kind, arguments: &[PathBuf], without: Option<i32>) -> io::Result<()> {
    let pids: Vec<i32> = arguments.iter().filter_map(|word| word.to_str()?.parse().ok()).collect();
    match kind {
        Kind::Machine => machine(),
        Kind::Path => arguments.iter().try_for_each(|path| answers(path)),
        Kind::Generations => generations(arguments),
        Kind::Threads => family(&pids, without).iter().try_for_each(threads),
        Kind::Descriptors => family(&pids, without).iter().try_for_each(descriptors),
        Kind::Commands => named(&NAMES, without).iter().try_for_each(command),
        Kind::Processes => {
            say("    PID    PPID    PGID     SID S COMMAND")?;
            named(&NAMES, without).iter().try_for_each(|proc| say(&proc.line()))
        }
        Kind::Connections => connections(),
        Kind::Listing => {
            let mut left = LISTED;
            arguments.iter().try_for_each(|directory| listing(directory, &mut left))
        }
        Kind::Files => arguments.iter().try_for_each(|path| file(path)),
        Kind::Metrics => {
            let (directories, names): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| word.is_absolute());
            let mut found = directories.into_iter().flat_map(|directory| beginning(directory, &names));
            found.try_for_each(|path| file(&path))
        }
        Kind::Status => Err(io::Error::other("only the command line has the sockets")),
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    // The next step may never end.
    out.flush()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|error| error.to_string(), |text| text.trim_end().to_owned())
}

fn machine() -> io::Result<()> {
    say(&format!("steadfs {}", env!("CARGO_PKG_VERSION")))?;
    for path in ["/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/sys/kernel/random/boot_id"] {
        say(&format!("{path}: {}", read(path)))?;
    }
    say(&read("/proc/meminfo").lines().take(8).collect::<Vec<_>>().join("\n"))?;
    for path in ["/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory"] {
        say(&format!("{path}:\n{}", read(path)))?;
    }
    Ok(())
}

/// One question, announced before it is asked.
fn ask<T>(what: &str, question: impl FnOnce() -> Result<T, Errno>, show: impl FnOnce(T) -> String) -> io::Result<()> {
    print!("  {what}: ");
    io::stdout().flush()?;
    let begun = Instant::now();
    let answer = match question() {
        Ok(answer) => show(answer),
        Err(errno) => format!("[errno {}] {}", errno as i32, errno.desc()),
    };
    say(&format!("{answer} ({:.1} ms)", begun.elapsed().as_secs_f64() * 1e3))
}

fn answers(path: &Path) -> io::Result<()> {
    say(&path.display().to_string())?;
    let stat = || nix::sys::stat::lstat(path);
    ask("stat", stat, |found| {
        format!(
            "mode {:o}, uid {}, gid {}, dev {}, ino {}",
            found.st_mode, found.st_uid, found.st_gid, found.st_dev, found.st_ino
        )
    })?;
    let statvfs = || nix::sys::statvfs::statvfs(path);
    ask("statfs", statvfs, |found| format!("{} of {} blocks free", found.blocks_available(), found.blocks()))?;
    let list = || {
        let raw = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        let mut count = 0;
        for entry in std::fs::read_dir(path).map_err(raw)?.take(LISTED) {
            entry.map_err(raw)?;
            count += 1;
        }
        Ok(count)
    };
    ask("readdir", list, |count: usize| format!("{count} entries{}", if count == LISTED { " and more" } else { "" }))
}

fn generations(directories: &[PathBuf]) -> io::Result<()> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    for directory in directories {
        say(&format!("mounts below {}:", directory.display()))?;
        for line in text.split(|&byte| byte == b'\n') {
            let entry = mountinfo::parse(line);
            if entry.first().is_some_and(|entry| entry.mountpoint.starts_with(directory)) {
                say(&String::from_utf8_lossy(line))?;
            }
        }
        say(&format!("files in {}:", directory.display()))?;
        // Directories of generations are mountpoints: told by name alone.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            say(&format!("  {}", entry.file_name().display()))?;
        }
    }
    Ok(())
}

fn connections() -> io::Result<()> {
    let base = Path::new("/sys/fs/fuse/connections");
    let mounts = mountinfo::entries()?;
    let mut numbers: Vec<u32> =
        std::fs::read_dir(base)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        say("none to be seen: fusectl is not mounted there, or nothing is mounted")?;
    }
    for number in numbers {
        let value = |name: &str| read(&base.join(number.to_string()).join(name).display().to_string());
        say(&format!(
            "connection {number}: waiting {}, max_background {}, congestion_threshold {}",
            value("waiting"),
            value("max_background"),
            value("congestion_threshold")
        ))?;
        // st_dev of FUSE has major 0; the minor is the connection's number.
        for mount in mounts.iter().filter(|mount| mount.is_fuse() && mount.dev == (0, number)) {
            say(&format!("  {} ({})", mount.mountpoint.display(), mount.fstype.display()))?;
        }
    }
    Ok(())
}

/// A process as proc_pid_stat(5) shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Proc {
    pid: i32,
    name: String,
    state: char,
    parent: i32,
    group: i32,
    session: i32,
}

impl Proc {
    fn of(pid: i32) -> Option<Proc> {
        Proc::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Proc> {
        // The name may hold anything, parentheses included: it ends at the last one.
        let (head, tail) = stat.rsplit_once(')')?;
        let (pid, name) = head.split_once(" (")?;
        let mut fields = tail.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut number = || fields.next()?.parse().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        Some(Proc { pid: pid.parse().ok()?, name: name.to_owned(), state, parent, group, session })
    }

    fn line(&self) -> String {
        let Proc { pid, name, state, parent, group, session } = self;
        format!("{pid:>7} {parent:>7} {group:>7} {session:>7} {state} {name}")
    }
}

/// All processes but the one that collects and what it started. Looking at one that is inside execve(2) may take as long as
/// that does, and that may flush files on the very mount that hangs: others must not be missed for it.
fn all(without: Option<i32>) -> Vec<Proc> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let mut all = look_at_each(pids, Proc::of);
    let ours = descendants(&all, &without.into_iter().collect::<Vec<_>>());
    all.retain(|proc| !ours.contains(&proc.pid));
    all
}

/// What `look` finds out about each of them, in order of their numbers; without those that take too long.
fn look_at_each(pids: Vec<i32>, look: impl Fn(i32) -> Option<Proc> + Copy + Send + 'static) -> Vec<Proc> {
    let queue = Arc::new(Mutex::new(pids));
    let (sender, results) = channel();
    for _ in 0..LOOKERS {
        let (queue, sender) = (Arc::clone(&queue), sender.clone());
        let each = move || {
            loop {
                let Some(pid) = queue.lock().pop() else { return };
                if sender.send(look(pid)).is_err() {
                    return;
                }
            }
        };
        // With fewer of them it takes longer.
        _ = std::thread::Builder::new().spawn(each);
    }
    drop(sender);
    let until = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    while let Ok(proc) = results.recv_timeout(until.saturating_duration_since(Instant::now())) {
        found.extend(proc);
    }
    found.sort_by_key(|proc| proc.pid);
    found
}

/// These and all that descend from them.
fn descendants(all: &[Proc], roots: &[i32]) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = roots.iter().copied().collect();
    loop {
        let before = found.len();
        found.extend(all.iter().filter(|proc| found.contains(&proc.parent)).map(|proc| proc.pid).collect::<Vec<_>>());
        if found.len() == before {
            return found;
        }
    }
}

fn named(names: &[&str], without: Option<i32>) -> Vec<Proc> {
    let mut found = all(without);
    found.retain(|proc| names.contains(&proc.name.as_str()));
    found
}

/// These processes and all that they started: strangers are not even looked at. ssh is no child of its sshfs, but the daemon
/// adopts it. If nobody is known, all that are named like ours.
fn family(pids: &[i32], without: Option<i32>) -> Vec<Proc> {
    if pids.is_empty() {
        return named(&OURS, without);
    }
    let mut family: Vec<i32> = pids.to_vec();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        next += 1;
        for child in children(parent) {
            if !family.contains(&child) && Some(child) != without {
                family.push(child);
            }
        }
    }
    look_at_each(family, Proc::of)
}

/// Its children (proc_tid_children(5)).
fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

fn threads(proc: &Proc) -> io::Result<()> {
    say(&format!("process {}, parent {}, group {}: {}", proc.pid, proc.parent, proc.group, proc.name))?;
    let mut tasks: Vec<i32> = std::fs::read_dir(format!("/proc/{}/task", proc.pid))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    tasks.sort_unstable();
    for task in tasks {
        let place = format!("/proc/{}/task/{task}", proc.pid);
        let Some(stat) = std::fs::read_to_string(format!("{place}/stat")).ok().and_then(|stat| Proc::parse(&stat))
        else {
            continue;
        };
        say(&format!("  thread {task} {} ({}) in {}", stat.state, stat.name, read(&format!("{place}/wchan"))))?;
        say(&format!("    syscall {}", read(&format!("{place}/syscall"))))?;
        for line in read(&format!("{place}/stack")).lines() {
            say(&format!("    {line}"))?;
        }
    }
    Ok(())
}

fn descriptors(proc: &Proc) -> io::Result<()> {
    say(&format!("process {}: {}", proc.pid, proc.name))?;
    let mut found: Vec<(i32, String)> = std::fs::read_dir(format!("/proc/{}/fd", proc.pid))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            // The name of what is open, which asks no filesystem.
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((number, format!("{target:?}")))
        })
        .collect();
    found.sort();
    found.iter().try_for_each(|(number, target)| say(&format!("  {number} -> {target}")))
}

fn command(proc: &Proc) -> io::Result<()> {
    print!("{:>7} ({}) ", proc.pid, proc.name);
    io::stdout().flush()?;
    // Reads the memory of that process, which may wait for whatever it waits for.
    let line = std::fs::read(format!("/proc/{}/cmdline", proc.pid)).unwrap_or_default();
    say(&quoted(&line))
}

/// Words ended by NUL as a shell would take them.
fn quoted(line: &[u8]) -> String {
    let words = line.strip_suffix(b"\0").unwrap_or(line).split(|&byte| byte == 0);
    let quote = |word: &[u8]| {
        let text = String::from_utf8_lossy(word);
        let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{}'", text.escape_debug())
        }
    };
    words.map(quote).collect::<Vec<_>>().join(" ")
}

fn listing(directory: &Path, left: &mut usize) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return say(&format!("{}: there is none, or it may not be read", directory.display()));
    };
    say(&format!("{}:", directory.display()))?;
    let mut below = Vec::new();
    for entry in entries.flatten() {
        if *left == 0 {
            return say("  and more");
        }
        *left -= 1;
        // Of the entry itself, never of what a link leads to.
        let Ok(found) = entry.metadata() else { continue };
        let changed = moment::after_epoch(Duration::from_secs(found.mtime().max(0).cast_unsigned()));
        let changed = humantime::format_rfc3339_seconds(changed);
        say(&format!("  {:06o} {:>12} {changed} {:?}", found.mode(), found.len(), entry.file_name()))?;
        if found.is_dir() && found.dev() == std::fs::symlink_metadata(directory).map_or(0, |parent| parent.dev()) {
            below.push(entry.path());
        }
    }
    below.iter().try_for_each(|directory| listing(directory, left))
}

fn file(path: &Path) -> io::Result<()> {
    let text = || -> io::Result<Vec<u8>> {
        // A FIFO in its place must not make us wait.
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("not a file"));
        }
        tail(&mut file, found.len())
    };
    match text() {
        Ok(text) => {
            say(&format!("==> {} <==", path.display()))?;
            io::stdout().write_all(&text)?;
            if text.last().is_some_and(|&last| last != b'\n') { say("") } else { io::stdout().flush() }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => say(&format!("{}: absent", path.display())),
        Err(error) => say(&format!("{}: {error}", path.display())),
    }
}

fn tail(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(skip) = length.checked_sub(SHOWN).filter(|&skip| skip > 0) {
        file.seek(SeekFrom::Start(skip))?;
        text.extend_from_slice(format!("[the first {skip} bytes are left out]\n").as_bytes());
    }
    file.take(SHOWN).read_to_end(&mut text)?;
    Ok(text)
}

/// The files of a directory whose names begin so.
fn beginning(directory: &Path, prefixes: &[&PathBuf]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let wanted = |name: &[u8]| prefixes.iter().any(|prefix| name.starts_with(prefix.as_os_str().as_bytes()));
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| wanted(entry.file_name().as_bytes())).map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(pid: i32, parent: i32, group: i32, name: &str) -> Proc {
        Proc { pid, name: name.into(), state: 'S', parent, group, session: group }
    }

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let found = Proc::parse("42 (a) R (b)) D 7 40 39 0 -1 4194560").expect("understood");
        assert_eq!(found, Proc { state: 'D', session: 39, ..proc(42, 7, 40, "a) R (b)") });
        assert_eq!(Proc::parse("42 (x) S"), None);
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let all = [proc(5, 4, 1, "x"), proc(4, 3, 1, "x"), proc(3, 1, 1, "x"), proc(9, 1, 1, "x")];
        assert_eq!(descendants(&all, &[3]), BTreeSet::from([3, 4, 5]));
        assert_eq!(descendants(&all, &[]), BTreeSet::new());
    }

    #[test]
    fn one_that_cannot_be_looked_at_hides_no_other() {
        let slow = |pid| {
            if pid == 7 {
                std::thread::sleep(Duration::from_secs(60));
            }
            Some(proc(pid, 1, 1, "x"))
        };
        let begun = Instant::now();
        let found = look_at_each((0..200).collect(), slow);
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(
            found.iter().map(|proc| proc.pid).collect::<Vec<_>>(),
            (0..200).filter(|pid| *pid != 7).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_family_of_a_process_is_it_and_what_it_started() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().expect("it runs");
        let pid = shell.id().cast_signed();
        let until = Instant::now() + Duration::from_secs(10);
        let names = || family(&[pid], None).into_iter().map(|proc| proc.name).collect::<Vec<_>>();
        while names() != ["sh", "sleep"] {
            assert!(Instant::now() < until, "{:?}", names());
        }
        for proc in family(&[pid], None).iter().rev() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(proc.pid), nix::sys::signal::Signal::SIGKILL)
                .expect("ours");
        }
        shell.wait().expect("ours");
    }

    #[test]
    fn command_lines_are_one_line_of_words() {
        assert_eq!(quoted(b"sshfs\0-o\0a=b,c\0two words\0\0x\ny\0"), "sshfs -o a=b,c 'two words' '' 'x\\ny'");
        assert_eq!(quoted(b""), "''");
    }

    #[test]
    fn of_a_directory_of_metrics_only_those_are_read_that_were_asked_for() {
        let place = tempfile::tempdir().expect("a directory");
        for name in ["steadfs-a.prom", "steadfs.prom", "other_steadfs.prom", "secret"] {
            std::fs::write(place.path().join(name), "").expect("written");
        }
        let found = beginning(place.path(), &[&"steadfs".into(), &"absent_".into()]);
        assert_eq!(found, ["steadfs-a.prom", "steadfs.prom"].map(|name| place.path().join(name)));
    }

    #[test]
    fn of_a_long_file_the_end_is_shown() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(path.path(), [vec![b'a'; 300 << 10], b"end".to_vec()].concat()).expect("written");
        let mut file = File::open(path.path()).expect("opened");
        let text = tail(&mut file, (300 << 10) + 3).expect("read");
        assert!(text.starts_with(b"[the first 45059 bytes are left out]\n") && text.ends_with(b"aend"));
    }
}
