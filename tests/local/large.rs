//! A directory of a million entries.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use super::compare::c;
use super::rig::Local;
use crate::lab::process;

const ENTRIES: u32 = 1_000_000;
/// Links to one file: ext4 allows 65,000.
const LINKS: u32 = 62_500;
/// A listing of a million entries may cost the daemon so many bytes of memory for each.
const BYTES_AN_ENTRY: u64 = 160;
/// Between two offsets that are remembered.
const STEP: usize = 50_000;

/// An open directory (opendir(3)).
struct Listing(*mut libc::DIR);

impl Listing {
    fn open(path: &Path) -> Listing {
        let path = c(path);
        // SAFETY: the path ends with NUL.
        let opened = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!opened.is_null(), "{}", std::io::Error::last_os_error());
        Listing(opened)
    }

    fn next(&mut self) -> Option<CString> {
        nix::errno::Errno::clear();
        // SAFETY: it is open, and only this thread has it.
        let entry = unsafe { libc::readdir64(self.0) };
        if entry.is_null() {
            assert_eq!(nix::errno::Errno::last_raw(), 0, "an error is no end");
            return None;
        }
        // SAFETY: the name ends with NUL, and is good until the next call.
        Some(unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) }.to_owned())
    }

    fn tell(&self) -> libc::c_long {
        // SAFETY: it is open.
        unsafe { telldir(self.0) }
    }

    fn seek(&mut self, offset: libc::c_long) {
        // SAFETY: it is open, and the offset is of telldir(3).
        unsafe { seekdir(self.0, offset) }
    }
}

unsafe extern "C" {
    fn telldir(directory: *mut libc::DIR) -> libc::c_long;
    fn seekdir(directory: *mut libc::DIR, offset: libc::c_long);
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: it is open, and nobody has it any more.
        unsafe { libc::closedir(self.0) };
    }
}

fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.strip_prefix("entry-")?.parse().ok()
}

/// Memory of the daemon in bytes: what it has, or has had at most.
fn memory(local: &Local, field: &str) -> u64 {
    process::status_number(local.lab.serving(), field) * 1024
}

fn make(directory: &Path, entries: u32) {
    std::fs::create_dir(directory).unwrap();
    for file in 0..entries.div_ceil(LINKS) {
        let first = directory.join(format!("entry-{}", file * LINKS));
        File::create(&first).unwrap();
        for link in file * LINKS + 1..entries.min((file + 1) * LINKS) {
            std::fs::hard_link(&first, directory.join(format!("entry-{link}"))).unwrap();
        }
    }
}

