//! `/proc/self/mountinfo`, the one view of mounts that never touches the mounted filesystems (proc_pid_mountinfo(5)).
//!
//! Reading it cannot hang on a dead mount, as stat(2) or statfs(2) would.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Mount id; what `mnt_id` of `/proc/self/fdinfo/N` and statx(2) refer to. May be reused after an unmount.
    pub id: u64,
    /// Id of the mount below it, or its own for the root of a mount tree.
    pub parent: u64,
    /// Major and minor number of st_dev of files on it.
    pub dev: (u32, u32),
    /// The directory of the filesystem that forms the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, relative to the process's root.
    pub mountpoint: PathBuf,
    /// Options of the mount itself, comma separated.
    pub options: OsString,
    /// `shared:N`, `master:N` and the like.
    pub optional: Vec<OsString>,
    /// Filesystem type, `type` or `type.subtype`.
    pub fstype: OsString,
    /// What is mounted, or `none`.
    pub source: OsString,
    /// Options of the filesystem, comma separated.
    pub super_options: OsString,
}

/// All mounts that this process sees, in the kernel's order: of two on the same mountpoint the topmost is last.
pub fn entries() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts in the text of a mountinfo file. Lines that cannot be understood are left out.
pub fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// The first mount whose files have this st_dev (major, minor).
pub fn find_by_dev(dev: (u32, u32)) -> io::Result<Option<Entry>> {
    Ok(entries()?.into_iter().find(|e| e.dev == dev))
}

/// The topmost mount exactly on `path`, which must be canonical.
pub fn at(path: &Path) -> io::Result<Option<Entry>> {
    Ok(at_in(&entries()?, path).cloned())
}

/// The mount that `path`, which must be canonical, lies on.
pub fn covering(path: &Path) -> io::Result<Option<Entry>> {
    Ok(covering_in(&entries()?, path).cloned())
}

/// As [`at`], in a table read before.
pub fn at_in<'a>(table: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    table.iter().rfind(|e| e.mountpoint == path)
}

/// As [`covering`], in a table read before.
pub fn covering_in<'a>(table: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    // By name alone a mount that a later one on a directory above hides would win, so walk down as a lookup does.
    let mut current = table.iter().rfind(|e| e.mountpoint == Path::new("/"))?;
    // No more steps than mounts: a table from elsewhere may run in a circle.
    for _ in 0..table.len() {
        let covers = |e: &&Entry| {
            e.parent == current.id
                && e.id != current.id
                && path.starts_with(&e.mountpoint)
                && e.mountpoint.starts_with(&current.mountpoint)
        };
        match table.iter().rev().filter(covers).min_by_key(|e| e.mountpoint.as_os_str().len()) {
            Some(next) => current = next,
            None => break,
        }
    }
    Some(current)
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ').filter(|f| !f.is_empty());
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let dev = fields.next()?;
    let colon = dev.iter().position(|&b| b == b':')?;
    let dev = (number(&dev[..colon])?, number(&dev[colon + 1..])?);
    let root = PathBuf::from(unescape(fields.next()?));
    let mountpoint = PathBuf::from(unescape(fields.next()?));
    let options = unescape(fields.next()?);
    let mut optional = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => optional.push(unescape(field)),
        }
    }
    let fstype = unescape(fields.next()?);
    // The kernel writes an empty source as nothing between two blanks, which leaves one field less.
    let (source, super_options) = match (fields.next()?, fields.next()) {
        (source, Some(options)) => (unescape(source), unescape(options)),
        (options, None) => (OsString::new(), unescape(options)),
    };
    Some(Entry { id, parent, dev, root, mountpoint, options, optional, fstype, source, super_options })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo` for blank, tab, newline, backslash and `#`; anything else is kept as it is.
