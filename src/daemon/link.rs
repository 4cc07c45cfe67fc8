//! The daemon's connection to its keeper: what must outlive the daemon is handed over, and a thread proves that it lives.
//!
//! All of it does nothing without a keeper. Nothing blocks: what a slow keeper does not take at once is sent later. When the
//! keeper dies, the next is started and gets everything again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use crate::keeper::LINK;
use crate::keeper::abandon::Place;
use crate::keeper::executable::Executable;
use crate::keeper::machine::Policy;
use crate::keeper::message::{Message, VERSION, What, Why};
use crate::keeper::process;
use crate::keeper::socket::{Channel, Received};
use crate::keeper::store::Store;

/// How long a keeper may take to hand everything over.
const HAND_OVER: Duration = Duration::from_secs(10);
/// How long the last word may take to be taken.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Pause after an error of a channel that is not closed.
const RETRY: Duration = Duration::from_millis(100);
/// Most messages that wait for a keeper that does not read.
const BACKLOG: usize = 4096;

/// How this daemon was started.
#[derive(Debug)]
pub struct Start {
    /// What a predecessor, or whoever began, had held.
    pub held: Vec<(String, OwnedFd)>,
    /// Whether there was a daemon before.
    pub why: Why,
    /// How many died early in a row.
    pub deaths: u32,
    /// What the last one died of; empty for the first.
    pub reason: String,
    /// When, by CLOCK_MONOTONIC in milliseconds; 0 if nobody saw it.
    pub died: u64,
    /// This executable is new, and there is one to go back to.
    pub trial: bool,
}

/// What the keeper wants of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Stop serving and exit, without unmounting.
    Yield,
    /// What became of the upgrade.
    Upgraded {
        /// The new executable is in use.
        accepted: bool,
        /// Otherwise why not.
        reason: String,
    },
}

/// What became of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Upgraded {
    /// The new executable is in use.
    pub accepted: bool,
    /// Otherwise why not.
    pub reason: String,
}

/// Gets what the keeper wants, in the link's thread.
pub type Requests = Box<dyn Fn(Request) + Send>;
/// True as long as the daemon does its work; one that blocks counts as no. Called before each beat, in the link's thread.
pub type Alive = Box<dyn Fn() -> bool + Send>;

/// A keeper that has handed everything over.
#[derive(Debug)]
pub struct Handshake {
    channel: Channel,
    start: Start,
    beat: Duration,
    keeper: Vec<String>,
    previous: Option<Executable>,
}

/// See the module. Clones are the same link.
#[derive(Clone, Default)]
pub struct Link(Option<Arc<Shared>>);

/// Tells the keeper, or does nothing.
impl Link {
    /// Of a daemon without a keeper.
    pub fn none() -> Link {
        Link::default()
    }

    /// Looks for a keeper in the environment and takes what it hands over. To be called once.
    pub fn accept() -> io::Result<Option<Handshake>> {
        let Some(channel) = inherited()? else { return Ok(None) };
        let until = Instant::now() + HAND_OVER;
        let (mut held, mut previous) = (Vec::new(), None);
        loop {
            wait(channel.as_fd(), PollFlags::POLLIN, until.saturating_duration_since(Instant::now()));
            match channel.receive()? {
                Received::Message(Message::Held { name }, Some(descriptor)) => held.push((name, descriptor)),
                Received::Message(Message::Trial { path }, Some(file)) => {
                    previous = Some(Executable::received(file, path));
                }
                Received::Message(Message::Go { why, deaths, reason, died, beat, keeper, .. }, _) => {
                    let start = Start { held, why, deaths, reason, died, trial: previous.is_some() };
                    let beat = Duration::from_millis(beat);
                    return Ok(Some(Handshake { channel, start, beat, keeper, previous }));
                }
                Received::Closed => return Err(io::Error::other("the keeper ended")),
                Received::Nothing if Instant::now() >= until => return Err(io::ErrorKind::TimedOut.into()),
                Received::Nothing => {}
                other => tracing::warn!(?other, "the keeper said what is not understood"),
            }
        }
    }

