//! The control socket: one JSON request a line, one JSON reply a line. Mode 0600, and for the daemon's own user or root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::journal::Journal;
use super::status::Status;
use super::{Observed, UmountRefused};

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

/// A bound socket.
pub struct Listener(UnixListener);

/// Binds the socket; a stale one of a daemon that was killed is replaced.
pub fn bind(path: &Path) -> Result<Listener, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(Listener(listener))
}

/// Serves clients until the runtime ends.
pub async fn serve(listener: Listener, observed: Observed, journal: Arc<Journal>) {
    let listener = match tokio::net::UnixListener::from_std(listener.0) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the control socket cannot be served"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => _ = tokio::spawn(converse(stream, observed.clone(), Arc::clone(&journal))),
            // Out of descriptors, say: worth another try, but not at full speed.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: UnixStream, observed: Observed, journal: Arc<Journal>) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let allowed = peer == 0 || peer == nix::unistd::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let reply = match serde_json::from_str(&line) {
            _ if !allowed => Reply::Failed { text: "only root and the owner of the mount may ask".into() },
            Err(error) => Reply::Failed { text: format!("the request is not understood: {error}") },
            Ok(Request::Status) => Reply::Status(Box::new(Status::of(&observed, &journal))),
            Ok(Request::Recover) => {
                (observed.retry_now)();
                Reply::Done
            }
            Ok(Request::Umount { lazy }) => {
                let stop = Arc::clone(&observed.stop);
                // umount(2) may wait for the kernel; others are answered meanwhile.
                match tokio::task::spawn_blocking(move || stop(lazy)).await {
                    Ok(Ok(())) => Reply::Done,
                    Ok(Err(UmountRefused::Busy(text))) => Reply::Busy { text },
                    Ok(Err(UmountRefused::Other(text))) => Reply::Failed { text },
                    Err(error) => Reply::Failed { text: error.to_string() },
                }
            }
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
    }
    Ok(())
}
