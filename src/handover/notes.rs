//! Where everybody notes what happens: a memory, or nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Item, Memory};

/// See the module. Copies note in the same place.
#[derive(Debug, Clone, Default)]
pub struct Notes(Option<Arc<Place>>);

#[derive(Debug)]
struct Place {
    memory: Arc<Memory>,
    given_up: AtomicBool,
}

impl Notes {
    /// For a mount that no successor is to take over.
    pub fn nowhere() -> Notes {
        Notes(None)
    }

    /// In that memory.
    pub fn in_memory(memory: Arc<Memory>) -> Notes {
        Notes(Some(Arc::new(Place { memory, given_up: AtomicBool::new(false) })))
    }

    /// The memory, if there is one that a successor can still start from.
    pub fn memory(&self) -> Option<&Arc<Memory>> {
        self.0.as_ref().filter(|place| !place.given_up.load(Relaxed)).map(|place| &place.memory)
    }

    /// Notes that something happened; see [`Memory::note`]. When there is no room any more the memory is given up: a
    /// successor is told that, instead of being told half of what it must know.
    pub fn note(&self, item: &Item<'_>) {
        let Some(place) = self.0.as_ref().filter(|place| !place.given_up.load(Relaxed)) else { return };
        if let Err(error) = place.memory.note(item) {
            place.memory.give_up();
            if !place.given_up.swap(true, Relaxed) {
                tracing::error!(%error, "if steadfs dies now, the mount ends with it");
            }
        }
    }

    /// As [`Notes::note`], of an item that takes work to make.
    pub fn note_with<'a>(&self, item: impl FnOnce() -> Item<'a>) {
        if self.memory().is_some() {
            self.note(&item());
        }
    }
}