    /// The keeper's process id.
    pub fn keeper(&self) -> Option<u32> {
        self.0.as_ref().map(|shared| shared.state.lock().keeper)
    }

    /// True if there is a keeper.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Has a descriptor held, in place of another of that name.
    pub fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let (ours, theirs) = (descriptor.try_clone_to_owned()?, descriptor.try_clone_to_owned()?);
        let mut state = shared.state.lock();
        if !state.held.hold(name, ours) {
            return Err(io::Error::other(format!("{name} cannot be held")));
        }
        state.send(Message::Hold { name: name.into() }, Some(theirs));
        Ok(())
    }

    /// Has it closed.
    pub fn drop_held(&self, name: &str) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.state.lock();
        state.held.drop_named(name);
        state.send(Message::Drop { name: name.into() }, None);
    }

    /// Has all of these closed.
    pub fn drop_held_if(&self, is: impl Fn(&str) -> bool) {
        let Some(shared) = &self.0 else { return };
        let names: Vec<String> = {
            let state = shared.state.lock();
            state.held.iter().map(|(name, _)| name).filter(|name| is(name)).map(str::to_owned).collect()
        };
        names.iter().for_each(|name| self.drop_held(name));
    }

    /// Says what has to be aborted if no successor can go on, or if this daemon cannot be killed.
    pub fn mounted(&self, what: What, slot: u32, place: Option<Place>) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.state.lock();
        match what {
            What::Overlay => match &place {
                Some(place) => drop(state.overlays.insert(slot, place.clone())),
                None => drop(state.overlays.remove(&slot)),
            },
            What::Backing => state.backing.clone_from(&place),
        }
        state.send(Message::Mounted { what, slot, place }, None);
    }

    /// Says that calls are served.
    pub fn ready(&self) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.state.lock();
        state.ready = true;
        state.send(Message::Ready, None);
    }

    /// Says a line for `systemctl status`.
    pub fn status(&self, text: String) {
        let Some(shared) = &self.0 else { return };
        shared.state.lock().send(Message::Status { text }, None);
    }

    /// Says that the process is going to exit with that code and shall have no successor. Must be followed by that.
    pub fn ended(&self, status: u8) {
        let Some(shared) = &self.0 else { return };
        let until = Instant::now() + LAST_WORD;
        let mut state = shared.state.lock();
        state.ended = Some(status);
        state.send(Message::Ended { status }, None);
        while !state.outbox.is_empty() && Instant::now() < until {
            let channel = Arc::clone(&state.channel);
            wait(channel.as_fd(), PollFlags::POLLOUT, LAST_WORD / 10);
            state.flush();
        }
    }

    /// Asks to be replaced by a daemon of that executable. False without a keeper. What comes of it is a [`Request`], and
    /// then [`Link::upgraded`] of the daemon that serves in the end.
    pub fn upgrade(&self, executable: &Executable) -> io::Result<bool> {
        let Some(shared) = &self.0 else { return Ok(false) };
        let descriptor = executable.as_fd().try_clone_to_owned()?;
        let mut state = shared.state.lock();
        state.upgraded = None;
        state.send(Message::Upgrade { path: executable.words().into() }, Some(descriptor));
        Ok(true)
    }

    /// What became of the last upgrade that this daemon asked for or is the result of, once that is known.
    pub fn upgraded(&self) -> Option<Upgraded> {
        self.0.as_ref().and_then(|shared| shared.state.lock().upgraded.clone())
    }
}

impl Handshake {
    /// Introduces the daemon and starts to give signs of life. `keeper` is what a next keeper is started from; if not given,
    /// this executable or, as long as that is on trial, the one before it.
    pub fn begin(self, alive: Alive, requests: Requests, keeper: Option<Executable>) -> io::Result<(Link, Start)> {
        let own = Executable::current()?;
        let Handshake { channel, start, beat, keeper: arguments, previous } = self;
        let mut held = Store::default();
        for (name, descriptor) in &start.held {
            held.hold(name, descriptor.try_clone()?);
        }
        let mut state = State {
            channel: Arc::new(channel),
            keeper: std::os::unix::process::parent_id(),
            outbox: VecDeque::new(),
            held,
            overlays: BTreeMap::new(),
            backing: None,
            ready: false,
            ended: None,
            upgraded: None,
            previous,
        };
        state.introduce()?;
        let shared = Arc::new(Shared { state: Mutex::new(state), over: AtomicBool::new(false) });
        let thread = Thread {
            shared: Arc::clone(&shared),
            alive,
            requests,
            beat,
            keeper,
            own,
            arguments,
            child: None,
            deaths: 0,
            started: None,
        };
        std::thread::Builder::new().name("keeper-link".into()).spawn(move || thread.run())?;
        Ok((Link(Some(shared)), start))
    }
}

