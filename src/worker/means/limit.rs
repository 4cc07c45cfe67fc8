//! Steps that may block for ever, such as on a file of a dead server: each in a thread that can be given up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use parking_lot::Mutex;

use super::{Failure, Job};

/// See the module.
#[derive(Default)]
pub(super) struct Limit {
    /// What was given up, by worker: its channel breaks when its thread ends.
    stuck: Mutex<HashMap<String, Receiver<()>>>,
}

impl Limit {
    /// Does it, or gives it up when its time has passed; it can see that it was. As long as a step of a worker hangs there
    /// is no other: what is undone must not be done afterwards.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: &Job,
        step: impl FnOnce(&AtomicBool) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let before = self.stuck.lock().remove(job.name);
        if let Some(before) = before
            && before.recv_timeout(job.left()) == Err(RecvTimeoutError::Timeout)
        {
            self.stuck.lock().insert(job.name.into(), before);
            return Err(Failure::late("an earlier step still hangs"));
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let (seen, (answer, answered), (alive, ended)) = (Arc::clone(&given_up), channel(), channel());
        let work = move || {
            let _alive = alive;
            // Nobody listens if it was given up.
            let _ = answer.send(step(&seen));
        };
        std::thread::Builder::new().name("worker-step".into()).spawn(work).map_err(Failure::of)?;
        match answered.recv_timeout(job.left()) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(Failure::of("the step was lost")),
            Err(RecvTimeoutError::Timeout) => {
                given_up.store(true, SeqCst);
                self.stuck.lock().insert(job.name.into(), ended);
                Err(Failure::late("it hangs"))
            }
        }
    }
}