#[test]
fn a_directory_of_a_million_entries_is_listed_whole_while_it_changes() {
    let begun = Instant::now();
    let lap = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    let local = Local::new("");
    make(&local.cold("many"), ENTRIES);
    lap("made");
    let directory = local.hot("many");
    let before = memory(&local, "VmRSS");
    let mut listing = Listing::open(&directory);
    let (mut names, mut offsets) = (Vec::with_capacity(ENTRIES as usize), Vec::new());
    let mut seen = vec![0_u8; ENTRIES as usize];
    while let Some(name) = listing.next() {
        if let Some(number) = number(&name) {
            seen[number as usize] += 1;
        }
        names.push(name);
        if names.len() % STEP == 0 {
            offsets.push((names.len(), listing.tell()));
        }
    }
    assert!(seen.iter().all(|times| *times == 1), "each of them once");
    assert_eq!(names.len(), ENTRIES as usize + 2);
    lap("listed");
    let cost = memory(&local, "VmHWM").saturating_sub(before);
    println!("        the daemon needs {} MiB for it, {} bytes an entry", cost >> 20, cost / u64::from(ENTRIES));
    assert!(cost < u64::from(ENTRIES) * BYTES_AN_ENTRY);

    // Offsets are good in any order, whatever comes and goes.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut gone = BTreeSet::new();
            for number in (0..ENTRIES).step_by(97) {
                if stop.load(SeqCst) {
                    break;
                }
                std::fs::remove_file(directory.join(format!("entry-{number}"))).unwrap();
                File::create(directory.join(format!("new-{number}"))).unwrap();
                gone.insert(number);
            }
            gone
        });
        for &(at, offset) in offsets.iter().rev() {
            listing.seek(offset);
            for wanted in &names[at..(at + 1000).min(names.len())] {
                let mut found = listing.next().unwrap();
                // What has gone may be shown or not.
                while found != *wanted && names[at..].first() != Some(wanted) && number(&found).is_none() {
                    found = listing.next().unwrap();
                }
                assert_eq!(&found, wanted, "after {at}");
            }
        }
        lap("sought");
        // A listing that begins in the middle of all that.
        let mut again = Listing::open(&directory);
        let mut seen = vec![0_u8; ENTRIES as usize];
        while let Some(name) = again.next() {
            if let Some(number) = number(&name) {
                seen[number as usize] += 1;
            }
        }
        stop.store(true, SeqCst);
        let gone = changing.join().unwrap();
        println!("        {} entries came and went", gone.len());
        for (number, times) in (0..).zip(&seen) {
            assert!(*times == 1 || (*times == 0 && gone.contains(&number)), "entry-{number}: {times} times");
        }
    });
    lap("listed while it changed");
    drop(listing);
    crate::lab::wait("the memory is given back", || {
        // How many names the kernel remembers is chance, and it may keep some when it is told to forget all; and how much lies
        // between what malloc(3) still needs.
        super::rig::forget_names();
        memory(&local, "VmRSS") < before + (cost / 2).max(48 << 20)
    });
    println!("        afterwards it has {} MiB more than before", memory(&local, "VmRSS").saturating_sub(before) >> 20);
    local.end();
    lap("removed");
}

#[test]
fn an_open_listing_goes_on_after_a_repair_and_a_death() {
    let begun = Instant::now();
    let lap = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    let local = Local::new("");
    let mut directories = Vec::new();
    for entries in [50_000, 200_000] {
        let name = format!("of-{entries}");
        make(&local.cold(&name), entries);
        directories.push((entries as usize, name.clone(), Listing::open(&local.hot(&name)), Vec::new(), Vec::new()));
    }
    lap("made");
    // Half of it after the beginning, more after a repair, the rest after a death; all of them are open at the same time.
    for part in 0..3 {
        match part {
            0 => {}
            1 => local.outage(),
            _ => local.succession(),
        }
        for (entries, name, listing, names, offsets) in &mut directories {
            let most = [*entries / 2, *entries / 4 * 3, usize::MAX][part];
            while names.len() < most {
                // The beginning is another thing: who goes back to it reads the directory anew.
                if names.len() % 5000 == 2500 {
                    offsets.push((names.len(), listing.tell()));
                }
                match listing.next() {
                    Some(name) => names.push(name),
                    None => break,
                }
            }
            if part == 0 {
                // Whoever read it anew would count otherwise.
                for gone in names.iter().enumerate().filter(|(at, _)| (1000..1500).contains(&(at % 5000))) {
                    if let Some(number) = number(gone.1) {
                        std::fs::remove_file(local.cold(&format!("{name}/entry-{number}"))).unwrap();
                        File::create(local.cold(&format!("{name}/new-{number}"))).unwrap();
                    }
                }
            }
        }
        lap(["half of them", "more after a repair", "the rest after a death"][part]);
    }
    for (entries, name, listing, names, offsets) in &mut directories {
        let mut seen = vec![0_u8; *entries];
        names.iter().filter_map(|name| number(name)).for_each(|number| seen[number as usize] += 1);
        let wrong: Vec<_> = (0..).zip(&seen).filter(|(_, times)| **times != 1).take(10).collect();
        assert!(wrong.is_empty() && names.len() == *entries + 2, "{name}: {} names, {wrong:?}", names.len());
        for (at, offset) in offsets.iter().rev() {
            listing.seek(*offset);
            for wanted in &names[*at..(at + 100).min(names.len())] {
                assert_eq!(listing.next().as_ref(), Some(wanted), "{name}: after {at}");
            }
        }
    }
    lap("sought");
    drop(directories);
    local.end();
}
