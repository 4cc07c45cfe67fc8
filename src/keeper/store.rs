//! What is held, by name, in the order in which it came.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::is_device;

/// Most descriptors that are held: four for each overlay, a few of the daemon and of a generation.
const MOST: usize = 4096;
/// Longest name; systemd's FDNAME= takes 255 characters.
const LONGEST: usize = 200;

/// See the module.
#[derive(Debug, Default)]
pub struct Store(Vec<(String, OwnedFd)>);

impl Store {
    /// Holds a descriptor, in place of another of that name. False if the name is not one, or there are too many.
    pub fn hold(&mut self, name: &str, descriptor: OwnedFd) -> bool {
        let bad = name.is_empty() || name.len() > LONGEST || name.chars().any(|c| c == ':' || c.is_control());
        self.drop_named(name);
        if bad || self.0.len() >= MOST {
            return false;
        }
        self.0.push((name.into(), descriptor));
        true
    }

    /// Closes it. False if there was none.
    pub fn drop_named(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(held, _)| held != name);
        self.0.len() < before
    }

    /// What is held under that name.
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.iter().find(|(held, _)| *held == name).map(|(_, descriptor)| descriptor)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.0.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd()))
    }

    /// A daemon can be followed by another.
    pub fn is_resumable(&self) -> bool {
        self.0.iter().any(|(name, _)| is_device(name))
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DEVICE, slotted};
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("opened").into()
    }

    #[test]
    fn names_are_unique_and_bounded() {
        let mut store = Store::default();
        assert!(store.hold("state", descriptor()) && !store.is_resumable());
        assert!(store.hold(DEVICE, descriptor()) && store.hold(DEVICE, descriptor()) && store.is_resumable());
        assert_eq!(store.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["state", DEVICE]);
        assert!(!store.hold("a:b", descriptor()) && !store.hold("", descriptor()));
        for number in 2..MOST {
            assert!(store.hold(&number.to_string(), descriptor()));
        }
        assert!(!store.hold("one more", descriptor()));
        assert!(store.drop_named(DEVICE) && !store.drop_named(DEVICE) && !store.is_resumable());
        assert!(store.hold(&slotted(DEVICE, 7), descriptor()) && store.is_resumable());
    }
}
