//! Wires a backing and its overlays together and runs them until they are unmounted.

mod hots;
pub mod limits;
pub mod link;
mod notify;
mod orphans;
pub mod reload;
mod signals;
pub mod stored;
pub(crate) mod succession;
mod upkeep;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::backing::Backing;
use crate::backing::dir::DirBacking;
use crate::backing::sshfs::SshfsBacking;
use crate::backing::sshfs::command::Arguments;
use crate::config::{DaemonConfig, HotPath, Source};
use crate::evidence;
use crate::gate::Gate;
use crate::keeper::executable::Executable;
use crate::rundir;
use crate::statedir;
use crate::supervisor::permit::record;
use crate::supervisor::{Event, Inbox, Parts, PermitParts, Supervisor, Watch};
use crate::telemetry::{self, Observed};
use crate::worker::Worker;
use hots::Hots;
pub use hots::overlaps;
use link::{Link, Start};
use succession::{Bequest, Heritage, Succession};

/// mount(8)'s code for a mount that failed.
const FAILED: i32 = 32;
/// How long a first start may take before the overlay is mounted without it. Refused keys are known by then.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// Time between two looks for signals while the first start is under way.
const GLANCE: Duration = Duration::from_millis(50);
/// Time between two looks whether the overlay is still mounted.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two events that belong together.
const SAME_BREATH: Duration = Duration::from_millis(200);
/// How long descriptors may take to be reopened before the gate opens; the rest is reopened when it is used.
const RESTORE: Duration = Duration::from_secs(5);
/// How long what is uncommitted at the end may take to be committed; what is not, is saved.
const COMMIT: Duration = Duration::from_secs(30);
/// How long a daemon that is to be replaced may take to answer what it has read, where nobody else can.
const FINISH: Duration = Duration::from_millis(500);
/// How long calls that were submitted before an unmount may take.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a mount did not come about; the texts are for users and name the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Bad invocation or missing permission: exit code 1 of mount(8).
    #[error("{0}")]
    Usage(String),
    /// This machine lacks something: exit code 2 of mount(8).
    #[error("{0}")]
    System(String),
    /// The mount failed: exit code 32 of mount(8).
    #[error("{0}")]
    Mount(String),
}

/// What makes the daemon act.
pub(crate) enum Wakeup {
    /// The overlay with that number is no longer mounted anywhere, or its session failed.
    Unmounted(u32, io::Result<()>),
    /// SIGTERM or SIGINT.
    Terminate,
    /// Everything is detached; the end is when the last user is gone.
    Leave,
    /// SIGHUP: try again at once.
    Retry,
}

/// Mounts and serves until everything is unmounted, in this process alone. `ready` is called once, when the overlays answer.
pub fn run(config: DaemonConfig, ready: impl FnOnce() + Send + 'static) -> Result<(), MountError> {
    let (succession, bequests) = Succession::none(&config);
    live(config, Life::default(), succession, bequests, ready)
}

/// As [`run`] for a daemon that a keeper has started, perhaps in the place of one that died.
pub fn run_kept(
    config: DaemonConfig,
    life: Life,
    link: Link,
    start: Start,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), MountError> {
    let reason = start.reason.clone();
    let begun = Succession::begin(link, start, &config);
    let (succession, bequests) =
        begun.map_err(|error| MountError::System(format!("nothing to go on with: {error}")))?;
    if is_succession(&bequests) {
        tracing::warn!(reason, "the daemon before this one ended; going on in its place");
    }
    let keeper = succession.link().clone();
    live(config, life, succession, bequests, move || {
        ready();
        keeper.ready();
    })
}

fn is_succession(bequests: &[Bequest]) -> bool {
    bequests.iter().any(|bequest| !matches!(bequest.heritage, Heritage::None))
}

/// What the sign of life goes by: the gate, once there is one. And the overlays, which are asked before an end that was wanted.
#[derive(Clone, Default)]
pub struct Life(Arc<OnceLock<(Arc<Gate>, Arc<Hots>)>>);

impl Life {
    /// True as long as the daemon does its work: asking for the load takes the gate's lock, so that one that is stuck
    /// gives no sign.
    pub fn alive(&self) -> Box<dyn Fn() -> bool + Send> {
        let gate = Arc::clone(&self.0);
        Box::new(move || gate.get().is_none_or(|(gate, _)| gate.load().threads < usize::MAX))
    }

    /// Ends the daemon for a successor.
    pub fn end(&self) -> ! {
        if let Some((_, hots)) = self.0.get() {
            hots.finish_what_was_read(FINISH);
        }
        // Everything that a successor needs is where it finds it after a death, so this is one.
        std::process::exit(0)
    }
}

