//! The fake backing, and in the supervisor's place somebody who sees to it that there is a live generation, and lets
//! generations die when told to.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfs::backing::fake::{Call, FakeBacking, FakeControl, Fault, FaultId, What};
use steadfs::backing::{Backing, ExitSink, Generation, Traits};
use steadfs::gate::{Complaint, Gate};
use steadfs::overlay::Overlay;

use crate::mishap::Mishap;
use crate::shared::dice::Dice;
use crate::shared::program::Program;
use crate::world::{Plan, Stage};

const LOCAL: Traits =
    Traits { stable_inodes: true, keeps_unlinked: true, owners: true, asynchronous: false, remembers: Duration::ZERO };
const SSHFS: Traits = Traits {
    stable_inodes: false,
    keeps_unlinked: false,
    owners: false,
    asynchronous: false,
    remembers: Duration::ZERO,
};
/// How often it looks whether something hangs.
const LOOK: Duration = Duration::from_millis(1);
/// As many looks in a row that find somebody inside the backing are a hang.
const LOOKS: u32 = 6;
/// Longest time a generation may take to start.
const START: Duration = Duration::from_secs(10);

/// Everything that may go wrong goes wrong in these; a hang of the probe would be the keeper's own.
const CALLS: [Call; 23] = [
    Call::Stat,
    Call::SetMode,
    Call::SetOwner,
    Call::SetSize,
    Call::ReadLink,
    Call::Mknod,
    Call::Mkdir,
    Call::Unlink,
    Call::Rmdir,
    Call::Symlink,
    Call::Link,
    Call::Rename,
    Call::Open,
    Call::Create,
    Call::ReadDir,
    Call::SyncDir,
    Call::FileStat,
    Call::Read,
    Call::Write,
    Call::Sync,
    Call::FileSetSize,
    Call::SetTimes,
    Call::Copy,
];

/// What the keeper is told.
enum Word {
    /// A call spoke against a generation.
    Complaint(u64, Complaint),
    /// A generation died.
    Exit(u64),
    /// Something is to go wrong; the answer comes when it may go on.
    Mishap(Mishap, Sender<()>),
    /// Everything is to be well again; the answer comes when it is.
    Heal(Sender<()>),
    End,
}

/// What a hang comes to when it is noticed.
#[derive(Clone, Copy)]
enum Then {
    Renew,
    Thaw,
}

/// The thread's own.
struct Keeper {
    gate: Arc<Gate>,
    overlay: Arc<Overlay>,
    backing: FakeBacking,
    words: Receiver<Word>,
    /// For the sink of exits.
    me: Sender<Word>,
    dice: Dice,
    /// Outages outlive the deadline.
    long: bool,
    present: Option<Arc<dyn Generation>>,
    number: u64,
    down: bool,
    hang: Option<(Then, u32)>,
    fault: Option<FaultId>,
    /// Strikes the next generation.
    next: Option<Fault>,
}

/// The hand that tells it.
struct Hand {
    words: Sender<Word>,
    thread: Option<JoinHandle<()>>,
    control: FakeControl,
    store: tempfile::TempDir,
}

impl Stage for Hand {
    fn mishap(&self, mishap: Mishap) {
        self.ask(|answer| Word::Mishap(mishap, answer));
    }

    fn heal(&self) {
        self.ask(Word::Heal);
    }

    fn is_busy(&self) -> bool {
        self.control.inside() > 0
    }

    fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>> {
        self.control.on_disk(&self.store.path().join(name))
    }

    fn store(&self) -> PathBuf {
        self.store.path().to_owned()
    }
}

