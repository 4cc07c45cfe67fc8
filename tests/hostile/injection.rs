//! Names that would be options, if anybody took them apart in the wrong place.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use steadfs::backing::mountinfo::{self, Entry};

use crate::lab::{relay::Relay, wait};
use crate::rig::Rig;
use crate::user::NOBODY;

/// Commas, `=`, blanks, quotes, backslashes, octal escapes, a number sign; what a mount option would look like.
const ODD: &str = "a,suid,dev =b'\"\\c\\054exec#$(x)";

fn entry(path: &Path) -> Entry {
    mountinfo::at(path).unwrap().unwrap_or_else(|| panic!("{} is not mounted", path.display()))
}

fn is_plain(entry: &Entry) {
    assert!(entry.has_option("nosuid") && entry.has_option("nodev") && !entry.has_option("suid"), "{entry:?}");
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

#[test]
fn odd_names_are_names_and_nothing_more_for_root() {
    let rig = Rig::new();
    // A hot path may even have a line's end in it.
    for name in [ODD, "-o", "new\nline"] {
        let (store, hot) = (rig.path(&format!("store {}", name.replace('\n', "_"))), rig.path(&format!("hot {name}")));
        std::fs::create_dir(&store).unwrap();
        std::fs::create_dir(&hot).unwrap();
        std::fs::write(store.join("file"), "content").unwrap();
        let options = format!("guard=no,subtype=sshfs,fsname={}", escaped(ODD));
        let source = format!("dir:{}", store.display());
        let output = rig.steadfs(&["mount", &source, hot.to_str().unwrap(), "-o", &options]).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let found = entry(&hot);
        assert_eq!((found.fstype.as_os_str(), found.source.as_os_str()), (OsStr::new("fuse.sshfs"), OsStr::new(ODD)));
        is_plain(&found);
        assert_eq!(std::fs::read_to_string(hot.join("file")).unwrap(), "content");
        let said = rig.steadfs(&["status", hot.to_str().unwrap()]).output().unwrap();
        assert!(said.status.success() && !String::from_utf8_lossy(&said.stdout).contains("new\nline"), "{said:?}");
        assert!(rig.steadfs(&["umount", hot.to_str().unwrap()]).status().unwrap().success());
    }
}

#[test]
fn odd_names_are_names_and_nothing_more_for_others_and_their_helper() {
    let rig = Rig::new();
    let place = rig.path(ODD);
    std::fs::set_permissions(rig.directory(), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["", "store", "hot ,allow_other", "run"] {
        std::fs::create_dir(place.join(name)).unwrap();
        std::os::unix::fs::chown(place.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // The build directory may be out of an ordinary user's reach.
    std::fs::copy(env!("CARGO_BIN_EXE_steadfs"), place.join("steadfs")).unwrap();
    // Where /dev/fuse is root's alone, he gets one in a mount namespace of the test's own.
    let script = "set -e; mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse; \
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c \
                  './steadfs mount \"$SOURCE\" \"$HOT\" -o \"$OPTIONS\" && { cat /proc/self/mountinfo; ./steadfs umount \"$HOT\"; }'";
    let hot = place.join("hot ,allow_other");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).current_dir(&place).env("HOT", &hot);
    command.env("SOURCE", format!("dir:{}", place.join("store").display()));
    command.env("OPTIONS", format!("fsname={},subtype=sshfs", escaped(ODD)));
    command.env("STEADFS_RUNTIME_DIR", place.join("run")).env("STEADFS_STATE_DIR", place.join("run/state"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = mountinfo::parse(&output.stdout);
    let found = mountinfo::at_in(&table, &hot).expect("it was mounted");
    assert_eq!((found.fstype.as_os_str(), found.source.as_os_str()), (OsStr::new("fuse.sshfs"), OsStr::new(ODD)));
    is_plain(found);
    assert!(!found.super_options.to_string_lossy().contains("allow_other"), "{found:?}");
}

#[test]
fn odd_names_are_names_and_nothing_more_for_sshfs_and_ssh() {
    let mut rig = Rig::new();
    let relay = Relay::new(rig.directory());
    let store = rig.path(ODD);
    std::fs::create_dir(&store).unwrap();
    std::fs::write(store.join("good"), crate::server::GOOD).unwrap();
    // Of this ssh nothing but its name is asked, so its options can be as odd as they like.
    let identity = escaped(&format!("IdentityFile=/k{ODD}"));
    let target = format!("corp\\me,x=y@localhost:{}", store.display());
    let options = format!("guard=no,ssh_command={},{identity}", relay.program().display());
    let command = rig.steadfs(&["mount", "-f", &target, rig.hot.to_str().unwrap(), "-o", &options]);
    rig.serve(command);
    rig.is_well(&rig.status()["pid"].clone());
    let table = mountinfo::entries().unwrap();
    let ours: Vec<_> = table.iter().filter(|entry| entry.mountpoint.starts_with(rig.directory())).collect();
    assert_eq!(ours.len(), 2);
    ours.into_iter().for_each(is_plain);
    // sshfs hands it on as one word.
    let relays = crate::lab::process::mentioning("IdentityFile=/k");
    let words: Vec<Vec<u8>> = relays
        .iter()
        .flat_map(|&pid| {
            crate::lab::process::command_line(pid).split(|&b| b == 0).map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect();
    assert!(words.contains(&escaped(&format!("IdentityFile=/k{ODD}")).into_bytes()), "sshfs is given it as one option");
    rig.end();
}

#[test]
fn what_would_be_an_option_or_a_command_is_no_source() {
    let rig = Rig::new();
    let hot = rig.hot.to_str().unwrap().to_owned();
    let mark = rig.path("mark");
    for source in [
        "-oProxyCommand=touch x:".to_owned(),
        format!("`touch {}`:", mark.display()),
        format!("$(touch${{IFS}}{}):", mark.display()),
        "a;b:".into(),
        "-G@h:".into(),
        "me@-oX:".into(),
        "[-oProxyCommand=touch::]:".into(),
        "h\nProxyCommand x:".into(),
    ] {
        let output = rig.steadfs(&["mount", "--", &source, &hot]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{source}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
    }
    for options in ["IdentityFile=/k\nProxyCommand=touch x", "User=a\rb", "uid=1\t2"] {
        let output = rig.steadfs(&["mount", "h:", &hot, "-o", options]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{options}: {output:?}");
    }
    assert!(!mark.exists());
    wait("nothing is left", || std::fs::read_dir(rig.path("run")).map_or(0, Iterator::count) == 0);
}
