//! Runs the same calls in a plain directory and in the overlay, each time in a process of its own, and compares what came of
//! them.

use std::ffi::CString;
use std::fmt::Debug;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;

use super::rig::Local;

/// What was done, a line for each call.
pub struct Log {
    root: PathBuf,
    lines: Vec<String>,
}

impl Log {
    /// A path in the directory at hand.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Notes what came of a call.
    pub fn note<T: Debug>(&mut self, call: impl AsRef<str>, result: io::Result<T>) {
        let result = match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => error.raw_os_error().map_or(error.to_string(), |raw| format!("{:?}", Errno::from_raw(raw))),
        };
        self.lines.push(format!("{}: {result}", call.as_ref()));
    }

    /// Notes a value.
    pub fn see<T: Debug>(&mut self, call: impl AsRef<str>, value: T) {
        self.note(call, Ok(value));
    }
}

type Body = fn(&mut Log);

fn find(name: &str) -> Body {
    match name {
        "rights" => super::rights::body,
        "attributes" => super::attributes::body,
        "names" => super::names::body,
        "hidden" => super::names::hidden_body,
        "calls" => super::calls::body,
        "programs" => super::programs::body,
        other => panic!("no such calls: {other}"),
    }
}

/// The hidden test calls this.
pub fn main() {
    let Some(name) = std::env::var_os("LOCAL_BODY") else { return };
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let mut log = Log { root: std::env::var_os("LOCAL_AT").unwrap().into(), lines: Vec::new() };
    find(name.to_str().unwrap())(&mut log);
    let lines = log.lines.iter().map(|line| format!("\nlocal: {line}")).collect::<String>();
    println!("{lines}\nlocal: end");
}

/// Runs these calls there, and returns what came of them.
pub fn lines(name: &str, at: &Path) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["body_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LOCAL_BODY", name)
        .env("LOCAL_AT", at)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<String> =
        text.lines().filter_map(|line| Some(line.strip_prefix("local: ")?.to_owned())).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(lines.pop().as_deref(), Some("end"), "{name} in {}: {lines:#?}\n{stderr}", at.display());
    lines
}

/// Runs these calls in a plain directory and in the overlay: what came of them there is what is different.
pub fn differences(local: &Local, name: &str) -> Vec<(String, String)> {
    let plain = local.lab.path("plain");
    std::fs::create_dir_all(plain.join(name)).unwrap();
    std::fs::create_dir_all(local.hot(name)).unwrap();
    let wanted = lines(name, &plain.join(name));
    let found = lines(name, &local.hot(name));
    println!("{name}: {} calls", wanted.len());
    assert_eq!(wanted.len(), found.len(), "{wanted:#?}\n{found:#?}");
    wanted.into_iter().zip(found).filter(|(wanted, found)| wanted != found).collect()
}

/// The same for calls that must not differ.
pub fn agree(local: &Local, name: &str) {
    let differences = differences(local, name);
    assert!(differences.is_empty(), "(plain, overlay): {differences:#?}");
}

/// Runs something as another user, in this thread alone: it makes files and is judged as that one (setfsuid(2)).
pub fn as_user<T>(uid: u32, gid: u32, groups: &[u32], work: impl FnOnce() -> T) -> T {
    let become_user = |uid: u32, gid: u32, groups: &[u32]| {
        // SAFETY: the list outlives the call; the others take numbers. The calls themselves, not the C library's, which
        // speak for all threads.
        unsafe {
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
            libc::setfsgid(gid);
            libc::setfsuid(uid);
        }
    };
    become_user(uid, gid, groups);
    let result = work();
    // SAFETY: only numbers are passed.
    unsafe { libc::setfsuid(0) };
    become_user(0, 0, &[0]);
    result
}

/// A path for the kernel.
pub fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

/// The result of a call of the C library.
pub fn done(result: impl Into<i64>) -> io::Result<i64> {
    let result = result.into();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
