//! The mounted hot path: FUSE protocol, node ids and handles. No policy: every call that needs the backing goes
//! through the [`crate::gate`].

mod adapter;
mod append;
mod asked;
mod closer;
mod commit;
mod convert;
pub mod files;
mod gather;
mod heirlooms;
pub(crate) mod hidden_journal;
mod inodes;
mod lasting;
pub mod mount;
pub mod nodes;
mod notices;
mod ops;
mod recount;
mod refuse;
mod removed;
mod replaced;
pub mod rescue;
mod restore;
mod resume;
mod session;
mod settle;
mod shown;
mod sweep;
mod unsynced;
mod warm;

use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::backing::{Attr, OpResult, StatFs, Traits, Tree};
use crate::config::{HotPath, OverlayConfig};
use crate::gate::{Class, Context, Gate, Op, Terms};
use crate::handover::{Grant, Notes};
use crate::log::Budget;
pub(crate) use adapter::MAX_WRITE;
use asked::Asked;
use files::Files;
pub use files::RestoreReport;
use gather::Gather;
use heirlooms::Heirlooms;
pub use heirlooms::Trustee;
use hidden_journal::HiddenJournal;
use inodes::Inodes;
use nodes::{Name, Nodes};
pub use notices::Notices;
use ops::directories::Directories;
use recount::Recount;
use refuse::Resending;
use removed::Removed;
use replaced::Replaced;
use rescue::Rescue;
pub use resume::Before;
pub use session::{Device, Greeting, run as run_session};
use shown::{Appearance, LocalSpace};
use unsynced::Unsynced;

/// Names that steadfs gives to files that are unlinked while open, see [`Overlay::hides`].
const HIDDEN: &str = ".steadfs-hidden-";
/// What libfuse does for the same reason where steadfs did not let go of a file in time; a dead sshfs leaves them behind.
const LIBFUSE_HIDDEN: &str = ".fuse_hidden";

/// Figures of one overlay, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Open files.
    pub open_files: usize,
    /// Open directories.
    pub open_dirs: usize,
    /// Nodes that the kernel holds.
    pub nodes: usize,
    /// Bytes that the write log keeps, and the most it may keep.
    pub log_bytes: u64,
    /// See `log_bytes`.
    pub log_limit: u64,
    /// Files with uncommitted changes.
    pub dirty_files: usize,
    /// Bytes that were sent again after repairs.
    pub replayed_bytes: u64,
    /// Files whose changes went to the spool, and files whose changes did not fit there.
    pub spooled_files: u64,
    /// See `spooled_files`.
    pub lost_files: u64,
}

/// Of several overlays together.
impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Counts>>(all: I) -> Counts {
        all.fold(Counts::default(), |sum, one| Counts {
            open_files: sum.open_files + one.open_files,
            open_dirs: sum.open_dirs + one.open_dirs,
            nodes: sum.nodes + one.nodes,
            log_bytes: sum.log_bytes + one.log_bytes,
            log_limit: sum.log_limit + one.log_limit,
            dirty_files: sum.dirty_files + one.dirty_files,
            replayed_bytes: sum.replayed_bytes + one.replayed_bytes,
            spooled_files: sum.spooled_files + one.spooled_files,
            lost_files: sum.lost_files + one.lost_files,
        })
    }
}

