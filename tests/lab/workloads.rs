//! What the programs of `program.rs` do: the same calls with the same results in every run on any sound filesystem.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, SFlag, mknod};

use super::program::Steps;

type Program = fn(&mut Steps);

/// All of them.
pub const ALL: [(&str, Program); 3] = [("names", names), ("data", data), ("crawl", crawl)];

/// One of them.
pub fn find(name: &str) -> Program {
    ALL.iter().find(|(other, _)| *other == name).unwrap_or_else(|| panic!("no such program: {name}")).1
}

/// Bytes that follow from where they are.
fn bytes(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(97)) as u8).collect()
}

/// Data as it is noted down.
fn digest(data: &[u8]) -> String {
    let sum =
        data.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes that make {sum:016x}", data.len())
}

fn close(file: File) -> io::Result<()> {
    Ok(nix::unistd::close(file.into_raw_fd())?)
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    close(file)
}

fn both() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

fn all_of(mut file: &File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut data = Vec::new();
    file.read_to_end(&mut data)?;
    Ok(digest(&data))
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Kind, permissions and, of what is no directory, size.
fn stat(path: &Path) -> io::Result<String> {
    let found = fs::symlink_metadata(path)?;
    let size = if found.is_dir() { 0 } else { found.len() };
    Ok(format!("{:o} {size}", found.permissions().mode()))
}

/// Everything that makes, moves and removes names.
fn names(s: &mut Steps) {
    let [d, a, b, c, hard, sub, moved, soft] =
        ["d", "d/a", "d/b", "d/c", "d/hard", "d/sub", "d/moved", "d/soft"].map(|path| s.at(path));
    s.step("mkdir d", || fs::create_dir(&d));
    s.step("mkdir d again", || fs::create_dir(&d));
    s.step("mknod d/node", || Ok(mknod(&d.join("node"), SFlag::S_IFREG, Mode::from_bits_truncate(0o640), 0)?));
    s.step("create d/a", || put(&a, "alpha"));
    s.step("create d/a again", || put(&a, "beta"));
    s.step("create d/mode", || {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(d.join("mode")).and_then(close)
    });
    s.step("create without O_EXCL", || fs::write(d.join("plain"), "plain"));
    s.step("symlink d/soft", || symlink("a", &soft));
    s.step("readlink", || fs::read_link(&soft));
    s.step("read through it", || fs::read_to_string(&soft));
    s.step("link d/hard", || fs::hard_link(&a, &hard));
    s.step("link it again", || fs::hard_link(&a, &hard));
    s.step("read the link", || fs::read_to_string(&hard));
    s.step("mkdir d/sub", || fs::DirBuilder::new().mode(0o750).create(&sub));
    s.step("rename d/a to d/b", || fs::rename(&a, &b));
    s.step("stat d/a", || stat(&a));
    s.step("stat d/b", || stat(&b));
    s.step("create d/c", || put(&c, "gamma"));
    s.step("rename d/b over d/c", || fs::rename(&b, &c));
    s.step("read d/c", || fs::read_to_string(&c));
    s.step("rename what is not there", || fs::rename(&a, &b));

    let old = s.get("open d/old", || both().create_new(true).open(d.join("old")));
    s.step("write d/old", || old.write_all_at(b"the old one", 0));
    s.step("create d/new", || put(&d.join("new"), "the new one, longer"));
    s.step("rename d/new over d/old", || fs::rename(d.join("new"), d.join("old")));
    s.step("read the old one", || all_of(&old));
    s.step("write the old one", || old.write_all_at(b"THE OLD ONE", 0));
    s.step("read the old one again", || all_of(&old));
    s.step("read the new one", || fs::read_to_string(d.join("old")));
    s.step("close the old one", || close(old));

    s.step("create d/sub/inner", || put(&sub.join("inner"), "inner"));
    let inner = s.get("open d/sub/inner", || both().open(sub.join("inner")));
    s.step("rename d/sub to d/moved", || fs::rename(&sub, &moved));
    s.step("write in the moved", || inner.write_all_at(b"-moved", 5));
    s.step("read in the moved", || fs::read_to_string(moved.join("inner")));
    s.step("close in the moved", || close(inner));

    let gone = s.get("open d/gone", || both().create_new(true).open(d.join("gone")));
    s.step("write d/gone", || gone.write_all_at(b"kept while open", 0));
    s.step("unlink d/gone", || fs::remove_file(d.join("gone")));
    s.step("unlink d/gone again", || fs::remove_file(d.join("gone")));
    s.step("read the unlinked", || all_of(&gone));
    s.step("write the unlinked", || gone.write_all_at(b"KEPT WHILE OPEN", 0));
    s.step("read the unlinked again", || all_of(&gone));
    s.step("size of the unlinked", || Ok(gone.metadata()?.len()));
    s.step("create d/gone anew", || put(&d.join("gone"), "another"));
    s.step("close the unlinked", || close(gone));

    s.step("unlink d/soft", || fs::remove_file(&soft));
    s.step("unlink d/hard", || fs::remove_file(&hard));
    s.step("mkdir d/empty", || fs::create_dir(d.join("empty")));
    s.step("rmdir d/empty", || fs::remove_dir(d.join("empty")));
    s.step("rmdir d/empty again", || fs::remove_dir(d.join("empty")));
    s.step("mkdir d/over", || fs::create_dir(d.join("over")));
    s.step("rename d/moved over d/over", || fs::rename(&moved, d.join("over")));
    s.step("chmod d/c", || fs::set_permissions(&c, Permissions::from_mode(0o4711)));
    s.step("chmod d/over", || fs::set_permissions(d.join("over"), Permissions::from_mode(0o701)));
    s.step("utimens d/c", || {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        File::open(&c)?.set_times(fs::FileTimes::new().set_accessed(then).set_modified(then))
    });
    s.step("stat d/c", || stat(&c));
    s.step("list d", || list(&d));
    s.step("list d/over", || list(&d.join("over")));
}

/// Everything that changes what is in a file.
fn data(s: &mut Steps) {
    let [f, g, h] = ["f", "g", "h"].map(|path| s.at(path));
    let file = s.get("create f", || both().create_new(true).open(&f));
    for (n, length) in [1, 7, 4095, 4097, 65_537, 13].into_iter().enumerate() {
        s.step(format!("append {length}"), || (&file).write_all(&bytes(n as u32, length)));
    }
    s.step("pwrite over old data", || file.write_all_at(&bytes(50, 5000), 4000));
    s.step("read it back", || all_of(&file));
    s.step("fsync", || file.sync_all());
    s.step("pwrite at the start", || file.write_all_at(&bytes(51, 10), 0));
    s.step("ftruncate down", || file.set_len(10_001));
    s.step("ftruncate up", || file.set_len(20_002));
    s.step("pwrite across the end", || file.write_all_at(&bytes(52, 3000), 19_000));
    s.step("lseek", || (&file).seek(SeekFrom::End(-5)));
    s.step("write there", || (&file).write_all(&bytes(53, 50)));
    s.step("fdatasync", || file.sync_data());
    s.step("size", || Ok(file.metadata()?.len()));
    s.step("close", || close(file));
    s.step("truncate by path", || Ok(nix::unistd::truncate(&f, 15_000)?));
    let again = s.get("open f to read", || File::open(&f));
    s.step("read f", || all_of(&again));
    s.step("truncate below a reader", || Ok(nix::unistd::truncate(&f, 9_000)?));
    s.step("read what is left", || all_of(&again));
    s.step("close the reader", || close(again));

    let old = s.get("create g", || both().create_new(true).open(&g));
    s.step("fill g", || old.write_all_at(&bytes(60, 9000), 0));
    let new = s.get("open g with O_TRUNC", || both().truncate(true).open(&g));
    s.step("size of g", || Ok(old.metadata()?.len()));
    s.step("write g by the new one", || new.write_all_at(&bytes(61, 300), 0));
    s.step("write g by the old one", || old.write_all_at(&bytes(62, 30), 290));
    s.step("read g", || all_of(&new));
    s.step("fsync g", || new.sync_all());
    s.step("close the new one", || close(new));
    s.step("close the old one", || close(old));

    let open = || OpenOptions::new().append(true).create(true).open(&h);
    let (one, two) = (s.get("open h to append", open), s.get("open h to append again", open));
    for n in 0..4 {
        s.step(format!("append to h by one, {n}"), || (&one).write_all(&bytes(70 + n, 100 + n as usize)));
        s.step(format!("append to h by two, {n}"), || (&two).write_all(&bytes(80 + n, 50 + n as usize)));
    }
    s.step("close one of h", || close(one));
    s.step("append to h after that", || (&two).write_all(b"the end"));
    s.step("close two of h", || close(two));
    s.step("read h", || fs::read(&h).map(|data| digest(&data)));
}

/// What a web crawler does: a state file in place, another by rename, an archive, a log, a scratch directory.
fn crawl(s: &mut Steps) {
    let [state, queue, archive, log, scratch] =
        ["state.json", "queue", "crawl.warc", "crawl.log", "scratch"].map(|path| s.at(path));
    s.step("mkdir scratch", || fs::create_dir_all(scratch.join("pages/deep")));
    let warc = s.get("open the archive", || OpenOptions::new().append(true).create_new(true).open(&archive));
    for round in 0..2_u32 {
        s.step("state in place", || {
            let mut file = File::create(&state)?;
            file.write_all(format!("{{\"round\": {round}, \"seen\": {}}}\n", round * 1000).as_bytes())?;
            file.sync_all()?;
            close(file)
        });
        s.step("archive a record", || (&warc).write_all(&bytes(round, 20_000 + round as usize)));
        s.step("log a line", || {
            let mut file = OpenOptions::new().append(true).create(true).open(&log)?;
            file.write_all(format!("round {round}\n").as_bytes())?;
            close(file)
        });
        s.step("queue by rename", || {
            let tmp = queue.with_file_name("queue.tmp.4711");
            let mut file = File::create(&tmp)?;
            file.write_all(format!("{} urls left\n", 99 - round).as_bytes())?;
            file.sync_all()?;
            close(file)?;
            fs::rename(&tmp, &queue)
        });
        s.step("a page", || put(&scratch.join(format!("pages/deep/{round}.html")), "<html>"));
        s.step("sync the archive", || warc.sync_all());
    }
    s.step("link the archive", || fs::hard_link(&archive, archive.with_file_name("done.warc")));
    s.step("archive one more", || (&warc).write_all(b"last"));
    s.step("close the archive", || close(warc));
    s.step("read the state", || fs::read_to_string(&state));
    s.step("read the queue", || fs::read_to_string(&queue));
    s.step("read the log", || fs::read_to_string(&log));
    s.step("read the archive", || fs::read(&archive).map(|data| digest(&data)));
    s.step("rmtree", || fs::remove_dir_all(&scratch));
    s.step("list", || list(state.parent().unwrap()));
}
