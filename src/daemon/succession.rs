//! What a daemon has from its predecessor, and what it leaves to its successor (promise P6).
//!
//! Held by the keeper, by name: [`DEVICE`], [`MEMORY`], the [`SESSION`] in a form that every version reads, and the [`ROOT`]
//! of the live generation.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::link::{Link, Start};
use crate::backing::{Generation, Record};
use crate::config::DaemonConfig;
use crate::handover::{Inherited, Item, Memory, Notes, Sizes, item};
use crate::keeper::message::{What, Why};
use crate::keeper::{DEVICE, monotonic_ms};
use crate::overlay::mount::Mount;
use crate::overlay::{Device, Greeting};
use crate::supervisor::{Event, Legacy, Predecessor};
use crate::telemetry::{Kept, Last};

/// Name of the memory among what is held: see [`crate::handover`].
const MEMORY: &str = "memory";
/// Name of what is said of the session.
const SESSION: &str = "session";
/// Name of the root of the live generation.
const ROOT: &str = "root";

/// Under that key the memory says since when there has been an outage, in milliseconds since 1970.
const OUTAGE: &str = "outage";

/// The session as every version of steadfs can read it, whatever becomes of the memory's format: JSON, to which fields may be
/// added with a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    init: Vec<u8>,
    reply: Vec<u8>,
    dev: (u32, u32),
    /// Daemons that came after the first.
    #[serde(default)]
    successions: u64,
    /// When the first one mounted it, in seconds since 1970.
    #[serde(default)]
    mounted: Option<u64>,
}

/// A mount that is to be gone on with.
#[derive(Debug)]
pub struct Mounted {
    /// The device.
    pub device: Device,
    /// How its session began.
    pub greeting: Greeting,
    /// Major and minor number of its st_dev.
    pub dev: (u32, u32),
}

/// What there is from a predecessor.
#[derive(Debug)]
pub enum Heritage {
    /// Nothing: the first daemon of a mount.
    None,
    /// The mount and all that was noted.
    Whole(Mounted, Box<Inherited>),
    /// The mount; what was noted cannot be used, for this reason.
    Blind(Mounted, String),
}

/// How this daemon came to its mount.
#[derive(Debug, Clone)]
struct Lineage {
    successions: u64,
    mounted: SystemTime,
    last: Option<Last>,
}

impl Heritage {
    /// Says whether the session of the predecessor has ended: it was unmounted, or aborted. A question, since it can end at
    /// any time.
    pub fn device_ended(&self) -> impl Fn() -> bool + use<> {
        let device = match self {
            Heritage::None => None,
            Heritage::Whole(mounted, _) | Heritage::Blind(mounted, _) => mounted.device.try_clone().ok(),
        };
        move || device.as_ref().is_some_and(|device| session_ended(device.as_fd()))
    }
}

/// See fuse_dev_poll of the kernel, fs/fuse/dev.c.
fn session_ended(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok() && fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLERR))
}

/// See the module.
pub struct Succession {
    link: Link,
    notes: Notes,
    /// The record of the live generation, until the session is noted: that comes first.
    record: Mutex<(bool, Option<Vec<u8>>)>,
    legacy: Mutex<Predecessor>,
    lineage: Mutex<Lineage>,
    /// When the predecessor died.
    died: Instant,
}

impl Succession {
    /// Of a daemon that nobody keeps.
    pub fn none() -> Succession {
        Succession::with(Link::none(), Notes::nowhere(), Predecessor::default())
    }

