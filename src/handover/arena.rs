//! The memory itself: one memfd, mapped shared, which outlives the process because somebody else holds its descriptor too.
//!
//! ```text
//! 0        header: what this is; written once
//! 1024     control words
//! 4096     slots of requests in flight
//! …        half 0 ┐ one of them is the tape, the other is empty
//! …        half 1 ┘ or a compaction is writing to it
//! ```
//!
//! The file has its full size from the start and is sealed against another one, so that no access can miss it; memory is
//! used only by pages that were written to. `Arena::populate` gets them ahead, since a page that the system cannot give
//! is an error there and SIGBUS anywhere else; `Arena::discard` gives them back.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 8] = *b"steadfs\x06";
/// Version of the layout of this file, [`super::slots`] and [`super::tape`]; that of records is in the session's.
const LAYOUT: u64 = 1;
/// Bytes of the header that are checked, without their checksum.
const CHECKED: usize = 40;
const PAGE: u64 = 4096;
const SLOTS_AT: u64 = PAGE;
/// Of a slot, in bytes: a cache line, so that threads do not take each other's.
pub(super) const SLOT: u64 = 64;
/// Most slots: more requests than that are not in flight.
const MOST_SLOTS: u64 = 1 << 20;
/// Largest tape in bytes: 1 TiB leaves room in any address space.
const MOST_TAPE: u64 = 1 << 40;

/// Control words, by their offset. Those that are written often have cache lines of their own.
pub(super) mod at {
    pub const EPOCH: u64 = 1024;
    pub const SUCCESSIONS: u64 = 1032;
    pub const GIVEN_UP: u64 = 1040;
    pub const PULSES: u64 = 1088;
    pub const PULSE_MS: u64 = 1096;
    pub const UNRECORDED: u64 = 1152;
    pub const UNRECORDED_EVER: u64 = 1160;
    pub const LEFTOVERS: u64 = 1168;
    pub const NEWEST: u64 = 1176;
    /// End of what is published and start of the last record, of each half.
    pub const END: [u64; 2] = [1216, 1280];
    pub const LAST: [u64; 2] = [1224, 1288];
}

/// How large an arena is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Requests that may be in flight and recorded.
    pub slots: u64,
    /// Most bytes of the tape; twice that while it is compacted. Rounded up to pages.
    pub tape: u64,
}

impl Sizes {
    /// For a write log of that many bytes: as much of what is superseded again before it has to be compacted, as much of
    /// what comes in meanwhile, and 64 MiB for some 500,000 names.
    pub fn for_log(log_size: u64) -> Sizes {
        Sizes { slots: 2048, tape: (log_size.saturating_mul(3).saturating_add(64 << 20)).min(MOST_TAPE) }
    }

    fn rounded(self) -> Sizes {
        Sizes { slots: self.slots.clamp(1, MOST_SLOTS), tape: self.tape.clamp(PAGE, MOST_TAPE).next_multiple_of(PAGE) }
    }

    fn tape_at(self) -> u64 {
        (SLOTS_AT + self.slots * SLOT).next_multiple_of(PAGE)
    }

    fn total(self) -> u64 {
        self.tape_at() + 2 * self.tape
    }
}

/// Why there is no arena. A daemon that gets one of these has to serve a new mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// The system refused a step.
    #[error("cannot {action} the memory that a successor needs: {}{}", .errno.desc(), remedy(*.errno))]
    System {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// It is some other descriptor.
    #[error(
        "the descriptor handed over is not steadfs's memory ({what}): hand over the one that its predecessor created"
    )]
    Foreign {
        /// What shows it.
        what: &'static str,
    },
    /// Another version laid it out.
    #[error(
        "the memory handed over has layout {found}, and this steadfs knows {LAYOUT}: start the version that ran before, or \
         unmount and mount again"
    )]
    Layout {
        /// The layout it has.
        found: u64,
    },
    /// It is none that any version leaves behind.
    #[error("the memory handed over is damaged ({what}): unmount and mount again, and please report it")]
    Damaged {
        /// How.
        what: String,
    },
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOMEM | Errno::ENOSPC => ": free memory, or give a smaller log_size",
        Errno::EFBIG => ": raise the limit on file sizes (ulimit -f), or give a smaller log_size",
        Errno::EMFILE | Errno::ENFILE => ": raise the limit on open files",
        _ => "",
    }
}

fn system(action: &'static str) -> impl Fn(Errno) -> ArenaError {
    move |errno| ArenaError::System { action, errno }
}

/// See the module.
#[derive(Debug)]
pub struct Arena {
    fd: OwnedFd,
    base: NonNull<u8>,
    sizes: Sizes,
}