struct Shared {
    state: Mutex<State>,
    over: AtomicBool,
}

/// What a next keeper would have to be told.
struct State {
    channel: Arc<Channel>,
    /// Process id of whoever is at its other end.
    keeper: u32,
    outbox: VecDeque<(Message, Option<OwnedFd>)>,
    held: Store,
    overlays: BTreeMap<u32, Place>,
    backing: Option<Place>,
    ready: bool,
    ended: Option<u8>,
    upgraded: Option<Upgraded>,
    /// What this daemon's executable took the place of, as long as it is on trial.
    previous: Option<Executable>,
}

impl State {
    fn send(&mut self, message: Message, descriptor: Option<OwnedFd>) {
        if self.outbox.len() < BACKLOG {
            self.outbox.push_back((message, descriptor));
        } else {
            tracing::error!(?message, "the keeper does not read; this is lost");
        }
        self.flush();
    }

    /// Sends what can be sent. A keeper that is gone is noticed by the thread, and the next is told everything.
    fn flush(&mut self) {
        while let Some((message, descriptor)) = self.outbox.front() {
            if self.channel.send(message, descriptor.as_ref().map(AsFd::as_fd)).is_err() {
                return;
            }
            self.outbox.pop_front();
        }
    }

    fn introduce(&mut self) -> io::Result<()> {
        let pid = nix::unistd::getpid().as_raw();
        let hello = Message::Hello { version: VERSION, pid };
        self.send(hello, Some(process::own_pidfd()?));
        Ok(())
    }

    /// Tells a new keeper everything.
    fn repeat(&mut self, channel: Channel, own: &Executable) -> io::Result<()> {
        self.channel = Arc::new(channel);
        self.outbox.clear();
        self.introduce()?;
        let mut all = Vec::new();
        if self.previous.is_some() {
            let message = Message::Trial { path: own.words().into() };
            all.push((message, Some(own.as_fd().try_clone_to_owned()?)));
        }
        for (name, descriptor) in self.held.iter() {
            all.push((Message::Hold { name: name.into() }, Some(descriptor.try_clone_to_owned()?)));
        }
        let overlays = self.overlays.iter().map(|(slot, place)| (What::Overlay, *slot, place));
        for (what, slot, place) in overlays.chain(self.backing.iter().map(|place| (What::Backing, 0, place))) {
            all.push((Message::Mounted { what, slot, place: Some(place.clone()) }, None));
        }
        all.extend(self.ready.then_some((Message::Ready, None)));
        all.extend(self.ended.map(|status| (Message::Ended { status }, None)));
        for (message, descriptor) in all {
            self.send(message, descriptor);
        }
        Ok(())
    }
}

struct Thread {
    shared: Arc<Shared>,
    alive: Alive,
    requests: Requests,
    beat: Duration,
    keeper: Option<Executable>,
    own: Executable,
    arguments: Vec<String>,
    /// The keeper that this daemon started.
    child: Option<Child>,
    /// Keepers that died soon, in a row.
    deaths: u32,
    started: Option<Instant>,
}

