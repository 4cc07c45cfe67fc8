//! The overlays of a daemon: one of a `steadfs mount`, any number of a `steadfs run`. Each has nodes, files and a write log of its
//! own; all of them share the gate, the supervisor and the backing.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::reload::{self, Reloaded};
use super::succession::{Bequest, Heritage, Mounted, Succession, Will};
use super::upkeep::Upkeep;
use super::{COMMIT, DRAIN, LOOK, MountError, RESTORE, Wakeup, system};
use crate::backing::{Generation, Traits};
use crate::config::{DaemonConfig, HotPath, OverlayConfig};
use crate::gate::Gate;
use crate::handover::Inherited;
use crate::mountpoint::claim::{self, Claim};
use crate::mountpoint::{dead, place};
use crate::overlay::mount::Mount;
use crate::overlay::rescue::{Rescue, Spool};
use crate::overlay::{Before, Counts, Device, Overlay};
use crate::supervisor::{Event, Watch};
use crate::telemetry::{Kept, UmountRefused, View};
use crate::{rundir, spool, statedir};

/// One overlay.
pub struct Hot {
    at: HotPath,
    /// How it looks at present; the rest of `at` stays.
    look: Mutex<OverlayConfig>,
    overlay: Arc<Overlay>,
    will: Will,
    /// Set when there is one.
    mount: OnceLock<Arc<Mount>>,
    claim: Mutex<Option<Claim>>,
    upkeep: Mutex<Option<Upkeep>>,
    /// Since when it has not been mounted here.
    gone_since: Mutex<Option<Instant>>,
    /// Its session has ended: the kernel may have given its numbers to another mount.
    ended: AtomicBool,
    /// Somebody removes it.
    leaving: AtomicBool,
}

impl Hot {
    /// Lets go of its mountpoint, if it has a claim of its own to it.
    fn give_place_up(&self) {
        if let Some(claim) = self.claim.lock().take() {
            let _ = std::fs::remove_file(rundir::control_socket(&self.at.mountpoint));
            claim::remove(&rundir::of(&self.at.mountpoint));
            // The keeper has a copy, and is told to close it, which takes a moment.
            claim.unlock();
        }
    }

    /// True if the directory that it shows is not on the store.
    fn is_missing(&self, generation: &dyn Generation) -> bool {
        !self.at.path.as_os_str().is_empty() && generation.tree().stat(&self.at.path) == Err(Errno::ENOENT)
    }
}

/// What all of them share.
pub struct Shared {
    /// The gate.
    pub gate: Arc<Gate>,
    /// What the backing can do.
    pub traits: Traits,
    /// What is told of them.
    pub watch: Watch,
    /// Who hears of the end of one.
    pub wakeups: Mutex<Sender<Wakeup>>,
    /// What is left of them.
    pub succession: Arc<Succession>,
}

/// See the module.
pub struct Hots {
    shared: Shared,
    /// As it is at present; the keeper holds a copy.
    config: Mutex<DaemonConfig>,
    list: Mutex<Vec<Arc<Hot>>>,
    /// One is attached after the other.
    attaching: Mutex<()>,
    /// The daemon ends: nothing is attached any more.
    closing: AtomicBool,
    next_slot: AtomicU32,
    /// What is noted of the generation that is in use.
    record: Mutex<Option<Vec<u8>>>,
}

impl Hots {
    /// None yet.
    pub fn new(shared: Shared, config: DaemonConfig) -> Hots {
        let next = config.overlays.iter().map(|hot| hot.slot + 1).max().unwrap_or(1);
        Hots {
            shared,
            config: Mutex::new(config),
            list: Mutex::default(),
            attaching: Mutex::default(),
            closing: AtomicBool::new(false),
            next_slot: AtomicU32::new(next.max(1)),
            record: Mutex::default(),
        }
    }

