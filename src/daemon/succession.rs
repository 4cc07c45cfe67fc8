//! What a daemon has from its predecessor, and what it leaves to its successor (promise P6).
//!
//! Held by the keeper, by name: the [`CONFIG`] and the [`ROOT`] of the live generation; and for each overlay its [`DEVICE`], its
//! [`MEMORY`], the [`SESSION`] in a form that every version reads, and the lock on its mountpoint ([`CLAIM`]), with its number
//! behind the name ([`slotted`]).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::link::{Link, Start};
use super::stored::{self, CLAIM, CONFIG};
use crate::backing::{Generation, Record};
use crate::config::{DaemonConfig, HotPath};
use crate::handover::{Inherited, Item, Memory, Notes, Picture, Sizes, item};
use crate::keeper::message::{What, Why};
use crate::keeper::{DEVICE, NAMELESS, monotonic_ms, slotted};
use crate::moment;
use crate::overlay::mount::Mount;
use crate::overlay::{Device, Greeting, Trustee};
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

impl Session {
    /// How a daemon came to its mount that goes on with it now.
    fn lineage(&self, reason: String) -> Lineage {
        Lineage {
            successions: self.successions.saturating_add(1),
            mounted: self.mounted.map_or(SystemTime::now(), |at| moment::after_epoch(Duration::from_secs(at))),
            last: Some(Last { at: SystemTime::now(), reason, pause: Duration::ZERO }),
        }
    }
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
    /// Says whether the sessions of the predecessor have all ended: they were unmounted, or aborted. A question, since it can
    /// happen at any time.
    pub fn devices_ended(all: &[Bequest]) -> impl Fn() -> bool + use<> {
        let device = |bequest: &Bequest| match &bequest.heritage {
            Heritage::None => None,
            Heritage::Whole(mounted, _) | Heritage::Blind(mounted, _) => mounted.device.try_clone().ok(),
        };
        let devices: Vec<_> = all.iter().filter_map(device).collect();
        move || !devices.is_empty() && devices.iter().all(|device| session_ended(device.as_fd()))
    }
}

/// See fuse_dev_poll of the kernel, fs/fuse/dev.c.
fn session_ended(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok() && fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLERR))
}

/// See the module. What all overlays of a daemon have in common.
pub struct Succession {
    link: Link,
    legacy: Mutex<Predecessor>,
    lineage: Mutex<Lineage>,
    /// When the predecessor died.
    died: Instant,
}

/// What is left for a successor of one overlay.
pub struct Will {
    succession: Arc<Succession>,
    slot: u32,
    notes: Notes,
    /// The record of the live generation, until the session is noted: that comes first.
    record: Mutex<(bool, Option<Vec<u8>>)>,
}

/// One overlay that is to be mounted or gone on with.
pub struct Bequest {
    /// Which.
    pub hot: HotPath,
    /// What there is of it.
    pub heritage: Heritage,
    /// Where its own is noted.
    pub will: Will,
    /// The lock on its mountpoint, if it has one of its own.
    pub claim: Option<OwnedFd>,
}

/// Has the keeper hold descriptors of files without a name.
struct Entrusted {
    succession: Arc<Succession>,
    slot: u32,
}

impl Entrusted {
    fn name(&self, node: u64) -> String {
        slotted(&format!("{NAMELESS}{node:x}"), self.slot)
    }
}

impl Trustee for Entrusted {
    fn keep(&self, node: u64, descriptor: BorrowedFd<'_>) {
        if let Err(error) = self.succession.link.hold(&self.name(node), descriptor) {
            tracing::warn!(%error, "a file without a name ends with this daemon");
        }
    }

    fn release(&self, node: u64) {
        self.succession.link.drop_held(&self.name(node));
    }
}

/// Node and overlay of what is held under that name, if it is of a file without one.
fn nameless_of(name: &str) -> Option<(u64, u32)> {
    let rest = name.strip_prefix(NAMELESS)?;
    let (node, slot) = rest.split_once('.').unwrap_or((rest, "0"));
    Some((u64::from_str_radix(node, 16).ok()?, slot.parse().ok()?))
}

