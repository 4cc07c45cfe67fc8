//! Looks at the permits' files again and again, in a thread a file that may be lost: the file may lie on a dead filesystem.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::look::{self, EnableLook, LockLook, Look};
use crate::config::PermitConfig;
use crate::supervisor::Message;

/// Time between two looks in an outage. A look holds a shared lock for some microseconds, in which a deploy that does not
/// wait for its lock is refused it.
const IN_OUTAGE: Duration = Duration::from_secs(1);
/// The same otherwise.
const AT_EASE: Duration = Duration::from_secs(10);
/// A look that takes longer has found that the file cannot be probed.
const LIMIT: Duration = Duration::from_secs(2);

/// How the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    AtEase,
    InOutage,
    Ended,
}

/// One file's.
struct Eye {
    pace: Arc<(Mutex<Pace>, Condvar)>,
    /// When a look is due at the latest; absent while the thread has lost nothing.
    due: Instant,
    /// What is told in its place.
    lost: fn(String) -> Look,
}

impl Eye {
    fn open(
        sender: &Sender<Message>,
        epoch: u64,
        lost: fn(String) -> Look,
        look: impl Fn() -> Look + Send + 'static,
    ) -> Eye {
        let pace = Arc::new((Mutex::new(Pace::AtEase), Condvar::new()));
        let (sender, shared) = (sender.clone(), Arc::clone(&pace));
        let watch = move || {
            loop {
                let began = Instant::now();
                if sender.send(Message::Seen { epoch, began, look: look() }).is_err() {
                    return;
                }
                let mut pace = shared.0.lock();
                let wait = match *pace {
                    Pace::AtEase => AT_EASE,
                    Pace::InOutage => IN_OUTAGE,
                    Pace::Ended => return,
                };
                shared.1.wait_for(&mut pace, wait);
                if *pace == Pace::Ended {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("permits".into()).spawn(watch) {
            // It is told in its place that nothing can be told.
            tracing::error!(%error, "nobody looks at the permits of repairs");
        }
        Eye { pace, due: Instant::now(), lost }
    }

    fn set(&self, pace: Pace) -> bool {
        let before = std::mem::replace(&mut *self.pace.0.lock(), pace);
        if before != pace {
            self.pace.1.notify_all();
        }
        before != pace
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.set(Pace::Ended);
    }
}

/// Both files'.
pub struct Eyes {
    sender: Sender<Message>,
    epoch: u64,
    lock: Option<Eye>,
    enable: Option<Eye>,
    hurry: bool,
    /// Since when.
    hurried: Instant,
}

impl Eyes {
    /// Looks at what that configuration names.
    pub fn open(sender: &Sender<Message>, config: &PermitConfig) -> Eyes {
        let mut eyes =
            Eyes { sender: sender.clone(), epoch: 0, lock: None, enable: None, hurry: false, hurried: Instant::now() };
        eyes.turn_to(config);
        eyes
    }

    /// Looks at what that one names from now on.
    pub fn turn_to(&mut self, config: &PermitConfig) {
        self.epoch += 1;
        self.lock = config.deploy_lock.clone().map(|path| {
            let lost = |why| Look::Lock(LockLook::Unprobed { age: Duration::ZERO, why });
            Eye::open(&self.sender, self.epoch, lost, move || Look::Lock(look::lock(&path)))
        });
        self.enable = config.enable_file.clone().map(|path| {
            let lost = |why| Look::Enable(EnableLook::Unknown(why));
            Eye::open(&self.sender, self.epoch, lost, move || Look::Enable(look::enable(&path)))
        });
        let hurry = std::mem::take(&mut self.hurry);
        self.hurry(hurry);
    }

    /// In an outage they look at once, and more often.
    pub fn hurry(&mut self, hurry: bool) {
        if self.hurry == hurry {
            return;
        }
        (self.hurry, self.hurried) = (hurry, Instant::now());
        for eye in self.lock.iter_mut().chain(&mut self.enable) {
            if eye.set(if hurry { Pace::InOutage } else { Pace::AtEase }) {
                eye.due = Instant::now();
            }
        }
    }

    /// A look came in; `None` if it is at what nobody looks at any more, or was begun before the outage.
    pub fn seen(&mut self, epoch: u64, began: Instant, look: Look) -> Option<Look> {
        let eye = match look {
            Look::Lock(_) => &mut self.lock,
            Look::Enable(_) => &mut self.enable,
        };
        let eye = eye.as_mut().filter(|_| epoch == self.epoch)?;
        eye.due = Instant::now() + if self.hurry { IN_OUTAGE } else { AT_EASE };
        (!self.hurry || began >= self.hurried).then_some(look)
    }

    /// What has to be said in the place of looks that do not come back.
    pub fn overdue(&mut self, now: Instant) -> Vec<Look> {
        let mut lost = Vec::new();
        for eye in self.lock.iter_mut().chain(&mut self.enable).filter(|eye| now >= eye.due + LIMIT) {
            eye.due = now;
            lost.push((eye.lost)(format!("no answer within {} s", LIMIT.as_secs())));
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn look_of(message: Message) -> (u64, Look) {
        match message {
            Message::Seen { epoch, look, .. } => (epoch, look),
            _ => panic!("something else"),
        }
    }

    #[test]
    fn a_look_that_hangs_is_told_in_its_place_and_one_at_a_former_file_is_not_told() {
        let (sender, receiver) = channel();
        let directory = tempfile::tempdir().expect("a directory");
        let config =
            |name: &str| PermitConfig { enable_file: Some(directory.path().join(name)), ..PermitConfig::default() };
        let mut eyes = Eyes::open(&sender, &config("a"));
        let patience = Duration::from_secs(20);
        let (epoch, look) = look_of(receiver.recv_timeout(patience).expect("a look"));
        assert_eq!(eyes.seen(epoch, Instant::now(), look.clone()), Some(Look::Enable(EnableLook::Missing)));
        let now = Instant::now();
        assert_eq!(eyes.overdue(now + AT_EASE), []);
        let late = eyes.overdue(now + AT_EASE + LIMIT + LIMIT);
        assert!(matches!(&late[..], [Look::Enable(EnableLook::Unknown(why))] if why.contains("no answer")), "{late:?}");
        std::fs::write(directory.path().join("b"), "").expect("made");
        eyes.turn_to(&config("b"));
        assert_eq!(eyes.seen(epoch, Instant::now(), look), None);
        let (epoch, look) = look_of(receiver.recv_timeout(patience).expect("a look"));
        assert_eq!(eyes.seen(epoch, Instant::now(), look), Some(Look::Enable(EnableLook::There)));
        // In an outage the next one comes at once and not in ten seconds.
        let before = Instant::now();
        eyes.hurry(true);
        assert_eq!(eyes.seen(epoch, before, Look::Enable(EnableLook::There)), None, "it is older than the outage");
        std::fs::remove_file(directory.path().join("b")).expect("removed");
        let until = Instant::now() + AT_EASE / 2;
        while look_of(receiver.recv_timeout(AT_EASE / 2).expect("another look")).1 != Look::Enable(EnableLook::Missing)
        {
            assert!(Instant::now() < until, "it is not looked at");
        }
    }
}
