//! What is installed: by `make install`, and as a Debian package, made of the binary under test, that comes and goes in a layer
//! over this machine.
#![allow(clippy::unwrap_used)]

mod lab;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::run;

lab::also_runs_as!(agent_process: lab::agents::main);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn make(target: &str, destination: &Path, variables: &[&str]) {
    let places = [format!("DESTDIR={}", destination.display()), format!("BINARY={}", env!("CARGO_BIN_EXE_steadfs"))];
    let output = Command::new("make").arg("-C").arg(root()).arg(target).args(places).args(variables).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// All files and links below a directory, relative to it.
fn files(below: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![below.to_owned()];
    while let Some(directory) = next.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                next.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(below).unwrap().display().to_string());
            }
        }
    }
    found
}

/// What any installation has, by its prefix.
const PARTS: [&str; 12] = [
    "bin/steadfs",
    "lib/systemd/system/steadfs@.service",
    "lib/systemd/system/steadfs-mount@.service",
    "lib/tmpfiles.d/steadfs.conf",
    "share/bash-completion/completions/steadfs",
    "share/doc/steadfs/copyright",
    "share/doc/steadfs/operations.md",
    "share/doc/steadfs/decisions/0006-write-log.md",
    "share/doc/steadfs/monitoring/alerts.yml",
    "share/doc/steadfs/examples/healtharchive.toml",
    "share/doc/steadfs/examples/box.env",
    "share/doc/steadfs/examples/worker.conf",
];

#[test]
fn make_installs_and_uninstalls() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("a place");
    make("install", &destination, &["PREFIX=/opt/it"]);
    let found = files(&destination);
    let manual = [
        "share/man/man8/steadfs.8",
        "share/man/man8/mount.steadfs.8",
        "share/man/man8/mount.fuse.steadfs.8",
        "share/man/man5/steadfs.toml.5",
        "share/zsh/site-functions/_steadfs",
    ];
    for part in PARTS.iter().chain(&manual).chain(&["share/fish/vendor_completions.d/steadfs.fish"]) {
        assert!(found.contains(&format!("opt/it/{part}")), "{part} is not among {found:#?}");
    }
    assert!(found.contains("usr/sbin/mount.steadfs") && found.contains("usr/sbin/mount.fuse.steadfs"), "{found:#?}");
    let unit = std::fs::read_to_string(destination.join("opt/it/lib/systemd/system/steadfs@.service")).unwrap();
    assert!(unit.contains("ExecStart=/opt/it/bin/steadfs run") && !unit.contains("/usr/bin/steadfs"), "{unit}");
    let output = run(destination.join("opt/it/bin/steadfs").to_str().unwrap(), &["--version"]);
    assert_eq!(text(&output.stdout), format!("steadfs {}\n", env!("CARGO_PKG_VERSION")));
    leads_somewhere(&destination.join("opt/it/share/doc/steadfs"));
    // What the operator has put there is his.
    std::fs::write(destination.join("etc/steadfs/box.toml"), "").unwrap();
    make("uninstall", &destination, &["PREFIX=/opt/it"]);
    assert_eq!(files(&destination), BTreeSet::from(["etc/steadfs/box.toml".to_owned()]));
}

/// The links of installed documents.
fn leads_somewhere(documents: &Path) {
    for name in files(documents).iter().filter(|name| name.ends_with(".md")) {
        let file = documents.join(name);
        let content = std::fs::read_to_string(&file).unwrap();
        for target in content.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let there = target.contains("://") || file.parent().unwrap().join(target).exists();
            assert!(there, "{name}: {target}");
        }
    }
}