/// One overlay.
pub struct Overlay {
    gate: Arc<Gate>,
    traits: Traits,
    appearance: RwLock<Appearance>,
    /// Directory of the backing that is shown; empty for its root.
    base: PathBuf,
    /// Whose figures statfs(2) gives, if not the backing's.
    local_space: Mutex<Option<LocalSpace>>,
    nodes: Nodes,
    files: Files,
    inodes: Inodes,
    budget: Budget,
    /// Unless every write is sent by itself.
    gather: Option<Gather>,
    rescue: Rescue,
    replayed_bytes: AtomicU64,
    directories: Directories,
    last_root: Mutex<Option<Attr>>,
    last_statfs: Mutex<Option<StatFs>>,
    hidden: AtomicU64,
    hidden_journal: HiddenJournal,
    notices: OnceLock<Notices>,
    notes: Notes,
    /// What a predecessor granted to requests that it did not answer, by unique.
    granted: Mutex<HashMap<u64, Vec<Grant>>>,
    resending: Resending,
    replaced: Replaced,
    removed: Removed,
    heirlooms: Heirlooms,
    recount: Mutex<Option<Recount>>,
    unsynced: Unsynced,
    /// Hidden names that a predecessor died over giving to open files, until that is settled.
    given: Mutex<Vec<Name>>,
}

impl Overlay {
    /// An overlay whose calls go through `gate` to a backing with these traits. It keeps up to `log_size` bytes of
    /// uncommitted changes; `rescue` gets what cannot be sent again. It ends with this process.
    pub fn new(gate: Arc<Gate>, traits: Traits, config: OverlayConfig, log_size: u64, rescue: Rescue) -> Arc<Overlay> {
        let hot = HotPath { mountpoint: PathBuf::new(), path: PathBuf::new(), overlay: config, slot: 0 };
        Overlay::noting(gate, traits, hot, log_size, rescue, Notes::nowhere())
    }

    /// As [`Overlay::new`]; what a successor has to know is noted.
    pub fn noting(
        gate: Arc<Gate>,
        traits: Traits,
        hot: HotPath,
        log_size: u64,
        rescue: Rescue,
        notes: Notes,
    ) -> Arc<Overlay> {
        let HotPath { mountpoint, path: base, overlay: config, .. } = hot;
        let local_space = Mutex::new(LocalSpace::wanted(&config, &mountpoint));
        let overlay = Arc::new_cyclic(|myself| Overlay {
            gather: Gather::start(config.gather, myself.clone()),
            gate,
            traits,
            appearance: RwLock::new(Appearance::of(&config, traits.remembers)),
            nodes: Nodes::new(traits.stable_inodes, base.clone(), notes.clone()).remembering(traits.remembers),
            base,
            local_space,
            files: Files::new(notes.clone()),
            inodes: Inodes::new(notes.clone()),
            budget: Budget::new(log_size),
            rescue,
            replayed_bytes: AtomicU64::new(0),
            directories: Directories::new(notes.clone()),
            last_root: Mutex::default(),
            last_statfs: Mutex::default(),
            hidden: AtomicU64::new(0),
            hidden_journal: HiddenJournal::default(),
            notices: OnceLock::new(),
            notes,
            granted: Mutex::default(),
            resending: Resending::default(),
            replaced: Replaced::default(),
            removed: Removed::default(),
            heirlooms: Heirlooms::default(),
            recount: Mutex::default(),
            unsynced: Unsynced::default(),
            given: Mutex::default(),
        });
        overlay.look_at_local_space();
        overlay
    }

    /// Present figures.
    pub fn counts(&self) -> Counts {
        let (spooled_files, lost_files) = self.rescue.counts();
        Counts {
            open_files: self.files.count(),
            open_dirs: self.directories.count(),
            nodes: self.nodes.count(),
            log_bytes: self.budget.used(),
            log_limit: self.budget.limit(),
            dirty_files: self.inodes.dirty().len(),
            replayed_bytes: self.replayed_bytes.load(Relaxed),
            spooled_files,
            lost_files,
        }
    }

    /// Serves the kernel's requests on `device` until nothing is mounted any more. `initialised` is called when the
    /// kernel has begun the session (FUSE_INIT).
    pub fn serve(self: &Arc<Self>, device: OwnedFd, initialised: impl FnOnce()) -> io::Result<()> {
        let session = self.begin_session(Device::new(device), None, |_, _| Ok(()))?;
        initialised();
        run_session(session)
    }

