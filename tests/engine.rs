//! Workers that are containers of a real engine: podman, with an image that is made here of one static program.
//! Needs root, /dev/fuse, podman, runc and busybox.
#![allow(clippy::unwrap_used)]

mod lab;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use lab::{Lab, mount_of, process, run_ok, wait};
use nix::sys::signal::Signal;
use steadfs::backing::mountinfo;

lab::also_runs_as!(agent_process: lab::agents::main);

/// In a directory of its own: nothing of the engine's is shared with anybody. runc, since crun knows no control groups of
/// both versions side by side.
const ENGINE: &str = "#!/bin/sh
exec podman --root 'DIR/store' --runroot 'DIR/run' --tmpdir 'DIR/tmp' --storage-driver=vfs \\
    --cgroup-manager=cgroupfs --events-backend=file --runtime=runc \"$@\"
";

/// A server, the overlay of a `steadfs run`, and an engine with one worker by label, one by name, and somebody else.
struct Scene {
    lab: Lab,
}

impl Scene {
    fn new() -> Scene {
        let lab = Lab::unmounted();
        let (engine, place) = (lab.path("engine"), lab.path("podman"));
        std::fs::create_dir_all(place.join("image/bin")).unwrap();
        std::fs::write(&engine, ENGINE.replace("DIR", place.to_str().unwrap())).unwrap();
        std::fs::set_permissions(&engine, PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["sh", "sleep"] {
            std::fs::copy("/bin/busybox", place.join("image/bin").join(name)).unwrap();
        }
        let archive = place.join("image.tar");
        run_ok("tar", &["-C", place.join("image").to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        let (handed_on, mut workers) = (lab.sshd.client_lines(), String::new());
        for (name, which) in [("labelled", "label = \"crawl=yes\""), ("named", "names = [\"byname\"]")] {
            workers += &format!("[[worker]]\nname = {name:?}\nkind = \"container\"\nengine = {engine:?}\n{which}\n");
        }
        let text = format!(
            "name = \"box\"\nsource = {:?}\n[sshfs]\n{handed_on}[calls]\ndeadline = \"2s\"\n[repair]\nsteady = \"2s\"\n\
             backoff_max = \"1s\"\n[[overlay]]\nmountpoint = {:?}\nguard = false\n{workers}",
            lab.source(),
            lab.hot
        );
        std::fs::write(lab.path("box.toml"), text).unwrap();
        let command = lab.steadfs(&["run", "-f", lab.path("box.toml").to_str().unwrap()]);
        let mut scene = Scene { lab };
        scene.ok(&["import", archive.to_str().unwrap(), "localhost/worker:1"]);
        for (name, label) in [("bylabel", "crawl=yes"), ("byname", "a=b"), ("stranger", "a=b")] {
            // What may be opened and started is set: a daemon without all capabilities may not raise it.
            let group = format!("--cgroup-parent=/{}", scene.group());
            let begin =
                ["run", "-d", &group, "--name", name, "--label", label, "--network=none", "--ulimit=nofile=512:512"];
            let program =
                ["--ulimit=nproc=512:512", "localhost/worker:1", "/bin/sh", "-c", "while :; do sleep 0.1; done"];
            scene.ok(&[&begin[..], &program[..]].concat());
        }
        scene.lab.start(command);
        wait("it is mounted", || mount_of(&scene.lab.hot).is_some());
        scene.lab.wait_state("live");
        scene
    }

    fn ask(&self, words: &[&str]) -> Output {
        Command::new(self.lab.path("engine")).args(words).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The containers that the engine says are paused, in order.
    fn paused(&self) -> Vec<String> {
        let said = self.ok(&["ps", "--filter", "status=paused", "--format", "{{.Names}}"]);
        let mut names: Vec<String> = said.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    fn everybody_goes_on(&self) {
        wait("everybody is let go", || self.paused().is_empty());
        let running = self.ok(&["ps", "--filter", "status=running", "--format", "{{.Names}}"]);
        assert_eq!(running.lines().count(), 3, "{running}");
    }

    /// One that is paused can be killed only by its engine.
    fn remove_containers(&self) {
        let _ = self.ask(&["rm", "--all", "--force", "--time=0"]);
    }

    /// An engine leaves those that it has made above its containers' own. False while one is in use.
    fn remove_groups(&self) -> bool {
        let trees = mountinfo::entries().unwrap().into_iter();
        let groups = trees.filter(|tree| tree.fstype.to_string_lossy().starts_with("cgroup"));
        groups.map(|tree| tree.mountpoint.join(self.group())).all(|group| {
            let below = std::fs::read_dir(&group).into_iter().flatten().flatten();
            below.for_each(|entry| _ = std::fs::remove_dir(entry.path()));
            std::fs::remove_dir(&group).is_ok() || !group.exists()
        })
    }

    /// The control group that theirs are below.
    fn group(&self) -> String {
        self.lab.directory().file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn workers_are_paused(&self) {
        wait("the workers are paused", || self.paused() == ["bylabel", "byname"]);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.remove_containers();
        self.remove_groups();
    }
}

#[test]
fn containers_of_a_real_engine_are_paused_in_an_outage_and_let_go_whatever_becomes_of_steadfs() {
    let mut scene = Scene::new();
    assert!(scene.paused().is_empty());
    scene.lab.net.cut();
    scene.workers_are_paused();
    scene.lab.net.heal();
    scene.everybody_goes_on();

    // The daemon is killed while they are paused.
    scene.lab.net.cut();
    scene.workers_are_paused();
    let before = scene.lab.status()["pid"].clone();
    process::signal(i32::try_from(before.as_u64().unwrap()).unwrap(), Signal::SIGKILL);
    wait("there is a successor", || {
        let now = scene.lab.status()["pid"].clone();
        now.is_u64() && now != before
    });
    assert_eq!(scene.paused(), ["bylabel", "byname"]);
    scene.lab.net.heal();
    scene.everybody_goes_on();

    // It is unmounted while they are, and one was paused by somebody else before.
    scene.ok(&["pause", "stranger"]);
    scene.lab.net.cut();
    wait("the workers are paused", || scene.paused() == ["bylabel", "byname", "stranger"]);
    let output = scene.lab.steadfs(&["umount", "--lazy", "box"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    wait("the workers are let go", || scene.paused() == ["stranger"]);
    scene.remove_containers();
    wait("their control groups go", || scene.remove_groups());
    // It could not be told that its client has gone.
    scene.lab.sshd.stop();
    scene.lab.assert_ended();
}
