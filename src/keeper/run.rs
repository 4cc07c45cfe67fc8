//! Does what the machine wants done: one thread, one poll(2).

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::NAMELESS;
use super::abandon::Place;
use super::executable::Executable;
use super::machine::{Action, Death, Image, Input, Machine, Policy};
use super::message::{Message, VERSION, What, Why};
use super::notify::Manager;
use super::process::Process;
use super::signals::Signals;
use super::socket::{Channel, Received};
use super::store::Store;
use super::threads;

/// How long a daemon that wants a new keeper may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// How long a daemon may take to read what it is handed over.
const HAND_OVER: Duration = Duration::from_secs(10);
/// How often to look for a daemon that was killed and cannot end.
const LOOK: Duration = Duration::from_millis(250);
/// How long a daemon that was killed and freed may take to end before what it has left is cleaned up all the same.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// mount(8)'s code for a mount that failed.
const FAILED: u8 = 32;

/// What a keeper needs to know.
pub struct Setup {
    /// What the daemon is started from.
    pub executable: Executable,
    /// The daemon's arguments.
    pub arguments: Vec<OsString>,
    /// How patient to be.
    pub policy: Policy,
    /// Arguments of a keeper that the daemon starts when this one dies; none if it shall not.
    pub keeper: Vec<String>,
    /// Held from the start, by name; a device among it makes the first daemon a successor.
    pub held: Vec<(String, OwnedFd)>,
    /// Called when the overlay answers for the first time.
    pub ready: Option<Box<dyn FnOnce()>>,
}

/// Starts a daemon and keeps one running. Returns the exit code when the overlay is gone.
pub fn run(setup: Setup) -> io::Result<u8> {
    Keeper::new(setup)?.begin()
}

/// As [`run`] for a daemon that lives, whose keeper died, at the other end of `channel`.
pub fn adopt(setup: Setup, channel: Channel) -> io::Result<u8> {
    Keeper::new(setup)?.take_over(channel)
}

struct Keeper {
    setup: Setup,
    store: Store,
    manager: Manager,
    signals: Signals,
    daemon: Option<Process>,
    channel: Option<Channel>,
    candidate: Option<Executable>,
    overlays: BTreeMap<u32, Place>,
    backing: Option<Place>,
    /// When the last daemon died, until the next one is ready; see [`Message::Go`].
    died: Option<u64>,
    /// What the next daemon is to be told of the upgrade.
    upgrade: Option<Message>,
    abandoned: bool,
    code: Option<u8>,
}

impl Keeper {
    fn new(mut setup: Setup) -> io::Result<Keeper> {
        // Neither the overlay nor a backing may be what this process depends on.
        std::env::set_current_dir("/")?;
        let _ = nix::sys::prctl::set_name(c"steadfs-keeper");
        // Without it no daemon has a successor; others than root are not allowed to.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
        let mut store = Store::default();
        for (name, descriptor) in std::mem::take(&mut setup.held) {
            store.hold(&name, descriptor);
        }
        let (manager, signals) = (Manager::of_environment(), Signals::take()?);
        for (name, descriptor) in store.iter() {
            manager.store(name, descriptor);
        }
        Ok(Keeper {
            setup,
            store,
            manager,
            signals,
            daemon: None,
            channel: None,
            candidate: None,
            overlays: BTreeMap::new(),
            backing: None,
            died: None,
            upgrade: None,
            abandoned: false,
            code: None,
        })
    }

    fn begin(mut self) -> io::Result<u8> {
        let (machine, todo) = Machine::begin(self.setup.policy, self.store.is_resumable(), Instant::now());
        self.keep(machine, todo)
    }