fn live(
    mut config: DaemonConfig,
    life: Life,
    succession: Arc<Succession>,
    bequests: Vec<Bequest>,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), MountError> {
    // Modes come from the callers, with their umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    limits::raise_descriptors();
    crate::allocator::keep_what_is_freed();
    config.began_fresh = Some(config.fresh());
    let config = Arc::new(config);
    let started = SystemTime::now();
    // Before anything is started: whatever ends the daemon from here on, it cleans up after itself.
    let (wakeups, inbox) = channel();
    let _forwarding = signals::forward(wakeups.clone()).map_err(system)?;
    let watch = Watch::default();
    // Both follow the supervisor from its first event on.
    let successor = is_succession(&bequests);
    let bound = match telemetry::bind(&config, &watch) {
        // Nobody waits for a page of metrics as callers do for their answers.
        Err(error) if successor => {
            tracing::error!(error, "going on without metrics");
            telemetry::bind(&config.without_metrics(), &watch)
        }
        bound => bound,
    };
    let bound = bound.map_err(MountError::System)?;
    let start = if successor { Worker::succeed } else { Worker::start };
    let worker = start(&config.worker, &config.home, &watch).map_err(MountError::System)?;
    let worker = Arc::new(worker);
    let evidence = evidence::follow(&config, &watch);
    let mut guard = None;
    let before = (&succession, bequests, &life);
    let result = serve(&config, before, (wakeups, inbox), (bound, &mut guard), &watch, &worker, started, ready);
    if let (true, Err(error)) = (successor, &result) {
        leave_to_the_next(error);
    }
    // However it ended: nobody would let the worker go later. Until then the status can be asked for.
    worker.stop();
    drop(evidence);
    drop(guard);
    result
}

#[allow(clippy::too_many_arguments)]
fn serve(
    config: &Arc<DaemonConfig>,
    (succession, bequests, life): (&Arc<Succession>, Vec<Bequest>, &Life),
    wakeups: (Sender<Wakeup>, Receiver<Wakeup>),
    (bound, guard): (telemetry::Bound, &mut Option<telemetry::Guard>),
    watch: &Watch,
    worker: &Arc<Worker>,
    started: SystemTime,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let directory = rundir::of(&config.home);
    let backing = make_backing(config, &directory, succession.spared())?;
    warn_of_old_answers(config, backing.traits().remembers);
    let successor = is_succession(&bequests);
    let core = Core::start(config, backing, watch.clone(), wakeups, (succession, successor)).map_err(system)?;
    _ = life.0.set((Arc::clone(&core.gate), Arc::clone(&core.hots)));
    let ended = Heritage::devices_ended(&bequests);
    let added: io::Result<Vec<_>> = bequests.into_iter().map(|bequest| core.hots.add(bequest)).collect();
    let added = added.map_err(system)?;
    core.begin().map_err(system)?;
    // Served before there is a mount: a start that takes its time is what people ask about.
    let served = bound.serve(core.observed(config, worker, started)).map_err(system);
    let first = served.and_then(|served| {
        *guard = Some(served);
        if !successor {
            core.first_answer(config.soft_start)?;
        }
        // Callers wait for those that are gone on with.
        let (heirs, anew): (Vec<_>, Vec<_>) =
            added.into_iter().partition(|(_, heritage)| !matches!(heritage, Heritage::None));
        heirs.into_iter().try_for_each(|(hot, heritage)| core.hots.open(&hot, heritage))?;
        for (hot, heritage) in anew {
            match core.hots.open(&hot, heritage) {
                // Its predecessor died over mounting it. The others must not die of that.
                Err(error) if successor => core.hots.give_up(&hot, &error),
                result => result?,
            }
        }
        Ok(())
    });
    if let Err(error) = first {
        let over = ended();
        if over {
            tracing::info!(%error, "unmounted while nobody served");
        } else if successor {
            leave_to_the_next(&error);
        }
        // Those that are mounted already have nobody to serve them; and an aborted connection stays mounted, and every call on
        // it would fail for ever.
        core.hots.cut_off();
        core.stop();
        return if over { Ok(()) } else { Err(error) };
    }
    ready();
    if let Some(event) = succession.ready() {
        watch.publish(event);
    }
    notify::ready();
    core.serve();
    notify::stopping();
    core.stop();
    Ok(())
}

