//! A thread that nobody waits for: it keeps the memory for a successor short, and forgets what only a beginning needs.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::handover::Notes;
use crate::overlay::Overlay;

/// Time between two looks, unless there is something to do.
const LOOK: Duration = Duration::from_secs(1);
/// After that long without a note, pages that are kept are given back.
const REST: Duration = Duration::from_secs(10);
/// How often memory is looked for that nobody needs, while nothing is noted.
const TRIMS: u32 = 3;
/// What a predecessor had in flight is sent again at once, and read as soon as a reader is free: all of it by then.
const RESENT: Duration = Duration::from_secs(60);
/// Its nice(2) value: after everybody who has to do with calls, but not so far after that the memory fills up meanwhile.
const NICE: i32 = 5;

/// See the module. Ends when dropped.
pub struct Upkeep {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Starts it. `successor`: calls that were in flight when another daemon died are sent again.
    pub fn start(notes: Notes, overlay: &Arc<Overlay>, successor: bool) -> io::Result<Upkeep> {
        let over = Arc::new(AtomicBool::new(false));
        let (told, overlay) = (Arc::clone(&over), Arc::downgrade(overlay));
        let keep = move || keep(&notes, &overlay, successor, &told);
        let thread = std::thread::Builder::new().name("upkeep".into()).spawn(keep)?;
        Ok(Upkeep { over, thread: Some(thread) })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the upkeep panicked");
            }
        }
    }
}

/// Gives back what malloc(3) keeps of a time with more to do.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

fn keep(notes: &Notes, overlay: &Weak<Overlay>, successor: bool, over: &AtomicBool) {
    // SAFETY: changes nothing but this thread's priority (0 is the caller, and Linux has one a thread).
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let begun = Instant::now();
    let mut resending = successor;
    // What was noted at the last look, since when, and whether pages have been given back.
    let (mut noted, mut since, mut resting) = (None, begun, false);
    let mut trims = 0;
    while !over.load(Relaxed) {
        if resending && begun.elapsed() >= RESENT {
            resending = false;
            if let Some(overlay) = overlay.upgrade() {
                overlay.resending_is_over();
            }
        }
        if successor && let Some(overlay) = overlay.upgrade() {
            overlay.recount();
        }
        if let Some(overlay) = overlay.upgrade() {
            overlay.look_at_local_space();
        }
        if let Some(memory) = notes.memory() {
            let now = Some(memory.used().0);
            let result = if now != noted {
                (noted, since, resting, trims) = (now, Instant::now(), false, 0);
                memory.attend().map(drop)
            } else if !resting && since.elapsed() >= REST {
                resting = true;
                memory.rest()
            } else {
                Ok(())
            };
            // Again after a while: what is freed last may be what kept the most.
            if trims < TRIMS && since.elapsed() >= REST * (trims + 1) {
                trims += 1;
                trim();
            }
            if let Err(error) = result {
                tracing::warn!(%error, "the memory for a successor cannot be made shorter");
            }
        }
        std::thread::park_timeout(LOOK);
    }
}
