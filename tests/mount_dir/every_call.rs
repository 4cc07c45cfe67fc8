//! Every call that a program can make, in an outage: whether it waits, fails or is answered, and that it is done afterwards, on
//! what was open before.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fmt::Debug;
use std::fs::{File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, FallocateFlags, PosixFadviseAdvice, RenameFlags, copy_file_range, fallocate, posix_fadvise,
};
use nix::sys::stat::Mode;
use nix::unistd::Whence;
use parking_lot::Mutex;
use steadfs::backing::Traits;
use steadfs::backing::fake::Call;

use crate::mapped::{PAGE, PAGES, Writer};
use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, until};

/// A test's own limit for what must fail at once: far less than the deadline, on a loaded machine.
const SOON: Duration = Duration::from_secs(5);
const CLOSE: &str = "close with something uncommitted";
/// More than one answer to a readdir takes.
const NAMES: usize = 300;

/// Who has to be there for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// The backing.
    Backing,
    /// The backing, unless the kernel's cache may still answer.
    Cache,
    /// Nobody.
    Nobody,
    /// The backing, in an old outage only: in a young one it is answered.
    BackingIfOld,
}

type Act = Box<dyn Fn(&Scene) -> io::Result<String> + Sync>;

struct Row {
    call: &'static str,
    needs: Needs,
    /// What it says when it is done.
    wanted: String,
    act: Act,
}

/// What is open, and what there is.
struct Scene {
    hot: PathBuf,
    file: File,
    append: File,
    sparse: File,
    allocated: File,
    target: File,
    cut: File,
    quiet: File,
    held: File,
    /// Directories: not begun, begun, read to its end, to be synced; and the names that each has given.
    unread: (File, Mutex<BTreeSet<Vec<u8>>>),
    begun: (File, Mutex<BTreeSet<Vec<u8>>>),
    rewound: (File, Mutex<BTreeSet<Vec<u8>>>),
    directory: File,
    /// To be closed: with something uncommitted, and with nothing.
    dirty: Mutex<Vec<File>>,
    clean: Mutex<Vec<File>>,
    mapped: Mutex<Writer>,
}

fn both(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opened")
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

fn checked(result: i32) -> io::Result<i32> {
    Ok(Errno::result(result)?)
}

/// The next names of a directory; 0 at its end.
fn some_names(directory: &File, names: &mut BTreeSet<Vec<u8>>) -> io::Result<usize> {
    let mut buffer = [0_u8; 1024];
    // SAFETY: no more is written than the buffer has.
    let read = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    let (end, mut at) = (usize::try_from(Errno::result(read)?).unwrap(), 0);
    while at < end {
        // struct linux_dirent64: the length at 16, the name at 19.
        let length = u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]) as usize;
        let name = CStr::from_bytes_until_nul(&buffer[at + 19..at + length]).unwrap();
        assert!(names.insert(name.to_bytes().to_vec()), "{name:?} comes twice");
        at += length;
    }
    Ok(end)
}

/// Reads a directory to its end, on from wherever it is.
fn all_names((directory, names): &(File, Mutex<BTreeSet<Vec<u8>>>)) -> io::Result<usize> {
    let mut names = names.lock();
    while some_names(directory, &mut names)? > 0 {}
    Ok(names.len())
}