    /// Makes an overlay, which is not mounted yet, and takes over what a predecessor noted of it.
    pub fn add(&self, bequest: Bequest) -> io::Result<(Arc<Hot>, Heritage)> {
        let Bequest { hot: at, heritage, will, claim } = bequest;
        let (gate, traits) = (Arc::clone(&self.shared.gate), self.shared.traits);
        let (rescue, log_size, label) = {
            let config = self.config.lock();
            (Rescue::new(spool_of(&config, &at)), config.log.size, config.label_of(&at))
        };
        let notes = will.notes();
        let overlay = Overlay::noting(gate, traits, at.clone(), log_size, rescue, notes.clone());
        overlay.entrust(will.trustee());
        match &heritage {
            Heritage::None => {}
            Heritage::Whole(_, inherited) => overlay.resume(inherited),
            Heritage::Blind(_, reason) => {
                overlay.resume_blind();
                let detail =
                    format!("what the daemon before this one knew is lost ({reason}): files that are open fail");
                self.shared.watch.publish(Event::Notice { detail });
            }
        }
        overlay.keep_hidden_journal(&statedir::of(&at.mountpoint), &label);
        let teller = self.shared.watch.clone();
        overlay.on_notice(Box::new(move |detail| teller.publish(Event::Notice { detail })));
        let upkeep = Upkeep::start(notes, &overlay, !matches!(heritage, Heritage::None))?;
        let claim = claim.map(|lock| Claim::of(lock, &at.mountpoint));
        let hot = Arc::new(Hot {
            look: Mutex::new(at.overlay.clone()),
            at,
            overlay,
            will,
            mount: OnceLock::new(),
            claim: Mutex::new(claim),
            upkeep: Mutex::new(Some(upkeep)),
            gone_since: Mutex::default(),
            ended: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        });
        self.list.lock().push(Arc::clone(&hot));
        // Whoever comes between two generations is told of the present one, by this or by `restore`.
        if let Some(record) = &*self.record.lock() {
            hot.will.using(record);
        }
        Ok((hot, heritage))
    }

    /// Mounts an overlay, or goes on with the mount of a predecessor.
    pub fn open(&self, hot: &Arc<Hot>, heritage: Heritage) -> Result<(), MountError> {
        match heritage {
            Heritage::None => self.mount(hot),
            Heritage::Whole(mounted, inherited) => self.go_on(hot, mounted, Some(inherited)),
            Heritage::Blind(mounted, _) => self.go_on(hot, mounted, None),
        }
    }

    /// Mounts it and returns when the kernel and the session agree.
    fn mount(&self, hot: &Arc<Hot>) -> Result<(), MountError> {
        self.settle_in(hot)?;
        let config = &hot.at.overlay;
        let (device, mount) = Mount::attach(config, &self.label(&hot.at), &hot.at.mountpoint)?;
        let mount = Arc::new(mount);
        self.serve_session(hot, &mount, Device::new(device), None).inspect_err(|_| _ = mount.unmount(true))?;
        mount.raise_read_ahead();
        _ = hot.mount.set(mount);
        Ok(())
    }

    /// Goes on with the mount of a predecessor.
    fn go_on(&self, hot: &Arc<Hot>, mounted: Mounted, inherited: Option<Box<Inherited>>) -> Result<(), MountError> {
        let Mounted { device, greeting, dev } = mounted;
        let mount = Arc::new(Mount::resumed(&hot.at.overlay, &self.label(&hot.at), &hot.at.mountpoint, dev));
        // First of all: whoever unmounts must find it.
        let mount = Arc::clone(hot.mount.get_or_init(|| mount));
        self.serve_session(hot, &mount, device, Some((greeting, inherited)))?;
        if hot.overlay.awaits_a_request() {
            // The callers of what a predecessor had read make none while they wait.
            let path = hot.at.mountpoint.clone();
            let ask = move || {
                let _ = nix::sys::statvfs::statvfs(&path);
            };
            std::thread::Builder::new().name("first".into()).spawn(ask).map_err(system)?;
        }
        Ok(())
    }

