//! Calls of Linux that few filesystems see: copies within the kernel, handles, leases, asynchronous input and output.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::compare::{Log, c, differences, done};
use super::rig::{Local, forget_names};

/// More than a copy moves at once.
const LARGE: usize = 3 << 20;
const FICLONE: libc::c_ulong = 0x4004_9409;
const FICLONERANGE: libc::c_ulong = 0x4020_940d;
const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const F_SETSIG: i32 = 10;
const F_SETLEASE: i32 = 1024;
const F_GETLEASE: i32 = 1025;
const F_NOTIFY: i32 = 1026;
const DN_CREATE: i32 = 4;

pub fn body(log: &mut Log) {
    copies(log);
    clones(log);
    advice(log);
    handles(log);
    leases(log);
    notified(log);
    aio(log);
    uring(log);
}

fn both(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn sum(file: &File) -> io::Result<(u64, u64)> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok((bytes.len() as u64, (1..).zip(&bytes).map(|(at, byte)| at * u64::from(*byte)).sum()))
}

fn copy(from: &File, mut from_at: i64, to: &File, mut to_at: i64, length: usize) -> io::Result<usize> {
    // SAFETY: both offsets outlive the call.
    let copied =
        unsafe { libc::copy_file_range(from.as_raw_fd(), &mut from_at, to.as_raw_fd(), &mut to_at, length, 0) };
    done(copied as i64).map(|copied| copied as usize)
}

fn copies(log: &mut Log) {
    let (from, to) = (both(&log.at("from")), both(&log.at("to")));
    let bytes: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    from.write_all_at(&bytes, 0).unwrap();
    log.note("copied at once", copy(&from, 0, &to, 0, LARGE));
    let mut copied = 0;
    while copied < LARGE {
        match copy(&from, copied as i64, &to, copied as i64, LARGE - copied) {
            Ok(0) | Err(_) => break,
            Ok(more) => copied += more,
        }
    }
    log.see("copied in all", copied);
    log.note("the copy", sum(&to));
    log.note("within a file", copy(&from, 0, &from, 2 << 20, 4096));
    log.note("over itself", copy(&from, 0, &from, 100, 4096));
    log.note("beyond the end", copy(&from, 5 << 20, &to, 0, 10));
    log.note("across the end", copy(&from, LARGE as i64 - 10, &to, 0, 100));
    log.note("nothing", copy(&from, 0, &to, 0, 0));
    log.note("to a reader", copy(&from, 0, &File::open(log.at("to")).unwrap(), 0, 10));
    log.note("from a directory", copy(&File::open(log.at(".")).unwrap(), 0, &to, 0, 10));
    log.note("the copy", sum(&to));
    // SAFETY: only numbers and no offset are passed.
    log.note(
        "sendfile",
        done(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), 70_000) } as i64),
    );
    log.note("the copy", sum(&to));
    log.note("std's copy", std::fs::copy(log.at("from"), log.at("copy")));
    log.note("the copy", sum(&File::open(log.at("copy")).unwrap()));
}

fn clones(log: &mut Log) {
    let (from, to) = (both(&log.at("from")), both(&log.at("clone")));
    // SAFETY: only numbers are passed.
    log.note("FICLONE", done(unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) }));
    let range = [from.as_raw_fd() as u64, 0, 4096, 0];
    // SAFETY: the kernel reads a struct file_clone_range, of that size.
    log.note("FICLONERANGE", done(unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE, range.as_ptr()) }));
    to.write_all_at(&[0; 4096], 0).unwrap();
    // struct file_dedupe_range with one destination: offset, length, count; then descriptor, offset, bytes, status.
    let mut same = [0, 4096, 1, to.as_raw_fd() as u64, 0, 0, 0];
    // SAFETY: the kernel reads and writes what the struct has, which is no more than that.
    log.note("FIDEDUPERANGE", done(unsafe { libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE, same.as_mut_ptr()) }));
    log.see("its status", same[6] as i32);
    // struct fiemap without room for extents.
    let mut map = [0_u64, u64::MAX, 1, 0];
    // SAFETY: the kernel reads and writes 32 bytes.
    log.note("FIEMAP", done(unsafe { libc::ioctl(from.as_raw_fd(), FS_IOC_FIEMAP, map.as_mut_ptr()) }));
    let mut size = 0_i32;
    // SAFETY: the kernel writes an int.
    log.note("FIGETBSZ", done(unsafe { libc::ioctl(from.as_raw_fd(), 2, &mut size) }).map(|_| size));
}

