//! Makes the same calls on a plain sshfs and on steadfs, each time in a process of its own, and compares what came of them.

use std::ffi::CString;
use std::fmt::Debug;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;

use crate::rig::Pair;

/// What was done, a line for each call.
pub struct Log {
    root: PathBuf,
    lines: Vec<String>,
}

impl Log {
    /// A path in the directory at hand.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The same for a system call.
    pub fn c(&self, path: &str) -> CString {
        c(&self.at(path))
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
        "renames" => super::renames::body,
        "refused" => super::refused::body,
        "extensions" => super::extensions::body,
        other => panic!("no such calls: {other}"),
    }
}

/// The hidden test calls this.
pub fn main() {
    let Some(name) = std::env::var_os("OVER_BODY") else { return };
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let mut log = Log { root: std::env::var_os("OVER_AT").unwrap().into(), lines: Vec::new() };
    find(name.to_str().unwrap())(&mut log);
    let lines = log.lines.iter().map(|line| format!("\nsaid: {line}")).collect::<String>();
    println!("{lines}\nsaid: end");
}

fn lines(name: &str, at: &Path) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["body_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("OVER_BODY", name)
        .env("OVER_AT", at)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<String> =
        text.lines().filter_map(|line| Some(line.strip_prefix("said: ")?.to_owned())).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(lines.pop().as_deref(), Some("end"), "{name} in {}: {lines:#?}\n{stderr}", at.display());
    lines
}

/// Makes these calls on both. They come to the same but for those named in `better`: by call what sshfs says, and what steadfs
/// says. Returns what was said on steadfs.
pub fn agree(pair: &Pair, name: &str, better: &[(&str, &str, &str)]) -> Vec<String> {
    let (plain, found) = (lines(name, &pair.plain), lines(name, &pair.hot));
    println!("{name}: {} calls", plain.len());
    assert_eq!(plain.len(), found.len(), "{plain:#?}\n{found:#?}");
    let different = plain.into_iter().zip(&found).filter(|(plain, found)| plain != *found);
    let wanted = better.iter().map(|(call, plain, hot)| (format!("{call}: {plain}"), format!("{call}: {hot}")));
    let (different, wanted): (Vec<_>, Vec<_>) =
        (different.map(|(plain, found)| (plain, found.clone())).collect(), wanted.collect());
    assert_eq!(different, wanted, "(sshfs, steadfs)");
    found
}

/// A path for the kernel.
pub fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The result of a call of the C library.
pub fn done(result: impl Into<i64>) -> io::Result<i64> {
    let result = result.into();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Names and contents below a directory.
pub fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                found.push(format!("{name}/"));
                waiting.push(path);
            } else {
                found.push(format!("{name}={}", String::from_utf8_lossy(&std::fs::read(&path).unwrap())));
            }
        }
    }
    found.sort();
    found
}
