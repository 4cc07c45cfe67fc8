//! Going on where a steadfs that died has left off (promise P6).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{Filesystem, Session};
use nix::errno::Errno;

use super::Overlay;
use super::adapter::Adapter;
use super::refuse::resends;
use super::session::{Device, Greeting, READERS};
use crate::handover::slots::RESENT;
use crate::handover::{Grant, Inherited, Picture};

/// How a session began, and what else is known of the predecessor that served it.
pub type Before = (Greeting, Option<Box<Inherited>>);

impl Overlay {
    /// Takes up what a predecessor had noted: names, handles, write logs. To be called before the gate opens and before
    /// [`Overlay::begin_session`].
    pub fn resume(&self, inherited: &Inherited) {
        let picture = &inherited.picture;
        self.nodes.resume(picture);
        self.inodes.resume(&self.budget, picture, |node| self.nodes.hold(node));
        self.files.resume_after(picture.counters.handle);
        for (&handle, file) in &picture.files {
            let inode = if file.lost {
                self.inodes.lost(file.node)
            } else {
                self.inodes.enter(file.node, || self.nodes.hold(file.node))
            };
            self.nodes.opened(file.node);
            self.files.resume(handle, file.flags, file.told, inode);
        }
        // Of some the predecessor died before it noted that nobody needs them any more.
        for inode in self.inodes.all() {
            if self.inodes.forget_if_idle(&inode) {
                self.nodes.closed(inode.node);
            }
        }
        self.directories.resume(picture);
        self.nodes.resumed();
        self.heirlooms.resume(inherited);
        *self.granted.lock() = grants(inherited);
    }

    /// Goes on without knowing what a predecessor had noted: its handles fail, and its nodes are looked up again.
    pub fn resume_blind(&self) {
        let above = blind_base();
        self.nodes.resume_blind(above);
        self.files.resume_after(above);
        self.directories.resume_after(above);
    }

    /// Begins the session on `device`, or goes on with one that a predecessor began: what that had read and not answered is
    /// done when the session runs, or answered with an error where the kernel cannot send it again. `begun` is told before
    /// that how it began.
    pub fn begin_session(
        self: &Arc<Self>,
        device: Device,
        before: Option<Before>,
        begun: impl FnOnce(&Device, &Greeting) -> io::Result<()>,
    ) -> io::Result<Session<impl Filesystem>> {
        let Some((greeting, inherited)) = before else {
            let (session, greeting) = device.begin(Adapter(Arc::clone(self), None))?;
            self.resending.works(resends(&greeting));
            begun(&device, &greeting)?;
            return Ok(session);
        };
        // It has to be known which request is the first, see `Resending`.
        let readers = if resends(&greeting) || inherited.is_some() { READERS } else { 1 };
        let adapter = Adapter(Arc::clone(self), Some(greeting.agreed()));
        let session = device.go_on(adapter, &greeting, readers)?;
        begun(&device, &greeting)?;
        let sent_again = match if resends(&greeting) { device.resend() } else { Err(Errno::EINVAL.into()) } {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            result => result.map(|()| true)?,
        };
        self.resending.works(sent_again);
        if inherited.is_some() {
            self.recount_later(&device)?;
        }
        if !sent_again {
            match inherited {
                Some(inherited) => self.refuse_known(&device, &inherited)?,
                None => self.resending.refuse_unknown(&device)?,
            }
        }
        Ok(session)
    }

    /// What a predecessor had in flight has been sent again by now, or never will be: what is kept for it is forgotten.
    pub fn resending_is_over(&self) {
        self.granted.lock().clear();
        if let Some(memory) = self.notes.memory() {
            memory.requests().forget_leftovers();
        }
    }

    /// The kernel never got what was granted to that request.
    pub(super) fn take_back(self: &Arc<Self>, unique: u64) {
        for grant in self.granted.lock().remove(&(unique & !RESENT)).into_iter().flatten() {
            match grant {
                Grant::Lookups { node, count } => self.nodes.forget(node, count),
                Grant::File(handle) => {
                    if let Some(file) = self.files.remove(handle) {
                        self.let_handle_go(file);
                    }
                }
                Grant::Directory(handle) => self.directories.remove(handle),
            }
        }
    }
}

/// What was granted to requests that may be unanswered, by unique.
fn grants(inherited: &Inherited) -> HashMap<u64, Vec<Grant>> {
    let Picture { nodes, files, directories, .. } = &inherited.picture;
    let mut grants: HashMap<u64, Vec<Grant>> =
        inherited.requests.iter().map(|request| (request.unique & !RESENT, Vec::new())).collect();
    let mut add = |by: u64, grant: Grant| {
        if let Some(granted) = grants.get_mut(&(by & !RESENT)).filter(|_| by != 0) {
            granted.push(grant);
        }
    };
    for (&node, found) in nodes {
        let (by, count) = found.by;
        add(by, Grant::Lookups { node, count: count.min(found.lookups) });
    }
    files.iter().for_each(|(&handle, file)| add(file.by, Grant::File(handle)));
    directories.iter().for_each(|(&handle, directory)| add(directory.by, Grant::Directory(handle)));
    grants
}

/// More than any number that a predecessor can have given out: it counted from 1, or from such a number of an earlier time.
fn blind_base() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() << 24
}