impl Succession {
    /// Of a daemon that nobody keeps.
    pub fn none(config: &DaemonConfig) -> (Arc<Succession>, Vec<Bequest>) {
        let succession = Arc::new(Succession::with(Link::none(), Predecessor::default()));
        let begin = |hot: &HotPath| Bequest {
            hot: hot.clone(),
            heritage: Heritage::None,
            will: Will::new(&succession, hot.slot, Notes::nowhere()),
            claim: None,
        };
        let all = config.overlays.iter().map(begin).collect();
        (succession, all)
    }

    /// Takes what the keeper held. An error says why the mounts cannot be gone on with.
    pub fn begin(link: Link, start: Start, config: &DaemonConfig) -> io::Result<(Arc<Succession>, Vec<Bequest>)> {
        let (mut nameless, mut held): (Vec<_>, Vec<_>) =
            start.held.into_iter().partition(|(name, _)| name.starts_with(NAMELESS));
        let mut take = |name: &str, slot: u32| {
            let at = held.iter().position(|(held, _)| *held == slotted(name, slot))?;
            Some(held.swap_remove(at).1)
        };
        let mut found = Vec::new();
        for hot in &config.overlays {
            let mounted = if start.why == Why::First { None } else { take_session(hot.slot, &mut take)? };
            // Of a single overlay it is that of the daemon, which the keeper looks after.
            let claim = if hot.slot == 0 { None } else { take(CLAIM, hot.slot) };
            found.push((hot.clone(), mounted, claim));
        }
        let sessions: Vec<&Session> = found.iter().filter_map(|(_, mounted, _)| Some(&mounted.as_ref()?.0)).collect();
        if start.why != Why::First && sessions.is_empty() {
            return Err(io::Error::other("the keeper did not hold a device and its session"));
        }
        let root = if sessions.is_empty() { None } else { take(ROOT, 0) };
        let mut succession = Succession::with(link, Predecessor::default());
        if let Some(session) = sessions.iter().max_by_key(|session| session.successions) {
            let ago = Duration::from_millis(monotonic_ms().saturating_sub(start.died));
            let died = if start.died == 0 { None } else { Instant::now().checked_sub(ago) };
            succession.died = died.unwrap_or(succession.died);
            succession.lineage = Mutex::new(session.lineage(start.reason));
        }
        let succession = Arc::new(succession);
        let (mut all, mut before) = (Vec::new(), Predecessor::default());
        for (hot, mounted, claim) in found {
            let (heritage, notes) = match mounted {
                None => (Heritage::None, new_memory(&succession.link, hot.slot, config.log.size)),
                Some((_, mounted, memory)) => match taken_over(memory) {
                    Ok((notes, mut inherited)) => {
                        note_predecessor(&mut before, &inherited.picture);
                        let is_its = |name: &str| nameless_of(name).filter(|(_, slot)| *slot == hot.slot);
                        let its = nameless.extract_if(.., |(name, _)| is_its(name).is_some());
                        inherited.nameless = its.filter_map(|(name, file)| Some((is_its(&name)?.0, file))).collect();
                        (Heritage::Whole(mounted, inherited), notes)
                    }
                    // The executable before this one can read it.
                    Err(reason) if start.trial => {
                        return Err(io::Error::other(format!(
                            "what the daemon before this one had noted cannot be read ({reason}): unmount and mount again to change to this version"
                        )));
                    }
                    Err(reason) => {
                        let notes = new_memory(&succession.link, hot.slot, config.log.size);
                        (Heritage::Blind(mounted, reason), notes)
                    }
                },
            };
            all.push(Bequest { will: Will::new(&succession, hot.slot, notes), hot, heritage, claim });
        }
        // Nobody knows what they belong to.
        nameless.iter().for_each(|(name, _)| succession.link.drop_held(name));
        if let Some(live) = &mut before.live {
            live.root = root;
        }
        *succession.legacy.lock() = before;
        Ok((succession, all))
    }

    fn with(link: Link, predecessor: Predecessor) -> Succession {
        let lineage = Mutex::new(Lineage { successions: 0, mounted: SystemTime::now(), last: None });
        Succession { link, legacy: Mutex::new(predecessor), lineage, died: Instant::now() }
    }

    /// For an overlay that comes later, with memory for a write log of that many bytes.
    pub fn attach(self: &Arc<Succession>, hot: HotPath, log_size: u64) -> Bequest {
        let will = Will::new(self, hot.slot, new_memory(&self.link, hot.slot, log_size));
        Bequest { hot, heritage: Heritage::None, will, claim: None }
    }