impl Scene {
    fn new(rig: &Rig) -> Scene {
        let hot = |name: &str| rig.hot(name);
        for name in [
            "opened",
            "truncated",
            "quiet",
            "linked",
            "unlinked",
            "renamed",
            "kept",
            "one",
            "two",
            "mode",
            "owner",
            "cut by path",
            "times",
            "attributes",
        ] {
            std::fs::write(hot(name), "0123456789").unwrap();
        }
        for name in ["removed", "big", "directory"] {
            std::fs::create_dir(hot(name)).unwrap();
        }
        for number in 0..NAMES {
            std::fs::write(rig.cold("big").join(format!("a name that takes some room {number}")), "").unwrap();
        }
        std::fs::write(rig.cold("directory/never looked up"), "").unwrap();
        symlink("where/to", hot("symlink")).unwrap();
        set_attribute(&hot("attributes"), c"user.got").unwrap();
        set_attribute(&hot("attributes"), c"user.removed").unwrap();
        let made = |name: &str, content: &[u8]| {
            let file = both(&hot(name));
            file.write_all_at(content, 0).unwrap();
            file.sync_all().unwrap();
            file
        };
        let sparse = made("sparse", b"");
        sparse.write_all_at(b"data", 1 << 20).unwrap();
        sparse.sync_all().unwrap();
        let append = OpenOptions::new().append(true).create(true).open(hot("log")).unwrap();
        let open = |name: &str| (File::open(hot(name)).unwrap(), Mutex::default());
        let (begun, rewound) = (open("big"), open("big"));
        some_names(&begun.0, &mut begun.1.lock()).unwrap();
        all_names(&rewound).unwrap();
        let of_zeros = made("mapped", &vec![0; PAGES * PAGE]);
        // So that the kernel, which hears of its time here, has no reason to drop pages later.
        of_zeros.metadata().unwrap();
        drop(of_zeros);
        let scene = Scene {
            hot: rig.mountpoint().to_owned(),
            file: made("file", b"0123456789"),
            append,
            sparse,
            allocated: made("allocated", b""),
            target: made("target", b""),
            cut: made("cut by descriptor", b"0123456789"),
            quiet: File::open(hot("quiet")).unwrap(),
            held: made("held", b"held"),
            unread: open("big"),
            begun,
            rewound,
            directory: File::open(hot("directory")).unwrap(),
            dirty: Mutex::new(vec![both(&hot("dirty 1")), both(&hot("dirty 2"))]),
            clean: Mutex::new(vec![File::open(hot("quiet")).unwrap(), File::open(hot("quiet")).unwrap()]),
            mapped: Mutex::new(Writer::start(&hot("mapped"))),
        };
        // What the kernel may remember, it has heard last: a read costs it the time of access.
        scene.quiet.read_exact_at(&mut [0; 10], 0).unwrap();
        for name in crate::rig::names(rig.mountpoint()) {
            std::fs::symlink_metadata(hot(&name)).unwrap();
        }
        scene
    }

    /// The generation ends; files that are to be closed have something uncommitted. False if they have not: a process that
    /// another test has just started commits by closing what it was given.
    fn outage(&self, rig: &Rig) -> bool {
        self.dirty.lock().iter().for_each(|file| file.write_all_at(b"uncommitted", 0).unwrap());
        rig.outage();
        rig.overlay.counts().log_bytes > 0
    }

    fn at(&self, name: &str) -> PathBuf {
        self.hot.join(name)
    }
}

fn set_attribute(path: &Path, name: &CStr) -> io::Result<i32> {
    let path = c(path);
    // SAFETY: the strings end with NUL and the length is that of the value.
    checked(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), b"blue".as_ptr().cast(), 4, 0) })
}

fn flags_of(descriptor: RawFd) -> io::Result<i32> {
    let mut flags = 0_u32;
    // SAFETY: FS_IOC_GETFLAGS writes an int.
    checked(unsafe { libc::ioctl(descriptor, 0x8008_6601, &mut flags) })
}

fn row<T: Debug, W: Debug>(
    call: &'static str,
    needs: Needs,
    wanted: W,
    act: impl Fn(&Scene) -> io::Result<T> + Sync + 'static,
) -> Row {
    Row { call, needs, wanted: format!("{wanted:?}"), act: Box::new(move |scene| Ok(format!("{:?}", act(scene)?))) }
}

