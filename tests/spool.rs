//! `steadfs spool` from outside.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use assert_cmd::Command;
use steadfs::spool::{Saved, save};
use tempfile::TempDir;

/// A state directory, a mountpoint `hot` and a directory `store` of the test's own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("steadfs-spool-").tempdir().unwrap();
        for name in ["hot", "store"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::cargo_bin("steadfs").unwrap();
        command.args(arguments).env_remove("STEADFS_LOG").timeout(Duration::from_secs(30));
        command.env("STEADFS_RUNTIME_DIR", self.path("run")).env("STEADFS_STATE_DIR", self.path("state"));
        command.output().unwrap()
    }

    fn spool(&self, arguments: &[&str]) -> Output {
        self.run(&[&["spool"], arguments].concat())
    }

    /// What the command says when it succeeds.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.spool(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(arguments)).unwrap()
    }

    /// The command ends with this code and this line.
    fn fails(&self, arguments: &[&str], code: i32, line: &str) {
        let output = self.spool(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("steadfs: {line}\n"));
        assert_eq!(output.status.code(), Some(code));
    }

    /// Where an overlay at `hot` saves.
    fn directory(&self) -> PathBuf {
        self.path("state").join(steadfs::rundir::name(&self.path("hot"))).join("spool")
    }

    /// Saves for `hot`, at a second of its own, and returns the entry's name.
    fn save(&self, path: &str, seconds: u64) -> String {
        let saved = Saved {
            overlay: self.path("hot"),
            backing: format!("dir:{}", self.text("store")),
            path: path.into(),
            reason: "it is not the\nfile that was open".into(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000 + seconds),
            cut: Some(6),
            size: None,
            extents: vec![(6, b"world".to_vec()), (20, b"far".to_vec())],
        };
        let path = save(&self.directory(), &saved, None).unwrap();
        path.file_name().unwrap().to_str().unwrap().to_owned()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_empty_spool_is_no_error_but_a_missing_directory_is() {
    let place = Place::new();
    assert_eq!(place.says(&["list"]), "");
    assert_eq!(place.says(&["list", "--json"]), "[]\n");
    let none = place.text("none");
    let line = format!("cannot open the spool directory {none}: No such file or directory (os error 2)");
    place.fails(&["list", "--dir", &none], 1, &line);
    let hot = place.text("hot");
    assert_eq!(place.says(&["list", "--dir", &hot, "--json"]), "[]\n");
    place.fails(&["show", "x"], 1, "there is no entry 'x': see steadfs spool list");
    assert_eq!(place.spool(&[]).status.code(), Some(1));
    assert_eq!(place.spool(&["drop"]).status.code(), Some(1));
}

#[test]
fn entries_are_listed_and_shown() {
    let place = Place::new();
    let first = place.save("a/b", 0);
    let second = place.save("c", 1);
    let file = place.path("hot").join("a/b").display().to_string();
    let listed = place.says(&["list"]);
    let expected = format!("{first}  kept, 8 bytes for {file}\n  it is not the\\nfile that was open\n\n{second}  kept");
    assert!(listed.starts_with(&expected), "{listed}");
    let json = place.json(&["list", "--json"]);
    assert_eq!((&json[0]["entry"], &json[1]["entry"]), (&first.clone().into(), &second.into()));
    assert_eq!((&json[0]["state"], &json[0]["path"], &json[0]["damage"]), (&"kept".into(), &"a/b".into(), &().into()));
    assert_eq!(json[0]["extents"][1]["offset"], 20);
    // Where spool_dir= points there may be just these files.
    let directory = place.directory();
    assert_eq!(place.says(&["list", "--dir", directory.to_str().unwrap()]), listed);

    let shown = place.says(&["show", &first]);
    for line in [
        "  checksums  good\n",
        "  cut first  6 bytes\n",
        "  last size  unknown\n",
        "    5 bytes at 6, crc32 3a771143\n",
    ] {
        assert!(shown.contains(line), "{line:?} is not in\n{shown}");
    }
    assert_eq!(place.json(&["show", &first, "--json"])["extents"], json[0]["extents"]);
}

#[test]
fn entries_are_named_by_a_unique_beginning() {
    let place = Place::new();
    let (first, second) = (place.save("a", 0), place.save("a", 1));
    assert_eq!(place.json(&["show", "20261118T110640", "--json"])["entry"], *first);
    place.fails(
        &["show", "20261118"],
        1,
        &format!("'20261118' may be {first} or {second}: give more of the name, or --dir"),
    );
    // A whole name is one, whatever it is the beginning of.
    std::fs::write(place.directory().join(format!("{first}.part")), "").unwrap();
    assert_eq!(place.json(&["show", &first, "--json"])["entry"], *first);
    place.fails(&["show", ""], 1, "there is no entry '': see steadfs spool list");
}

#[test]
fn a_damaged_entry_is_told_and_not_restored() {
    let place = Place::new();
    let name = place.save("a", 0);
    let file = place.directory().join(&name);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let line = format!("{} is damaged: the checksum of its 3 bytes for offset 20 does not hold", file.display());
    place.fails(&["show", &name], 1, &line);
    let output = place.spool(&["show", &name, "--json"]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["damage"], *line);
    let target = place.text("copy");
    place.fails(&["restore", &name, "--to", &target, "--apply"], 1, &line);
    assert!(!Path::new(&target).exists());
    std::fs::write(&file, &bytes[..40]).unwrap();
    let line = format!("{} is damaged: its header is cut off", file.display());
    assert!(place.says(&["list"]).contains(&line));
    place.fails(&["show", &name], 1, &line);
    place.says(&["drop", &name, "--apply"]);
    assert_eq!(names(&place.directory()), Vec::<String>::new());
}

#[test]
fn restoring_to_a_file_is_told_first_and_done_when_asked() {
    let place = Place::new();
    let name = place.save("a", 0);
    let target = place.text("copy");
    std::fs::write(&target, "hello cruel one").unwrap();
    let told = place.says(&["restore", &name, "--to", &target]);
    for line in [
        " has 15 bytes, changed ",
        "\n  cut to 6 bytes: the last 9 bytes of what is there go\n",
        "\n  write 5 bytes at 6: 5 differ from what is there\n",
        "\n  write 3 bytes at 20: 3 beyond its end\n",
        "\n  size in the end: 23 bytes\n",
        "nothing was changed: add --apply",
    ] {
        assert!(told.contains(line), "{line:?} is not in\n{told}");
    }
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "hello cruel one");
    let told = place.says(&["restore", &name, "--to", &target, "--apply"]);
    let marked = name.replace(".spool", ".restored");
    assert!(told.contains(" had 15 bytes") && told.contains(&marked), "{told}");
    assert_eq!(std::fs::read(&target).unwrap(), b"hello world\0\0\0\0\0\0\0\0\0far");
    assert_eq!(names(&place.directory()), [marked.as_str()]);
    let told = place.says(&["restore", &name[..17], "--to", &target]);
    assert!(told.starts_with(&format!("{marked} was restored before\n")), "{told}");
    assert!(told.contains("as is there already"), "{told}");
    // A file that does not exist is made only where it was asked for.
    let made = place.text("made");
    assert!(place.says(&["restore", &marked, "--to", &made]).contains("would be made"));
    assert!(!Path::new(&made).exists());
    place.says(&["restore", &marked, "--to", &made, "--apply"]);
    assert_eq!(std::fs::metadata(&made).unwrap().len(), 23);
}