    /// The daemon is configured otherwise from now on.
    pub fn configured(&self, config: &DaemonConfig) -> io::Result<()> {
        if !self.link.is_kept() {
            return Ok(());
        }
        self.link.hold(CONFIG, stored::write_config(config)?.as_fd())
    }

    /// Calls are served from now on. Of a successor: what is to be told of it.
    pub fn ready(&self) -> Option<Event> {
        let mut lineage = self.lineage.lock();
        let successions = lineage.successions;
        let last = lineage.last.as_mut()?;
        last.pause = self.died.elapsed();
        Some(Event::Succession { successions, reason: last.reason.clone(), pause_secs: last.pause.as_secs_f64() })
    }

    /// What can be seen of it, with what is noted of these overlays.
    pub fn kept<'a>(&self, wills: impl Iterator<Item = &'a Will>) -> Kept {
        let Lineage { successions, mounted, last } = self.lineage.lock().clone();
        let keeper = self.link.keeper();
        let (mut used, mut limit, mut resident, mut most, mut noted) = (0, 0, 0, 0, true);
        for will in wills {
            let Some(memory) = will.notes.memory() else {
                noted = false;
                continue;
            };
            let ((its_used, its_limit), (its_resident, its_most)) = (memory.used(), memory.resident());
            (used, limit) = (used + its_used, limit + its_limit);
            (resident, most) = (resident + its_resident, most + its_most);
        }
        let possible = keeper.is_some() && noted;
        Kept { keeper, possible, successions, mounted, last, used, limit, resident, most }
    }

    /// The connection to the keeper.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// What the supervisor before had. To be asked once.
    pub fn predecessor(&self) -> Predecessor {
        std::mem::take(&mut self.legacy.lock())
    }

    /// The number of the generation that must not be swept.
    pub fn spared(&self) -> Option<u64> {
        self.legacy.lock().spared()
    }

    /// A generation is about to be used. Returns what every [`Will`] has to note of it.
    pub fn using(&self, generation: &Arc<dyn Generation>) -> Option<Vec<u8>> {
        let record = generation.record()?;
        match generation.root() {
            Some(root) => {
                if let Err(error) = self.link.hold(ROOT, root) {
                    tracing::warn!(%error, "the root of the backing is not held");
                }
            }
            None => self.link.drop_held(ROOT),
        }
        self.link.mounted(What::Backing, 0, record.place());
        match serde_json::to_vec(&record) {
            Ok(encoded) => Some(encoded),
            Err(error) => {
                tracing::warn!(%error, "the generation cannot be handed over");
                None
            }
        }
    }
}

impl Will {
    fn new(succession: &Arc<Succession>, slot: u32, notes: Notes) -> Will {
        Will { succession: Arc::clone(succession), slot, notes, record: Mutex::default() }
    }

    /// Where the overlay notes.
    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// That is the lock on its mountpoint.
    pub fn claim(&self, lock: BorrowedFd<'_>) {
        if let Err(error) = self.succession.link.hold(&slotted(CLAIM, self.slot), lock) {
            tracing::warn!(%error, "the lock on the mountpoint ends with this daemon");
        }
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
        let link = &self.succession.link;
        link.mounted(What::Overlay, self.slot, Some(mount.place()));
        let (successions, mounted) = {
            let lineage = self.succession.lineage.lock();
            (lineage.successions, lineage.mounted.duration_since(UNIX_EPOCH).ok().map(|at| at.as_secs()))
        };
        let (init, reply) = (greeting.init.clone(), greeting.reply.clone());
        let session = Session { init, reply, dev, successions, mounted };
        let mut file = File::from(memfd_create(c"steadfs-session", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&session)?)?;
        link.hold(&slotted(SESSION, self.slot), file.as_fd())?;
        // Last: with it a successor is possible.
        link.hold(&slotted(DEVICE, self.slot), device)
    }

    /// The overlay has ended for good.
    pub fn end(&self) {
        let link = &self.succession.link;
        for name in [DEVICE, SESSION, MEMORY, CLAIM] {
            // The claim of a single overlay is the daemon's, and the last thing that goes.
            if (name, self.slot) != (CLAIM, 0) {
                link.drop_held(&slotted(name, self.slot));
            }
        }
        link.drop_held_if(|name| nameless_of(name).is_some_and(|(_, slot)| slot == self.slot));
        link.mounted(What::Overlay, self.slot, None);
    }