fn names() -> Vec<Row> {
    use Needs::{Backing, BackingIfOld, Cache, Nobody};
    let rename = |scene: &Scene, from: &str, to: &str, flags| {
        Ok(nix::fcntl::renameat2(AT_FDCWD, &scene.at(from), AT_FDCWD, &scene.at(to), flags)?)
    };
    vec![
        row("mkdir", Backing, (), |scene| std::fs::create_dir(scene.at("made"))),
        row("mknod", Backing, (), |scene| Ok(nix::unistd::mkfifo(&scene.at("fifo"), Mode::S_IRWXU)?)),
        row("symlink", Backing, (), |scene| symlink("to", scene.at("made symlink"))),
        row("link", Backing, (), |scene| std::fs::hard_link(scene.at("linked"), scene.at("link"))),
        row("unlink", Backing, (), |scene| std::fs::remove_file(scene.at("unlinked"))),
        row("unlink of an open file", Backing, b"held".to_vec(), |scene| {
            std::fs::remove_file(scene.at("held"))?;
            let mut text = vec![0; 4];
            scene.held.read_exact_at(&mut text, 0).map(|()| text)
        }),
        row("rmdir", Backing, (), |scene| std::fs::remove_dir(scene.at("removed"))),
        row("rename", Backing, (), |scene| std::fs::rename(scene.at("renamed"), scene.at("new name"))),
        row("rename, NOREPLACE", Backing, (), move |scene| {
            rename(scene, "kept", "kept anew", RenameFlags::RENAME_NOREPLACE)
        }),
        row("rename, EXCHANGE", Backing, (), move |scene| rename(scene, "one", "two", RenameFlags::RENAME_EXCHANGE)),
        row("readlink", Backing, "where/to", |scene| {
            Ok(std::fs::read_link(scene.at("symlink"))?.into_os_string().into_string().unwrap())
        }),
        row("lookup", Backing, true, |scene| {
            Ok(std::fs::metadata(scene.at("directory/never looked up"))?.file_type().is_file())
        }),
        row("opendir", Backing, (), |scene| File::open(scene.at("directory")).map(drop)),
        row("opendir of the root", BackingIfOld, (), |scene| File::open(&scene.hot).map(drop)),
        row("readdir, not begun", Backing, NAMES + 2, |scene| all_names(&scene.unread)),
        row("readdir, begun", Backing, NAMES + 2, |scene| all_names(&scene.begun)),
        row("rewinddir and readdir", Backing, NAMES + 2, |scene| {
            nix::unistd::lseek(&scene.rewound.0, 0, Whence::SeekSet)?;
            scene.rewound.1.lock().clear();
            all_names(&scene.rewound)
        }),
        row("fsyncdir", Backing, (), |scene| scene.directory.sync_all()),
        row("getattr of the root", Nobody, true, |scene| Ok(std::fs::metadata(&scene.hot)?.is_dir())),
        row("statfs", Nobody, true, |scene| Ok(nix::sys::statvfs::statvfs(&scene.hot)?.blocks() > 0)),
        row("stat", Cache, 10, |scene| Ok(std::fs::metadata(scene.at("quiet"))?.len())),
        row("fstat", Cache, 10, |scene| Ok(scene.quiet.metadata()?.len())),
        row("access", Cache, (), |scene| Ok(nix::unistd::access(&scene.at("quiet"), nix::unistd::AccessFlags::R_OK)?)),
    ]
}