/// Ends a daemon that cannot go on with what its predecessor left: the next one can, or the old executable. Nothing is tidied
/// up: what was not committed, the sshfs, and a worker that is paused are still needed.
fn leave_to_the_next(error: &MountError) -> ! {
    tracing::error!(%error, "cannot go on with the mount");
    std::process::exit(FAILED)
}

/// Asks the keeper for a daemon of the executable at `path`.
fn upgrade(succession: &Succession, hots: &Hots, path: &Path) -> Result<(), String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("{shown}: an absolute path is needed"));
    }
    // Nobody would serve it while it is started.
    if hots.views().iter().any(|view| path.starts_with(&view.mountpoint)) {
        return Err(format!("{shown} lies on an overlay of its own: copy it to a local disk"));
    }
    let without = "this mount has no keeper (keeper=no): unmount it and mount it again with the new steadfs";
    if succession.link().is_kept() && !hots.kept().possible {
        return Err("what a successor would have to know could not be noted (see `steadfs status`): an upgrade would cost open \
                    files and what is not committed; unmount it and mount it again with the new steadfs"
            .into());
    }
    let executable = Executable::open(path).map_err(|error| format!("{shown}: {error}"))?;
    match succession.link().upgrade(&executable) {
        Ok(true) => Ok(()),
        Ok(false) => Err(without.into()),
        Err(error) => Err(error.to_string()),
    }
}

/// What its repairs need, and where it is written down what they were.
fn permit_of(config: &DaemonConfig) -> PermitParts {
    PermitParts { config: config.permit.clone(), record: Some(statedir::of(&config.home).join(record::NAME)) }
}

/// Makes everything as another configuration says, as far as that is possible while it is in use.
fn reload(
    hots: &Hots,
    (gate, supervisor, worker): (&Gate, Option<&Arc<Supervisor>>, &Worker),
    wanted: &DaemonConfig,
    nonempty: &BTreeSet<PathBuf>,
) -> Result<reload::Reloaded, String> {
    // What can be refused comes first.
    reload::plan(&hots.config(), wanted)?;
    worker.reconfigure(&wanted.worker)?;
    let done = hots.reload(wanted, |path| nonempty.contains(path))?;
    gate.set_policy(wanted.calls);
    if let Some(supervisor) = supervisor {
        supervisor.set_policy(wanted.repair);
        supervisor.set_permit(permit_of(wanted));
    }
    if let Err(error) = evidence::Settings::of(&hots.config()).write(&wanted.home) {
        tracing::warn!(%error, "steadfs evidence does not know of the new configuration");
    }
    let taken_over = hots.configure(|config| {
        let DaemonConfig { expected, calls, repair, permit, worker, soft_start, file, .. } = wanted.clone();
        *config = DaemonConfig { expected, calls, repair, permit, worker, soft_start, file, ..config.clone() };
    });
    taken_over.map_err(|error| error.to_string())?;
    Ok(done)
}

fn system(error: io::Error) -> MountError {
    MountError::System(error.to_string())
}

/// What the user has said of sshfs's caches stands, whatever the overlays promise.
fn warn_of_old_answers(config: &DaemonConfig, remembers: Duration) {
    let stricter = |hot: &&HotPath| hot.overlay.fresh() < remembers;
    for hot in config.overlays.iter().filter(stricter) {
        let format = |duration| humantime::format_duration(duration);
        tracing::warn!(
            "{}: what others change may be seen only after {}, for which sshfs remembers by its options, and not after {} \
             (attr_timeout)",
            hot.mountpoint.display(),
            format(remembers),
            format(hot.overlay.fresh())
        );
    }
}

fn make_backing(config: &DaemonConfig, directory: &Path, spared: Option<u64>) -> Result<Arc<dyn Backing>, MountError> {
    Ok(match &config.source {
        Source::Sshfs { target } => Arc::new(
            SshfsBacking::after(&Arguments::new(target, &config.sshfs_options, config.fresh()), directory, spared)
                .map_err(|error| MountError::System(format!("cannot clean up {}: {error}", directory.display())))?,
        ),
        Source::Dir { path } => {
            Arc::new(DirBacking::new(path.clone()).map_err(|error| MountError::Mount(error.to_string()))?)
        }
    })
}

/// The data path and its supervisor.
struct Core {
    gate: Arc<Gate>,
    hots: Arc<Hots>,
    supervisor: Arc<OnceLock<Arc<Supervisor>>>,
    /// What it is made of, until it begins.
    parts: Mutex<Option<(Parts, bool)>>,
    watch: Watch,
    events: Receiver<(SystemTime, Event)>,
    wakeups: Sender<Wakeup>,
    inbox: Receiver<Wakeup>,
    succession: Arc<Succession>,
    /// Overlays come and go; without them the daemon goes on.
    stays: bool,
}