    /// Who keeps what a successor needs of files without a name.
    pub fn trustee(&self) -> Box<dyn Trustee> {
        Box::new(Entrusted { succession: Arc::clone(&self.succession), slot: self.slot })
    }

    /// An outage has begun, at that time, or has ended: a successor must not take an old one for a new one.
    pub fn outage(&self, since: Option<SystemTime>) {
        if self.record.lock().0 {
            let text = since.map(|since| since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().to_string());
            self.notes.note(&Item::Aside { key: OUTAGE, value: text.unwrap_or_default().into_bytes().into() });
        }
    }

    /// A generation is used from now on: see [`Succession::using`].
    pub fn using(&self, record: &[u8]) {
        let mut kept = self.record.lock();
        if kept.0 {
            self.notes.note(&Item::Backing(record.to_owned().into()));
        } else {
            kept.1 = Some(record.to_owned());
        }
    }
}

/// What is held of one overlay's session, if it is complete: the session, the mount and the memory.
type Taken = (Session, Mounted, Option<OwnedFd>);

fn take_session(slot: u32, take: &mut impl FnMut(&str, u32) -> Option<OwnedFd>) -> io::Result<Option<Taken>> {
    let (Some(device), Some(session)) = (take(DEVICE, slot), take(SESSION, slot)) else { return Ok(None) };
    let session: Session = stored::read(session)?;
    let mounted = Mounted {
        device: Device::new(device),
        greeting: Greeting { init: session.init.clone(), reply: session.reply.clone() },
        dev: session.dev,
    };
    Ok(Some((session, mounted, take(MEMORY, slot))))
}

fn taken_over(memory: Option<OwnedFd>) -> Result<(Notes, Box<Inherited>), String> {
    let memory = memory.ok_or("no memory was held")?;
    let (memory, inherited) = Memory::take_over(memory).map_err(|error| error.to_string())?;
    if let Some(torn) = &inherited.torn {
        tracing::error!(?torn, "the last record of the predecessor was damaged");
    }
    Ok((Notes::in_memory(Arc::new(memory)), Box::new(inherited)))
}

/// Adds what one overlay's memory says of the generation before: all of them say the same, unless the daemon died between two.
fn note_predecessor(before: &mut Predecessor, picture: &Picture) {
    let found = predecessor(picture.backing.as_deref());
    if found.live.is_some() && (before.live.is_none() || found.newest > before.newest) {
        (before.newest, before.live) = (found.newest, found.live);
    }
    let outage = picture.aside.get(OUTAGE).and_then(|since| instant_of(since));
    before.outage_since = [before.outage_since, outage].into_iter().flatten().min();
}

fn instant_of(millis: &[u8]) -> Option<Instant> {
    let millis = std::str::from_utf8(millis).ok()?.parse().ok()?;
    let since = moment::after_epoch(Duration::from_millis(millis));
    let age = SystemTime::now().duration_since(since).unwrap_or_default();
    Instant::now().checked_sub(age)
}

fn new_memory(link: &Link, slot: u32, log_size: u64) -> Notes {
    if !link.is_kept() {
        return Notes::nowhere();
    }
    let made = Memory::create(Sizes::for_log(log_size)).map_err(|error| error.to_string());
    let held = made.and_then(|memory| {
        link.hold(&slotted(MEMORY, slot), memory.fd()).map_err(|error| error.to_string())?;
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

/// What is made of the text of a session and of an outage, by arbitrary bytes.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(session) = serde_json::from_slice::<Session>(data) {
        let lineage = session.lineage(String::new());
        let _ = humantime::format_rfc3339_seconds(lineage.mounted).to_string();
        let _ = Greeting { init: session.init.clone(), reply: session.reply.clone() }.protocol();
        let text = serde_json::to_vec(&session).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Session>(&text).ok(), Some(session));
    }
    let _ = instant_of(data);
    let _ = predecessor(Some(data));
}

fn predecessor(record: Option<&[u8]>) -> Predecessor {
    let Some(record) = record else { return Predecessor::default() };
    match serde_json::from_slice::<Record>(record) {
        Ok(record) => {
            Predecessor { newest: record.number, live: Some(Legacy { record, root: None }), ..Predecessor::default() }
        }
        Err(error) => {
            tracing::warn!(%error, "the generation of the predecessor is not understood; a new one is started");
            Predecessor::default()
        }
    }
}
