//! What somebody sets to last: times, setuid, setgid, capabilities, flags. A write that is sent again after a repair would change
//! or take it away, or find that the file may not be written any more. So what is unstable of a file when such a call comes is
//! committed first, as by fsync(2), and the call may take as long.

use std::sync::Arc;

use super::Overlay;
use super::files::LOST_FILE;
use super::inodes::Inode;
use crate::backing::OpResult;
use crate::gate::{Class, Context};

/// What is to be committed before a call does its own.
pub(super) struct First(Option<Arc<Inode>>);

impl First {
    /// The class of the call.
    pub fn class(&self) -> Class {
        if self.0.is_some() { Class::Sync } else { Class::Meta }
    }
}

impl Overlay {
    /// To be asked when a call arrives; `lasting` says that it sets something of a node that is to last. What is written from
    /// now on is written at the same time as far as anybody can tell, so it may change that, as on any filesystem.
    pub(super) fn first(&self, node: u64, lasting: bool) -> First {
        First(self.inodes.get(node).filter(|inode| lasting && !inode.is_clean()))
    }

    /// Commits it. What a live backing refuses, or has another file in the place of, is for fsync and close to tell.
    pub(super) fn commit_first(&self, context: &Context<'_>, first: &First) -> OpResult<()> {
        let Some(inode) = &first.0 else { return Ok(()) };
        match self.commit(context, inode, false) {
            Err(error) if error == LOST_FILE || inode.refusal().is_some() => Ok(()),
            result => result,
        }
    }
}
