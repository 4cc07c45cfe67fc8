//! The control socket: one JSON request a line, one JSON reply a line. Mode 0600, and for the daemon's own user or root.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::journal::Journal;
use super::status::Status;
use super::{Observed, UmountRefused};
use crate::config::HotPath;

/// Longest request in bytes; the longest that means anything has two paths (PATH_MAX, limits.h) and the options of an overlay.
const LONGEST: u64 = 64 << 10;
/// How long the end of the daemon waits for answers that are on their way.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How is it?
    Status,
    /// Try to repair now.
    Recover,
    /// Unmount.
    Umount {
        /// Even if it is in use.
        #[serde(default)]
        lazy: bool,
    },
    /// Whether that overlay may be written to beside the others.
    Writable {
        /// Its hot path.
        mountpoint: std::path::PathBuf,
    },
    /// Mount one more overlay.
    Attach {
        /// Which.
        hot: HotPath,
        /// Though the directory be not empty.
        #[serde(default)]
        nonempty: bool,
    },
    /// Unmount one of several overlays.
    Detach {
        /// Its hot path.
        mountpoint: std::path::PathBuf,
        /// Even if it is in use.
        #[serde(default)]
        lazy: bool,
    },
    /// Be replaced by a daemon of another executable; the status says what became of it.
    Upgrade {
        /// Its absolute path.
        executable: std::path::PathBuf,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `status`.
    Status(Box<Status>),
    /// Done.
    Done,
    /// Somebody uses the mount.
    Busy {
        /// In words.
        text: String,
    },
    /// Not understood, not allowed or not done.
    Failed {
        /// In words.
        text: String,
    },
}

/// Requests that have been read and not answered.
#[derive(Clone, Default)]
pub struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn begin(&self) -> Answering {
        self.0.fetch_add(1, SeqCst);
        Answering(self.clone())
    }

    /// Waits a moment until everything is answered: who asked for an unmount is told of it by a daemon that ends.
    pub fn settle(&self) {
        let until = Instant::now() + FAREWELL;
        while self.0.load(SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

struct Answering(Pending);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// Serves clients until the runtime ends.
pub async fn serve(listener: UnixListener, observed: Observed, journal: Arc<Journal>, pending: Pending) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the control socket cannot be served"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                _ = tokio::spawn(converse(stream, observed.clone(), Arc::clone(&journal), pending.clone()));
            }
            // Out of descriptors, say: worth another try, but not at full speed.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(
    stream: UnixStream,
    observed: Observed,
    journal: Arc<Journal>,
    pending: Pending,
) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let allowed = peer == 0 || peer == nix::unistd::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let _answering = pending.begin();
        // The rest of a line that is too long would be taken for another request.
        let last = !allowed || line.len() as u64 == LONGEST;
        let reply = match serde_json::from_slice(&line) {
            _ if !allowed => Reply::Failed { text: "only root and the owner of the mount may ask".into() },
            _ if last => Reply::Failed { text: format!("the request is longer than {LONGEST} bytes") },
            Err(error) => Reply::Failed { text: format!("the request is not understood: {error}") },
            Ok(request) => answer(request, &observed, &journal).await,
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
        if last {
            return Ok(());
        }
    }
}

async fn answer(request: Request, observed: &Observed, journal: &Journal) -> Reply {
    match request {
        Request::Status => Reply::Status(Box::new(Status::of(observed, journal))),
        Request::Recover => {
            (observed.retry_now)();
            Reply::Done
        }
        Request::Upgrade { executable } => {
            let upgrade = Arc::clone(&observed.upgrade);
            // Opening a file may take its time.
            match tokio::task::spawn_blocking(move || upgrade(&executable)).await {
                Ok(Ok(())) => Reply::Done,
                Ok(Err(text)) => Reply::Failed { text },
                Err(error) => Reply::Failed { text: error.to_string() },
            }
        }
        Request::Attach { hot, nonempty } => {
            let attach = Arc::clone(&observed.attach);
            match tokio::task::spawn_blocking(move || attach(hot, nonempty)).await {
                Ok(Ok(())) => Reply::Done,
                Ok(Err(text)) => Reply::Failed { text },
                Err(error) => Reply::Failed { text: error.to_string() },
            }
        }
        Request::Detach { mountpoint, lazy } => {
            let detach = Arc::clone(&observed.detach);
            unmounted(move || detach(&mountpoint, lazy)).await
        }
        Request::Writable { mountpoint } => match writable(&(observed.overlays)(), &mountpoint) {
            Ok(()) => Reply::Done,
            Err(text) => Reply::Failed { text },
        },
        Request::Umount { lazy } => {
            let stop = Arc::clone(&observed.stop);
            unmounted(move || stop(lazy)).await
        }
    }
}

/// Each overlay has a write log of its own, so of those that show the same directory only one may be writable, whatever they
/// were mounted as.
fn writable(all: &[super::View], mountpoint: &std::path::Path) -> Result<(), String> {
    use crate::backing::mountinfo;
    let Some(this) = all.iter().find(|one| one.mountpoint == mountpoint) else { return Ok(()) };
    let table = mountinfo::entries().map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    let is_written = |one: &&super::View| {
        let meet = one.path.starts_with(&this.path) || this.path.starts_with(&one.path);
        let entry = mountinfo::at_in(&table, &one.mountpoint);
        one.mountpoint != this.mountpoint && meet && entry.is_some_and(|entry| !entry.is_read_only())
    };
    match all.iter().find(is_written) {
        Some(other) => Err(format!("{} shows the same directory and can be written to", other.mountpoint.display())),
        None => Ok(()),
    }
}

/// umount(2) may wait for the kernel; others are answered meanwhile.
async fn unmounted(unmount: impl FnOnce() -> Result<(), UmountRefused> + Send + 'static) -> Reply {
    match tokio::task::spawn_blocking(unmount).await {
        Ok(Ok(())) => Reply::Done,
        Ok(Err(UmountRefused::Busy(text))) => Reply::Busy { text },
        Ok(Err(UmountRefused::Other(text))) => Reply::Failed { text },
        Err(error) => Reply::Failed { text: error.to_string() },
    }
}
