//! Names that the kernel has forgotten without this daemon's knowledge: a predecessor had read the FUSE_FORGET and died before
//! it noted that, and the kernel does not send those again.

use std::io;
use std::time::{Duration, Instant};

use super::Overlay;
use super::nodes::Lookups;
use super::session::Device;

/// The kernel is asked twice: an answer that grants a lookup is not yet an inode of the kernel's, and a caller may take its
/// time to make it one.
const FIRST: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(10);

/// Nodes of a predecessor that the kernel may have forgotten.
#[derive(Debug)]
pub struct Recount {
    device: Device,
    due: Instant,
    asked: bool,
    nodes: Vec<Lookups>,
}

impl Overlay {
    /// What was taken over is to be recounted.
    pub(super) fn recount_later(&self, device: &Device) -> io::Result<()> {
        let device = Device::new(device.try_clone()?);
        let recount = Recount { device, due: Instant::now() + FIRST, asked: false, nodes: self.nodes.lookups() };
        *self.recount.lock() = Some(recount);
        Ok(())
    }

    /// Recounts if that is due. To be called every second or so, by a thread that nobody waits for.
    pub fn recount(&self) {
        let mut waits = self.recount.lock();
        let Some(Recount { device, asked, nodes, .. }) = waits.take_if(|recount| recount.due <= Instant::now()) else {
            return;
        };
        // Unmounted: nobody has anything any more.
        let unknown = |found: &Lookups| device.is_known(found.node).is_ok_and(|known| !known);
        let suspects: Vec<_> = nodes.into_iter().filter(unknown).collect();
        if asked {
            let forgotten = suspects.into_iter().filter(|&found| self.nodes.forget_all(found)).count();
            tracing::debug!(forgotten, "names that the kernel had forgotten meanwhile");
        } else if !suspects.is_empty() {
            *waits = Some(Recount { device, due: Instant::now() + AGAIN, asked: true, nodes: suspects });
        }
    }
}