    /// Of one of several overlays: claims its mountpoint, clears what a steadfs that was killed left there, and makes the daemon
    /// found by it.
    fn settle_in(&self, hot: &Hot) -> Result<(), MountError> {
        if hot.at.slot == 0 {
            return Ok(());
        }
        let path = &hot.at.mountpoint;
        self.clear_the_dead(&hot.at, hot.claim.lock().is_some())?;
        place::check(path, true)?;
        let mut held = hot.claim.lock();
        if held.is_none() {
            let claim = Claim::take(path)?;
            hot.will.claim(claim.as_fd());
            *held = Some(claim);
        }
        let link = rundir::control_socket(path);
        let home = rundir::control_socket(&self.config.lock().home);
        match std::os::unix::fs::symlink(&home, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(MountError::System(format!("{}: {error}", link.display())))
            }
            _ => Ok(()),
        }
    }

    /// Detaches what a steadfs that died has left mounted there; `claimed` if it was a predecessor of this one.
    fn clear_the_dead(&self, at: &HotPath, claimed: bool) -> Result<(), MountError> {
        let (path, look) = (&at.mountpoint, &at.overlay);
        let cleared = if claimed {
            dead::clear_claimed(path, &look.subtype, look.fsname.as_ref().unwrap_or(&self.label(at)))?
        } else {
            dead::clear(path, &look.subtype)?
        };
        if cleared {
            tracing::info!(mountpoint = %path.display(), "the dead mount of an earlier steadfs is detached");
        }
        Ok(())
    }

    /// Serves a session, one that begins or a predecessor's, in a thread of its own; returns when it has begun.
    fn serve_session(
        &self,
        hot: &Arc<Hot>,
        mount: &Arc<Mount>,
        device: Device,
        before: Option<Before>,
    ) -> Result<(), MountError> {
        let (sender, begun) = channel();
        let (wakeups, mounted, slot) = (self.shared.wakeups.lock().clone(), Arc::clone(mount), hot.at.slot);
        let served = Arc::clone(hot);
        let session = move || {
            let session = served.overlay.begin_session(device, before, |device, greeting| {
                // Before the first request is read: whoever is told something is told it by one that has a successor.
                served.will.serving(device.as_fd(), greeting, &mounted)
            });
            let session = match session {
                Ok(session) => session,
                Err(error) => {
                    _ = sender.send(Err(error));
                    return;
                }
            };
            _ = sender.send(Ok(()));
            let result = crate::overlay::run_session(session);
            served.ended.store(true, SeqCst);
            _ = wakeups.send(Wakeup::Unmounted(slot, result));
        };
        std::thread::Builder::new().name("session".into()).spawn(session).map_err(system)?;
        match begun.recv_timeout(DRAIN) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(MountError::System(format!("the FUSE session: {error}"))),
            Err(RecvTimeoutError::Timeout) => {
                Err(MountError::System("the kernel did not begin the FUSE session".into()))
            }
            Err(RecvTimeoutError::Disconnected) => Err(MountError::System("the FUSE session ended at once".into())),
        }
    }

    /// Prepares a new generation before calls are let in: see [`Overlay::restore`]. One overlay does not wait for another.
    pub fn restore(&self, generation: &Arc<dyn Generation>) -> Result<(), String> {
        if let Some(record) = self.shared.succession.using(generation) {
            *self.record.lock() = Some(record.clone());
            self.all().iter().for_each(|hot| hot.will.using(&record));
        }
        let all = self.all();
        // One that is gone may have been removed. All of them together are a disk that the server has not mounted: files that
        // are open must not be given up for that.
        if !all.is_empty() && all.iter().all(|hot| hot.is_missing(&**generation)) {
            return Err("the directory of no overlay is on the store: is its disk mounted there?".into());
        }
        let restored = match &all[..] {
            [hot] => vec![hot.overlay.restore(generation, RESTORE)],
            _ => std::thread::scope(|scope| {
                let start = |hot: &Arc<Hot>| {
                    let overlay = Arc::clone(&hot.overlay);
                    scope.spawn(move || overlay.restore(generation, RESTORE))
                };
                let threads: Vec<_> = all.iter().map(start).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into()))).collect()
            }),
        };
        for report in restored {
            for (path, errno) in report?.failed {
                let detail = format!("{} cannot be reopened: {}", path.display(), errno.desc());
                self.shared.watch.publish(Event::Notice { detail });
            }
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<Hot>> {
        self.list.lock().clone()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.list.lock().is_empty()
    }

    /// An outage has begun, at that time, or has ended.
    pub fn outage(&self, since: Option<SystemTime>) {
        self.all().iter().for_each(|hot| hot.will.outage(since));
    }

    /// Figures of all of them together.
    pub fn counts(&self) -> Counts {
        self.all().iter().map(|hot| hot.overlay.counts()).sum()
    }

    /// What can be seen of each.
    pub fn views(&self) -> Vec<View> {
        let view = |hot: &Arc<Hot>| View {
            mountpoint: hot.at.mountpoint.clone(),
            path: hot.at.path.clone(),
            subtype: hot.at.overlay.subtype.clone(),
            read_only: hot.look.lock().read_only,
            mounted: hot.mount.get().is_some_and(|mount| mount.is_at_its_place()),
            counts: hot.overlay.counts(),
        };
        let mut views: Vec<View> = self.all().iter().map(view).collect();
        // Whoever unmounted them: jobs there write to the local disk, if nothing keeps them from it.
        let missing = |path: &&PathBuf| !views.iter().any(|view| view.mountpoint == **path);
        let missing: Vec<PathBuf> = self.config.lock().expected.iter().filter(missing).cloned().collect();
        views.extend(missing.into_iter().map(View::missing));
        views
    }

    /// What is kept for a successor.
    pub fn kept(&self) -> Kept {
        let all = self.all();
        self.shared.succession.kept(all.iter().map(|hot| &hot.will))
    }

    /// Answers what was read and cannot be sent again; see [`Overlay::finish_what_was_read`].
    pub fn finish_what_was_read(&self, limit: Duration) {
        std::thread::scope(|scope| {
            for hot in self.all() {
                scope.spawn(move || hot.overlay.finish_what_was_read(limit));
            }
        });
    }

    /// Mounts one more, for as long as the daemon lives or until it is detached.
    pub fn attach(&self, at: HotPath, nonempty: bool) -> Result<(), MountError> {
        let _one = self.attaching.lock();
        self.attach_alone(at, nonempty)
    }

    fn attach_alone(&self, mut at: HotPath, nonempty: bool) -> Result<(), MountError> {
        if self.closing.load(SeqCst) {
            return Err(MountError::Mount("the daemon is ending".into()));
        }
        self.wait_for_those_that_leave(&at);
        let shown = at.mountpoint.display().to_string();
        {
            let config = self.config.lock();
            if config.overlays.iter().any(|hot| hot.slot == 0) {
                return Err(MountError::Usage(format!(
                    "{} is a mount of its own: overlays are attached to a `steadfs run`",
                    config.home.display()
                )));
            }
            overlaps(&config.overlays, &at)?;
        }
        self.is_possible(&at.overlay).map_err(MountError::Usage)?;
        self.clear_the_dead(&at, false)?;
        at.overlay.directory = Some(place::check(&at.mountpoint, nonempty)?);
        at.slot = self.next_slot.fetch_add(1, Relaxed);
        let slot = at.slot;
        let log_size = self.config.lock().log.size;
        self.configure(|config| config.overlays.push(at.clone())).map_err(system)?;
        let bequest = self.shared.succession.attach(at, log_size);
        let added = self.add(bequest).map_err(system);
        let opened = added.and_then(|(hot, heritage)| self.open(&hot, heritage));
        if opened.is_ok() && self.closing.load(SeqCst) {
            // Nobody would serve it.
            self.get(slot).iter().filter_map(|hot| hot.mount.get()).for_each(|mount| _ = mount.unmount(true));
            return Err(MountError::Mount("the daemon is ending".into()));
        }
        if opened.is_err() {
            self.remove(slot);
        } else {
            self.shared.watch.publish(Event::Notice { detail: format!("{shown} is attached") });
        }
        opened
    }

    /// Those that are unmounted, and whose last writes are being committed, are in the way for a moment only.
    fn wait_for_those_that_leave(&self, one: &HotPath) {
        let until = Instant::now() + COMMIT;
        let meets = |hot: &Arc<Hot>| hot.at.mountpoint == one.mountpoint || hot.at.shares_files_with(one);
        let leaves = |hot: &Arc<Hot>| {
            let unmounted = hot.mount.get().is_some_and(|mount| !mount.is_mounted());
            hot.leaving.load(SeqCst) || hot.ended.load(SeqCst) || unmounted
        };
        while self.all().iter().any(|hot| meets(hot) && leaves(hot)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Unmounts one; it is gone when its session has ended.
    pub fn detach(&self, mountpoint: &Path, lazy: bool) -> Result<(), UmountRefused> {
        let found = self.all().into_iter().find(|hot| hot.at.mountpoint == mountpoint);
        let Some(hot) = found else {
            let detail = format!("{} is no overlay of this daemon", mountpoint.display());
            return Err(UmountRefused::Other(detail));
        };
        let Some(mount) = hot.mount.get() else {
            return Err(UmountRefused::Other(format!("{} is still being mounted", mountpoint.display())));
        };
        unmount(mount, lazy)
    }

    /// Makes the overlays those of another configuration of the same backing. Those that are the same are not touched.
    pub fn reload(&self, wanted: &DaemonConfig, nonempty: impl Fn(&Path) -> bool) -> Result<Reloaded, String> {
        let _one = self.attaching.lock();
        let plan = reload::plan(&self.config(), wanted)?;
        for hot in plan.change.iter().chain(&plan.replace).chain(&plan.attach) {
            self.is_possible(&hot.overlay).map_err(|words| format!("{}: {words}", hot.mountpoint.display()))?;
        }
        let mut done =
            Reloaded { later: plan.later.iter().map(|name| (*name).into()).collect(), ..Reloaded::default() };
        let mut fail = |path: &Path, words: String| done.failed.push(format!("{}: {words}", path.display()));
        for path in &plan.detach {
            match self.detach_and_wait(path) {
                Ok(()) => done.detached.push(path.display().to_string()),
                Err(words) => fail(path, words),
            }
        }
        // Who stops writing comes first: of those that show the same files one may write.
        let (readers, writers): (Vec<_>, Vec<_>) = plan.change.iter().partition(|hot| hot.overlay.read_only);
        for hot in readers.into_iter().chain(writers) {
            match self.change(hot) {
                Ok(()) => done.changed.push(hot.mountpoint.display().to_string()),
                Err(words) => fail(&hot.mountpoint, words),
            }
        }
        // All of them go before the first comes back: one may take over what another showed.
        let mut gone = Vec::new();
        for hot in &plan.replace {
            match self.detach_and_wait(&hot.mountpoint) {
                Ok(()) => gone.push(hot),
                Err(words) => fail(&hot.mountpoint, words),
            }
        }
        for hot in gone {
            match self.attach_alone(hot.clone(), nonempty(&hot.mountpoint)) {
                Ok(()) => done.changed.push(hot.mountpoint.display().to_string()),
                Err(error) => fail(&hot.mountpoint, error.to_string()),
            }
        }
        for hot in &plan.attach {
            match self.attach_alone(hot.clone(), nonempty(&hot.mountpoint)) {
                Ok(()) => done.attached.push(hot.mountpoint.display().to_string()),
                Err(error) => fail(&hot.mountpoint, error.to_string()),
            }
        }
        Ok(done)
    }

    /// Whether the backing, as it was started, is as fresh as the overlay promises to be.
    fn is_possible(&self, config: &OverlayConfig) -> Result<(), String> {
        let (fresh, remembers) = (config.fresh(), self.shared.traits.remembers);
        // As fresh as the first ones can be had, too, for what the user has said of sshfs's caches.
        if fresh >= remembers.min(self.config().fresh()) {
            return Ok(());
        }
        let format = |duration| humantime::format_duration(duration);
        Err(format!(
            "attr_timeout or entry_timeout is {}, and the sshfs that runs remembers for up to {}: give that or more, or stop the \
             daemon and start it with this overlay",
            format(fresh),
            format(remembers)
        ))
    }

    fn change(&self, wanted: &HotPath) -> Result<(), String> {
        let Some(hot) = self.get(wanted.slot) else { return Err("it is gone".into()) };
        let config = &wanted.overlay;
        let present = hot.look.lock().clone();
        let others = self.all().into_iter().filter(|other| other.at.slot != wanted.slot);
        let others: Vec<HotPath> =
            others.map(|other| HotPath { overlay: other.look.lock().clone(), ..other.at.clone() }).collect();
        overlaps(&others, wanted).map_err(|error| error.to_string())?;
        if (present.read_only, &present.mount_flags) != (config.read_only, &config.mount_flags)
            && let Some(mount) = hot.mount.get()
        {
            mount.change(config).map_err(|error| error.to_string())?;
        }
        hot.overlay.change_appearance(config, &hot.at.mountpoint);
        *hot.look.lock() = config.clone();
        self.configure(|all| {
            all.overlays.iter_mut().filter(|other| other.slot == wanted.slot).for_each(|other| *other = wanted.clone());
        })
        .map_err(|error| error.to_string())
    }

    fn detach_and_wait(&self, mountpoint: &Path) -> Result<(), String> {
        self.detach(mountpoint, false).map_err(|refused| match refused {
            UmountRefused::Busy(_) => "it is in use and stays as it is".into(),
            UmountRefused::Other(words) => words,
        })?;
        let until = Instant::now() + COMMIT + DRAIN;
        while self.all().iter().any(|hot| hot.at.mountpoint == mountpoint) {
            if Instant::now() >= until {
                return Err("it is unmounted and its session has not ended yet".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Unmounts one that is not wanted any more.
    pub fn dismiss(&self, mountpoint: &Path, lazy: bool) -> Result<(), UmountRefused> {
        self.detach(mountpoint, lazy)?;
        let forget = |config: &mut DaemonConfig| config.expected.retain(|path| path != mountpoint);
        self.configure(forget).map_err(|error| UmountRefused::Other(error.to_string()))
    }

    /// One of several on which something is open, so that none of the others is unmounted before that is known. What has just been
    /// closed is released in a moment.
    fn in_use(&self) -> Option<PathBuf> {
        let all = self.all();
        let is_open = |hot: &&Arc<Hot>| {
            let counts = hot.overlay.counts();
            counts.open_files + counts.open_dirs > 0
        };
        let until = Instant::now() + LOOK;
        while all.len() > 1 {
            let found = all.iter().find(is_open)?;
            if Instant::now() >= until {
                return Some(found.at.mountpoint.clone());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Unmounts all of them, as far as that is possible.
    pub fn unmount_all(&self, lazy: bool) -> Result<(), UmountRefused> {
        if !lazy && let Some(path) = self.in_use() {
            return Err(UmountRefused::Busy(format!("{}: target is busy", path.display())));
        }
        let mut result = Ok(());
        // What was mounted last may lie below what was mounted first.
        for hot in self.all().iter().rev() {
            if let Some(Err(error)) = hot.mount.get().map(|mount| unmount(mount, lazy)) {
                result = Err(error);
            }
        }
        result
    }

    /// Unmounts all; users that are still there lose the mount, but never a write that was acknowledged.
    pub fn terminate(&self) {
        self.closing.store(true, SeqCst);
        for hot in self.all().iter().rev() {
            let Some(mount) = hot.mount.get() else { continue };
            if let Err(error) = mount.unmount(false) {
                let mountpoint = hot.at.mountpoint.display();
                tracing::warn!(%error, %mountpoint, "the overlay is in use; its users are cut off");
                // The connection is found by its mount, so it is ended first.
                mount.abort();
                let _ = mount.unmount(true);
            }
        }
    }

    /// Unmounts all, lazily: nobody else will.
    pub fn cut_off(&self) {
        self.all().iter().filter_map(|hot| hot.mount.get()).for_each(|mount| _ = mount.unmount(true));
    }

    /// Looks for overlays that have been unmounted here for a moment while nobody has anything open. The kernel does not end
    /// the session as long as a copy of the mount exists in another namespace, and every process that made its own
    /// namespace while the overlay was mounted has one.
    pub fn abandoned(&self) -> Vec<u32> {
        let is_abandoned = |hot: &&Arc<Hot>| {
            let Some(mount) = hot.mount.get() else { return false };
            if hot.ended.load(SeqCst) || hot.leaving.load(SeqCst) {
                return false;
            }
            let mut gone_since = hot.gone_since.lock();
            if mount.is_mounted() {
                *gone_since = None;
                return false;
            }
            let counts = hot.overlay.counts();
            let since = *gone_since.get_or_insert_with(Instant::now);
            since.elapsed() >= LOOK && counts.open_files == 0 && counts.open_dirs == 0
        };
        self.all().iter().filter(is_abandoned).map(|hot| hot.at.slot).collect()
    }

    /// Nothing is attached after this: what is under way is waited for, and unmounted.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        let _last = self.attaching.try_lock_for(DRAIN);
        self.cut_off();
    }

    /// The session of one has ended. True if that was no unmount.
    pub fn ended(&self, slot: u32, result: &io::Result<()>) -> bool {
        let Some(hot) = self.get(slot) else { return false };
        let Some(mount) = hot.mount.get() else { return false };
        match result {
            // Somebody has ended the connection and left the mount: every call on it would fail for ever.
            Ok(()) if mount.is_at_its_place() => {
                tracing::error!("the FUSE connection was aborted; the overlay is unmounted");
                let _ = mount.unmount(true);
                true
            }
            Ok(()) => false,
            Err(error) => {
                tracing::error!(%error, "the FUSE session failed");
                let _ = mount.unmount(true);
                true
            }
        }
    }

    /// Ends the copies of a mount that is gone here: their callers would wait for ever.
    pub fn end_copies(&self, slot: u32) {
        if let Some(hot) = self.get(slot).filter(|hot| !hot.ended.load(SeqCst)) {
            hot.mount.get().inspect(|mount| mount.end_connection());
        }
    }

    fn get(&self, slot: u32) -> Option<Arc<Hot>> {
        self.all().into_iter().find(|hot| hot.at.slot == slot)
    }

    /// One that cannot be mounted: it is told of, as are all on which nothing is mounted.
    pub fn give_up(&self, hot: &Hot, error: &MountError) {
        let detail = format!("{} cannot be mounted: {error}", hot.at.mountpoint.display());
        tracing::error!("{detail}");
        self.shared.watch.publish(Event::Notice { detail });
        self.remove(hot.at.slot);
    }

    /// Forgets one whose session has ended: what it has not committed is committed or saved, and what was held of it is let go.
    pub fn remove(&self, slot: u32) {
        let found = self.get(slot);
        if found.as_ref().is_some_and(|hot| hot.leaving.swap(true, SeqCst)) {
            return;
        }
        if let Some(hot) = &found {
            hot.overlay.finish(Instant::now() + COMMIT);
        }
        // A successor that finds its number without a device would mount it anew.
        let configured = self.configure(|config| config.overlays.retain(|other| other.slot != slot));
        if let Err(error) = configured {
            tracing::warn!(%error, "a successor would look for an overlay that is gone");
        }
        let Some(hot) = found else { return };
        hot.upkeep.lock().take();
        hot.will.end();
        hot.give_place_up();
        self.list.lock().retain(|other| other.at.slot != slot);
    }

    /// Commits what is uncommitted, or saves it.
    pub fn finish(&self, until: Instant) {
        std::thread::scope(|scope| {
            for hot in self.all() {
                scope.spawn(move || hot.overlay.finish(until));
            }
        });
    }

    /// The daemon ends: its overlays let go of what is theirs.
    pub fn end(&self) {
        self.all().iter().for_each(|hot| hot.give_place_up());
    }

    /// The configuration as it is.
    pub fn config(&self) -> DaemonConfig {
        self.config.lock().clone()
    }

    /// Changes the configuration, for a successor too.
    pub fn configure(&self, change: impl FnOnce(&mut DaemonConfig)) -> io::Result<()> {
        let mut config = self.config.lock();
        change(&mut config);
        self.shared.succession.configured(&config)
    }

    fn label(&self, at: &HotPath) -> String {
        self.config.lock().label_of(at)
    }
}

/// Whether one more overlay can be beside those that are there.
pub fn overlaps(present: &[HotPath], one: &HotPath) -> Result<(), MountError> {
    let (shown, path) = (one.mountpoint.display(), one.path.display());
    for other in present {
        let place = other.mountpoint.display();
        if other.mountpoint == one.mountpoint {
            return Err(MountError::Mount(format!("{shown} is attached already")));
        }
        if one.mountpoint.starts_with(&other.mountpoint) {
            return Err(MountError::Mount(format!(
                "{shown} lies on the overlay at {place}: choose paths side by side"
            )));
        }
        if other.mountpoint.starts_with(&one.mountpoint) {
            return Err(MountError::Mount(format!(
                "{shown} would cover the overlay at {place}: choose paths side by side"
            )));
        }
        if one.rivals(other) {
            return Err(MountError::Usage(format!(
                "{path} is shown at {place} too, and each overlay has a write log of its own: make one of them read-only (ro)"
            )));
        }
    }
    Ok(())
}

fn unmount(mount: &Mount, lazy: bool) -> Result<(), UmountRefused> {
    match mount.unmount(lazy) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(UmountRefused::Busy("target is busy".into())),
        Err(error) => Err(UmountRefused::Other(error.to_string())),
        Ok(()) => Ok(()),
    }
}

fn spool_of(config: &DaemonConfig, at: &HotPath) -> Spool {
    Spool {
        directory: config.log.spool_dir.clone().unwrap_or_else(|| spool::default_dir(&at.mountpoint)),
        limit: config.log.spool_size,
        overlay: at.mountpoint.clone(),
        backing: config.label_of(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OverlayConfig;

    fn at(mountpoint: &str, path: &str, read_only: bool) -> HotPath {
        let overlay = OverlayConfig { read_only, ..OverlayConfig::default() };
        HotPath { mountpoint: mountpoint.into(), path: path.into(), slot: 1, overlay }
    }

    #[test]
    fn overlays_that_meet_are_refused_unless_all_but_one_only_read() {
        let present = [at("/hot/a", "jobs/a", false)];
        assert_eq!(overlaps(&present, &at("/hot/b", "jobs/b", false)), Ok(()));
        assert_eq!(overlaps(&present, &at("/hot/b", "jobs/ab", false)), Ok(()));
        for path in ["jobs/a", "jobs", "", "jobs/a/deeper"] {
            assert!(matches!(overlaps(&present, &at("/hot/b", path, false)), Err(MountError::Usage(_))), "{path}");
            assert_eq!(overlaps(&present, &at("/hot/b", path, true)), Ok(()), "{path}");
        }
        for mountpoint in ["/hot/a", "/hot/a/b", "/hot", "/"] {
            assert!(overlaps(&present, &at(mountpoint, "x", true)).is_err(), "{mountpoint}");
        }
    }
}