    fn take_over(mut self, channel: Channel) -> io::Result<u8> {
        let until = Instant::now() + INTRODUCTION;
        let daemon = loop {
            let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
            wait(&mut fds, Some(until))?;
            match channel.receive()? {
                Received::Message(Message::Hello { pid, .. }, Some(pidfd)) => break Process::adopt(pid, pidfd),
                Received::Nothing if Instant::now() < until => {}
                Received::Nothing | Received::Closed => return Ok(FAILED),
                other => tracing::warn!(?other, "not an introduction"),
            }
        };
        tracing::warn!(daemon = daemon.pid(), "the keeper before this one died");
        (self.daemon, self.channel) = (Some(daemon), Some(channel));
        self.manager.main_pid();
        let machine = Machine::adopt(self.setup.policy, Instant::now());
        self.keep(machine, Vec::new())
    }

    fn keep(&mut self, mut machine: Machine, todo: Vec<Action>) -> io::Result<u8> {
        let mut inputs = VecDeque::new();
        self.act(todo, &mut inputs);
        loop {
            while let Some(input) = inputs.pop_front() {
                let todo = machine.handle(input, Instant::now());
                self.act(todo, &mut inputs);
            }
            self.manager.live(Instant::now());
            if let Some(code) = self.code {
                self.finish();
                return Ok(code);
            }
            self.wait(machine.wakes_at())?;
            self.listen(&mut inputs)?;
            while let Some(signal) = self.signals.next() {
                inputs.push_back(Input::Stop(signal));
            }
            if let Some(death) = self.daemon.as_ref().and_then(Process::ended) {
                // What it said before it ended comes first.
                self.listen(&mut inputs)?;
                (self.daemon, self.channel) = (None, None);
                self.died.get_or_insert_with(super::monotonic_ms);
                inputs.push_back(Input::Exited(death));
            } else if self.daemon.as_ref().is_some_and(Process::is_dying) {
                inputs.push_back(Input::Dying);
            }
            // After what was heard: whoever has spoken is not silent, however long this process did not run.
            if inputs.iter().all(|input| *input == Input::Dying) {
                inputs.push_back(Input::Tick);
            }
        }
    }

