//! Work that may block, in threads that may be lost; whatever becomes of it, somebody is told.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::Mutex;

/// Stack of such a thread in bytes.
const STACK: usize = 1 << 20;

/// What is sent if the work ends without a message of its own, that is by a panic.
struct Debt<M> {
    sender: Sender<M>,
    failure: Arc<Mutex<Option<M>>>,
}

impl<M> Drop for Debt<M> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(failure) = self.failure.lock().take()
        {
            // After the end nobody listens.
            let _ = self.sender.send(failure);
        }
    }
}

/// Runs `job` in a thread of its own and sends its message, or `failure` if it panics. If there is no thread to be had,
/// `failure` comes back and nothing is sent.
pub(super) fn run<M: Send + 'static>(
    name: &str,
    sender: &Sender<M>,
    failure: M,
    job: impl FnOnce() -> M + Send + 'static,
) -> Result<(), M> {
    let failure = Arc::new(Mutex::new(Some(failure)));
    let debt = Debt { sender: sender.clone(), failure: Arc::clone(&failure) };
    let work = move || {
        let message = job();
        let _ = debt.sender.send(message);
    };
    match std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::error!(%error, name, "cannot start a thread of the supervisor");
            failure.lock().take().map_or(Ok(()), Err)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_is_told_and_success_is_told_once() {
        let (sender, receiver) = channel();
        run("fine", &sender, 1, || 2).expect("a thread");
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(2));
        run("panics", &sender, 3, || panic!("on purpose")).expect("a thread");
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(3));
        drop(sender);
        assert!(receiver.recv_timeout(Duration::from_secs(10)).is_err(), "nothing else is said");
    }
}
