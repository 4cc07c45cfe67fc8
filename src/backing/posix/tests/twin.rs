//! Random calls through the tree and, in a twin directory, through std::fs: the same answers and the same result.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use proptest::prelude::*;

use super::Place;
use crate::backing::{OpResult, Tree};

#[derive(Debug, Clone)]
enum Call {
    Mkdir(PathBuf, u32),
    Rmdir(PathBuf),
    Create(PathBuf, bool, u32),
    Write(PathBuf, u64, Vec<u8>),
    Read(PathBuf, u64, usize),
    Truncate(PathBuf, u64),
    Chmod(PathBuf, u32),
    Unlink(PathBuf),
    Symlink(String, PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    ReadLink(PathBuf),
    List(PathBuf),
    Stat(PathBuf),
}

/// Few names and little depth, so that calls meet.
fn path() -> impl Strategy<Value = PathBuf> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c\u{fc}")], 1..4)
        .prop_map(|names| names.into_iter().collect())
}

fn call() -> impl Strategy<Value = Call> {
    let modes = prop_oneof![Just(0o700u32), Just(0o755), Just(0o640)];
    prop_oneof![
        3 => (path(), modes.clone()).prop_map(|(p, m)| Call::Mkdir(p, m | 0o700)),
        1 => path().prop_map(Call::Rmdir),
        3 => (path(), any::<bool>(), modes.clone()).prop_map(|(p, e, m)| Call::Create(p, e, m)),
        3 => (path(), 0u64..9000, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(p, o, d)| Call::Write(p, o, d)),
        2 => (path(), 0u64..9000, 0usize..500).prop_map(|(p, o, n)| Call::Read(p, o, n)),
        1 => (path(), 0u64..10000).prop_map(|(p, n)| Call::Truncate(p, n)),
        1 => (path(), modes).prop_map(|(p, m)| Call::Chmod(p, m | 0o600)),
        1 => path().prop_map(Call::Unlink),
        1 => (prop_oneof![Just("a"), Just("../.."), Just("/tmp")], path()).prop_map(|(t, p)| Call::Symlink(t.into(), p)),
        1 => (path(), path()).prop_map(|(a, b)| Call::Link(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Call::Rename(a, b)),
        1 => path().prop_map(Call::ReadLink),
        1 => path().prop_map(Call::List),
        2 => path().prop_map(Call::Stat),
    ]
}

/// What a call answered, in a form that both sides share.
type Answer = Result<String, Errno>;

fn text(value: impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

fn through_tree(tree: &dyn Tree, call: &Call) -> Answer {
    match call {
        Call::Mkdir(p, m) => tree.mkdir(p, *m).map(text),
        Call::Rmdir(p) => tree.rmdir(p).map(text),
        Call::Create(p, excl, m) => {
            tree.create(p, libc::O_RDWR | if *excl { libc::O_EXCL } else { 0 }, *m).map(|_| text(()))
        }
        Call::Write(p, offset, data) => tree.open(p, libc::O_WRONLY)?.write_at(data, *offset).map(text),
        Call::Read(p, offset, n) => {
            let mut buf = vec![0; *n];
            let got = tree.open(p, libc::O_RDONLY)?.read_at(&mut buf, *offset)?;
            Ok(text(&buf[..got]))
        }
        Call::Truncate(p, n) => tree.set_size(p, *n).map(text),
        Call::Chmod(p, m) => tree.set_mode(p, *m).map(text),
        Call::Unlink(p) => tree.unlink(p).map(text),
        Call::Symlink(target, p) => tree.symlink(OsStr::new(target), p).map(text),
        Call::Link(a, b) => tree.link(a, b).map(text),
        Call::Rename(a, b) => tree.rename(a, b, 0).map(text),
        Call::ReadLink(p) => tree.read_link(p).map(text),
        Call::List(p) => {
            let mut names: Vec<_> = tree.read_dir(p)?.into_iter().map(|e| e.name).collect();
            names.sort();
            Ok(text(names))
        }
        Call::Stat(p) => tree.stat(p).map(|a| text((u32::from(a.perm), a.nlink, a.size, a.uid))),
    }
}

fn through_std(root: &Path, call: &Call) -> Answer {
    let errno = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
    let at = |p: &Path| root.join(p);
    let done: io::Result<String> = (|| match call {
        Call::Mkdir(p, m) => {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new().mode(*m).create(at(p)).map(text)
        }
        Call::Rmdir(p) => fs::remove_dir(at(p)).map(text),
        Call::Create(p, excl, m) => {
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true).mode(*m).custom_flags(libc::O_NOFOLLOW);
            if *excl { options.create_new(true) } else { options.create(true) }.open(at(p)).map(|_| text(()))
        }
        Call::Write(p, offset, data) => fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(at(p))?
            .write_at(data, *offset)
            .map(text),
        Call::Read(p, offset, n) => {
            let mut buf = vec![0; *n];
            let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(at(p))?;
            let got = file.read_at(&mut buf, *offset)?;
            Ok(text(&buf[..got]))
        }
        Call::Truncate(p, n) => {
            fs::OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(at(p))?.set_len(*n).map(text)
        }
        Call::Chmod(p, m) => fs::set_permissions(at(p), fs::Permissions::from_mode(*m)).map(text),
        Call::Unlink(p) => fs::remove_file(at(p)).map(text),
        Call::Symlink(target, p) => std::os::unix::fs::symlink(target, at(p)).map(text),
        Call::Link(a, b) => fs::hard_link(at(a), at(b)).map(text),
        Call::Rename(a, b) => fs::rename(at(a), at(b)).map(text),
        Call::ReadLink(p) => fs::read_link(at(p)).map(text),
        Call::List(p) => {
            let mut names = fs::read_dir(at(p))?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(text(names))
        }
        Call::Stat(p) => fs::symlink_metadata(at(p)).map(|m| text((m.mode() & 0o7777, m.nlink(), m.size(), m.uid()))),
    })();
    done.map_err(errno)
}

/// True if a link lies on a path of the call: std::fs follows some there, the tree follows none.
fn meets_a_link(root: &Path, call: &Call) -> bool {
    let (paths, last_counts): (Vec<&Path>, bool) = match call {
        Call::Truncate(p, _) | Call::Chmod(p, _) | Call::List(p) => (vec![p], true),
        Call::Link(a, b) | Call::Rename(a, b) => (vec![a, b], false),
        Call::Mkdir(p, _)
        | Call::Rmdir(p)
        | Call::Create(p, ..)
        | Call::Write(p, ..)
        | Call::Read(p, ..)
        | Call::Unlink(p)
        | Call::Symlink(_, p)
        | Call::ReadLink(p)
        | Call::Stat(p) => (vec![p], false),
    };
    let is_link = |p: &Path| !p.as_os_str().is_empty() && root.join(p).is_symlink();
    paths.iter().any(|p| p.ancestors().skip(usize::from(!last_counts)).any(is_link))
}

/// Everything below a directory: type and mode, links' targets, contents.
fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).expect("list") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("stat");
            let what = if meta.is_dir() {
                walk(root, &path, out);
                String::new()
            } else if meta.is_symlink() {
                text(fs::read_link(&path).expect("link"))
            } else {
                text(fs::read(&path).expect("read"))
            };
            out.insert(path.strip_prefix(root).expect("below").into(), format!("{:o} {what}", meta.mode()));
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

/// A call with two bad paths may name the fault of either.
fn first_error(call: &Call, answer: Answer) -> Answer {
    match (call, answer) {
        (Call::Link(..) | Call::Rename(..), Err(Errno::ENOTDIR)) => Err(Errno::ENOENT),
        (_, answer) => answer,
    }
}

fn refused(answer: &OpResult<String>) -> bool {
    matches!(answer, Err(Errno::ELOOP | Errno::ENOTDIR | Errno::EINVAL | Errno::EOPNOTSUPP))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_tree_does_what_std_does(calls in proptest::collection::vec(call(), 1..40)) {
        let place = Place::new();
        let twin = tempfile::tempdir().expect("tempdir");
        for call in &calls {
            if meets_a_link(twin.path(), call) {
                let answer = through_tree(&place.tree, call);
                prop_assert!(refused(&answer) || answer == Err(Errno::ENOENT), "{call:?}: {answer:?}");
                continue;
            }
            let (ours, theirs) = (through_tree(&place.tree, call), through_std(twin.path(), call));
            prop_assert_eq!(first_error(call, ours), first_error(call, theirs), "{:?}", call);
        }
        prop_assert_eq!(picture(&place.at("")), picture(twin.path()));
    }
}
