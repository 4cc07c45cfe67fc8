//! What others change on the store is seen within `attr_timeout=`, whatever sshfs and the kernel below remember.
#![allow(clippy::unwrap_used)]

mod lab;

#[path = "freshness/appends.rs"]
mod appends;
#[path = "freshness/open.rs"]
mod open;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::Lab;

/// A noisy machine, two calls over the network, and the clock ticks of the kernel's timeouts.
const NOISE: Duration = Duration::from_millis(1500);

struct Change {
    what: &'static str,
    make: fn(&Path),
    seen: fn(&Path) -> bool,
}

const CHANGES: [Change; 6] = [
    Change {
        what: "another mode",
        make: |store| std::fs::set_permissions(store.join("d/mode"), PermissionsExt::from_mode(0o640)).unwrap(),
        seen: |hot| hot.join("d/mode").metadata().is_ok_and(|found| found.mode() & 0o777 == 0o640),
    },
    Change {
        what: "another size, and what is in it",
        make: |store| std::fs::write(store.join("d/size"), "grown by somebody else").unwrap(),
        seen: |hot| std::fs::read_to_string(hot.join("d/size")).is_ok_and(|text| text == "grown by somebody else"),
    },
    Change {
        what: "another file of that name",
        make: |store| {
            std::fs::write(store.join("other"), "the other one's").unwrap();
            std::fs::rename(store.join("other"), store.join("d/name")).unwrap();
        },
        seen: |hot| std::fs::read_to_string(hot.join("d/name")).is_ok_and(|text| text == "the other one's"),
    },
    Change {
        what: "a file is gone",
        make: |store| std::fs::remove_file(store.join("d/gone")).unwrap(),
        seen: |hot| !hot.join("d/gone").exists(),
    },
    Change {
        what: "a file is new",
        make: |store| std::fs::write(store.join("d/new"), "").unwrap(),
        seen: |hot| hot.join("d/new").exists() && names(&hot.join("d")).contains(&"new".to_owned()),
    },
    Change {
        what: "a directory is another one",
        make: |store| {
            std::fs::rename(store.join("e"), store.join("old")).unwrap();
            std::fs::create_dir(store.join("e")).unwrap();
            std::fs::write(store.join("e/second"), "").unwrap();
        },
        seen: |hot| names(&hot.join("e")) == ["second"],
    },
];

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn fill(store: &Path) {
    for directory in ["d", "e"] {
        std::fs::create_dir(store.join(directory)).unwrap();
    }
    for name in ["d/mode", "d/size", "d/name", "d/gone", "e/first"] {
        std::fs::write(store.join(name), "before").unwrap();
    }
}

/// An overlay over the laboratory's store itself, without a server.
fn over_directory(options: &str) -> Lab {
    let mut lab = Lab::untimed();
    let mut command = lab.steadfs(&["mount", "-f", &format!("dir:{}", lab.store.display())]);
    command.arg(&lab.hot).args(["-o", &format!("guard=no,{options}")]);
    lab.serve(command);
    lab.wait_state("live");
    lab
}

/// What sshfs alone makes of the same.
fn plain(options: &str) -> Lab {
    let mut lab = Lab::unmounted();
    let mut command = Command::new("sshfs");
    command.args(["-f", "-o", &format!("{},{options}", lab.sshd.client_options()), &lab.source()]).arg(&lab.hot);
    lab.serve(command);
    lab
}

/// All caches are filled.
fn look(hot: &Path) {
    for directory in ["d", "e"] {
        for name in names(&hot.join(directory)) {
            let path = hot.join(directory).join(name);
            path.metadata().unwrap();
            std::fs::read(path).unwrap();
        }
    }
}

fn seen_within(options: &str, bound: Duration) {
    let lab = Lab::new(options);
    fill(&lab.store);
    for change in CHANGES {
        look(&lab.hot);
        (change.make)(&lab.store);
        let start = Instant::now();
        while !(change.seen)(&lab.hot) {
            assert!(start.elapsed() < bound + NOISE, "{options}: {} is not seen after {bound:?}", change.what);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn with_nothing_remembered_what_others_change_is_seen_at_once() {
    let lab = Lab::new("attr_timeout=0");
    fill(&lab.store);
    for change in CHANGES {
        look(&lab.hot);
        (change.make)(&lab.store);
        assert!((change.seen)(&lab.hot), "{}", change.what);
    }
}

#[test]
fn what_others_change_is_seen_in_time() {
    seen_within("attr_timeout=1s", Duration::from_secs(1));
    seen_within("attr_timeout=5s", Duration::from_secs(5));
    seen_within("attr_timeout=1h,entry_timeout=2s", Duration::from_secs(2));
}

#[test]
fn who_is_alone_is_not_kept_waiting_for_what_he_has_seen() {
    let lab = Lab::new("attr_timeout=exclusive");
    fill(&lab.store);
    look(&lab.hot);
    let mode = || lab.hot.join("d/mode").metadata().unwrap().mode() & 0o777;
    let before = mode();
    std::fs::set_permissions(lab.store.join("d/mode"), PermissionsExt::from_mode(0o604)).unwrap();
    // Longer than everything that is cached below.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(mode(), before);
    }
    // What he changes himself is seen.
    std::fs::set_permissions(lab.hot.join("d/mode"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(mode(), 0o600);
    std::fs::write(lab.hot.join("d/size"), "longer than before").unwrap();
    assert_eq!(lab.hot.join("d/size").metadata().unwrap().len(), 18);
    std::fs::remove_file(lab.hot.join("d/gone")).unwrap();
    assert!(!lab.hot.join("d/gone").exists() && !names(&lab.hot.join("d")).contains(&"gone".to_owned()));
}
