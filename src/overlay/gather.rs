//! Gathering: small appends are acknowledged at once, held back for a moment, and handed to the backing together.
//!
//! A held write is in the log like any other that is unstable, so that replay, spool and bound need not know of it. It
//! is handed over when it is `gather` old, when the next one would make it too large, and before anything that could
//! show that it was not: [`Overlay::prepare`] does that for changes, commits and reads, [`Overlay::show`] for the rest.

mod dues;

use std::ffi::OsStr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Overlay;
use super::append::Place;
use super::commit::{is_refused, write_all};
use super::files::{LOST_FILE, OpenFile};
use super::inodes::{Inode, Order};
use crate::backing::{Attr, FileKind, OpResult};
use crate::gate::{Class, Context, Op};
use dues::Dues;

/// What could not be handed over when it was due is tried again after that long.
const AGAIN: Duration = Duration::from_secs(1);
/// Stack of the thread that waits for what is due in bytes; it only submits calls.
const STACK: usize = 128 << 10;

/// Sees to it that nothing is held back for longer than `gather`.
pub struct Gather {
    limit: Duration,
    dues: Arc<Dues<Inode>>,
}

impl Gather {
    /// For that overlay; `None` if nothing is to be held back, or cannot be for want of a thread.
    pub fn start(limit: Duration, overlay: Weak<Overlay>) -> Option<Gather> {
        if limit.is_zero() {
            return None;
        }
        let gather = Gather { limit, dues: Arc::default() };
        let dues = Arc::clone(&gather.dues);
        let hand_over = move || {
            while let Some(inode) = dues.next() {
                match overlay.upgrade() {
                    Some(overlay) => overlay.hand_over_due(inode),
                    None => break,
                }
            }
        };
        match std::thread::Builder::new().name("gather".into()).stack_size(STACK).spawn(hand_over) {
            Ok(_) => Some(gather),
            Err(error) => {
                tracing::warn!(%error, "no thread to gather small writes; each is sent by itself");
                None
            }
        }
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        self.dues.end();
    }
}

impl Overlay {
    /// Acknowledges a write in this thread if it may be held back; `None` if it has to be submitted. Never waits.
    pub(super) fn write_at_once(&self, file: &OpenFile, place: Place, data: &mut Vec<u8>) -> Option<usize> {
        self.gather.as_ref()?;
        let length = data.len();
        let order = file.inode.order_now()?;
        self.gate.at_once(Op::Write, |generation| {
            let offset = match place {
                Place::At(offset) => offset,
                Place::End { believed, .. } => {
                    file.inode.end_to_append_at(believed, self.appearance().others_within)?
                }
            };
            let place = (offset, place.is_end());
            let taken = self.budget.has_room(length as u64) && self.hold_back(file, generation, place, data, &order);
            taken.then_some(length)
        })
    }

    /// Holds a write back if it may be; true if it was taken in. With its offset comes whether it is an append.
    pub(super) fn hold_back(
        &self,
        file: &OpenFile,
        generation: u64,
        place: (u64, bool),
        data: &mut Vec<u8>,
        order: &Order<'_>,
    ) -> bool {
        let Some(gather) = self.gather.as_ref().filter(|_| !file.is_synchronous()) else { return false };
        match file.inode.hold_back(&self.budget, generation, place, data, order) {
            Some(first) => {
                if first {
                    gather.dues.add(Instant::now() + gather.limit, &file.inode);
                }
                true
            }
            None => false,
        }
    }

    /// Hands over what is held back of a file, to a generation that has seen everything else. What a live backing refuses is
    /// sent again with everything else that is unstable, and the answer to that counts, as after a commit.
    pub(super) fn hand_over(&self, context: &Context<'_>, inode: &Arc<Inode>, order: &Order<'_>) -> OpResult<()> {
        if inode.held_since().is_none() {
            return Ok(());
        }
        let generation = &**context.generation;
        let whole = self.place_held(context, inode).and_then(|()| {
            let Some((from, data)) = inode.with_log(&self.budget, |log| log.hand_over()) else { return Ok(true) };
            let writer = self.writer(generation, inode)?;
            context.sends_for_others(data.len() as u64);
            let written = match write_all(&**writer.descriptor, &data, from)? {
                0 => return Err(Errno::EIO),
                written => written,
            };
            let end = from + written as u64;
            let seen = inode.with_log(&self.budget, |log| log.handed_over(generation.number(), end));
            Ok(seen.is_ok() && written == data.len())
        });
        match whole {
            Ok(true) => Ok(()),
            // The rest of it, or everything if a commit has failed meanwhile.
            Ok(false) => self.prepare(context, inode, order),
            Err(error) if is_refused(generation, error) => {
                inode.with_log(&self.budget, |log| log.send_again());
                self.prepare(context, inode, order)
            }
            Err(error) => Err(error),
        }
    }

    /// Hands over what is held back of a file, which is due.
    fn hand_over_due(self: &Arc<Self>, inode: Arc<Inode>) {
        let Some(gather) = &self.gather else { return };
        let (now, since) = (Instant::now(), inode.held_since());
        match since.map(|since| since + gather.limit) {
            // That was handed over already, and what came later is due by itself.
            None => return,
            Some(at) if at > now => return,
            Some(_) => {}
        }
        let (worker, after, tried) = (Arc::clone(self), Arc::clone(self), Arc::clone(&inode));
        self.gate.submit(
            Op::Write,
            Class::Data,
            inode.held_bytes(),
            move |context| {
                // The hand-over counts what it sends, which may be more by then.
                context.keeps_its_payload();
                let order = inode.order(context)?;
                worker.prepare(context, &inode, &order)
            },
            move |result| {
                if let (Err(_), Some(gather), true) = (result, &after.gather, tried.held_since().is_some()) {
                    gather.dues.add(Instant::now() + AGAIN, &tried);
                }
            },
        );
    }

    /// Before something of a node is shown or done by path: what is held back of it is handed over. What cannot be, because a
    /// live backing refuses it or the file is another one, is for those to hear of who wrote it.
    pub(super) fn show(&self, context: &Context<'_>, node: u64) -> OpResult<()> {
        let Some(inode) = self.inodes.get(node).filter(|inode| inode.held_since().is_some()) else { return Ok(()) };
        let order = inode.order(context)?;
        match self.prepare(context, &inode, &order) {
            Err(error) if error == LOST_FILE || inode.refusal().is_some() => Ok(()),
            result => result,
        }
    }

    /// As [`Overlay::show`], of a name.
    pub(super) fn show_name(&self, context: &Context<'_>, parent: u64, name: &OsStr) -> OpResult<()> {
        self.nodes.node(parent, name).map_or(Ok(()), |node| self.show(context, node))
    }

    /// Attributes of a node or of a name that it is `known` by: its size is what was acknowledged.
    pub(super) fn look(
        &self,
        context: &Context<'_>,
        known: Option<u64>,
        stat: impl Fn() -> OpResult<Attr>,
    ) -> OpResult<Attr> {
        if let Some(node) = known {
            self.show(context, node)?;
        }
        let mut attr = stat()?;
        if attr.kind != FileKind::Regular {
            return Ok(attr);
        }
        // Another name of a file that is known.
        let node = self.nodes.of_identity(attr.identity).or(known);
        let inode = node.and_then(|node| self.inodes.get(node));
        if let Some(inode) = inode {
            if known != node && inode.held_since().is_some() {
                self.show(context, inode.node)?;
                attr = stat()?;
            }
            attr.size = inode.unsent_size().unwrap_or(attr.size);
        }
        Ok(attr)
    }
}
