//! Another user of this machine, in a thread: credentials are a thread's own to the kernel (credentials(7)).

use std::thread::JoinHandle;

/// nobody.
pub const NOBODY: u32 = 65534;

/// Runs that as nobody.
pub fn as_nobody<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(move || {
        // By their numbers: the library's functions would change every thread of the process.
        // SAFETY: plain numbers, and they change nothing but this thread's credentials.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
        }
        work()
    })
}
