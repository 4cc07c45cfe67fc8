//! What callers are shown of a file's attributes, and of the space there is: as the backing has it, or as the overlay is told to
//! (`owner=`, `umask=`, `statfs=local`).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, Generation as NodeGeneration};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;

use super::convert::file_attr;
use super::{Overlay, is_hidden};
use crate::backing::{Attr, FileKind, OpResult, StatFs, Tree};
use crate::config::{OverlayConfig, StatfsFrom};
use crate::gate::Context;
use crate::gate::policy::raises_doubt;

/// What statfs(2) gives before anybody has said how much there is: 1000 GiB and all of it free, as sshfs shows a server that does
/// not say (sshfs_statfs in sshfs.c). Nothing can be divided by zero; and "full" would have programs delete what they need, or
/// give up, where the write itself waits for the backing or says what is wrong.
const UNKNOWN_SPACE: StatFs = StatFs {
    blocks: (1000 << 30) / 4096,
    blocks_free: (1000 << 30) / 4096,
    blocks_available: (1000 << 30) / 4096,
    files: 1_000_000_000,
    files_free: 1_000_000_000,
    block_size: 4096,
    name_max: 255,
    fragment_size: 4096,
};

/// What of an overlay's options may change while it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Appearance {
    /// How long the kernel may believe attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may believe names.
    pub entry_timeout: Duration,
    /// The same of what others change; never if nobody else changes anything.
    pub others_within: Option<Duration>,
    owner: Option<(u32, u32)>,
    umask: Option<u32>,
}

impl Appearance {
    /// For a backing whose answers may be that old.
    pub fn of(config: &OverlayConfig, remembers: Duration) -> Appearance {
        let OverlayConfig { attr_timeout, owner, umask, .. } = *config;
        let (attr_timeout, entry_timeout) =
            (attr_timeout.saturating_sub(remembers), config.entry_timeout().saturating_sub(remembers));
        let others_within = (config.attr_timeout < OverlayConfig::EXCLUSIVE).then_some(attr_timeout);
        Appearance { attr_timeout, entry_timeout, others_within, owner, umask }
    }

    /// True if owners and permissions are shown as the backing has them.
    pub fn is_backings(&self) -> bool {
        self.owner.is_none() && self.umask.is_none()
    }
}

/// The local filesystem below a mountpoint. Its figures are asked for by [`Overlay::look_at_local_space`] alone, so that no call
/// waits for it.
#[derive(Debug, Clone)]
pub(super) struct LocalSpace(Arc<OwnedFd>);

impl LocalSpace {
    /// Of an overlay that is to show it.
    pub fn wanted(config: &OverlayConfig, mountpoint: &Path) -> Option<LocalSpace> {
        let opened = (config.statfs == StatfsFrom::Local).then(|| LocalSpace::of(mountpoint))?;
        opened.inspect_err(|error| tracing::error!(%error, "statfs=local: the directory above cannot be opened")).ok()
    }

    /// By the directory above the mountpoint, which the overlay does not cover.
    pub fn of(mountpoint: &Path) -> OpResult<LocalSpace> {
        let above = mountpoint.parent().unwrap_or(mountpoint);
        open(above, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map(|opened| LocalSpace(Arc::new(opened)))
    }

    fn figures(&self) -> OpResult<StatFs> {
        let found = fstatvfs(&self.0)?;
        Ok(StatFs {
            blocks: found.blocks(),
            blocks_free: found.blocks_free(),
            blocks_available: found.blocks_available(),
            files: found.files(),
            files_free: found.files_free(),
            block_size: u32::try_from(found.block_size()).unwrap_or(4096),
            fragment_size: u32::try_from(found.fragment_size()).unwrap_or(4096),
            name_max: u32::try_from(found.name_max()).unwrap_or(255),
        })
    }
}

impl Overlay {
    /// As it is at present.
    pub(super) fn appearance(&self) -> Appearance {
        *self.appearance.read()
    }

    /// Takes over what may change while it is mounted. What the kernel remembers by then lives out its time.
    pub fn change_appearance(&self, config: &OverlayConfig, mountpoint: &Path) {
        *self.appearance.write() = Appearance::of(config, self.traits.remembers);
        *self.local_space.lock() = LocalSpace::wanted(config, mountpoint);
        self.look_at_local_space();
    }

    /// A node's attributes for the kernel, which checks permissions by them.
    pub(super) fn shown(&self, node: u64, attr: &Attr) -> FileAttr {
        let mut shown = file_attr(node, attr);
        shown.nlink = shown.nlink.max(self.known_links(node, attr.kind));
        let seen = self.appearance();
        if let Some((uid, gid)) = seen.owner {
            (shown.uid, shown.gid) = (uid, gid);
        }
        if let Some(umask) = seen.umask {
            shown.perm &= !u16::try_from(umask & 0o777).unwrap_or(0);
        }
        shown
    }