fn advice(log: &mut Log) {
    let file = both(&log.at("from"));
    let fd = file.as_raw_fd();
    // SAFETY: only numbers are passed.
    unsafe {
        for (name, advice) in [("will need", libc::POSIX_FADV_WILLNEED), ("do not need", libc::POSIX_FADV_DONTNEED)] {
            log.see(name, libc::posix_fadvise(fd, 0, 0, advice));
        }
        log.note("readahead", done(libc::readahead(fd, 0, 65536) as i64));
        log.note("sync_file_range", done(libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE)));
        log.note("syncfs", done(libc::syncfs(fd)));
    }
    for (name, flags) in
        [("RWF_DSYNC", libc::RWF_DSYNC), ("RWF_APPEND", libc::RWF_APPEND), ("RWF_HIPRI", libc::RWF_HIPRI)]
    {
        let part = libc::iovec { iov_base: b"four".as_ptr().cast_mut().cast(), iov_len: 4 };
        // SAFETY: the buffer outlives the call, which only reads it.
        log.note(name, done(unsafe { libc::pwritev2(fd, &part, 1, 0, flags) } as i64));
    }
    log.note("the file", sum(&file));
}

/// As in `struct file_handle`: its size, its type, its bytes.
type Handle = [u32; 2 + 32];

fn handle(path: &Path) -> io::Result<Handle> {
    let (path, mut handle, mut mount) = (c(path), [0; 34], 0_i32);
    handle[0] = 128;
    // SAFETY: the path ends with NUL; the kernel writes at most the 128 bytes that the handle says there are.
    let result = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), handle.as_mut_ptr(), &mut mount, 0)
    };
    done(result).map(|_| handle)
}

fn by_handle(log: &Log, handle: &Handle) -> io::Result<String> {
    let directory = File::open(log.at("."))?;
    // SAFETY: the handle is as the kernel made it.
    let opened =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, directory.as_raw_fd(), handle.as_ptr(), libc::O_RDONLY) };
    // SAFETY: it was opened just now.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(done(opened)? as i32) });
    let mut text = [0; 9];
    let length = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

fn handles(log: &mut Log) {
    let path = log.at("handle");
    std::fs::write(&path, "content").unwrap();
    let old = handle(&path);
    log.note("name_to_handle_at", old.as_ref().map(|_| ()).map_err(|error| error.kind().into()));
    let Ok(old) = old else { return };
    log.note("open_by_handle_at", by_handle(log, &old));
    // Another one may get its number.
    std::fs::remove_file(&path).unwrap();
    for number in 0..20 {
        std::fs::write(log.at(format!("again{number}")), "another").unwrap();
    }
    log.note("of one that is gone", by_handle(log, &old));
    let forgotten = handle(&log.at("again0")).unwrap();
    forget_names();
    log.note("of one that nobody has open", by_handle(log, &forgotten));
    std::fs::read(log.at("again0")).unwrap();
}

