//! Where an append goes (O_APPEND). The kernel sends it with the offset at which the file ends for all that it knows, which is
//! where it is written, so that it can be written again; but others may have written to the file on the store since. So the
//! end is looked for there: each time where that costs nothing, else as often as costs little, and at the latest when what
//! is known is as old as attributes may be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Overlay;
use super::commit::is_refused;
use super::inodes::{Inode, Order};
use crate::backing::OpResult;
use crate::gate::Context;

/// Looking for the end takes no more than one part in so many of the time: a few per cent are noticed.
const RARELY: u32 = 50;
/// What a look may cost that nobody has measured yet: a round trip.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Where a write is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There.
    At(u64),
    /// To the end of the file.
    End {
        /// Where that is by what the kernel knows.
        believed: u64,
        /// Where it was when this was first handed to the backing: if it has to be again, then there.
        chosen: Option<u64>,
    },
}

impl Place {
    /// Of a write that the kernel sends with that offset.
    pub fn of(offset: u64, appends: bool) -> Place {
        if appends { Place::End { believed: offset, chosen: None } } else { Place::At(offset) }
    }

    /// True of an append.
    pub fn is_end(&self) -> bool {
        matches!(self, Place::End { .. })
    }
}

/// When the end of a file was last looked for on the backing, and what that cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastLook(Option<(Instant, Duration)>);

impl LastLook {
    /// One that began and ended then.
    pub fn between(began: Instant, ended: Instant) -> LastLook {
        LastLook(Some((began, ended.saturating_duration_since(began))))
    }

    /// Of a file that has been made, so that nobody else knows of it yet.
    pub fn at_new_file(now: Instant) -> LastLook {
        LastLook(Some((now, ROUND_TRIP)))
    }

    /// True if what is known may be older than `oldest`.
    pub fn is_stale(&self, now: Instant, oldest: Duration) -> bool {
        self.0.is_none_or(|(at, _)| now.saturating_duration_since(at) >= oldest)
    }

    /// True if it is worth another look.
    pub fn is_due(&self, now: Instant, oldest: Duration) -> bool {
        self.0.is_none_or(|(at, cost)| now.saturating_duration_since(at) >= oldest.min(cost * RARELY))
    }
}

impl Overlay {
    /// The offset of a write, with everything before it handed over.
    pub(super) fn offset_of(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        place: &mut Place,
        data: &[u8],
        order: &Order<'_>,
    ) -> OpResult<u64> {
        match self.find_end(context, inode, place, data) {
            Err(error) if is_refused(&**context.generation, error) => {
                // It has refused something that it was sent before: that is sent again, and the answer to it counts.
                inode.with_log(&self.budget, |log| log.send_again());
                self.prepare(context, inode, order)?;
                self.find_end(context, inode, place, data)
            }
            result => result,
        }
    }

    fn find_end(&self, context: &Context<'_>, inode: &Arc<Inode>, place: &mut Place, data: &[u8]) -> OpResult<u64> {
        let (believed, chosen) = match place {
            Place::At(offset) => return Ok(*offset),
            Place::End { believed, chosen } => (*believed, chosen),
        };
        let before = chosen.or(context.in_doubt.then_some(believed));
        let at = match (before, inode.known_size()) {
            // The kernel may lag behind what is known here; it is ahead only where it has seen what others wrote.
            (None, Some(known)) if believed <= known && !self.is_look_due(inode) => known,
            (before, known) => {
                let end = self.look_for_end(context, inode, known)?;
                match before {
                    Some(before) if self.may_be_there(context, inode, before..end, data)? => before,
                    _ => end,
                }
            }
        };
        *chosen = Some(at);
        Ok(at)
    }

    fn is_look_due(&self, inode: &Inode) -> bool {
        let others = self.appearance().others_within;
        others.is_some_and(|oldest| self.traits.stable_inodes || inode.last_look().is_due(Instant::now(), oldest))
    }

    /// The end of the file, with nothing held back. The log learns of what others have cut off.
    fn look_for_end(&self, context: &Context<'_>, inode: &Arc<Inode>, known: Option<u64>) -> OpResult<u64> {
        let (generation, end) = (context.generation.number(), self.end_on_backing(context, inode, known)?);
        inode.with_log(&self.budget, |log| match known {
            Some(known) if end >= known => Ok(end),
            Some(known) if !log.is_sent(generation) => Ok(known),
            _ => log.found(generation, end).map(|()| end).map_err(|_| Errno::ENOTCONN),
        })
    }

    fn end_on_backing(&self, context: &Context<'_>, inode: &Arc<Inode>, known: Option<u64>) -> OpResult<u64> {
        let began = Instant::now();
        let writer = self.writer(&**context.generation, inode)?;
        let mut end = writer.descriptor.stat()?.size;
        if known.is_some_and(|known| end < known) && !self.traits.stable_inodes {
            // Somebody has cut it, or what was sent was refused: an fsync says so.
            writer.descriptor.sync(false)?;
            end = writer.descriptor.stat()?.size;
        }
        inode.looked(LastLook::between(began, Instant::now()));
        Ok(end)
    }

    /// True if what lies there may be the beginning of `data`, written by an earlier run of the same call.
    fn may_be_there(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        place: std::ops::Range<u64>,
        data: &[u8],
    ) -> OpResult<bool> {
        let length = place.end.saturating_sub(place.start).min(data.len() as u64) as usize;
        let writer = self.writer(&**context.generation, inode)?;
        // Twice is better than over what somebody else wrote.
        if length == 0 || !writer.reads {
            return Ok(false);
        }
        let mut there = vec![0; length];
        let read = writer.descriptor.read_at(&mut there, place.start)?;
        Ok(read == length && there == data[..length])
    }

    /// Before what is held back is handed over: if it is appends, it goes to where the file ends now.
    pub(super) fn place_held(&self, context: &Context<'_>, inode: &Arc<Inode>) -> OpResult<()> {
        let Some(from) = inode.held_end().filter(|_| self.is_look_due(inode)) else { return Ok(()) };
        let (generation, end) = (context.generation.number(), self.end_on_backing(context, inode, Some(from))?);
        inode.with_log(&self.budget, |log| {
            if end > from || (end < from && log.is_sent(generation)) {
                log.displace(end);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_looked_for_as_often_as_costs_little() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let cheap = LastLook::between(began, began + second / 1000);
        let dear = LastLook::between(began, began + second / 10);
        for (look, after, due) in [
            (cheap, second / 1000 * 49, false),
            (cheap, second / 1000 * 50, true),
            (dear, second * 4, false),
            (dear, second * 5, true),
            (LastLook::default(), Duration::ZERO, true),
        ] {
            assert_eq!(look.is_due(began + after, second * 20), due, "{look:?} after {after:?}");
        }
        assert!(dear.is_due(began + second, second), "never older than attributes may be");
        assert!(dear.is_stale(began + second, second) && !dear.is_stale(began + second / 2, second));
        assert!(cheap.is_due(began, Duration::ZERO) && cheap.is_stale(began, Duration::ZERO));
    }
}