#[test]
fn dropping_has_to_be_meant() {
    let place = Place::new();
    let (first, second) = (place.save("a", 0), place.save("b", 1));
    let told = place.says(&["drop", &first, &second, &first]);
    assert_eq!(told.matches("would remove").count(), 2, "{told}");
    assert!(told.contains("8 bytes for ") && told.ends_with("nothing was removed: add --apply to remove\n"), "{told}");
    place.fails(&["drop", "--apply", &first, "x"], 1, "there is no entry 'x': see steadfs spool list");
    assert_eq!(names(&place.directory()).len(), 2);
    place.says(&["drop", "--apply", &first]);
    assert_eq!(names(&place.directory()), [second]);
}

#[test]
fn a_spool_directory_must_be_ours_and_outside_the_mount() {
    let place = Place::new();
    let (source, hot) = (format!("dir:{}", place.text("store")), place.text("hot"));
    std::os::unix::fs::symlink("store", place.path("link")).unwrap();
    let link = place.text("link");
    for (option, line) in [
        (format!("spool_dir={link}"), format!("spool_dir={link} is a symbolic link: give the directory itself")),
        (format!("spool_dir={hot}/s"), format!("spool_dir={hot}/s lies below {hot}: give another path")),
    ] {
        let output = place.run(&["mount", "-o", &option, &source, &hot]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("steadfs: {line}\n"));
        assert_eq!(output.status.code(), Some(1));
    }
}

/// Unmounts when the test ends, however it ends.
struct Mounted<'a>(&'a Place);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let output = self.0.run(&["umount", &self.0.text("hot")]);
        assert!(output.status.success() || std::thread::panicking(), "{output:?}");
    }
}

#[test]
fn an_entry_goes_back_into_its_file_below_the_mountpoint() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: run it as root");
    let place = Place::new();
    let name = place.save("a/b", 0);
    let hot = place.text("hot");
    let elsewhere = "or restore into another file with --to FILE";
    place.fails(&["restore", &name, "--apply"], 1, &format!("{hot} is not mounted: mount it, {elsewhere}"));

    let mount = |store: &str| {
        let output = place.run(&["mount", "-o", "guard=no", &format!("dir:{}", place.text(store)), &hot]);
        assert!(output.status.success(), "{output:?}");
        Mounted(&place)
    };
    std::fs::create_dir(place.path("other")).unwrap();
    let other = mount("other");
    let line =
        format!("{hot} shows dir:{} and not dir:{}: mount that, {elsewhere}", place.text("other"), place.text("store"));
    place.fails(&["restore", &name, "--apply"], 1, &line);
    drop(other);

    let _mounted = mount("store");
    let missing = format!("{hot}/a/b does not exist: restore into another file with --to FILE");
    place.fails(&["restore", &name, "--apply"], 1, &missing);
    std::fs::create_dir(place.path("store/a")).unwrap();
    std::fs::write(place.path("store/a/b"), "hello ").unwrap();
    // Longer than the kernel may believe that it is not there.
    std::thread::sleep(Duration::from_millis(1100));
    let told = place.says(&["restore", &name]);
    assert!(told.starts_with(&format!("{hot}/a/b has 6 bytes")), "{told}");
    place.says(&["restore", &name, "--apply"]);
    assert_eq!(std::fs::read(place.path("store/a/b")).unwrap(), b"hello world\0\0\0\0\0\0\0\0\0far");
    assert_eq!(names(&place.directory()), [name.replace(".spool", ".restored")]);
}