    /// Takes what the keeper held. An error says why the mount cannot be gone on with.
    pub fn begin(link: Link, start: Start, config: &DaemonConfig) -> io::Result<(Succession, Heritage)> {
        let mut held = start.held;
        let mut take = |wanted: &str| {
            let at = held.iter().position(|(name, _)| name == wanted)?;
            Some(held.swap_remove(at).1)
        };
        if start.why == Why::First {
            let notes = new_memory(&link, config);
            return Ok((Succession::with(link, notes, Predecessor::default()), Heritage::None));
        }
        let (Some(device), Some(session)) = (take(DEVICE), take(SESSION)) else {
            return Err(io::Error::other("the keeper did not hold the device and its session"));
        };
        let session = read_session(session)?;
        let ago = Duration::from_millis(monotonic_ms().saturating_sub(start.died));
        let died = if start.died == 0 { None } else { Instant::now().checked_sub(ago) };
        let lineage = Lineage {
            successions: session.successions + 1,
            mounted: session.mounted.map_or(SystemTime::now(), |at| UNIX_EPOCH + Duration::from_secs(at)),
            last: Some(Last { at: SystemTime::now(), reason: start.reason, pause: Duration::ZERO }),
        };
        let succeed = |link, notes, predecessor| {
            let fresh = Succession::with(link, notes, predecessor);
            Succession { lineage: Mutex::new(lineage), died: died.unwrap_or(fresh.died), ..fresh }
        };
        let mounted = Mounted {
            device: Device::new(device),
            greeting: Greeting { init: session.init, reply: session.reply },
            dev: session.dev,
        };
        let memory = take(MEMORY).ok_or_else(|| "no memory was held".to_owned());
        match memory.and_then(|memory| Memory::take_over(memory).map_err(|error| error.to_string())) {
            Ok((memory, inherited)) => {
                if let Some(torn) = &inherited.torn {
                    tracing::error!(?torn, "the last record of the predecessor was damaged");
                }
                let mut predecessor = predecessor(inherited.picture.backing.as_deref(), take(ROOT));
                predecessor.outage_since = inherited.picture.aside.get(OUTAGE).and_then(|since| instant_of(since));
                let succession = succeed(link, Notes::in_memory(Arc::new(memory)), predecessor);
                Ok((succession, Heritage::Whole(mounted, Box::new(inherited))))
            }
            // The executable before this one can read it.
            Err(reason) if start.trial => Err(io::Error::other(format!(
                "what the daemon before this one had noted cannot be read ({reason}): unmount and mount again to change to this version"
            ))),
            Err(reason) => {
                let notes = new_memory(&link, config);
                Ok((succeed(link, notes, Predecessor::default()), Heritage::Blind(mounted, reason)))
            }
        }
    }

    fn with(link: Link, notes: Notes, predecessor: Predecessor) -> Succession {
        let lineage = Mutex::new(Lineage { successions: 0, mounted: SystemTime::now(), last: None });
        let (record, legacy) = (Mutex::default(), Mutex::new(predecessor));
        Succession { link, notes, record, legacy, lineage, died: Instant::now() }
    }

    /// Calls are served from now on. Of a successor: what is to be told of it.
    pub fn ready(&self) -> Option<Event> {
        let mut lineage = self.lineage.lock();
        let successions = lineage.successions;
        let last = lineage.last.as_mut()?;
        last.pause = self.died.elapsed();
        Some(Event::Succession { successions, reason: last.reason.clone(), pause_secs: last.pause.as_secs_f64() })
    }

    /// What can be seen of it.
    pub fn kept(&self) -> Kept {
        let Lineage { successions, mounted, last } = self.lineage.lock().clone();
        let memory = self.notes.memory().map(|memory| (memory.used(), memory.resident()));
        let ((used, limit), (resident, most)) = memory.unwrap_or_default();
        let keeper = self.link.keeper();
        Kept {
            keeper,
            possible: keeper.is_some() && limit > 0,
            successions,
            mounted,
            last,
            used,
            limit,
            resident,
            most,
        }
    }

    /// The connection to the keeper.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Where the overlay notes.
    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// What the supervisor before had. To be asked once.
    pub fn predecessor(&self) -> Predecessor {
        std::mem::take(&mut self.legacy.lock())
    }

    /// The number of the generation that must not be swept.
    pub fn spared(&self) -> Option<u64> {
        self.legacy.lock().spared()
    }