impl Core {
    fn start(
        config: &DaemonConfig,
        backing: Arc<dyn Backing>,
        watch: Watch,
        (wakeups, wakeup_inbox): (Sender<Wakeup>, Receiver<Wakeup>),
        (succession, successor): (&Arc<Succession>, bool),
    ) -> io::Result<Core> {
        let events = watch.subscribe();
        let inbox = Inbox::new();
        let gate = Gate::new(config.calls, inbox.complaints())?;
        let shared = hots::Shared {
            gate: Arc::clone(&gate),
            traits: backing.traits(),
            watch: watch.clone(),
            wakeups: Mutex::new(wakeups.clone()),
            succession: Arc::clone(succession),
        };
        let hots = Arc::new(Hots::new(shared, config.clone()));
        let restored = Arc::clone(&hots);
        let restore = Arc::new(move |generation: &Arc<_>| restored.restore(generation));
        let parts = Parts {
            inbox,
            backing,
            gate: Arc::clone(&gate),
            restore,
            policy: config.repair,
            permit: permit_of(config),
            deadline: config.calls.deadline,
            watch: watch.clone(),
        };
        Ok(Core {
            gate,
            hots,
            supervisor: Arc::default(),
            parts: Mutex::new(Some((parts, successor))),
            watch,
            events,
            wakeups,
            inbox: wakeup_inbox,
            succession: Arc::clone(succession),
            stays: config.is_run(),
        })
    }

    /// The supervisor begins. Not before the overlays have taken over what a predecessor left: a first generation is for them.
    fn begin(&self) -> io::Result<()> {
        let Some((parts, successor)) = self.parts.lock().take() else { return Ok(()) };
        let supervisor = if successor {
            Supervisor::resume(parts, self.succession.predecessor())?
        } else {
            Supervisor::start(parts)?
        };
        _ = self.supervisor.set(Arc::new(supervisor));
        Ok(())
    }

    fn retry_now(&self) {
        self.supervisor.get().inspect(|supervisor| supervisor.retry_now());
    }

    /// Waits for the first generation, or for the news that there will be none, or for the end.
    fn first_answer(&self, soft: bool) -> Result<(), MountError> {
        let mut until = Instant::now() + FIRST_ANSWER;
        loop {
            match self.inbox.try_recv() {
                Ok(Wakeup::Terminate | Wakeup::Leave) => {
                    return Err(MountError::Mount("it was told to end before the overlay was mounted".into()));
                }
                Ok(Wakeup::Retry) => self.retry_now(),
                Ok(Wakeup::Unmounted(..)) | Err(_) => {}
            }
            let wait = if soft { until.saturating_duration_since(Instant::now()).min(GLANCE) } else { GLANCE };
            let event = match self.events.recv_timeout(wait) {
                Ok((_, event)) => event,
                Err(RecvTimeoutError::Timeout) if soft && Instant::now() >= until => return Ok(()),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(MountError::Mount("the supervisor ended".into())),
            };
            match event {
                Event::Recovered { .. } => return Ok(()),
                Event::StartFailed { detail, halted: true, .. } => return Err(MountError::Mount(detail)),
                // Nothing has been said: a login that takes longer than `deadline`.
                Event::OutageBegan { detail, .. } if !soft && detail.is_empty() => {}
                Event::StartFailed { detail, .. } | Event::OutageBegan { detail, .. } if !soft => {
                    return Err(MountError::Mount(format!("{detail} (soft_start=no was given)")));
                }
                Event::StartFailed { .. } => return Ok(()),
                // If it began with a failed start, the next event says whether another one makes sense.
                Event::OutageBegan { .. } => until = until.min(Instant::now() + SAME_BREATH),
                _ => {}
            }
        }
    }

