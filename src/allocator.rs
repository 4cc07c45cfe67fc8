//! The memory of the program: that of the system, except for what requests are read into.
//!
//! A thread that has been killed may take one more request from the kernel, if it had been woken for it. Into a page that is not
//! there, or that is shared with a child since fork(2), the kernel cannot write for it any more: the caller gets EIO
//! (fuse_dev_do_read, fs/fuse/dev.c; `__get_user_pages`, mm/gup.c), and no successor sees the request. See decision 13.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{self, NonNull};

use crate::overlay::MAX_WRITE;

/// Length of what fuser reads requests into: `BUFFER_SIZE` of read_buf.rs in fuser 0.18.
const BUFFER: usize = (16 << 20) + 4096;
/// The largest request that is answered: a write, with its header (under 100 bytes) before it. Whole pages.
const USED: usize = MAX_WRITE as usize + 4096;
/// The smallest page that Linux has; to touch a larger one more than once does no harm.
const PAGE: usize = 4096;
/// What free(3) keeps for later, in bytes: as glibc sets it by itself once a buffer for requests has been malloc'ed and freed.
/// With less each large write would cost page faults. `daemon::upkeep` gives back what is kept, when there is nothing to do.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 32 << 20;

/// See the module.
pub struct Allocator;

/// To be called once, before there is work.
pub fn keep_what_is_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers, which only later calls of malloc(3) and free(3) look at.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT / 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

fn is_buffer(size: usize) -> bool {
    size == BUFFER
}

// SAFETY: what is a buffer is decided by the size alone, which each method is told: what was mapped is unmapped, with the length
// that it was mapped with, and everything else is the system's. Mappings are zeroed and aligned to pages.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_buffer(layout.size()) {
            return map(layout);
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_buffer(layout.size()) {
            return map(layout);
        }
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if is_buffer(layout.size()) {
            // SAFETY: `map` made it, with that length; the caller needs it no more.
            unsafe { libc::munmap(at.cast(), layout.size()) };
            return;
        }
        // SAFETY: the caller's; it is the system's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_buffer(layout.size()) && !is_buffer(size) {
            // SAFETY: the caller's; it is the system's and stays so.
            return unsafe { System.realloc(at, layout, size) };
        }
        // SAFETY: the caller sees to it that `size`, rounded up to the alignment, is no overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the sizes are not zero, which the caller sees to; both are as long as what is copied, and are not the same.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

/// Pages of their own: what else lies on them a child could miss. Null if there are none.
fn map(layout: Layout) -> *mut u8 {
    if layout.align() > PAGE {
        return ptr::null_mut();
    }
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, wherever there is room.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), layout.size(), access, flags, -1, 0) };
    let Some(at) = NonNull::new(mapped.cast::<u8>()).filter(|_| mapped != libc::MAP_FAILED) else {
        return ptr::null_mut();
    };
    make_ready(at, layout.size());
    at.as_ptr()
}

/// Has the pages that requests are read into there, for this process alone. What the kernel refuses of it costs a caller an error
/// in that moment, as it does without.
fn make_ready(at: NonNull<u8>, length: usize) {
    // SAFETY: all of it was mapped a moment ago, is private, and nobody else knows of it. A child of fork(2) does not get it: it
    // does nothing but system calls until it is another program, and on no thread that reads requests.
    unsafe {
        libc::madvise(at.as_ptr().cast(), length, libc::MADV_DONTFORK);
        // One huge page would be sixteen times as much as is used.
        libc::madvise(at.as_ptr().cast(), length, libc::MADV_NOHUGEPAGE);
        for page in (0..USED).step_by(PAGE) {
            at.add(page).write_volatile(0);
        }
        // They stay when memory is short. Without root that may be more than is allowed (RLIMIT_MEMLOCK).
        libc::mlock(at.as_ptr().cast(), USED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("a layout")
    }

    /// How many pages of it are there.
    fn present(at: *mut u8, length: usize) -> usize {
        let mut pages = vec![0; length.div_ceil(PAGE)];
        // SAFETY: a byte for each page of the mapping.
        let done = unsafe { libc::mincore(at.cast(), length, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|&page| page & 1 == 1).count()
    }

    /// The flags of the mapping that begins there (proc_pid_smaps(5)).
    fn flags(at: *mut u8) -> String {
        let all = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let begin = format!("{:x}-", at.addr());
        let of = all.lines().skip_while(|line| !line.starts_with(&begin)).find(|line| line.starts_with("VmFlags:"));
        of.expect("the mapping").to_owned()
    }

    #[test]
    fn what_requests_are_read_into_is_there_and_no_childs() {
        // SAFETY: used as `GlobalAlloc` says.
        unsafe {
            let at = Allocator.alloc_zeroed(layout(BUFFER));
            assert!(!at.is_null());
            assert_eq!(present(at, BUFFER), USED / PAGE, "that much, and no more");
            assert!(flags(at).contains(" dc"), "{}", flags(at));
            assert!(std::slice::from_raw_parts(at, BUFFER).iter().all(|&byte| byte == 0));
            Allocator.dealloc(at, layout(BUFFER));
        }
    }

    #[test]
    fn what_grows_into_a_buffer_and_out_of_it_keeps_what_it_holds() {
        let sizes = [100, BUFFER, BUFFER + 1, BUFFER, 50];
        // SAFETY: used as `GlobalAlloc` says.
        unsafe {
            let mut at = Allocator.alloc(layout(sizes[0]));
            std::slice::from_raw_parts_mut(at, 100).fill(7);
            for pair in sizes.windows(2) {
                at = Allocator.realloc(at, layout(pair[0]), pair[1]);
                let kept = std::slice::from_raw_parts(at, pair[1].min(100));
                assert!(kept.iter().all(|&byte| byte == 7), "{pair:?}");
            }
            Allocator.dealloc(at, layout(sizes[4]));
        }
    }
}