/// A store that forgets, for that program.
pub fn plan(program: &Program<Mishap>, dice: Dice) -> Plan {
    // In memory if possible: the fake really syncs.
    let memory = Path::new("/dev/shm");
    let at = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let store = tempfile::Builder::new().prefix("steadfs-store-").tempdir_in(at).expect("a directory");
    std::fs::set_permissions(store.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    let traits = if program.like_sshfs { SSHFS } else { LOCAL };
    let backing = FakeBacking::over(store.path().to_owned()).with_traits(traits);
    backing.control().write_behind();
    let (me, words) = channel();
    let (complaints, long) = (Mutex::new(me.clone()), program.long);
    Plan {
        traits,
        complain: Box::new(move |generation, complaint| {
            drop(complaints.lock().send(Word::Complaint(generation, complaint)));
        }),
        begin: Box::new(move |gate, overlay| {
            let (hand, control) = (me.clone(), backing.control());
            let (number, next) = (0, None);
            let mut keeper = Keeper {
                gate,
                overlay,
                backing,
                words,
                me,
                dice,
                long,
                present: None,
                number,
                down: false,
                hang: None,
                fault: None,
                next,
            };
            keeper.renew();
            Box::new(Hand { words: hand, thread: Some(std::thread::spawn(move || keeper.run())), control, store })
        }),
    }
}

impl Hand {
    fn ask(&self, word: impl FnOnce(Sender<()>) -> Word) {
        let (answer, answered) = channel();
        let _ = self.words.send(word(answer));
        // An error says that the keeper has ended, which the program will notice.
        let _ = answered.recv();
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.words.send(Word::End);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(!matches!(ended, Some(Err(_))) || std::thread::panicking(), "the keeper panicked");
    }
}

impl Keeper {
    fn control(&self) -> FakeControl {
        self.backing.control()
    }

    fn store(&self) -> PathBuf {
        self.backing.path().to_owned()
    }

    fn run(mut self) {
        loop {
            let word = match self.hang {
                Some(_) => self.words.recv_timeout(LOOK),
                None => self.words.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match word {
                Ok(Word::Complaint(number, complaint)) if self.is_present(number) => self.complaint(complaint),
                Ok(Word::Exit(number)) if self.is_present(number) => self.renew(),
                Ok(Word::Complaint(..) | Word::Exit(_)) => {}
                Ok(Word::Mishap(mishap, answer)) => {
                    self.mishap(mishap);
                    let _ = answer.send(());
                }
                Ok(Word::Heal(answer)) => {
                    self.heal();
                    let _ = answer.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.control().thaw();
        self.control().clear_faults();
        self.gate.stop();
        self.lay_down();
    }

    fn is_present(&self, number: u64) -> bool {
        self.present.as_ref().is_some_and(|present| present.number() == number)
    }

    fn complaint(&mut self, complaint: Complaint) {
        let at = Instant::now();
        match (complaint, self.hang) {
            // With a short deadline that is how a hang is noticed.
            (Complaint::Late(_), Some((then, _))) => self.end_hang(then),
            // The test's machine is slow, nothing else.
            (Complaint::Late(_), None) => {}
            // Its probe would hang too; the verdict comes.
            (Complaint::Failed(..), Some(_)) => self.renew(),
            (Complaint::Failed(..), None) => match self.present.as_ref().map(|present| present.probe()) {
                Some(Ok(_)) => self.gate.settle(self.number, at),
                _ => self.renew(),
            },
        }
    }

    fn look(&mut self) {
        let inside = self.control().inside() > 0;
        let Some((then, seen)) = &mut self.hang else { return };
        *seen = if inside { *seen + 1 } else { 0 };
        let (then, seen) = (*then, *seen);
        if seen >= LOOKS && !self.long {
            self.end_hang(then);
        }
    }

    fn end_hang(&mut self, then: Then) {
        match then {
            Then::Renew => self.renew(),
            Then::Thaw => {
                self.hang = None;
                // A hang that was armed before would last for ever.
                if let Some(fault) = self.fault.take() {
                    self.control().remove(fault);
                }
                self.control().thaw();
            }
        }
    }

    fn mishap(&mut self, mishap: Mishap) {
        if self.down {
            return;
        }
        let die =
            |after, done| Fault::new(if done { What::DieAfter } else { What::Die }).on(&CALLS).after(after).times(1);
        match mishap {
            Mishap::Blip => self.renew(),
            Mishap::Down if !self.long => self.renew(),
            Mishap::Down => {
                self.down = true;
                self.lay_down();
            }
            Mishap::Kill => {
                let (control, calls) = (self.control(), self.dice.below(6));
                let until = Instant::now() + LOOK * 4;
                std::thread::spawn(move || {
                    let target = control.all_calls() + calls;
                    while control.all_calls() < target && Instant::now() < until {
                        std::thread::yield_now();
                    }
                    control.kill_generation();
                });
            }
            Mishap::Die { after, done } => self.arm(die(after, done)),
            Mishap::Twice { after, done } => {
                self.next = Some(die(after, done));
                self.renew();
            }
            Mishap::Freeze { thaws } => {
                self.control().freeze();
                self.hang = Some((if thaws { Then::Thaw } else { Then::Renew }, 0));
            }
            Mishap::Hang { after, done } => {
                let what = if done { What::HangAfter } else { What::Hang };
                self.arm(Fault::new(what).on(&CALLS).after(after).times(1));
                self.hang = Some((Then::Renew, 0));
            }
            Mishap::Late { after, millis } => {
                let late = What::Late(Duration::from_millis(millis));
                self.arm(Fault::new(late).on(&CALLS).after(after).times(3));
            }
            Mishap::Short { bytes } => {
                self.arm(Fault::new(What::Short(bytes)).on(&[Call::Write]).times(20));
            }
        }
    }

    fn arm(&mut self, fault: Fault) {
        if let Some(old) = self.fault.take() {
            self.control().remove(old);
        }
        self.fault = Some(self.control().inject(fault));
    }

    fn heal(&mut self) {
        self.next = None;
        self.control().clear_faults();
        self.control().thaw();
        self.hang = None;
        if self.down || self.present.as_ref().is_none_or(|present| present.probe().is_err()) {
            self.down = false;
            self.renew();
        }
    }

    /// The present generation ends, and with it what the server has not synced.
    fn lay_down(&mut self) {
        self.gate.close(Instant::now());
        if let Some(present) = self.present.take() {
            present.abort();
            present.retire().expect("nothing of it is at work");
            let (control, store) = (self.control(), self.store());
            if self.dice.below(4) > 0 {
                control.crash(&store, &mut |below| self.dice.below(below)).expect("the store can be changed");
            }
        }
    }

    /// The next generation.
    fn renew(&mut self) {
        if self.down {
            return;
        }
        self.lay_down();
        self.hang = None;
        self.fault = None;
        self.control().clear_faults();
        if let Some(fault) = self.next.take() {
            self.fault = Some(self.control().inject(fault));
        }
        loop {
            self.number += 1;
            let (me, number) = (self.me.clone(), self.number);
            let exits: ExitSink = Arc::new(move |_| drop(me.send(Word::Exit(number))));
            let generation = self.backing.start(number, START, exits).expect("it starts");
            self.present = Some(Arc::clone(&generation));
            match self.overlay.restore(&generation, START) {
                Ok(_) => return self.gate.open(generation),
                // It died meanwhile. A live one is always of use.
                Err(words) => {
                    assert!(generation.probe().is_err(), "a live generation is refused: {words}");
                    self.lay_down();
                }
            }
        }
    }
}