    /// A session is served on a mount: from here on a successor can go on.
    pub fn serving(&self, device: BorrowedFd<'_>, greeting: &Greeting, mount: &Mount) -> io::Result<()> {
        let dev = mount.dev();
        if self.notes.memory().is_some() {
            self.notes.note(&Item::Session(item::Session {
                mountpoint: mount.mountpoint().as_os_str().as_encoded_bytes().to_vec(),
                dev,
                protocol: greeting.protocol(),
                init: greeting.init.clone(),
                init_reply: greeting.reply.clone(),
            }));
        }
        let mut record = self.record.lock();
        record.0 = true;
        if let Some(record) = record.1.take() {
            self.notes.note(&Item::Backing(record.into()));
        }
        drop(record);
        self.link.mounted(What::Overlay, Some(mount.place()));
        let (successions, mounted) = {
            let lineage = self.lineage.lock();
            (lineage.successions, lineage.mounted.duration_since(UNIX_EPOCH).ok().map(|at| at.as_secs()))
        };
        let (init, reply) = (greeting.init.clone(), greeting.reply.clone());
        let session = Session { init, reply, dev, successions, mounted };
        let mut file = File::from(memfd_create(c"steadfs-session", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&session)?)?;
        self.link.hold(SESSION, file.as_fd())?;
        // Last: with it a successor is possible.
        self.link.hold(DEVICE, device)
    }

    /// An outage has begun, at that time, or has ended: a successor must not take an old one for a new one.
    pub fn outage(&self, since: Option<SystemTime>) {
        if self.record.lock().0 {
            let text = since.map(|since| since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().to_string());
            self.notes.note(&Item::Aside { key: OUTAGE, value: text.unwrap_or_default().into_bytes().into() });
        }
    }

    /// A generation is about to be used.
    pub fn using(&self, generation: &Arc<dyn Generation>) {
        let Some(record) = generation.record() else { return };
        match generation.root() {
            Some(root) => {
                if let Err(error) = self.link.hold(ROOT, root) {
                    tracing::warn!(%error, "the root of the backing is not held");
                }
            }
            None => self.link.drop_held(ROOT),
        }
        self.link.mounted(What::Backing, record.place());
        let encoded = match serde_json::to_vec(&record) {
            Ok(encoded) => encoded,
            Err(error) => return tracing::warn!(%error, "the generation cannot be handed over"),
        };
        let mut kept = self.record.lock();
        if kept.0 {
            self.notes.note(&Item::Backing(encoded.into()));
        } else {
            kept.1 = Some(encoded);
        }
    }
}

fn instant_of(millis: &[u8]) -> Option<Instant> {
    let millis = std::str::from_utf8(millis).ok()?.parse().ok()?;
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(millis)).unwrap_or_default();
    Instant::now().checked_sub(age)
}

fn new_memory(link: &Link, config: &DaemonConfig) -> Notes {
    if !link.is_kept() {
        return Notes::nowhere();
    }
    let made = Memory::create(Sizes::for_log(config.log.size)).map_err(|error| error.to_string());
    let held = made.and_then(|memory| {
        link.hold(MEMORY, memory.fd()).map_err(|error| error.to_string())?;
        Ok(memory)
    });
    match held {
        Ok(memory) => Notes::in_memory(Arc::new(memory)),
        Err(error) => {
            tracing::error!(error, "if steadfs dies, open files fail");
            Notes::nowhere()
        }
    }
}

fn read_session(descriptor: OwnedFd) -> io::Result<Session> {
    let mut file = File::from(descriptor);
    // Its offset is shared with whoever read it before.
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn predecessor(record: Option<&[u8]>, root: Option<OwnedFd>) -> Predecessor {
    let Some(record) = record else { return Predecessor::default() };
    match serde_json::from_slice::<Record>(record) {
        Ok(record) => {
            Predecessor { newest: record.number, live: Some(Legacy { record, root }), ..Predecessor::default() }
        }
        Err(error) => {
            tracing::warn!(%error, "the generation of the predecessor is not understood; a new one is started");
            Predecessor::default()
        }
    }
}