    fn observed(&self, config: &Arc<DaemonConfig>, worker: &Arc<Worker>, started: SystemTime) -> Observed {
        let (supervisor, wakeups) = (Arc::clone(&self.supervisor), Mutex::new(self.wakeups.clone()));
        let (replaced, told) = (Arc::clone(&self.supervisor), Arc::clone(&self.supervisor));
        let link = self.succession.link().clone();
        let handed_on = Arc::clone(&self.succession);
        let hots = || Arc::clone(&self.hots);
        let (counted, viewed, kept, attached, detached, stopped, upgraded, reloaded, configured) =
            (hots(), hots(), hots(), hots(), hots(), hots(), hots(), hots(), hots());
        let (gate, told_worker) = (Arc::clone(&self.gate), Arc::clone(worker));
        let stays = self.stays;
        Observed {
            config: Arc::clone(config),
            gate: Arc::clone(&self.gate),
            watch: self.watch.clone(),
            worker: Arc::clone(worker),
            started,
            counts: Arc::new(move || counted.counts()),
            overlays: Arc::new(move || viewed.views()),
            kept: Arc::new(move || kept.kept()),
            retry_now: Arc::new(move || _ = supervisor.get().inspect(|supervisor| supervisor.retry_now())),
            replace: Arc::new(move || _ = replaced.get().inspect(|supervisor| supervisor.replace())),
            upgrade: Arc::new(move |path| upgrade(&handed_on, &upgraded, path)),
            upgraded: Arc::new(move || link.upgraded()),
            configured: Arc::new(move || configured.config()),
            reload: Arc::new(move |wanted, nonempty| {
                reload(&reloaded, (&gate, told.get(), &told_worker), &wanted, &nonempty)
            }),
            attach: Arc::new(move |at, nonempty| attached.attach(at, nonempty).map_err(|error| error.to_string())),
            detach: Arc::new(move |path, lazy| detached.dismiss(path, lazy)),
            stop: Arc::new(move |lazy| {
                let mounted = stopped.views().iter().any(|view| view.mounted);
                if mounted {
                    stopped.unmount_all(lazy)?;
                }
                if stays || !mounted {
                    // Nothing is mounted that could end it; who asks wants the daemon to end.
                    let end = if lazy && mounted { Wakeup::Leave } else { Wakeup::Terminate };
                    _ = wakeups.lock().send(end);
                }
                Ok(())
            }),
        }
    }

    /// Serves until nothing is mounted any more, or until it is told to end.
    fn serve(&self) {
        let every = notify::watchdog_interval().unwrap_or(LOOK).min(LOOK);
        let (mut told_to_end, mut leaves) = (None::<Instant>, false);
        let mut orphans = orphans::Orphans::default();
        loop {
            orphans.look();
            if (leaves || told_to_end.is_some()) && self.hots.is_empty() {
                self.hots.close();
                return;
            }
            if told_to_end.is_some_and(|at| at.elapsed() >= DRAIN) {
                // Somebody in another mount namespace holds a copy of the mount, and a file in it; our end is theirs.
                tracing::warn!("still in use elsewhere; its users are cut off");
                self.hots.close();
                return;
            }
            for slot in self.hots.abandoned() {
                tracing::info!("unmounted here; another mount namespace has a copy, which ends now");
                if !self.stays {
                    return;
                }
                self.hots.end_copies(slot);
                self.remove(slot);
            }
            for (_, event) in self.events.try_iter() {
                tracing::debug!(?event);
                match event {
                    Event::OutageBegan { since, .. } => self.hots.outage(Some(since)),
                    Event::Recovered { .. } => self.hots.outage(None),
                    _ => {}
                }
                notify::status(&self.watch.snapshot());
            }
            match self.inbox.recv_timeout(every) {
                Ok(Wakeup::Unmounted(slot, result)) => {
                    self.hots.ended(slot, &result);
                    if !self.stays {
                        return;
                    }
                    self.remove(slot);
                }
                Ok(Wakeup::Terminate) => {
                    told_to_end.get_or_insert_with(Instant::now);
                    self.hots.terminate();
                }
                Ok(Wakeup::Leave) => leaves = true,
                Ok(Wakeup::Retry) => self.retry_now(),
                // Asking for the load takes the gate's lock: a gate that is stuck keeps the watchdog silent.
                Err(RecvTimeoutError::Timeout) if self.gate.load().threads < usize::MAX => notify::alive(),
                Err(_) => return,
            }
        }
    }

    /// Forgets an overlay, in a thread of its own: what is uncommitted may take a while.
    fn remove(&self, slot: u32) {
        let hots = Arc::clone(&self.hots);
        let remove = move || hots.remove(slot);
        if let Err(error) = std::thread::Builder::new().name("detach".into()).spawn(remove) {
            tracing::warn!(%error, "no thread to detach an overlay with");
            self.hots.remove(slot);
        }
    }

    fn stop(&self) {
        let until = Instant::now() + DRAIN;
        while self.gate.load().waiting > 0 && !self.gate.in_outage() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.hots.finish(Instant::now() + COMMIT);
        self.hots.end();
        self.gate.stop();
        self.supervisor.get().inspect(|supervisor| supervisor.stop());
    }
}