fn leases(log: &mut Log) {
    std::fs::write(log.at("lease"), "x").unwrap();
    let reader = File::open(log.at("lease")).unwrap();
    // SAFETY: only numbers are passed.
    let lease = |file: &File, command, kind: i32| done(unsafe { libc::fcntl(file.as_raw_fd(), command, kind) });
    log.note("none yet", lease(&reader, F_GETLEASE, 0));
    log.note("of a reader", lease(&reader, F_SETLEASE, libc::F_RDLCK));
    log.note("it is", lease(&reader, F_GETLEASE, 0));
    log.note("given back", lease(&reader, F_SETLEASE, libc::F_UNLCK));
    drop(reader);
    let writer = both(&log.at("lease"));
    log.note("of a writer", lease(&writer, F_SETLEASE, libc::F_WRLCK));
    log.note("given back", lease(&writer, F_SETLEASE, libc::F_UNLCK));
    log.note("a reader's of a writer", lease(&writer, F_SETLEASE, libc::F_RDLCK));
    log.note("of a directory", lease(&File::open(log.at(".")).unwrap(), F_SETLEASE, libc::F_RDLCK));
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// dnotify, what was before inotify.
fn notified(log: &mut Log) {
    let directory = File::open(log.at(".")).unwrap();
    let (fd, signal) = (directory.as_raw_fd(), libc::SIGRTMIN() + 3);
    // SAFETY: the handler only counts; the others take numbers.
    let asked = unsafe {
        libc::signal(signal, count as *const () as usize);
        libc::fcntl(fd, F_SETSIG, signal);
        libc::fcntl(fd, F_NOTIFY, DN_CREATE)
    };
    log.note("F_NOTIFY", done(asked));
    File::create(log.at("seen")).unwrap();
    let until = Instant::now() + Duration::from_secs(if asked < 0 { 0 } else { 10 });
    while SIGNALS.load(Ordering::SeqCst) == 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    log.see("told", SIGNALS.load(Ordering::SeqCst));
}

/// Linux's own asynchronous calls (io_submit(2)); each waits for its end.
fn aio(log: &mut Log) {
    let (file, mut context) = (both(&log.at("aio")), 0_u64);
    // SAFETY: the kernel writes the context.
    log.note("io_setup", done(unsafe { libc::syscall(libc::SYS_io_setup, 8, &mut context) }));
    let mut buffer = *b"asynchronous";
    for (name, operation, length, offset) in [
        ("pwrite", 1_u64, 12_u64, 5_u64),
        ("fsync", 2, 0, 0),
        ("fdsync", 3, 0, 0),
        ("pread", 0, 12, 6),
        ("at the end", 0, 12, 17),
    ] {
        // struct iocb: data, key, operation and descriptor, buffer, length, offset.
        let at = if length == 0 { 0 } else { buffer.as_mut_ptr() as u64 };
        let call = [7, 0, operation | (file.as_raw_fd() as u64) << 32, at, length, offset, 0, 0_u64];
        let (calls, mut event) = ([call.as_ptr()], [0_u64; 4]);
        // SAFETY: the buffer lives until the event has come.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, calls.as_ptr()) };
        if submitted == 1 {
            // SAFETY: there is room for one event.
            let events = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    context,
                    1,
                    1,
                    event.as_mut_ptr(),
                    std::ptr::null::<libc::timespec>(),
                )
            };
            assert_eq!(events, 1);
        }
        log.note(name, done(submitted).map(|_| event[2] as i64));
        log.see("the buffer", String::from_utf8_lossy(&buffer).into_owned());
    }
    // SAFETY: nothing is under way.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
}

/// A ring of one entry.
struct Ring {
    fd: OwnedFd,
    parameters: [u32; 30],
    submissions: *mut u8,
    completions: *mut u8,
    entries: *mut u64,
}