// SAFETY: the mapping belongs to no thread. Control words and slots are only reached as atomics, the halves only through
// functions whose callers vouch that nobody writes what somebody else reads.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// A new one, empty.
    pub fn create(sizes: Sizes) -> Result<Arena, ArenaError> {
        let sizes = sizes.rounded();
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"steadfs", flags).map_err(system("create"))?;
        let length =
            i64::try_from(sizes.total()).map_err(|_| ArenaError::System { action: "size", errno: Errno::EFBIG })?;
        ftruncate(&fd, length).map_err(system("size"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal"))?;
        let file = File::from(fd);
        let mut header = [0; CHECKED + 8];
        header[..8].copy_from_slice(&MAGIC);
        for (place, value) in header[8..].chunks_exact_mut(8).zip([LAYOUT, sizes.total(), sizes.slots, sizes.tape]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        let checksum = xxh3_64(&header[..CHECKED]);
        header[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        file.write_all_at(&header, 0).map_err(|error| system("write")(errno_of(&error)))?;
        Arena::map(file.into(), sizes)
    }

    /// The one behind a descriptor. Nobody else may be using it: whoever hands it over sees to it that the predecessor is
    /// dead.
    pub fn open(fd: OwnedFd) -> Result<Arena, ArenaError> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|_| ArenaError::Foreign { what: "it has no seals" })?;
        let sized = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        if !SealFlag::from_bits_retain(seals).contains(sized) {
            return Err(ArenaError::Foreign { what: "its size is not sealed" });
        }
        let length = fstat(&fd).map_err(system("look at"))?.st_size.cast_unsigned();
        let file = File::from(fd);
        let mut header = [0; CHECKED + 8];
        file.read_exact_at(&mut header, 0).map_err(|_| ArenaError::Foreign { what: "it is too short" })?;
        if header[..8] != MAGIC {
            return Err(ArenaError::Foreign { what: "it begins otherwise" });
        }
        let word = |number: usize| header[8 * number..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        // Before the checksum: another layout may have it elsewhere.
        if word(1) != LAYOUT {
            return Err(ArenaError::Layout { found: word(1) });
        }
        if word(5) != xxh3_64(&header[..CHECKED]) {
            return Err(ArenaError::Damaged { what: "the header has another checksum".to_owned() });
        }
        let sizes = Sizes { slots: word(3), tape: word(4) };
        if sizes != sizes.rounded() || sizes.total() != word(2) || word(2) != length {
            return Err(ArenaError::Damaged {
                what: format!("it has {length} bytes, and the header says {}", word(2)),
            });
        }
        Arena::map(file.into(), sizes)
    }

    fn map(fd: OwnedFd, sizes: Sizes) -> Result<Arena, ArenaError> {
        let failed = |errno| ArenaError::System { action: "map", errno };
        let length = usize::try_from(sizes.total()).map_err(|_| failed(Errno::ENOMEM))?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(failed(Errno::last()));
        }
        let base = NonNull::new(base.cast()).ok_or(failed(Errno::ENOMEM))?;
        Ok(Arena { fd, base, sizes })
    }

    /// The descriptor, for whoever is to hold it too.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How large it is.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// A control word, or one of the slots.
    pub(super) fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at >= at::EPOCH && at + 8 <= self.sizes.tape_at(), "no control word at {at}");
        // SAFETY: within the mapping, aligned, and this part of it is reached by nothing but this function.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at as usize).cast()) }
    }

    /// The first word of a slot.
    pub(super) fn slot_at(&self, index: u64) -> u64 {
        SLOTS_AT + index * SLOT
    }

    /// Checks a range of a half and says where it begins in the mapping.
    fn in_half(&self, half: usize, offset: u64, length: u64) -> u64 {
        let end = offset.checked_add(length);
        assert!(half < 2 && end.is_some_and(|end| end <= self.sizes.tape), "{length} bytes at {offset} of half {half}");
        self.sizes.tape_at() + half as u64 * self.sizes.tape + offset
    }

    /// Bytes from the start of a half.
    ///
    /// # Safety
    /// As long as they are borrowed, nobody writes or discards any of them.
    pub(super) unsafe fn bytes(&self, half: usize, length: u64) -> &[u8] {
        let at = self.in_half(half, 0, length);
        // SAFETY: within the mapping; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at as usize), length as usize) }
    }

    /// Copies bytes to a half.
    ///
    /// # Safety
    /// Nobody reads or writes that range meanwhile.
    pub(super) unsafe fn write(&self, half: usize, offset: u64, bytes: &[u8]) {
        let at = self.in_half(half, offset, bytes.len() as u64);
        // SAFETY: within the mapping, which `bytes` is no part of, as its borrower is no writer of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at as usize), bytes.len()) }
    }

    /// Gets the pages of a range (rounded outwards), so that using them cannot fail. What they hold stays.
    pub(super) fn populate(&self, half: usize, from: u64, to: u64) -> Result<(), ArenaError> {
        let from = from / PAGE * PAGE;
        let to = to.next_multiple_of(PAGE).min(self.sizes.tape);
        let at = self.in_half(half, from, to - from);
        // SAFETY: within the mapping; populating changes nothing that is there.
        let result = unsafe {
            libc::madvise(self.base.as_ptr().add(at as usize).cast(), (to - from) as usize, libc::MADV_POPULATE_WRITE)
        };
        match Errno::result(result) {
            Ok(_) => Ok(()),
            // Linux before 5.14.
            Err(Errno::EINVAL) => {
                fallocate(&self.fd, FallocateFlags::empty(), at.cast_signed(), (to - from).cast_signed())
                    .map_err(system("enlarge"))
            }
            // What would have been SIGBUS.
            Err(Errno::EFAULT) => Err(ArenaError::System { action: "enlarge", errno: Errno::ENOMEM }),
            Err(errno) => Err(ArenaError::System { action: "enlarge", errno }),
        }
    }

    /// Gives the pages of a half back that begin at `from` (rounded up to one) or later; they read as zeros then.
    ///
    /// # Safety
    /// Nobody reads or writes that part of the half meanwhile.
    pub(super) unsafe fn discard(&self, half: usize, from: u64) -> Result<(), ArenaError> {
        let from = from.next_multiple_of(PAGE).min(self.sizes.tape);
        let length = self.sizes.tape - from;
        if length == 0 {
            return Ok(());
        }
        let at = self.in_half(half, from, length);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.fd, flags, at.cast_signed(), length.cast_signed()).map_err(system("give back a part of"))
    }

    /// Bytes of memory that it takes at present.
    pub fn resident(&self) -> u64 {
        // st_blocks counts 512 bytes each (stat(3type)).
        fstat(&self.fd).map_or(0, |found| found.st_blocks.cast_unsigned() * 512)
    }

    /// Most bytes of memory that it may take.
    pub fn most(&self) -> u64 {
        self.sizes.total()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with that length, and whoever borrowed from it is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.sizes.total() as usize) };
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    const SMALL: Sizes = Sizes { slots: 4, tape: 1 << 20 };

    fn header(arena: &Arena, change: impl FnOnce(&mut [u8])) -> OwnedFd {
        let file = File::from(arena.fd.try_clone().expect("a descriptor"));
        let mut header = [0; CHECKED + 8];
        file.read_exact_at(&mut header, 0).expect("a header");
        change(&mut header);
        file.write_all_at(&header, 0).expect("writable");
        file.into()
    }

    #[test]
    fn what_one_mapping_writes_another_one_reads() {
        let arena = Arena::create(SMALL).expect("memory");
        arena.word(at::PULSES).store(7, Relaxed);
        arena.populate(1, 100, 104).expect("memory");
        // SAFETY: nobody else is there.
        unsafe { arena.write(1, 100, b"four") };
        let again = Arena::open(arena.fd.try_clone().expect("a descriptor")).expect("the same");
        assert_eq!((again.sizes(), again.word(at::PULSES).load(Relaxed)), (SMALL, 7));
        // SAFETY: nobody writes any more.
        assert_eq!(unsafe { &again.bytes(1, 104)[100..] }, b"four");
    }

    #[test]
    fn memory_is_used_by_what_is_written_and_given_back() {
        let arena = Arena::create(Sizes { slots: 4, tape: 1 << 30 }).expect("memory");
        assert!(arena.resident() < 64 << 10);
        arena.populate(0, 0, 8 << 20).expect("memory");
        assert!(arena.resident() >= 8 << 20);
        // SAFETY: nobody else is there.
        unsafe { arena.discard(0, 0) }.expect("a hole");
        assert!(arena.resident() < 64 << 10);
    }

    #[test]
    fn a_stranger_another_layout_and_damage_are_told_apart() {
        let not_sealed = memfd_create(c"other", MFdFlags::MFD_CLOEXEC).expect("memory");
        assert!(matches!(Arena::open(not_sealed), Err(ArenaError::Foreign { .. })));
        let file = tempfile::tempfile().expect("a file");
        assert!(matches!(Arena::open(file.into()), Err(ArenaError::Foreign { .. })));
        let arena = Arena::create(SMALL).expect("memory");
        assert!(matches!(Arena::open(header(&arena, |h| h[0] ^= 1)), Err(ArenaError::Foreign { .. })));
        header(&arena, |h| h[0] ^= 1);
        assert_eq!(Arena::open(header(&arena, |h| h[8] = 9)).err(), Some(ArenaError::Layout { found: 9 }));
        header(&arena, |h| h[8] = 1);
        assert!(matches!(Arena::open(header(&arena, |h| h[24] ^= 1)), Err(ArenaError::Damaged { .. })));
        let other_size = header(&arena, |h| {
            h[24] ^= 1;
            h[16] ^= 1;
            let sum = xxh3_64(&h[..CHECKED]).to_le_bytes();
            h[CHECKED..].copy_from_slice(&sum);
        });
        assert!(matches!(Arena::open(other_size), Err(ArenaError::Damaged { .. })));
    }

    #[test]
    fn nobody_can_make_it_smaller() {
        let arena = Arena::create(SMALL).expect("memory");
        assert_eq!(ftruncate(arena.fd(), 0), Err(Errno::EPERM));
    }
}