    fn submit<T: Send + 'static>(
        self: &Arc<Self>,
        asked: Asked,
        op: Op,
        class: Class,
        mut work: impl FnMut(&Overlay, &Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(&Overlay, OpResult<T>) + Send + 'static,
    ) {
        let (worker, replier) = (Arc::clone(self), Arc::clone(self));
        let work = move |context: &Context<'_>| work(&worker, context);
        self.submit_on(asked, Terms::of(op, class), work, move |result| reply(&replier, result));
    }

    /// Submits the call that a request asks for. It is in flight until `reply` has answered.
    fn submit_on<T: Send + 'static>(
        &self,
        asked: Asked,
        terms: Terms,
        work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        let terms = Terms { in_doubt: asked.again(), ..terms };
        self.gate.submit_on(terms, work, move |result| {
            reply(result);
            drop(asked);
        });
    }

    /// Runs `call` on a node's path, again if the path turns out to have led to nothing or to another file, because of a
    /// rename meanwhile or because one of several names is dead. A file that is not there any more gives ENOENT here and
    /// ESTALE in the answer: see [`convert::node_errno`].
    fn on_path<T>(
        &self,
        context: &Context<'_>,
        node: u64,
        call: impl Fn(&dyn Tree, &Path) -> OpResult<T>,
    ) -> OpResult<T> {
        loop {
            let (path, stamp) = self.nodes.path(node)?;
            let result = call(context.generation.tree(), &path);
            let again = match &result {
                Ok(_) => !self.nodes.was_at(node, &path, stamp, context.deadline),
                Err(error) if is_lost(*error) => {
                    self.nodes.has_moved_since(stamp, &[node], context.deadline)
                        || self.nodes.not_found_at(node, &path, stamp)
                }
                Err(_) => false,
            };
            if !again || Instant::now() >= context.deadline {
                return result;
            }
        }
    }

    /// As [`Overlay::on_path`], for a name in a directory.
    fn on_name<T>(
        &self,
        context: &Context<'_>,
        parent: u64,
        name: &OsStr,
        call: impl Fn(&dyn Tree, &Path) -> OpResult<T>,
    ) -> OpResult<T> {
        self.retried(context, &[parent], || self.nodes.path_of(parent, name), |tree, path| call(tree, path))
    }

    /// Runs `call` on what `resolve` made of `nodes`, again if it did not find it and one of them has moved meanwhile.
    fn retried<P, T>(
        &self,
        context: &Context<'_>,
        nodes: &[u64],
        resolve: impl Fn() -> OpResult<(P, nodes::Stamp)>,
        call: impl Fn(&dyn Tree, &P) -> OpResult<T>,
    ) -> OpResult<T> {
        loop {
            let (place, stamp) = resolve()?;
            let result = call(context.generation.tree(), &place);
            let lost = result.as_ref().is_err_and(|error| is_lost(*error));
            let again = lost && self.nodes.has_moved_since(stamp, nodes, context.deadline);
            if !again || Instant::now() >= context.deadline {
                return result;
            }
        }
    }

    /// A name for a file that is unlinked while open, in the same directory so that it can be renamed to.
    fn hidden_name(&self) -> OsString {
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |at| at.as_nanos());
        format!("{HIDDEN}{at:024x}{:08x}", self.hidden.fetch_add(1, Relaxed)).into()
    }

    /// True for a name that is not shown and cannot be asked for: one that is steadfs's or libfuse's by its looks. Where files
    /// live on without a name nobody makes such, and only one that was made before that was known is none like any other.
    fn hides(&self, name: &OsStr) -> bool {
        is_hidden(name) && (!self.traits.keeps_unlinked || self.hidden_journal.has(name))
    }
}

/// True if nothing was found where it should be.
fn is_lost(error: Errno) -> bool {
    matches!(error, Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE)
}

/// True for names that look like those of steadfs, and those that libfuse gives to what sshfs has open.
fn is_hidden(name: &OsStr) -> bool {
    [HIDDEN, LIBFUSE_HIDDEN].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}