impl Ring {
    fn new() -> io::Result<Ring> {
        let mut parameters = [0_u32; 30];
        // SAFETY: the kernel writes a struct io_uring_params, of that size.
        let fd = done(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })?;
        // SAFETY: it was opened just now.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let map = |at: libc::off_t| {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            // SAFETY: a new mapping; rings of one entry are smaller than a page.
            let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd.as_raw_fd(), at) };
            assert_ne!(mapped, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            mapped.cast::<u8>()
        };
        let (submissions, completions, entries) = (map(0), map(0x800_0000), map(0x1000_0000));
        Ok(Ring { parameters, submissions, completions, entries: entries.cast(), fd })
    }

    /// Does one thing, and waits for it.
    fn act(&self, operation: u64, file: &File, offset: u64, buffer: u64, length: u64) -> io::Result<i32> {
        let entry = [operation | (file.as_raw_fd() as u64) << 32, offset, buffer, length, 7, 0, 0, 0];
        let word = |ring: *mut u8, parameter: usize| {
            // SAFETY: the kernel says where its words are; nothing is under way that would change them.
            unsafe { AtomicU32::from_ptr(ring.add(self.parameters[parameter] as usize).cast()) }
        };
        // SAFETY: the only entry is nobody's.
        unsafe { std::ptr::copy_nonoverlapping(entry.as_ptr(), self.entries, entry.len()) };
        word(self.submissions, 16).store(0, Ordering::Release);
        word(self.submissions, 11).fetch_add(1, Ordering::Release);
        // IORING_ENTER_GETEVENTS
        // SAFETY: the buffer lives until the event has come, which is waited for.
        let entered =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 1, 1, 1, std::ptr::null::<u8>(), 0) };
        done(entered)?;
        let head = word(self.completions, 20);
        let at = (head.load(Ordering::Acquire) & word(self.completions, 22).load(Ordering::Relaxed)) as usize;
        // SAFETY: the kernel has written that one: data, then the result.
        let result =
            unsafe { self.completions.add(self.parameters[25] as usize + 16 * at + 8).cast::<i32>().read_volatile() };
        head.fetch_add(1, Ordering::Release);
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
    }
}

fn uring(log: &mut Log) {
    let file = both(&log.at("uring"));
    let ring = match Ring::new() {
        Ok(ring) => ring,
        Err(error) => return log.note::<()>("io_uring_setup", Err(error)),
    };
    let mut buffer = *b"in a ring";
    let at = buffer.as_mut_ptr() as u64;
    for (name, operation, offset, length) in [
        ("WRITE", 23, 4, 9),
        ("FSYNC", 3, 0, 0),
        ("READ", 22, 5, 9),
        ("READ at the end", 22, 13, 9),
        ("FALLOCATE", 17, 0, 0),
    ] {
        // FALLOCATE has its length in the place of the buffer.
        let (buffer_at, length) = match operation {
            3 => (0, 0),
            17 => (65536, 0),
            _ => (at, length),
        };
        log.note(name, ring.act(operation, &file, offset, buffer_at, length));
        log.see("the buffer", String::from_utf8_lossy(&buffer).into_owned());
    }
    log.note("the file", sum(&file));
}

/// What is otherwise than in the directory, and why.
const DIFFERENT: [(&str, &str); 3] = [
    // A copy is a request, which has a deadline: the caller asks again for the rest, as each must.
    ("copied at once: 3145728", "copied at once: 1048576"),
    // The kernel's FUSE has no extents to show.
    ("FIEMAP: 0", "FIEMAP: EOPNOTSUPP"),
    // What the kernel has forgotten has no path in the overlay, so it is not told that it may ask for it (FUSE_EXPORT_SUPPORT).
    ("of one that nobody has open: \"another\"", "of one that nobody has open: ESTALE"),
];

#[test]
fn linux_calls_give_what_the_directory_gives_or_a_known_errno() {
    let local = Local::new("");
    let found = differences(&local, "calls");
    let unexpected: Vec<_> =
        found.iter().filter(|(plain, overlay)| !DIFFERENT.contains(&(plain.as_str(), overlay.as_str()))).collect();
    assert!(unexpected.is_empty(), "(plain, overlay): {unexpected:#?}");
    println!("different: {found:#?}");
    local.end();
}
