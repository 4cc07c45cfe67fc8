//! The control socket: one JSON request a line, one JSON reply a line. Mode 0600, and for the daemon's own user or root.

use std::collections::{BTreeSet, VecDeque};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::journal::Journal;
use super::recovery::Recovery;
use super::status::Status;
use super::{Observed, UmountRefused};
use crate::config::{DaemonConfig, HotPath};
use crate::daemon::reload::Reloaded;

/// Longest request in bytes: a configuration of a thousand overlays.
const LONGEST: u64 = 1 << 20;
/// How long a client may take to finish a request, from its last one on, and to read an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for one who is told only that he may not ask.
const LITTLE: Duration = Duration::from_secs(1);
/// Most conversations at a time with those who may ask: each takes a descriptor, and calls need some too.
const MOST: usize = 128;
/// Most with others, who could keep those out.
const MOST_OTHERS: usize = 8;
/// How long the end of the daemon waits for answers that are on their way.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How is it?
    Status,
    /// What would a repair do, and what holds it back?
    Recover {
        /// Do it now, whatever the back-off or a permit says.
        #[serde(default)]
        apply: bool,
        /// Replace a generation that is well, too.
        #[serde(default)]
        force: bool,
    },
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
    /// What is it configured to do?
    Config,
    /// Take another configuration over.
    Reload {
        /// The whole of it, with mountpoints resolved.
        config: Box<DaemonConfig>,
        /// Mountpoints that need not be empty.
        #[serde(default)]
        nonempty: BTreeSet<std::path::PathBuf>,
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
    /// To `config`, without what could be secret.
    Config(Box<DaemonConfig>),
    /// To `reload`.
    Reloaded(Reloaded),
    /// To `recover`.
    Recovery(Box<Recovery>),
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
    let (mut own, mut others) = (Room::new(MOST), Room::new(MOST_OTHERS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_allowed(&stream) => {
                let talk = converse(stream, observed.clone(), Arc::clone(&journal), pending.clone());
                own.admit(tokio::spawn(talk).abort_handle());
            }
            Ok((stream, _)) => others.admit(tokio::spawn(refuse(stream)).abort_handle()),
            // Out of descriptors, say: worth another try, but not at full speed.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Conversations that go on, so many at a time: the oldest is broken off for one more, and it is the most likely to be silent.
struct Room {
    most: usize,
    talks: VecDeque<AbortHandle>,
}

impl Room {
    fn new(most: usize) -> Room {
        Room { most, talks: VecDeque::new() }
    }

    fn admit(&mut self, talk: AbortHandle) {
        self.talks.retain(|talk| !talk.is_finished());
        if self.talks.len() >= self.most
            && let Some(oldest) = self.talks.pop_front()
        {
            oldest.abort();
        }
        self.talks.push_back(talk);
    }
}

/// Whether the client is root or the daemon's own user, by what the kernel says of it (unix(7), SO_PEERCRED).
fn is_allowed(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Nothing that somebody else sends is looked at.
async fn refuse(stream: UnixStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    // Read all the same: who is hung up on while he asks sees no answer.
    let mut line = Vec::new();
    let _ = timeout(LITTLE, BufReader::new(reader).take(LONGEST).read_until(b'\n', &mut line)).await;
    let text = "only root and the owner of the mount may ask".into();
    let reply = serde_json::to_string(&Reply::Failed { text })? + "\n";
    timeout(LITTLE, writer.write_all(reply.as_bytes())).await?
}

async fn converse(
    stream: UnixStream,
    observed: Observed,
    journal: Arc<Journal>,
    pending: Pending,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        timeout(PATIENCE, (&mut reader).take(LONGEST).read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let _answering = pending.begin();
        // The rest of a line that is too long would be taken for another request.
        let last = line.len() as u64 == LONGEST;
        let reply = match serde_json::from_slice(&line) {
            _ if last => Reply::Failed { text: format!("the request is longer than {LONGEST} bytes") },
            Err(error) => Reply::Failed { text: format!("the request is not understood: {error}") },
            Ok(request) => answer(request, &observed, &journal).await,
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        timeout(PATIENCE, writer.write_all(text.as_bytes())).await??;
        if last {
            return Ok(());
        }
    }
}

async fn answer(request: Request, observed: &Observed, journal: &Journal) -> Reply {
    match request {
        Request::Status => Reply::Status(Box::new(Status::of(observed, journal))),
        Request::Recover { apply, force } => {
            // What was to be done when it was ordered.
            let recovery = Recovery::of(observed, force);
            match (apply, force) {
                (true, true) => (observed.replace)(),
                (true, false) => (observed.retry_now)(),
                (false, _) => {}
            }
            Reply::Recovery(Box::new(recovery))
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
        Request::Config => {
            let config = (observed.configured)();
            Reply::Config(Box::new(DaemonConfig { sshfs_options: Vec::new(), ..config }))
        }
        Request::Reload { config, nonempty } => {
            let reload = Arc::clone(&observed.reload);
            match tokio::task::spawn_blocking(move || reload(*config, nonempty)).await {
                Ok(Ok(done)) => Reply::Reloaded(done),
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
