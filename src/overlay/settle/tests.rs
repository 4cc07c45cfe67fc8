//! Each call, lost before and after it was done, and what somebody else may have done meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::backing::fake::{Call, FakeBacking, Fault, What};
use crate::backing::{Backing, Generation};

const EXISTS: OpResult<()> = Err(Errno::EEXIST);
const MISSING: OpResult<()> = Err(Errno::ENOENT);

/// A backing whose generations die in the middle of a call.
struct Rig {
    backing: FakeBacking,
    numbers: std::cell::Cell<u64>,
}

fn rig() -> Rig {
    Rig { backing: FakeBacking::new().expect("a directory"), numbers: std::cell::Cell::new(0) }
}

impl Rig {
    fn start(&self) -> Arc<dyn Generation> {
        self.numbers.set(self.numbers.get() + 1);
        let limit = Duration::from_secs(5);
        self.backing.start(self.numbers.get(), limit, Arc::new(|_| {})).expect("it starts")
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.backing.path().join(name), text).expect("written");
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.backing.path().join(name)).expect("removed");
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.backing.path().join(name)).ok()
    }

    /// Runs a call in a generation that dies in it, then `meanwhile`, then the call again in the next generation.
    fn twice(
        &self,
        call: Call,
        lost: What,
        meanwhile: impl FnOnce(),
        run: impl Fn(&dyn Tree, bool) -> OpResult<()>,
    ) -> OpResult<()> {
        let first = self.start();
        self.backing.control().inject(Fault::new(lost).on(&[call]).times(1));
        assert_eq!(run(first.tree(), false), Err(Errno::ENOTCONN), "the link is lost");
        first.abort();
        meanwhile();
        run(self.start().tree(), true)
    }
}

/// The server never saw the call; it did it, and the reply was lost.
const MOMENTS: [What; 2] = [What::Errno(Errno::ENOTCONN), What::LostReply];

fn made_once(call: Call, kind: FileKind, make: impl Fn(&dyn Tree, &Path) -> OpResult<()>) {
    let path = Path::new("made");
    let run = |tree: &dyn Tree, in_doubt| making(make(tree, path), in_doubt, tree, path, kind);
    for lost in MOMENTS {
        let rig = rig();
        assert_eq!(rig.twice(call, lost, || {}, run), Ok(()), "{lost:?}");
        assert_eq!(rig.start().tree().stat(path).map(|attr| attr.kind), Ok(kind), "{lost:?}");
        let rig = self::rig();
        // Somebody else was quicker, with something else.
        let other = || std::os::unix::fs::symlink("else", rig.backing.path().join("made")).expect("made");
        assert_eq!(rig.twice(call, What::Errno(Errno::ENOTCONN), other, run), EXISTS);
    }
}

#[test]
fn a_directory_is_made_once() {
    made_once(Call::Mkdir, FileKind::Directory, |tree, path| tree.mkdir(path, 0o755));
}

#[test]
fn a_special_file_is_made_once() {
    made_once(Call::Mknod, FileKind::Fifo, |tree, path| tree.mknod(path, libc::S_IFIFO | 0o644, 0));
}

#[test]
fn a_symlink_is_made_once() {
    let (target, path) = (OsStr::new("target"), Path::new("s"));
    let run = |tree: &dyn Tree, in_doubt| symlink(tree.symlink(target, path), in_doubt, tree, path, target);
    for lost in MOMENTS {
        let rig = rig();
        assert_eq!(rig.twice(Call::Symlink, lost, || {}, run), Ok(()), "{lost:?}");
        assert_eq!(rig.start().tree().read_link(path), Ok(target.to_owned()), "{lost:?}");
    }
    let rig = rig();
    assert_eq!(rig.twice(Call::Symlink, What::Errno(Errno::ENOTCONN), || rig.put("s", "a file"), run), EXISTS);
}

#[test]
fn a_link_is_made_once() {
    let (from, to) = (Path::new("f"), Path::new("l"));
    let run = |tree: &dyn Tree, in_doubt| link(tree.link(from, to), in_doubt, tree, from, to);
    for lost in MOMENTS {
        let rig = rig();
        rig.put("f", "text");
        assert_eq!(rig.twice(Call::Link, lost, || {}, run), Ok(()), "{lost:?}");
        assert_eq!(rig.text("l").as_deref(), Some("text"), "{lost:?}");
    }
    let rig = rig();
    rig.put("f", "text");
    let gone = || rig.remove("f");
    assert_eq!(rig.twice(Call::Link, What::LostReply, gone, run), Err(UNSETTLED), "no file to compare it with");
}

#[test]
fn a_name_is_removed_once() {
    for lost in MOMENTS {
        let rig = rig();
        rig.put("f", "text");
        std::fs::create_dir(rig.backing.path().join("d")).expect("made");
        let unlink = |tree: &dyn Tree, in_doubt| removal(tree.unlink(Path::new("f")), in_doubt);
        let rmdir = |tree: &dyn Tree, in_doubt| removal(tree.rmdir(Path::new("d")), in_doubt);
        assert_eq!(rig.twice(Call::Unlink, lost, || {}, unlink), Ok(()), "{lost:?}");
        assert_eq!(rig.twice(Call::Rmdir, lost, || {}, rmdir), Ok(()), "{lost:?}");
        assert_eq!(std::fs::read_dir(rig.backing.path()).expect("listed").count(), 0, "{lost:?}");
    }
}

fn renaming(flags: u32) -> impl Fn(&dyn Tree, bool) -> OpResult<()> {
    let (from, to) = (Path::new("from"), Path::new("to"));
    move |tree, in_doubt| rename(tree.rename(from, to, flags), in_doubt, tree, from, to)
}

