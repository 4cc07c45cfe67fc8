//! Lists of access (acl(5)), where the backing has any: the kernel reads and obeys them, and the backing passes them on to what is
//! made in a directory. What is left to do here is the umask.

use std::ffi::OsStr;
use std::path::Path;

use crate::backing::Tree;
use crate::overlay::Overlay;

/// The attribute that holds what a directory passes on.
const DEFAULT_LIST: &str = "system.posix_acl_default";

impl Overlay {
    /// True if files may have lists of access: where they have owners.
    pub(in crate::overlay) fn has_access_lists(&self) -> bool {
        self.traits.owners
    }

    /// The mode that something is to be made with: without what the umask takes away, unless its directory has a default list.
    pub(super) fn masked(&self, tree: &dyn Tree, path: &Path, mode: u32, umask: u32) -> u32 {
        let directory = path.parent().unwrap_or(Path::new(""));
        // Not asked for where it makes no difference.
        let is_passed_on =
            umask & mode != 0 && self.has_access_lists() && tree.get_xattr(directory, OsStr::new(DEFAULT_LIST)).is_ok();
        if is_passed_on { mode } else { mode & !umask }
    }
}