pub(crate) fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = |b: u8| (b'0'..=b'7').contains(&b).then(|| u32::from(b - b'0'));
        let escaped = match (byte, tail) {
            (b'\\', &[a, b, c, ..]) => octal(a).zip(octal(b)).zip(octal(c)).map(|((a, b), c)| a * 64 + b * 8 + c),
            _ => None,
        };
        match escaped.and_then(|value| u8::try_from(value).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

impl Entry {
    /// True if the type is `fuse` or `fuseblk`, with or without a subtype.
    pub fn is_fuse(&self) -> bool {
        let base = self.fstype.as_bytes().split(|&b| b == b'.').next();
        matches!(base, Some(b"fuse" | b"fuseblk"))
    }

    /// True if a look at what is on it may wait for another machine or process.
    pub fn may_hang(&self) -> bool {
        let remote = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "glusterfs", "lustre"];
        self.is_fuse() || remote.contains(&&*self.fstype.to_string_lossy())
    }

    /// True if `name` is among the mount's own options.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.as_bytes().split(|&b| b == b',').any(|o| OsStr::from_bytes(o) == name)
    }

    /// True if nothing can be changed through it.
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.super_options.as_bytes().split(|&b| b == b',').any(|option| option == b"ro")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
30 22 0:25 / /srv rw - tmpfs tmpfs rw,size=4k\n\
31 30 0:26 /sub /srv/with\\040blank\\134x rw,nosuid master:3 propagate_from:2 - fuse.sshfs u@h:/a\\011b rw,user_id=0\n\
32 30 0:27 / /srv rw - tmpfs over rw\n\
33 22 0:28 / /srvx rw -  nothing rw\n\
nonsense\n\
34 22 0:29 / /none rw - tmpfs  rw\n";

    #[test]
    fn reads_all_fields() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 6);
        let e = &table[2];
        assert_eq!((e.id, e.parent, e.dev), (31, 30, (0, 26)));
        assert_eq!(e.root, Path::new("/sub"));
        assert_eq!(e.mountpoint, Path::new("/srv/with blank\\x"));
        assert_eq!(e.optional, ["master:3", "propagate_from:2"]);
        assert_eq!(e.fstype, "fuse.sshfs");
        assert_eq!(e.source, "u@h:/a\tb");
        assert_eq!(e.super_options, "rw,user_id=0");
        assert!(e.is_fuse() && e.has_option("nosuid") && !e.has_option("nodev"));
        assert_eq!(table[5].source, "");
        assert_eq!(table[5].super_options, "rw");
    }

    #[test]
    fn finds_the_topmost() {
        let table = parse(TABLE);
        let id = |path: &str| covering_in(&table, Path::new(path)).map(|e| e.id);
        assert_eq!(at_in(&table, Path::new("/srv")).map(|e| e.id), Some(32));
        assert_eq!(at_in(&table, Path::new("/sr")), None);
        assert_eq!(id("/etc/x"), Some(22));
        assert_eq!(id("/srv/a"), Some(32), "the later of two on one directory");
        assert_eq!(id("/srvx"), Some(33));
        // 31 lies on 30, which 32 hides.
        assert_eq!(id("/srv/with blank\\x/y"), Some(32));
    }

    #[test]
    fn the_own_table_has_a_root_and_proc() {
        let root = covering(Path::new("/")).expect("mountinfo").expect("a root mount");
        assert_eq!(root.mountpoint, Path::new("/"));
        let proc = at(Path::new("/proc")).expect("mountinfo").expect("proc mounted");
        assert_eq!(proc.fstype, "proc");
        assert_eq!(find_by_dev(proc.dev).expect("mountinfo").map(|e| e.fstype), Some("proc".into()));
    }

    #[test]
    fn stacked_mounts_and_circles_end() {
        let stack = parse(b"5 5 0:1 / / rw - a a rw\n6 5 0:2 / / rw - b b rw\n7 6 0:3 / /x rw - c c rw\n");
        assert_eq!(covering_in(&stack, Path::new("/x/y")).map(|e| e.id), Some(7));
        let circle = parse(b"2 3 0:1 / / rw - a a rw\n3 2 0:2 / / rw - b b rw\n");
        assert!(covering_in(&circle, Path::new("/x")).is_some());
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..400), path in ".{0,20}") {
            let table = parse(&text);
            let _ = covering_in(&table, Path::new(&path));
        }

        #[test]
        fn near_misses_never_panic(text in "([0-9]{1,3} [0-9]{1,3} [0-9]:[0-9] /?(\\\\[0-9]{0,4})? /[a-b]? [rw ]{0,3}[-a ]{1,4} .{0,6}\n?){0,9}") {
            let table = parse(text.as_bytes());
            let _ = (covering_in(&table, Path::new("/a/b")), at_in(&table, Path::new("/")));
        }

        #[test]
        fn escapes_round_trip(name in proptest::collection::vec(any::<u8>(), 1..40)) {
            let escaped: Vec<u8> = name.iter().flat_map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                _ => vec![*b],
            }).collect();
            prop_assert_eq!(unescape(&escaped), OsString::from_vec(name));
        }
    }
}
