//! Where log lines go: stderr in the foreground, a file of the runtime directory in the background.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::dup2_stderr;
use parking_lot::Mutex;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::journal;

/// The runtime directory lies in memory: two files of this many bytes are the most that is kept.
const LIMIT: u64 = 1 << 20;

/// What is logged, and what is wrong with what was asked for. `-d` wins; else `STEADFS_LOG`, `RUST_LOG`, or `info`.
fn filter(debug: bool, variable: impl Fn(&str) -> Option<String>) -> (EnvFilter, Vec<String>) {
    let mut complaints = Vec::new();
    let mut chosen = debug.then(|| EnvFilter::new("debug"));
    for name in ["STEADFS_LOG", "RUST_LOG"] {
        let Some(text) = variable(name).filter(|text| chosen.is_none() && !text.is_empty()) else { continue };
        match EnvFilter::try_new(&text) {
            Ok(filter) => chosen = Some(filter),
            Err(error) => complaints.push(format!("{name}={text} is ignored: {error}: give debug or warn, say")),
        }
    }
    (chosen.unwrap_or_else(|| EnvFilter::new("info")), complaints)
}

fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|text| text.to_string_lossy().into_owned())
}

fn warn(complaints: Vec<String>) {
    for complaint in complaints {
        tracing::warn!("{complaint}");
    }
}

/// For the foreground.
pub fn to_stderr(debug: bool) {
    let (filter, complaints) = filter(debug, environment);
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).try_init();
    warn(complaints);
}

/// For the background: all into `path`; warnings also to stderr until the flag is set. Not events: if one of them
/// keeps the mount from coming about, the error says so.
pub fn to_file(path: &Path, detached: Arc<AtomicBool>) -> io::Result<Log> {
    let log = Log { file: Arc::new(Mutex::new(Rotating::open(path)?)), detached };
    let (filter, complaints) = filter(false, environment);
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_ansi(false).try_init();
    warn(complaints);
    Ok(log)
}

/// A log file that is also a writer for tracing.
#[derive(Clone)]
pub struct Log {
    file: Arc<Mutex<Rotating>>,
    detached: Arc<AtomicBool>,
}

impl Log {
    /// Makes the present file stderr, for panics and words of child processes: nothing reminds the terminal of the daemon
    /// from now on.
    pub fn to_stderr(&self) -> io::Result<()> {
        dup2_stderr(self.file.lock().file.try_clone()?)?;
        Ok(())
    }
}

/// Writes one line.
pub struct Line {
    log: Log,
    loud: bool,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.loud && !self.log.detached.load(Ordering::Relaxed) {
            // Nobody may be reading any more.
            let _ = io::stderr().write_all(bytes);
        }
        self.log.file.lock().append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { log: self.clone(), loud: false }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Line {
        Line { log: self.clone(), loud: *meta.level() <= Level::WARN && meta.target() != journal::TARGET }
    }
}

struct Rotating {
    path: PathBuf,
    file: File,
}

impl Rotating {
    fn open(path: &Path) -> io::Result<Rotating> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Rotating { path: path.to_owned(), file })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let there = std::fs::metadata(&self.path).map(|there| (there.dev(), there.ino())).ok();
        let moved = there != Some((ours.dev(), ours.ino()));
        if !moved && ours.len() > LIMIT {
            std::fs::rename(&self.path, self.path.with_extension("1"))?;
        }
        // The keeper and the daemon write to the same file, and either may have moved it.
        if moved || ours.len() > LIMIT {
            *self = Rotating::open(&self.path.clone())?;
        }
        self.file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = Rotating::open(&path).expect("open");
        let line = vec![b'x'; 100_000];
        for _ in 0..50 {
            log.append(&line).expect("append");
        }
        let sizes = ["log", "log.1"].map(|name| std::fs::metadata(dir.path().join(name)).expect(name).len());
        assert!(sizes.iter().all(|&size| size <= LIMIT + 100_000), "{sizes:?}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readdir").count(), 2);
    }

    #[test]
    fn debug_wins_and_a_bad_filter_is_complained_of() {
        let choose = |debug, steadfs: &str, rust: &str| {
            let variable = |name: &str| Some(if name == "STEADFS_LOG" { steadfs } else { rust }.to_owned());
            let (filter, complaints) = filter(debug, variable);
            (filter.to_string(), complaints.len())
        };
        assert_eq!(choose(true, "error", "warn"), ("debug".into(), 0));
        assert_eq!(choose(false, "error", "warn"), ("error".into(), 0));
        assert_eq!(choose(false, "", "warn"), ("warn".into(), 0));
        assert_eq!(choose(false, "a=b=c", "warn"), ("warn".into(), 1));
        assert_eq!(choose(false, "a=b=c", "x=nonsense"), ("info".into(), 2));
    }
}
