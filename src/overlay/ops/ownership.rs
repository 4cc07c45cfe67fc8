//! Whose a new file is, and what its permissions are.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use crate::backing::{Attr, FileKind, OpResult, Tree};
use crate::gate::policy::raises_doubt;
use crate::overlay::Overlay;
use crate::overlay::asked::Caller;

/// The permissions with which somebody makes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    /// The mode of the call, type bits included where the call has them.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
}

/// The ACL of a file (acl(5)).
const ACCESS_ACL: &str = "system.posix_acl_access";
/// The ACL that a directory gives to what is made in it (xattr(7), acl(5)).
const DEFAULT_ACL: &str = "system.posix_acl_default";

impl Overlay {
    /// True if files have the callers' owners and permissions.
    pub fn has_owners(&self) -> bool {
        self.traits.owners
    }

    /// True if an attribute is an ACL and the kernel, which checks permissions by them, is not to know of any: beside owners and
    /// permissions that are not the backing's they would mean something else.
    pub(super) fn hides_acl(&self, name: &OsStr) -> bool {
        is_acl(name) && !self.appearance().is_backings()
    }

    /// The mode with which a file is made on the backing: less the caller's umask, unless the directory has a default ACL, which
    /// takes the umask's place (acl(5)) and is applied by the backing.
    pub(super) fn mode_of(&self, asking: Asking, tree: &dyn Tree, path: &Path) -> OpResult<u32> {
        let Asking { mode, umask } = asking;
        let masked = mode & !(umask & 0o777);
        if masked == mode || !self.traits.owners {
            return Ok(masked);
        }
        match tree.get_xattr(directory_of(path), OsStr::new(DEFAULT_ACL)) {
            Ok(_) => Ok(mode),
            Err(error) if raises_doubt(error) => Err(error),
            // None, or a filesystem that has none.
            Err(_) => Ok(masked),
        }
    }

    /// Gives what was made to the caller, where the backing has owners, and returns its attributes. The group stays if
    /// the directory passes its own on (setgid, inode(7)). Where the backing refuses, the owner stays as it is.
    pub(super) fn give_to_caller(&self, caller: Caller, tree: &dyn Tree, path: &Path) -> OpResult<Attr> {
        let attr = tree.stat(path)?;
        if !self.traits.owners
            || (attr.uid == caller.uid && attr.gid == caller.gid)
            || !nix::unistd::geteuid().is_root()
        {
            return Ok(attr);
        }
        let parent = tree.stat(directory_of(path))?;
        let gid = if u32::from(parent.perm) & libc::S_ISGID != 0 { attr.gid } else { caller.gid };
        if (attr.uid, attr.gid) == (caller.uid, gid) {
            return Ok(attr);
        }
        match tree.set_owner(path, Some(caller.uid), Some(gid)) {
            Ok(()) => {}
            // It is made, and to fail now would leave it behind: on such a backing files are not the caller's.
            Err(Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => return Ok(attr),
            Err(error) => return Err(error),
        }
        // chown(2) takes setuid and setgid away.
        let special = u32::from(attr.perm) & (libc::S_ISUID | libc::S_ISGID);
        if special != 0 && attr.kind != FileKind::Symlink {
            tree.set_mode(path, u32::from(attr.perm))?;
        }
        tree.stat(path)
    }
}

/// One of the two by which the kernel checks permissions where there are owners (FUSE_POSIX_ACL).
pub(super) fn is_acl(name: &OsStr) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
