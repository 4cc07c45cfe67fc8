//! After a repair: what is uncommitted is sent again and descriptors are reopened, before the gate lets calls in.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::commit::is_refused;
use super::files::{LOST_FILE, OpenFile, RestoreReport};
use super::inodes::Inode;
use super::nodes::Name;
use super::{Overlay, is_lost};
use crate::backing::{Generation, OpResult};
use crate::gate::policy::raises_doubt;

/// Threads that write and reopen files in a new generation.
const THREADS: usize = 8;
/// Stack of such a thread in bytes; the deepest call chain is a path walk.
const STACK: usize = 512 << 10;

/// What the threads of one restoration share.
struct Job {
    overlay: Arc<Overlay>,
    generation: Arc<dyn Generation>,
    dirty: Mutex<Vec<Arc<Inode>>>,
    files: Mutex<Vec<Arc<OpenFile>>>,
    over: AtomicBool,
}

/// What a thread has to tell.
enum Told {
    Replayed(PathBuf, OpResult<()>),
    Reopened(PathBuf, OpResult<()>),
}

impl Overlay {
    /// Prepares a new generation before calls are let in: what is uncommitted is sent to it again and committed, then
    /// every file is reopened. The first takes as long as it takes; the second is left for the first call that uses the
    /// file if it takes longer than `limit`. An error says why the generation is of no use.
    pub fn restore(
        self: &Arc<Self>,
        generation: &Arc<dyn Generation>,
        limit: Duration,
    ) -> Result<RestoreReport, String> {
        self.settle_renames(&**generation).map_err(|errno| format!("a rename cannot be settled: {}", errno.desc()))?;
        self.doom_ungiven();
        let (dirty, files) = (self.inodes.dirty(), self.files.all());
        let (mut replays, total) = (dirty.len(), files.len());
        let threads = THREADS.min(replays + total);
        let job = Arc::new(Job {
            overlay: Arc::clone(self),
            generation: Arc::clone(generation),
            dirty: Mutex::new(dirty),
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
        let (mut report, mut until) = (RestoreReport::default(), None);
        let mut failure = None;
        loop {
            let told = match (replays, until) {
                (0, None) => {
                    until = Some(Instant::now() + limit);
                    continue;
                }
                (0, Some(until)) => results.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
                _ => results.recv().ok(),
            };
            match told {
                Some(Told::Replayed(path, result)) => {
                    replays -= 1;
                    match result {
                        Ok(()) => report.replayed += 1,
                        Err(LOST_FILE) => {}
                        // A file that a live backing does not take keeps nobody else waiting: its holders learn of it.
                        Err(errno) if is_refused(&**generation, errno) => {}
                        Err(errno) => {
                            failure = Some(format!("{} cannot be written again: {}", path.display(), errno.desc()));
                            break;
                        }
                    }
                }
                Some(Told::Reopened(_, Ok(()))) => report.reopened += 1,
                Some(Told::Reopened(path, Err(errno))) => report.failed.push((path, errno)),
                None => break,
            }
        }
        job.over.store(true, Relaxed);
        report.left = total.saturating_sub(report.reopened + report.failed.len());
        match failure.or((replays > 0).then(|| "there are no threads to write files again".into())) {
            Some(words) => Err(words),
            None => {
                self.sweep_hidden(generation);
                self.learn_what_is_always_answered();
                Ok(report)
            }
        }
    }

    /// Files are looked for under the names that they have: renames that a dead generation may have done come first,
    /// whether their callers still wait or not.
    fn settle_renames(&self, generation: &dyn Generation) -> OpResult<()> {
        let tree = generation.tree();
        for (from, to) in self.nodes.doubtful_renames() {
            let path = |name: &Name| self.nodes.path_of(name.0, &name.1).map(|(path, _)| path);
            // Names below a directory that is gone are nobody's any more.
            if let (Ok(old), Ok(new)) = (path(&from), path(&to)) {
                match (tree.stat(&old), tree.stat(&new)) {
                    (Err(Errno::ENOENT), Ok(_)) => self.nodes.rename(from.clone(), to.clone()).done(false),
                    (Err(error), _) | (_, Err(error)) if raises_doubt(error) => return Err(error),
                    (Ok(_), Err(Errno::ENOENT)) if self.hides(&to.1) => self.hidden_journal.strike(&new),
                    (Err(error), _) | (_, Err(error)) if !is_lost(error) => continue,
                    _ => {}
                }
            }
            // Not before: a generation that dies here leaves the question to the next.
            self.nodes.rename_settled(&from, &to);
        }
        Ok(())
    }
}

impl Job {
    fn work(&self, results: &Sender<Told>) {
        let (overlay, generation) = (&self.overlay, &*self.generation);
        let path = |node| overlay.nodes.path(node).map_or_else(|_| PathBuf::from("?"), |(path, _)| path);
        while !self.over.load(Relaxed) {
            let Some(inode) = self.dirty.lock().pop() else { break };
            let at = path(inode.node);
            let order = inode.order_whenever();
            let again = inode.needs_replay(&overlay.budget, generation.number());
            let result = if again { overlay.replay(generation, &inode, &order) } else { Ok(()) };
            drop(order);
            overlay.let_go(&inode);
            let _ = results.send(Told::Replayed(at, result));
        }
        while !self.over.load(Relaxed) {
            let Some(file) = self.files.lock().pop() else { break };
            // There are fewer descriptors than open files: the rest is opened when it is used.
            if !file.is_warm() && overlay.files.warm.is_full() {
                continue;
            }
            let result = overlay.descriptor(generation, &file).map(drop);
            let _ = results.send(Told::Reopened(path(file.node), result));
        }
    }
}
