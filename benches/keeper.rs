//! What a keeper costs from end to end: two overlays over directories in memory, one kept and one not, take turns. Prints
//! operations a second and their ratio. Needs root and /dev/fuse.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Each of the two has so many turns with each kind of call.
const ROUNDS: usize = 9;
/// Length of a turn.
const TURN: Duration = Duration::from_millis(400);
/// Files that are looked up.
const FILES: usize = 64;
/// Bytes of the file that is written over and over.
const SIZE: u64 = 16 << 20;

struct Overlay {
    directory: PathBuf,
    hot: PathBuf,
    file: File,
}

impl Overlay {
    fn mount(base: &Path, keeper: &str) -> Overlay {
        let directory = base.join(keeper);
        let (hot, store) = (directory.join("hot"), directory.join("store"));
        for made in [&directory, &hot, &store] {
            std::fs::create_dir(made).expect("made");
        }
        for number in 0..FILES {
            std::fs::write(store.join(format!("file-{number}")), "").expect("written");
        }
        // Every lookup asks, and every write is sent by itself.
        let options = format!("keeper={keeper},guard=no,entry_timeout=0,attr_timeout=0,gather=0");
        let mut mount = command(&directory, "mount");
        mount.arg(format!("dir:{}", store.display())).arg(&hot).args(["-o", &options]);
        assert!(mount.status().expect("it runs").success(), "it is not mounted");
        let file = File::options().create(true).truncate(true).write(true).open(hot.join("written")).expect("opened");
        file.set_len(SIZE).expect("set");
        Overlay { directory, hot, file }
    }

    /// Calls a second.
    fn turn(&self, mut call: impl FnMut(&Overlay, usize)) -> f64 {
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < TURN {
            call(self, count);
            count += 1;
        }
        count as f64 / begun.elapsed().as_secs_f64()
    }

    fn unmount(self) {
        drop(self.file);
        assert!(command(&self.directory, "umount").arg(&self.hot).status().expect("it runs").success());
    }
}

fn command(directory: &Path, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
    command.arg(verb).stdin(Stdio::null());
    command.env("STEADFS_RUNTIME_DIR", directory.join("run")).env("STEADFS_STATE_DIR", directory.join("state"));
    command
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // `cargo test --benches` runs it too; it has nothing to say there.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let base = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let overlays = ["no", "yes"].map(|keeper| Overlay::mount(base.path(), keeper));
    let data = [7; 128 << 10];
    let write = |length: usize| {
        let data = &data[..length];
        move |overlay: &Overlay, count: usize| {
            let offset = (count * length) as u64 % SIZE;
            overlay.file.write_all_at(data, offset).expect("written");
        }
    };
    let lookup = |overlay: &Overlay, count: usize| {
        overlay.hot.join(format!("file-{}", count % FILES)).symlink_metadata().expect("it is there");
    };
    type Call<'a> = &'a dyn Fn(&Overlay, usize);
    let (small, large) = (write(4 << 10), write(128 << 10));
    let calls: [(&str, Call<'_>); 3] = [("4 KiB writes", &small), ("128 KiB writes", &large), ("lookups", &lookup)];
    for (name, call) in calls {
        let (mut figures, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
        for _ in 0..ROUNDS {
            let rates = [overlays[0].turn(call), overlays[1].turn(call)];
            (0..2).for_each(|which| figures[which].push(rates[which]));
            ratios.push(rates[1] / rates[0]);
        }
        let [without, with] = figures.map(median);
        println!("{name:15} {with:9.0}/s kept, {without:9.0}/s not kept, ratio {:.2}", median(ratios));
    }
    overlays.into_iter().for_each(Overlay::unmount);
}