impl Thread {
    fn run(mut self) {
        let mut next = Instant::now();
        while !self.shared.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= next {
                next = now + self.beat;
                if (self.alive)() {
                    let mut state = self.shared.state.lock();
                    state.flush();
                    // Others wait: the keeper has not read for long, and one sign of life more changes nothing.
                    if state.outbox.is_empty() {
                        state.send(Message::Beat, None);
                    }
                }
            }
            let channel = Arc::clone(&self.shared.state.lock().channel);
            wait(channel.as_fd(), PollFlags::POLLIN, next.saturating_duration_since(Instant::now()));
            match self.listen(&channel) {
                Ok(()) => {}
                Err(error) if is_gone(&error) => {
                    if !self.replace() {
                        return;
                    }
                }
                // Of a keeper that lives there must not be a second.
                Err(error) => {
                    tracing::warn!(%error, "cannot listen to the keeper");
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// Reads what the keeper says; an error when it is gone.
    fn listen(&self, channel: &Channel) -> io::Result<()> {
        loop {
            match channel.receive()? {
                Received::Message(Message::Yield, _) => (self.requests)(Request::Yield),
                Received::Message(Message::UpgradeResult { accepted, reason }, _) => {
                    let mut state = self.shared.state.lock();
                    state.upgraded = Some(Upgraded { accepted, reason: reason.clone() });
                    if accepted {
                        state.previous = None;
                    }
                    drop(state);
                    (self.requests)(Request::Upgraded { accepted, reason });
                }
                Received::Nothing => return Ok(()),
                Received::Closed => return Err(io::ErrorKind::BrokenPipe.into()),
                other => tracing::warn!(?other, "the keeper said what is not understood"),
            }
        }
    }

    /// Starts the next keeper; false if there shall be none.
    fn replace(&mut self) -> bool {
        if self.arguments.is_empty() || self.shared.state.lock().ended.is_some() {
            return false;
        }
        let policy = Policy::default();
        let lasted = self.started.is_none_or(|started| started.elapsed() >= policy.served);
        self.deaths = if lasted { 1 } else { self.deaths + 1 };
        std::thread::sleep(policy.pause(self.deaths));
        self.started = Some(Instant::now());
        if let Some(mut child) = self.child.take() {
            // Its end of the channel is closed, so it has ended or is about to.
            let _ = child.kill();
            let _ = child.wait();
        }
        match self.start() {
            Ok(child) => {
                tracing::warn!(keeper = child.id(), "the keeper died; there is a new one");
                self.child = Some(child);
            }
            Err(error) => tracing::error!(%error, "the keeper died, and no other can be started"),
        }
        true
    }

    fn start(&mut self) -> io::Result<Child> {
        let (ours, theirs) = Channel::pair()?;
        let arguments: Vec<_> = self.arguments.iter().map(Into::into).collect();
        let mut state = self.shared.state.lock();
        // One that holds less than everything is worse than the next; and it has what fits the socket from its first moment.
        state.repeat(ours, &self.own)?;
        // One that is on trial may not be able to keep anything.
        let executable = self.keeper.as_ref().or(state.previous.as_ref()).unwrap_or(&self.own);
        let child = process::command(executable, &arguments, &theirs).spawn()?;
        state.keeper = child.id();
        Ok(child)
    }
}

/// The other end of the channel is closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// The thread ends when the last link does.
impl Drop for Link {
    fn drop(&mut self) {
        // The thread has the other reference.
        if let Some(shared) = self.0.as_ref().filter(|shared| Arc::strong_count(shared) <= 2) {
            shared.over.store(true, Ordering::Relaxed);
        }
    }
}

/// The end of the channel that [`LINK`] names.
pub fn inherited() -> io::Result<Option<Channel>> {
    let Some(text) = std::env::var_os(LINK) else { return Ok(None) };
    let raw: RawFd = text.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: only looked at, to see whether it is open at all.
    let shown = unsafe { BorrowedFd::borrow_raw(raw) };
    fcntl(shown, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, and whoever started this process meant it for the one caller of this.
    Ok(Some(Channel::from(unsafe { OwnedFd::from_raw_fd(raw) })))
}

fn wait(fd: BorrowedFd<'_>, events: PollFlags, limit: Duration) {
    let timeout = PollTimeout::try_from(limit.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd, events)];
    if let Err(errno) = poll(&mut fds, timeout)
        && errno != Errno::EINTR
    {
        tracing::error!(%errno, "poll");
        std::thread::sleep(limit);
    }
}