/// What bash offers for a line.
fn offered(script: &Path, words: &[&str]) -> BTreeSet<String> {
    let program = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                   _steadfs steadfs \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", program, "bash"]).arg(script).args(words);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn shells_offer_commands_and_switches() {
    let place = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(env!("CARGO_BIN_EXE_steadfs"), &["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stdout).contains("attach"), "{shell}: {output:?}");
        std::fs::write(place.path().join(shell), output.stdout).unwrap();
    }
    let script = place.path().join("bash");
    let commands = offered(&script, &["steadfs", ""]);
    for command in ["mount", "run", "attach", "detach", "umount", "status", "recover", "upgrade", "spool", "demo"] {
        assert!(commands.contains(command), "{command}: {commands:?}");
    }
    assert_eq!(offered(&script, &["steadfs", "spo"]), BTreeSet::from(["spool".to_owned()]));
    assert!(offered(&script, &["steadfs", "umount", "--l"]).contains("--lazy"));
    assert!(offered(&script, &["steadfs", "spool", ""]).contains("restore"));
    let output = run(env!("CARGO_BIN_EXE_steadfs"), &["completions", "tcsh"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// The package of the binary under test.
fn package(into: &Path) -> PathBuf {
    let script = root().join("scripts/deb");
    let target = Path::new(env!("CARGO_BIN_EXE_steadfs")).ancestors().nth(2).unwrap();
    let mut command = Command::new(script);
    command.args(["--debug", "--output"]).arg(into).env("CARGO_TARGET_DIR", target);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut all = files(into).into_iter().filter(|name| name.ends_with(".deb"));
    into.join(all.next().expect("a package"))
}

/// What only a package has: Debian's policy asks for the first, lintian for the second.
const OF_A_PACKAGE: [&str; 2] = ["usr/share/doc/steadfs/changelog.Debian.gz", "usr/share/lintian/overrides/steadfs"];

/// The package has what `make install` installs, to the byte and with the same modes, but for what debug information takes.
fn same_as_make_install(package: &Path, place: &Path) {
    let (packed, made) = (place.join("packed"), place.join("made"));
    let output = run("dpkg-deb", &["-x", package.to_str().unwrap(), packed.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    make("install", &made, &["PREFIX=/usr", "ZSHDIR=/usr/share/zsh/vendor-completions"]);
    for name in OF_A_PACKAGE {
        std::fs::remove_file(packed.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in files(&packed).iter().filter(|name| name.ends_with(".gz")) {
        let output = run("gzip", &["-d", packed.join(name).to_str().unwrap()]);
        assert!(output.status.success(), "{name}: {output:?}");
    }
    let all = files(&made);
    assert_eq!(files(&packed), all);
    for name in all {
        let both = [packed.join(&name), made.join(&name)];
        let [one, other] = both.each_ref().map(|path| std::fs::symlink_metadata(path).unwrap().mode());
        assert_eq!(one, other, "the mode of {name}");
        let [one, other] = both.each_ref().map(|path| std::fs::read(path).unwrap());
        assert!(name == "usr/bin/steadfs" || one == other, "{name} differs");
    }
}

fn shell(script: &str, words: &[&Path]) -> Output {
    Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-euc", script, "sh"])
        .args(words)
        .output()
        .unwrap()
}

#[test]
fn a_debian_package_comes_and_goes() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: run it as root");
    let place = tempfile::tempdir().unwrap();
    let package = package(place.path());
    let name = package.to_str().unwrap();

    let control = text(&run("dpkg-deb", &["-I", name]).stdout);
    for wanted in ["Package: steadfs", "openssh-client", "fuse3", "sshfs", "Recommends: ", "Maintainer: "] {
        assert!(control.contains(wanted), "{wanted}: {control}");
    }
    assert_eq!(text(&run("dpkg-deb", &["-I", name, "conffiles"]).stdout).trim(), "/etc/steadfs/README");
    let listed = text(&run("dpkg-deb", &["-c", name]).stdout);
    let manual =
        ["share/man/man8/steadfs.8.gz", "share/man/man5/steadfs.toml.5.gz", "share/zsh/vendor-completions/_steadfs"];
    for part in PARTS.iter().chain(&manual).chain(&["sbin/mount.steadfs"]) {
        assert!(listed.contains(&format!("./usr/{part}\n")), "{part}: {listed}");
    }
    // An upgrade by the package manager must not stop what runs.
    for script in ["prerm", "postinst", "postrm"] {
        let found = text(&run("dpkg-deb", &["-I", name, script]).stdout);
        assert!(!["stop", "restart", "kill"].iter().any(|word| found.contains(&format!("invoke {word}"))), "{found}");
        assert!(!found.contains("deb-systemd-invoke"), "{script}: {found}");
    }

    same_as_make_install(&package, place.path());

    // In a layer over this machine: dpkg's dependencies are those that are really installed.
    let script = r#"
        mount -t tmpfs tmpfs "$1"
        mkdir "$1/upper" "$1/work" "$1/root"
        mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
        cp "$2" "$1/root/package.deb"
        mount -t proc proc "$1/root/proc"
        mount --rbind /dev "$1/root/dev"
        chroot "$1/root" sh -euc '
            dpkg -i /package.deb >&2
            steadfs --version
            mount.steadfs box:/a /srv/a -f -v -o ro
            mkdir -p /hot && mount -f -v -t steadfs box.example.org:/a /hot
            man -w steadfs steadfs.toml >&2 || true
            dpkg --verify steadfs
            dpkg --purge steadfs >&2
            dpkg -s steadfs 2>/dev/null | grep -c "^Status: install" || true
            for left in /usr/bin/steadfs /usr/sbin/mount.steadfs /usr/sbin/mount.fuse.steadfs /etc/steadfs \
                /usr/share/doc/steadfs /usr/lib/systemd/system/steadfs@.service /usr/lib/tmpfiles.d/steadfs.conf; do
                if [ -e "$left" ] || [ -L "$left" ]; then echo "left: $left"; fi
            done
        '
    "#;
    let layer = tempfile::tempdir().unwrap();
    let output = shell(script, &[layer.path(), &package]);
    let (said, complaints) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}\n{complaints}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("steadfs {}", env!("CARGO_PKG_VERSION")), "{said}\n{complaints}");
    assert_eq!(lines[1], "mount.steadfs: steadfs mount -o ro -- box:/a /srv/a", "{said}");
    assert!(
        lines[2].starts_with("mount.steadfs: steadfs mount ") && lines[2].ends_with("-- box.example.org:/a /hot"),
        "{said}"
    );
    assert_eq!(lines[3..], ["0"], "nothing is left: {said}\n{complaints}");
}
