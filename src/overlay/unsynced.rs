//! Whether the server knows fsync at all. sshfs says 0 to one that it cannot send (`sshfs_fsync` in sshfs.c), so it is seen by
//! nothing having been sent meanwhile, and told, once: what is committed is then safe from all that happens on the way to the
//! server, and not from the loss of the server's power.

use parking_lot::Mutex;

use super::Overlay;
use crate::backing::{File, Generation, OpResult};

/// Commits that are looked at. In most of them something else is sent meanwhile, which proves nothing.
const LOOKS: u32 = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    done: u32,
    /// Of the first look: its generation, and what had been moved by then.
    first: Option<(u64, u64)>,
}

impl Unsynced {
    /// What had been moved before an fsync that went well, and after it. True if that proves, for the first time, that none was
    /// sent. What never counted anything proves nothing.
    fn proves(&self, generation: u64, before: u64, after: u64) -> bool {
        let mut looks = self.0.lock();
        looks.done += 1;
        let (first, moved) = *looks.first.get_or_insert((generation, before));
        if first != generation {
            looks.first = Some((generation, before));
            return false;
        }
        let proven = before == after && before > moved && looks.done <= LOOKS;
        if proven {
            looks.done = LOOKS;
        }
        proven
    }

    fn wants_more(&self) -> bool {
        self.0.lock().done < LOOKS
    }
}

impl Overlay {
    /// fsync(2), or fdatasync(2), of a file of a generation.
    pub(super) fn sync_file(&self, generation: &dyn Generation, file: &dyn File, data_only: bool) -> OpResult<()> {
        let before = if self.unsynced.wants_more() { generation.moved_bytes() } else { None };
        file.sync(data_only)?;
        let after = before.and_then(|_| generation.moved_bytes());
        if let (Some(before), Some(after)) = (before, after)
            && self.unsynced.proves(generation.number(), before, after)
        {
            self.tell(
                "the server does not know fsync@openssh.com: what was synced it has, but a power failure there may take it"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_fsync_during_which_nothing_was_sent_proves_anything_and_only_once() {
        let looks = Unsynced::default();
        assert!(!looks.proves(1, 500, 500), "nobody knows yet whether that counts anything");
        assert!(!looks.proves(1, 500, 500));
        assert!(!looks.proves(1, 600, 680), "it was sent, or something else was");
        assert!(!looks.proves(2, 700, 700), "another generation, other counters");
        assert!(looks.proves(2, 800, 800));
        assert!(!looks.wants_more() && !looks.proves(2, 900, 900), "once");
    }
}