fn attributes(traits: Traits) -> Vec<Row> {
    use Needs::Backing;
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let mut rows = vec![
        row("chmod", Backing, 0o604, |scene| {
            std::fs::set_permissions(scene.at("mode"), Permissions::from_mode(0o604))?;
            Ok(std::fs::metadata(scene.at("mode"))?.mode() & 0o7777)
        }),
        row("fchmod", Backing, (), |scene| scene.file.set_permissions(Permissions::from_mode(0o644))),
        row("chown", Backing, 12, |scene| {
            std::os::unix::fs::chown(scene.at("owner"), Some(12), Some(34))?;
            Ok(std::fs::metadata(scene.at("owner"))?.uid())
        }),
        row("truncate", Backing, (), |scene| Ok(nix::unistd::truncate(&scene.at("cut by path"), 4)?)),
        row("ftruncate", Backing, (), |scene| scene.cut.set_len(4)),
        row("utimens", Backing, then, move |scene| {
            let times = nix::sys::time::TimeSpec::new(1000, 0);
            let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
            nix::sys::stat::utimensat(AT_FDCWD, &scene.at("times"), &times, &times, follow)?;
            std::fs::metadata(scene.at("times"))?.modified()
        }),
        row("futimens", Backing, (), move |scene| scene.cut.set_times(FileTimes::new().set_modified(then))),
        row("setxattr", Backing, 0, |scene| set_attribute(&scene.at("attributes"), c"user.set")),
        row("getxattr", Backing, 4, |scene| {
            let (path, mut value) = (c(&scene.at("attributes")), [0_u8; 8]);
            // SAFETY: the strings end with NUL and the length is that of the buffer.
            let got = unsafe { libc::getxattr(path.as_ptr(), c"user.got".as_ptr(), value.as_mut_ptr().cast(), 8) };
            Ok(Errno::result(got)?)
        }),
        row("listxattr", Backing, true, |scene| {
            let (path, mut names) = (c(&scene.at("attributes")), [0_u8; 256]);
            // SAFETY: the path ends with NUL and the length is that of the buffer.
            let listed = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
            let listed = usize::try_from(Errno::result(listed)?).unwrap();
            Ok(names[..listed].split(|byte| *byte == 0).any(|name| name == b"user.got"))
        }),
        row("removexattr", Backing, 0, |scene| {
            let path = c(&scene.at("attributes"));
            // SAFETY: the strings end with NUL.
            checked(unsafe { libc::removexattr(path.as_ptr(), c"user.removed".as_ptr()) })
        }),
    ];
    // Over SFTP there are no flags of files. The kernel opens the file to ask.
    let none = if traits.stable_inodes { 0 } else { libc::ENOTTY };
    rows.push(row("ioctl, FS_IOC_GETFLAGS", Backing, none, |scene| match flags_of(scene.file.as_raw_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(libc::ENOTTY),
        result => result,
    }));
    rows
}