    fn wait(&self, due: Option<Instant>) -> io::Result<()> {
        // A daemon that is dying says nothing.
        let look = self.daemon.is_some().then(|| Instant::now() + LOOK);
        let due = [due, self.manager.wakes_at(), look].into_iter().flatten().min();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.channel.as_ref().map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.daemon.as_ref().map(|daemon| PollFd::new(daemon.as_fd(), PollFlags::POLLIN)));
        wait(&mut fds, due)
    }

    /// Reads all that the daemon has said.
    fn listen(&mut self, inputs: &mut VecDeque<Input>) -> io::Result<()> {
        while let Some(channel) = &self.channel {
            match channel.receive()? {
                Received::Message(message, descriptor) => self.hear(message, descriptor, inputs),
                Received::Unknown(text) => tracing::warn!(text, "the daemon said what is not understood"),
                Received::Nothing => break,
                Received::Closed => self.channel = None,
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: Message, descriptor: Option<OwnedFd>, inputs: &mut VecDeque<Input>) {
        inputs.push_back(Input::Beat);
        match (message, descriptor) {
            (Message::Hold { name }, Some(descriptor)) => {
                if !self.store.hold(&name, descriptor) {
                    tracing::error!(name, "this cannot be held");
                }
                match self.store.get(&name) {
                    _ if name.starts_with(NAMELESS) => {}
                    Some(descriptor) => self.manager.store(&name, descriptor),
                    None => self.manager.forget(&name),
                }
                inputs.push_back(Input::Resumable(self.store.is_resumable()));
            }
            (Message::Drop { name }, _) => {
                self.store.drop_named(&name);
                if !name.starts_with(NAMELESS) {
                    self.manager.forget(&name);
                }
                inputs.push_back(Input::Resumable(self.store.is_resumable()));
            }
            (Message::Mounted { what: What::Overlay, slot, place: Some(place) }, _) => {
                self.overlays.insert(slot, place);
            }
            (Message::Mounted { what: What::Overlay, slot, place: None }, _) => {
                self.overlays.remove(&slot);
            }
            (Message::Mounted { what: What::Backing, place, .. }, _) => self.backing = place,
            (Message::Ready, _) => inputs.push_back(Input::Ready),
            (Message::Status { text }, _) => self.manager.status(&text),
            (Message::Ended { status }, _) => inputs.push_back(Input::Said(status)),
            (Message::Upgrade { path }, Some(file)) => {
                // One that is on trial already stays what it is.
                if self.candidate.is_none() {
                    self.candidate = Some(Executable::received(file, path));
                }
                inputs.push_back(Input::UpgradeAsked);
            }
            (Message::Trial { path }, Some(file)) => {
                self.candidate = Some(Executable::received(file, path));
                inputs.push_back(Input::OnTrial);
            }
            (Message::Hello { version, .. }, _) if version != VERSION => {
                tracing::info!(version, "the daemon speaks another version");
            }
            (Message::Hello { .. } | Message::Beat, _) => {}
            (other, _) => tracing::warn!(?other, "the daemon should not say this"),
        }
    }

    fn act(&mut self, todo: Vec<Action>, inputs: &mut VecDeque<Input>) {
        for action in todo {
            match action {
                Action::Start { image, successor, deaths, reason } => {
                    let why = if successor { Why::Successor } else { Why::First };
                    if let Err(error) = self.start(image, why, deaths, reason) {
                        tracing::error!(%error, "the daemon cannot be started");
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        inputs.push_back(Input::Exited(Death::NotStarted(errno)));
                    }
                }
                Action::Yield => self.say(&Message::Yield),
                Action::Kill => self.daemon.iter().for_each(Process::kill),
                Action::DumpThreads => self.dump(),
                Action::Free => self.free(),
                Action::Pass(signal) => {
                    if let Some(Err(error)) = self.daemon.as_ref().map(|daemon| daemon.signal(signal)) {
                        tracing::error!(%error, signal, "cannot pass a signal on");
                    }
                }
                Action::Accept => {
                    if let Some(candidate) = self.candidate.take() {
                        tracing::info!(executable = candidate.words(), "upgraded");
                        self.setup.executable = candidate;
                    }
                    self.say(&Message::UpgradeResult { accepted: true, reason: String::new() });
                }
                Action::Reject(death) => {
                    let name = self.candidate.take().map(|candidate| candidate.words().to_owned()).unwrap_or_default();
                    tracing::error!(executable = name, %death, "the new executable failed; back to the old one");
                    let reason = format!("{name} failed: {death}");
                    self.upgrade = Some(Message::UpgradeResult { accepted: false, reason });
                }
                Action::Refuse { keep } => {
                    if !keep {
                        self.candidate = None;
                    }
                    let reason =
                        "it cannot be upgraded now: it must serve, and not be upgraded or ended already".into();
                    self.say(&Message::UpgradeResult { accepted: false, reason });
                }
                Action::TellReady => self.tell_ready(),
                Action::TellDeath(death) => {
                    tracing::error!(%death, "the daemon died");
                    self.manager.status(&format!("the daemon died ({death}), and is started again"));
                }
                Action::TellFailed(death) => self.tell_failed(death),
                Action::Abandon => self.abandon(),
                Action::Exit(code) => {
                    self.daemon.iter().for_each(Process::kill);
                    self.code = Some(code);
                }
            }
        }
    }

    fn start(&mut self, image: Image, why: Why, deaths: u32, reason: Option<Death>) -> io::Result<()> {
        let (ours, theirs) = Channel::pair()?;
        let previous = &self.setup.executable;
        let (executable, trial) = match (image, &self.candidate) {
            (Image::Candidate, Some(candidate)) => (candidate, Some(previous)),
            _ => (previous, None),
        };
        let trial = trial.map(|previous| (Message::Trial { path: previous.words().into() }, Some(previous.as_fd())));
        let reason = reason.map(|death| death.to_string()).unwrap_or_default();
        let beat = u64::try_from(self.setup.policy.beat().as_millis()).unwrap_or(u64::MAX);
        let keeper = self.setup.keeper.clone();
        let died = self.died.unwrap_or(0);
        let go = Message::Go { version: VERSION, why, deaths, reason, died, beat, keeper };
        let held = self.store.iter().map(|(name, held)| (Message::Held { name: name.into() }, Some(held)));
        let mut packets = held.chain(trial).chain([(go, None)]).peekable();
        // It has all of it from its first moment, whatever becomes of this process: of many overlays, what fits the socket.
        while packets.next_if(|(message, held)| ours.send(message, *held).is_ok()).is_some() {}
        let daemon = Process::start(executable, &self.setup.arguments, &theirs)?;
        tracing::debug!(daemon = daemon.pid(), executable = executable.words(), ?why, "started");
        let until = Instant::now() + HAND_OVER;
        if let Err(error) = packets.try_for_each(|(message, held)| send_until(&ours, &message, held, until)) {
            // It has ended, or hangs: both are noticed, and it does not serve before it has all of it.
            tracing::warn!(%error, "the daemon does not take what is held");
        }
        drop(packets);
        (self.daemon, self.channel) = (Some(daemon), Some(ours));
        Ok(())
    }

    fn say(&self, message: &Message) {
        if let Some(Err(error)) = self.channel.as_ref().map(|channel| channel.send(message, None)) {
            tracing::warn!(%error, ?message, "the daemon cannot be told");
        }
    }

    fn dump(&self) {
        let Some(daemon) = &self.daemon else { return };
        tracing::error!(daemon = daemon.pid(), "the daemon gives no sign of life");
        // Of somebody else's threads nothing may be said.
        let lines = threads::dump(daemon.pid());
        if daemon.ended().is_none() {
            lines.iter().for_each(|line| tracing::error!("{line}"));
        }
    }

    /// A thread inside a dead backing cannot be killed before the backing is aborted.
    fn free(&self) {
        let Some(backing) = &self.backing else { return };
        tracing::error!("the daemon was killed and does not end; its backing is aborted");
        if let Err(error) = backing.abort() {
            tracing::error!(%error, "cannot abort the backing");
        }
    }

    fn tell_ready(&mut self) {
        self.manager.ready();
        self.died = None;
        if let Some(ready) = self.setup.ready.take() {
            ready();
        }
        if let Some(result) = self.upgrade.take() {
            self.say(&result);
        }
    }

    /// One that exits has given its reason on stderr.
    fn tell_failed(&self, death: Death) {
        if !matches!(death, Death::Exited(_)) {
            tracing::error!(%death, "the daemon ended before the overlay answered");
        }
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        tracing::error!("no daemon could go on; the overlay is abandoned");
        self.manager.status("no daemon could go on; the overlay is abandoned");
        for error in self.overlays.values().filter_map(|place| place.abandon().err()) {
            tracing::error!(%error, "cannot detach an overlay");
        }
    }

    fn see_it_end(&self) {
        let Some(daemon) = &self.daemon else { return };
        for limit in [self.setup.policy.dying, LAST_PATIENCE] {
            let mut fds = [PollFd::new(daemon.as_fd(), PollFlags::POLLIN)];
            if wait(&mut fds, Some(Instant::now() + limit)).is_err() || daemon.ended().is_some() {
                return;
            }
            self.free();
        }
    }

    fn finish(&mut self) {
        // What it has left is cleaned up by whoever called, and not before its end.
        if self.abandoned {
            self.see_it_end();
        }
        for (name, _) in self.store.iter() {
            self.manager.forget(name);
        }
        self.manager.stopping();
        self.store.clear();
    }
}

/// Sends as soon as there is room, which a daemon that reads makes.
fn send_until(
    channel: &Channel,
    message: &Message,
    descriptor: Option<BorrowedFd<'_>>,
    until: Instant,
) -> io::Result<()> {
    loop {
        match channel.send(message, descriptor) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                wait(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)], Some(until))?;
            }
            result => return result,
        }
    }
}

/// Waits until one of them is ready or the time has come.
fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        let rest = until.saturating_duration_since(Instant::now());
        // Rounded up: to wake too early would be to ask again and again.
        PollTimeout::try_from(rest.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    });
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
