//! Calls that a predecessor had read and not answered, where the kernel cannot send them again (before Linux 6.9): each is
//! answered with an error, by its unique, so that nobody waits for ever.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::Overlay;
use super::session::{Device, Greeting};
use crate::gate::Op;
use crate::handover::Inherited;
use crate::handover::slots::RESENT;

/// The outage is over for everybody else.
const REFUSED: Errno = Errno::EIO;
/// Protocol in which FUSE_NOTIFY_RESEND came (linux/fuse.h, Linux 6.9).
const RESENDING: (u32, u32) = (7, 40);
/// Uniques are that far apart (FUSE_REQ_ID_STEP, fs/fuse/fuse_i.h).
const STEP: u64 = 2;
/// A predecessor may have died between reading a request and recording it: so many uniques on either side of the newest one
/// are answered too. Far more than its threads can have held; one that nobody waits for costs a system call.
const AROUND: u64 = 2048 * STEP;
/// The same if nothing is known of it: as many calls as are made in the longest deadline, or nearly.
const BELOW: u64 = (1 << 21) * STEP;

/// True if that kernel sends again what a dead daemon had read.
pub(super) fn resends(greeting: &Greeting) -> bool {
    // Tests play an older kernel.
    greeting.protocol() >= RESENDING && std::env::var_os("STEADFS_NO_RESEND").is_none()
}

impl Overlay {
    /// Answers what a predecessor had recorded, and what it had read and not recorded yet.
    pub(super) fn refuse_known(self: &Arc<Self>, device: &Device, inherited: &Inherited) -> io::Result<()> {
        for request in &inherited.requests {
            if device.refuse(request.unique, REFUSED)? {
                let (unique, opcode) = (request.unique, request.opcode);
                tracing::warn!(unique, opcode, "a call in flight is answered with EIO");
                self.take_back(unique);
            }
            // The kernel has let go of that handle, whatever it was answered.
            if request.opcode == Op::Release.opcode() {
                if let Some(file) = self.files.remove(request.node) {
                    self.let_handle_go(file);
                }
            } else if request.opcode == Op::Releasedir.opcode() {
                self.directories.remove(request.node);
            }
        }
        refuse_range(device, inherited.newest.saturating_sub(AROUND)..inherited.newest + AROUND)?;
        if let Some(memory) = self.notes.memory() {
            memory.requests().forget_leftovers();
        }
        Ok(())
    }

    /// To be called before this daemon is ended on purpose. If a successor would have to answer with an error whatever is in
    /// flight then, no more requests are read from now on, and what has been read is waited for, up to `limit`.
    pub fn finish_what_was_read(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let Some(memory) = self.notes.memory().filter(|_| !self.resending.works.load(Relaxed)) else { return };
        self.resending.ending.store(true, Relaxed);
        let mut idle = 0;
        // Twice: what has just been read is recorded in a moment.
        while idle < 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            idle = if memory.requests().is_idle() { idle + 1 } else { 0 };
        }
    }

    /// True until a request has been read by which it is known what is older; see `Resending::refuse_unknown`.
    pub fn awaits_a_request(&self) -> bool {
        self.resending.has_unknown.load(Relaxed)
    }
}

/// Answers whatever the kernel waits for with these uniques.
fn refuse_range(device: &Device, uniques: Range<u64>) -> io::Result<()> {
    for unique in (uniques.start.next_multiple_of(STEP).max(STEP)..uniques.end).step_by(STEP as usize) {
        if device.refuse(unique, REFUSED)? {
            tracing::warn!(unique, "a call in flight is answered with EIO");
        }
    }
    Ok(())
}

/// What concerns a kernel that cannot send again what a dead daemon had read.
#[derive(Debug, Default)]
pub struct Resending {
    works: AtomicBool,
    ending: AtomicBool,
    unknown: Mutex<Option<Device>>,
    has_unknown: AtomicBool,
}

impl Resending {
    /// Says whether the kernel can.
    pub(super) fn works(&self, yes: bool) {
        self.works.store(yes, Relaxed);
    }

    /// Nothing is known of what a predecessor had read: whatever is older than the first request that this daemon reads is
    /// answered. One thread has to read until then.
    pub(super) fn refuse_unknown(&self, device: &Device) -> io::Result<()> {
        *self.unknown.lock() = Some(Device::new(device.try_clone()?));
        self.has_unknown.store(true, Relaxed);
        Ok(())
    }

    /// A request was read.
    pub(super) fn read(&self, unique: u64) {
        if !self.has_unknown.load(Relaxed) {
            return;
        }
        self.has_unknown.store(false, Relaxed);
        let Some(device) = self.unknown.lock().take() else { return };
        let refuse = move || refuse_below(&device, unique & !RESENT);
        if let Err(error) = std::thread::Builder::new().name("refuse".into()).spawn(refuse) {
            tracing::warn!(%error, "cannot start a thread to answer what the daemon before this one had read");
        }
    }

    /// A request was handed on by a thread that would now read the next: it waits for the end if that is near.
    pub(super) fn before_reading(&self) {
        while self.ending.load(Relaxed) {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn refuse_below(device: &Device, first: u64) {
    let mut end = first;
    // The newest first: they are the likeliest.
    while end > first.saturating_sub(BELOW) {
        let begin = end.saturating_sub(AROUND);
        if let Err(error) = refuse_range(device, begin..end) {
            tracing::warn!(%error, "what the daemon before this one had read cannot be answered");
            return;
        }
        end = begin;
    }
}