fn data() -> Vec<Row> {
    use Needs::{Backing, Cache, Nobody};
    vec![
        row("open", Backing, (), |scene| File::open(scene.at("opened")).map(drop)),
        row("open, O_TRUNC", Backing, (), |scene| {
            OpenOptions::new().write(true).truncate(true).open(scene.at("truncated")).map(drop)
        }),
        row("open by /proc/self/fd", Backing, (), |scene| {
            File::open(format!("/proc/self/fd/{}", scene.file.as_raw_fd())).map(drop)
        }),
        row("create", Backing, (), |scene| File::create_new(scene.at("created")).map(drop)),
        row("read", Backing, *b"0123", |scene| {
            posix_fadvise(&scene.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            let mut text = [0; 4];
            scene.file.read_exact_at(&mut text, 0).map(|()| text)
        }),
        row("read of what the kernel has", Cache, *b"0123", |scene| {
            let mut text = [0; 4];
            scene.quiet.read_exact_at(&mut text, 0).map(|()| text)
        }),
        row("write", Backing, 3, |scene| scene.file.write_at(b"new", 10)),
        row("append", Backing, 5, |scene| (&scene.append).write(b"line\n")),
        row("fsync", Backing, (), |scene| scene.file.sync_all()),
        row("fdatasync", Backing, (), |scene| scene.append.sync_data()),
        row(CLOSE, Backing, (), |scene| {
            let file = scene.dirty.lock().remove(0);
            Ok(nix::unistd::close(file)?)
        }),
        row("close with nothing", Nobody, (), |scene| {
            let file = scene.clean.lock().remove(0);
            Ok(nix::unistd::close(file)?)
        }),
        row("lseek, SEEK_DATA", Backing, 1 << 20, |scene| Ok(nix::unistd::lseek(&scene.sparse, 0, Whence::SeekData)?)),
        row("lseek, SEEK_HOLE", Backing, 0, |scene| Ok(nix::unistd::lseek(&scene.sparse, 0, Whence::SeekHole)?)),
        row("lseek, SEEK_END", Cache, 10, |scene| Ok(nix::unistd::lseek(&scene.quiet, 0, Whence::SeekEnd)?)),
        row("fallocate", Backing, (), |scene| Ok(fallocate(&scene.allocated, FallocateFlags::empty(), 0, 8192)?)),
        row("copy_file_range", Backing, 10, |scene| {
            Ok(copy_file_range(&scene.quiet, Some(&mut 0), &scene.target, Some(&mut 0), 10)?)
        }),
        row("flock", Nobody, 0, |scene| {
            // SAFETY: only numbers are passed.
            checked(unsafe { libc::flock(scene.file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })
        }),
        row("fcntl, F_SETLK", Nobody, 0, |scene| {
            let (kind, whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
            let lock = libc::flock { l_type: kind, l_whence: whence, l_start: 0, l_len: 1, l_pid: 0 };
            // SAFETY: the command takes a `struct flock`, which outlives the call.
            checked(unsafe { libc::fcntl(scene.file.as_raw_fd(), libc::F_SETLK, &lock) })
        }),
        row("syncfs", Nobody, 0, |scene| {
            // SAFETY: only a number is passed.
            checked(unsafe { libc::syncfs(scene.directory.as_raw_fd()) })
        }),
        row("a page of a mapping that is there", Nobody, 0, |scene| Ok(scene.mapped.lock().ask("get 2"))),
        row("a store to a mapping", Nobody, 0, |scene| Ok(scene.mapped.lock().ask("set 3 7"))),
        // Last: what it tells of pages that could not be written is told by the next syncfs too.
        row("msync", Backing, (), |scene| {
            let mut mapped = scene.mapped.lock();
            mapped.ask("set 4 8");
            match mapped.ask("sync") {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }),
    ]
}

fn rows(traits: Traits) -> Vec<Row> {
    [names(), attributes(traits), data()].into_iter().flatten().collect()
}

/// Mounted with a kernel that remembers what it has heard, or that asks about everything.
fn mounted(traits: Traits, remembers: bool) -> Rig {
    let timeout = Duration::from_secs(if remembers { 3600 } else { 0 });
    Rig::with(traits, PATIENCE, |config| {
        config.attr_timeout = timeout;
        config.entry_timeout = Some(timeout);
        // Nothing is sent by itself, so that what is counted is what a call does.
        config.gather = Duration::from_secs(3600);
    })
}

/// Each of them was done once.
fn all_done(rig: &Rig, scene: Scene) {
    for file in [&scene.file, &scene.append, &scene.allocated, &scene.target, &scene.cut] {
        file.sync_all().unwrap();
    }
    let cold = |name: &str| std::fs::read(rig.cold(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    for (name, content) in [
        ("file", &b"0123456789new"[..]),
        ("log", b"line\n"),
        ("truncated", b""),
        ("created", b""),
        ("cut by path", b"0123"),
        ("cut by descriptor", b"0123"),
        ("target", b"0123456789"),
        ("link", b"0123456789"),
        ("new name", b"0123456789"),
        ("kept anew", b"0123456789"),
        ("dirty 1", b"uncommitted"),
    ] {
        assert_eq!(cold(name), content, "{name}");
    }
    assert_eq!(cold("allocated").len(), 8192);
    assert_eq!((cold("mapped")[3 * PAGE], cold("mapped")[4 * PAGE]), (7, 8));
    let gone = ["unlinked", "renamed", "removed", "kept", "held"];
    assert!(gone.iter().all(|name| !rig.cold(name).exists()));
    let links = std::fs::metadata(rig.cold("linked")).unwrap().nlink();
    assert!(rig.cold("made").is_dir() && rig.cold("made symlink").is_symlink() && links == 2);
    drop(scene);
    until(|| rig.overlay.counts().open_files == 0);
    until(|| rig.overlay.counts().log_bytes == 0);
    assert!(rig.complaints.lock().is_empty(), "{:?}", rig.complaints.lock());
}

#[test]
fn every_call_in_an_old_outage() {
    for (traits, remembers) in [(LOCAL, false), (LOCAL, true), (SSHFS, false), (SSHFS, true)] {
        let rig = mounted(traits, remembers);
        let (scene, rows) = (Scene::new(&rig), rows(traits));
        // For longer than the deadline, which is long: what fails soon has not waited for it.
        let uncommitted = scene.outage(&rig);
        rig.gate.close(Instant::now().checked_sub(PATIENCE * 2).expect("the machine is up for longer"));
        // Descriptors of the generation that died are closed.
        let tried = || rig.control().all_calls() - rig.control().calls(Call::Close);
        let before = tried();
        for Row { call, needs, wanted, act } in &rows {
            let started = Instant::now();
            let result = act(&scene).map_err(|error| error.raw_os_error());
            let took = started.elapsed();
            let answered = match needs {
                Needs::Nobody => true,
                Needs::Cache => remembers,
                Needs::Backing => *call == CLOSE && !uncommitted,
                Needs::BackingIfOld => false,
            };
            match (answered, *call) {
                (true, _) => assert_eq!(result, Ok(wanted.clone()), "{call}, remembers: {remembers}"),
                // What was not written back is EIO, whyever (AS_EIO of linux/pagemap.h).
                (false, "msync") => assert!(matches!(result, Err(Some(libc::ENOTCONN | libc::EIO))), "{result:?}"),
                (false, _) => assert_eq!(result, Err(Some(libc::ENOTCONN)), "{call}, remembers: {remembers}"),
            }
            assert!(took < SOON, "{call} took {took:?}");
        }
        assert_eq!(tried(), before, "nothing was tried");
        assert_eq!(rig.repair().failed.len(), 0);
        for Row { call, needs, wanted, act } in &rows {
            if ["syncfs", "msync"].contains(call) {
                // These may tell once more what msync has told, as on any filesystem.
                let _ = act(&scene);
            }
            // What the kernel had to be asked for in the outage is done now; what was answered is as it was.
            let result = act(&scene).map_err(|error| error.raw_os_error());
            assert_eq!(result, Ok(wanted.clone()), "{call} ({needs:?}) after the repair, remembers: {remembers}");
        }
        all_done(&rig, scene);
    }
}

#[test]
fn every_call_in_a_young_outage() {
    for (traits, remembers) in [(LOCAL, false), (LOCAL, true), (SSHFS, false), (SSHFS, true)] {
        let rig = mounted(traits, remembers);
        let (scene, rows) = (Scene::new(&rig), rows(traits));
        for Row { call, needs, wanted, act } in &rows {
            until(|| rig.gate.load().waiting == 0);
            let uncommitted = scene.outage(&rig);
            let result = std::thread::scope(|scope| {
                let acting = scope.spawn(|| act(&scene).map_err(|error| error.raw_os_error()));
                let waits = match needs {
                    Needs::Nobody | Needs::BackingIfOld => false,
                    Needs::Cache => !remembers,
                    Needs::Backing => *call != CLOSE || uncommitted,
                };
                let begun = Instant::now();
                while !(acting.is_finished() || (waits && rig.gate.load().waiting > 0)) && begun.elapsed() < SOON {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let finished = acting.is_finished();
                assert_eq!(rig.repair().failed.len(), 0);
                let result = acting.join().expect("no panic");
                assert_eq!(finished, !waits, "{call}, remembers: {remembers}: {result:?}");
                result
            });
            assert_eq!(result, Ok(wanted.clone()), "{call}, remembers: {remembers}");
        }
        all_done(&rig, scene);
    }
}