#[test]
fn a_rename_is_done_once() {
    for lost in MOMENTS {
        for (target, flags) in [(None, 0), (Some("old"), 0), (None, libc::RENAME_NOREPLACE)] {
            let rig = rig();
            rig.put("from", "new");
            target.iter().for_each(|text| rig.put("to", text));
            assert_eq!(rig.twice(Call::Rename, lost, || {}, renaming(flags)), Ok(()), "{lost:?}");
            assert_eq!((rig.text("from"), rig.text("to").as_deref()), (None, Some("new")), "{lost:?}");
        }
    }
}

#[test]
fn a_rename_that_may_not_replace_does_not() {
    let rig = rig();
    rig.put("from", "new");
    let other = || rig.put("to", "somebody else's");
    let lost = What::Errno(Errno::ENOTCONN);
    assert_eq!(rig.twice(Call::Rename, lost, other, renaming(libc::RENAME_NOREPLACE)), EXISTS);
    assert_eq!(rig.text("from").as_deref(), Some("new"));
}

#[test]
fn a_rename_whose_both_names_are_gone_cannot_be_settled() {
    for lost in MOMENTS {
        let rig = rig();
        rig.put("from", "new");
        let gone = || rig.remove(if lost == What::LostReply { "to" } else { "from" });
        assert_eq!(rig.twice(Call::Rename, lost, gone, renaming(0)), Err(UNSETTLED), "{lost:?}");
    }
}

#[test]
fn an_exchange_in_doubt_cannot_be_settled() {
    let (from, to) = (Path::new("from"), Path::new("to"));
    let run = |tree: &dyn Tree, in_doubt| exchange(|| tree.rename(from, to, libc::RENAME_EXCHANGE), in_doubt);
    for lost in MOMENTS {
        let rig = rig();
        rig.put("from", "one");
        rig.put("to", "two");
        assert_eq!(rig.twice(Call::Rename, lost, || {}, run), Err(UNSETTLED), "{lost:?}");
        // Done at most once.
        let done = lost == What::LostReply;
        assert_eq!(rig.text("from").as_deref(), Some(if done { "two" } else { "one" }), "{lost:?}");
        assert_eq!(run(rig.start().tree(), false), Ok(()));
    }
}

#[test]
fn gone_is_success_only_in_doubt() {
    assert_eq!(removal(MISSING, true), Ok(()));
    assert_eq!(removal(MISSING, false), MISSING);
    assert_eq!(removal(Err(Errno::ENOTEMPTY), true), Err(Errno::ENOTEMPTY));
}

#[test]
fn without_doubt_an_answer_is_an_answer() {
    let rig = rig();
    std::fs::create_dir(rig.backing.path().join("d")).expect("made");
    std::os::unix::fs::symlink("target", rig.backing.path().join("s")).expect("made");
    rig.put("to", "");
    let generation = rig.start();
    let (tree, d, to) = (generation.tree(), Path::new("d"), Path::new("to"));
    assert_eq!(making(EXISTS, false, tree, d, FileKind::Directory), EXISTS);
    assert_eq!(symlink(EXISTS, false, tree, Path::new("s"), OsStr::new("target")), EXISTS);
    assert_eq!(link(EXISTS, false, tree, to, to), EXISTS);
    assert_eq!(rename(MISSING, false, tree, Path::new("from"), to), MISSING);
}

#[test]
fn what_is_of_another_kind_or_has_another_target_is_not_ours() {
    let rig = rig();
    std::fs::create_dir(rig.backing.path().join("d")).expect("made");
    std::os::unix::fs::symlink("target", rig.backing.path().join("s")).expect("made");
    rig.put("f", "four");
    rig.put("other", "something else");
    let generation = rig.start();
    let tree = generation.tree();
    assert_eq!(making(EXISTS, true, tree, Path::new("d"), FileKind::Fifo), EXISTS);
    assert_eq!(symlink(EXISTS, true, tree, Path::new("s"), OsStr::new("elsewhere")), EXISTS);
    assert_eq!(link(EXISTS, true, tree, Path::new("f"), Path::new("other")), EXISTS);
}

#[test]
fn what_vanishes_while_it_is_looked_at_cannot_be_settled() {
    let rig = rig();
    let generation = rig.start();
    let (tree, gone) = (generation.tree(), Path::new("gone"));
    assert_eq!(making(EXISTS, true, tree, gone, FileKind::Directory), Err(UNSETTLED));
    assert_eq!(symlink(EXISTS, true, tree, gone, OsStr::new("target")), Err(UNSETTLED));
    assert_eq!(link(EXISTS, true, tree, gone, gone), Err(UNSETTLED));
}

#[test]
fn a_look_that_fails_is_not_taken_for_an_answer() {
    let rig = rig();
    rig.put("to", "");
    let generation = rig.start();
    let control = rig.backing.control();
    control.inject(Fault::new(What::Errno(Errno::ENOTCONN)).on(&[Call::Stat, Call::ReadLink]));
    let (tree, from, to) = (generation.tree(), Path::new("from"), Path::new("to"));
    let lost = Err(Errno::ENOTCONN);
    assert_eq!(making(EXISTS, true, tree, to, FileKind::Regular), lost);
    assert_eq!(symlink(EXISTS, true, tree, to, OsStr::new("target")), lost);
    assert_eq!(link(EXISTS, true, tree, from, to), lost);
    assert_eq!(link(MISSING, true, tree, from, to), lost);
    assert_eq!(rename(MISSING, true, tree, from, to), lost);
}
