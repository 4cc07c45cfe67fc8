//! After a repair: descriptors are reopened and hidden files removed, before the gate lets calls in.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::Overlay;
use super::files::{OpenFile, RestoreReport};
use crate::backing::{Generation, OpResult};

/// Threads that reopen descriptors in a new generation.
const THREADS: usize = 8;
/// Stack of such a thread in bytes; the deepest call chain is a path walk.
const STACK: usize = 512 << 10;

/// What the threads of one restoration share.
struct Job {
    overlay: Arc<Overlay>,
    generation: Arc<dyn Generation>,
    files: Mutex<Vec<Arc<OpenFile>>>,
    over: AtomicBool,
}

impl Overlay {
    /// Reopens every file in a new generation, before calls are let in, and returns within `limit` whatever the backing
    /// does. What takes longer is left for the first call that uses it.
    pub fn restore(self: &Arc<Self>, generation: &Arc<dyn Generation>, limit: Duration) -> RestoreReport {
        let files = self.files.all();
        let (total, until) = (files.len(), Instant::now() + limit);
        let threads = THREADS.min(total.max(usize::from(!self.leftovers.lock().is_empty())));
        let job = Arc::new(Job {
            overlay: Arc::clone(self),
            generation: Arc::clone(generation),
            files: Mutex::new(files),
            over: AtomicBool::new(false),
        });
        let (sender, results) = channel();
        for _ in 0..threads {
            // Not scoped: a thread that gets stuck in the backing is left behind, and freed when that is aborted.
            let (job, sender) = (Arc::clone(&job), sender.clone());
            let thread = std::thread::Builder::new().name("restore".into()).stack_size(STACK);
            if let Err(error) = thread.spawn(move || job.work(&sender)) {
                tracing::warn!(%error, "cannot start a thread to reopen files");
            }
        }
        drop(sender);
        let mut report = RestoreReport::default();
        loop {
            match results.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((_, Ok(()))) => report.reopened += 1,
                Ok((path, Err(errno))) => report.failed.push((path, errno)),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        job.over.store(true, Relaxed);
        report.left = total.saturating_sub(report.reopened + report.failed.len());
        report
    }

    /// Removes hidden files that were closed for the last time during an outage.
    fn remove_leftovers(&self, generation: &dyn Generation) {
        for path in std::mem::take(&mut *self.leftovers.lock()) {
            match generation.tree().unlink(&path) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a hidden file is left on the backing");
                    self.leftovers.lock().push(path);
                }
            }
        }
    }
}

impl Job {
    fn work(&self, results: &Sender<(PathBuf, OpResult<()>)>) {
        let nodes = &self.overlay.nodes;
        while !self.over.load(Relaxed) {
            let Some(file) = self.files.lock().pop() else { break };
            let result = file.in_generation(nodes, &*self.generation).map(drop);
            let path = nodes.path(file.node).map_or_else(|_| PathBuf::from("?"), |(path, _)| path);
            let _ = results.send((path, result));
        }
        self.overlay.remove_leftovers(&*self.generation);
    }
}