    /// Which of the lives of its id a node is, as the kernel is told.
    pub(super) fn life(&self, node: u64) -> NodeGeneration {
        NodeGeneration(self.nodes.life(node).into())
    }

    /// Names that a file has to our knowledge, where the backing may not know all of them: sshfs says 1 of each. Hidden ones
    /// are no links for anybody else.
    fn known_links(&self, node: u64, kind: FileKind) -> u32 {
        if self.traits.stable_inodes || kind == FileKind::Directory {
            return 0;
        }
        u32::try_from(self.nodes.count_names(node, |name| !is_hidden(name))).unwrap_or(u32::MAX)
    }

    /// Attributes of a file by one of its names. A backing that remembers attributes by name learns of a change by that alone
    /// by which it is made, so of a file with several it is asked by that one; see [`Overlay::last_look`] if that has gone.
    pub(super) fn as_led(&self, context: &Context<'_>, parent: u64, name: &OsStr, attr: Attr) -> OpResult<Attr> {
        match self.nodes.led_elsewhere(parent, name) {
            Some(node) => match self.on_path(context, node, |tree, path| tree.stat(path)) {
                Ok(found) if found.kind == attr.kind => Ok(self.as_kept(Some(node), found)),
                Err(error) if raises_doubt(error) => Err(error),
                _ => Ok(attr),
            },
            None => Ok(self.as_kept(self.nodes.node(parent, name), attr)),
        }
    }

    /// The same of a node, by what was kept of it.
    pub(super) fn as_kept(&self, node: Option<u64>, attr: Attr) -> Attr {
        node.and_then(|node| self.nodes.kept(node)).filter(|kept| kept.kind == attr.kind).unwrap_or(attr)
    }

    /// Before a name is taken away: if it is the one of several by which the file was changed last, what it says of the file,
    /// for `Nodes::keep` once it has gone: [`Overlay::keep_last`].
    pub(super) fn last_look(&self, tree: &dyn Tree, (parent, name): (u64, &OsStr), path: &Path) -> Option<(u64, Attr)> {
        let node = self.nodes.led_by(parent, name)?;
        Some((node, tree.stat(path).ok()?))
    }

    /// The name that was looked at last has gone.
    pub(super) fn keep_last(&self, last: Option<(u64, Attr)>) {
        if let Some((node, attr)) = last {
            self.nodes.keep(node, attr);
        }
    }

    /// What of a change of owner is left to do. EPERM if it is to be another one than the one that is always shown.
    pub(super) fn owner_to_set(&self, uid: Option<u32>, gid: Option<u32>) -> OpResult<(Option<u32>, Option<u32>)> {
        match self.appearance().owner {
            None => Ok((uid, gid)),
            Some((own_uid, own_gid))
                if uid.is_none_or(|uid| uid == own_uid) && gid.is_none_or(|gid| gid == own_gid) =>
            {
                Ok((None, None))
            }
            Some(_) => Err(Errno::EPERM),
        }
    }

    /// ESTALE if the directory of the backing that the overlay shows is not there: then nothing that is not found is gone, and
    /// programs must not be told so. sshfs answers it from its cache as a rule.
    pub(super) fn expect_root(&self, context: &Context<'_>) -> OpResult<()> {
        if self.base.as_os_str().is_empty() || context.generation.tree().stat(&self.base) != Err(Errno::ENOENT) {
            return Ok(());
        }
        Err(Errno::ESTALE)
    }

    /// Figures of space as they were last, or something that makes sense as long as nobody has said any.
    pub(super) fn known_space(&self) -> StatFs {
        self.last_statfs.lock().unwrap_or(UNKNOWN_SPACE)
    }

    /// Where figures of space are the local filesystem's, asks it for them. May block as long as that does: for a thread that
    /// nobody waits for, now and then.
    pub fn look_at_local_space(&self) {
        let Some(local) = self.local_space.lock().clone() else { return };
        match local.figures() {
            Ok(figures) => *self.last_statfs.lock() = Some(figures),
            Err(error) => tracing::debug!(%error, "the local filesystem does not say how much space it has"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_space_is_that_of_the_directory_above() {
        let figures = LocalSpace::of(Path::new("/proc/self")).expect("opened").figures().expect("asked");
        assert_eq!(figures.blocks, 0, "proc has no blocks");
        let dir = tempfile::tempdir().expect("a directory");
        let figures = LocalSpace::of(&dir.path().join("hot")).expect("opened").figures().expect("asked");
        assert!(figures.blocks > 0 && figures.name_max > 0);
    }
}
