//! An overlay over a directory, and actors that hold files of it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::lab::Lab;
use crate::lab::parts::Part;

/// See the module.
pub struct Local {
    pub lab: Lab,
}

impl Local {
    /// Over the laboratory's store, with these options.
    pub fn new(options: &str) -> Local {
        Local::over(Lab::untimed(), "store", options, |_| {})
    }

    /// Over that directory of the laboratory; `prepare` may change the command that mounts.
    pub fn over(mut lab: Lab, directory: &str, options: &str, prepare: impl FnOnce(&mut Command)) -> Local {
        // Others than root come along here too.
        std::fs::set_permissions(lab.directory(), PermissionsExt::from_mode(0o711)).unwrap();
        let mut command = lab.steadfs(&["mount", "-f", &format!("dir:{}", lab.path(directory).display())]);
        command.arg(&lab.hot).args(["-o", &format!("guard=no{}{options}", if options.is_empty() { "" } else { "," })]);
        prepare(&mut command);
        lab.serve(command);
        lab.wait_state("live");
        Local { lab }
    }

    /// A path in the overlay.
    pub fn hot(&self, path: &str) -> PathBuf {
        self.lab.hot.join(path)
    }

    /// The same in the store.
    pub fn cold(&self, path: &str) -> PathBuf {
        self.lab.store.join(path)
    }

    /// Ends the present generation and starts the next.
    pub fn outage(&self) {
        let before = self.lab.generation();
        let output =
            self.lab.steadfs(&["recover", "--apply", "--force", self.lab.hot.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(self.lab.generation(), before + 1);
    }

    /// kill -9 of the daemon, until its successor answers.
    pub fn succession(&self) {
        let before = self.lab.serving();
        self.lab.parts().kill(Part::Daemon).expect("there is one");
        crate::lab::wait("the successor", || {
            self.lab.status()["pid"].as_i64().is_some_and(|pid| pid != i64::from(before))
        });
        self.lab.wait_state("live");
    }

    /// Unmounts and checks that nothing is left.
    pub fn end(self) {
        self.lab.umount();
    }
}

/// The kernel forgets the names and inodes that nobody has open.
pub fn forget_names() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// A process that has files of a mount open and does what it is told, a line for each call: this test binary, started again.
pub struct Actor {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    pub fn start() -> Actor {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["actor_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("LOCAL_ACTOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Actor { child, orders, answers }
    }

    /// Has it do something, without waiting for it.
    pub fn say(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// What came of it: a number, negative for an errno.
    pub fn answer(&mut self) -> i64 {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the actor has ended");
            if let Some(answer) = line.trim_end().strip_prefix("actor: ") {
                return answer.parse().unwrap();
            }
        }
    }

    pub fn ask(&mut self, order: &str) -> i64 {
        self.say(order);
        self.answer()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // It has many files to close. One that hangs in the mount is not waited for for ever.
        for _ in 0..6000 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// The hidden test calls this.
pub fn main() {
    if std::env::var_os("LOCAL_ACTOR").is_none() {
        return;
    }
    let mut files: Vec<File> = Vec::new();
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = obey(&mut files, &words).unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(9999)));
        println!("\nactor: {answer}");
    }
}

fn obey(files: &mut Vec<File>, words: &[&str]) -> io::Result<i64> {
    let number = |at: usize| words[at].parse::<i64>().unwrap();
    let both = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(words[1]);
    Ok(match words[0] {
        // open PATH: its number.
        "open" => {
            files.push(both()?);
            files.len() as i64 - 1
        }
        "close" => {
            files.clear();
            0
        }
        // flock NUMBER OPERATION
        "flock" => checked(unsafe_flock(&files[number(1) as usize], number(2)))?,
        // lock NUMBER COMMAND TYPE START LENGTH
        "lock" => {
            let mut lock = lock_of(number(3), number(4), number(5));
            checked(unsafe_fcntl(&files[number(1) as usize], number(2), &mut lock))?
        }
        // asks NUMBER COMMAND TYPE START LENGTH: the type of the lock that is in the way.
        "asks" => {
            let mut lock = lock_of(number(3), number(4), number(5));
            checked(unsafe_fcntl(&files[number(1) as usize], number(2), &mut lock))?;
            lock.l_type.into()
        }
        "put" => files[number(1) as usize].write_at(words[3].as_bytes(), number(2) as u64)? as i64,
        "get" => {
            let mut byte = [0];
            files[number(1) as usize].read_exact_at(&mut byte, number(2) as u64)?;
            byte[0].into()
        }
        // hold DIRECTORY FROM TO: opens all of these for reading.
        "hold" => {
            raise_limit();
            for name in number(2)..number(3) {
                files.push(File::open(Path::new(words[1]).join(format!("f{name}")))?);
            }
            files.len() as i64
        }
        // Reads a byte of each: how many were what they should be.
        "all" => {
            let mut right = 0;
            for file in files.iter() {
                let mut byte = [0];
                file.read_exact_at(&mut byte, 0)?;
                right += i64::from(byte == *b"x");
            }
            right
        }
        other => panic!("no such order: {other}"),
    })
}

fn raise_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

fn checked(result: i32) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result.into()) }
}

fn lock_of(kind: i64, start: i64, length: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

fn unsafe_flock(file: &File, operation: i64) -> i32 {
    // SAFETY: only numbers are passed.
    unsafe { libc::flock(file.as_raw_fd(), operation as i32) }
}

fn unsafe_fcntl(file: &File, command: i64, lock: &mut libc::flock) -> i32 {
    // SAFETY: each command that is used takes a `struct flock`, which outlives the call.
    unsafe { libc::fcntl(file.as_raw_fd(), command as i32, std::ptr::from_mut(lock)) }
}
