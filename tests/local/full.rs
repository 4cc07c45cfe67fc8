//! A disk that is full, of data or of files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::rig::Local;
use crate::lab::{Lab, run, run_ok, wait};

/// A small ext4 of its own, unmounted in the end.
pub struct Disk(pub PathBuf);

impl Disk {
    pub fn new(lab: &Lab, inodes: u32) -> Disk {
        let (image, at) = (lab.path("image"), lab.path("disk"));
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let arguments = ["-q", "-F", "-m", "0", "-N", &inodes.to_string(), image.to_str().unwrap()];
        run_ok("mkfs.ext4", &arguments);
        std::fs::create_dir(&at).unwrap();
        run_ok("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Disk(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Those that are left with it when a test fails are ended afterwards.
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

fn fill(path: &Path) -> (u64, Option<i32>) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let block = [7; 128 << 10];
    let mut written = 0;
    loop {
        match file.write(&block) {
            Ok(length) => written += length as u64,
            Err(error) => return (written, error.raw_os_error()),
        }
        assert!(written < 16 << 20, "a disk of 16 MiB took more");
    }
}

#[test]
fn a_disk_that_is_full_says_so_and_is_no_outage() {
    let lab = Lab::untimed();
    let disk = Disk::new(&lab, 64);
    let local = Local::over(lab, "disk", "", |_| {});
    let (written, errno) = fill(&local.hot("large"));
    println!("{written} bytes until it was full");
    assert_eq!(errno, Some(libc::ENOSPC));
    assert!(written > 4 << 20);
    assert_eq!(
        std::fs::metadata(local.hot("large")).unwrap().len(),
        std::fs::metadata(disk.0.join("large")).unwrap().len()
    );
    // Small appends are acknowledged before they are handed over: fsync and close tell.
    let mut small = OpenOptions::new().create(true).append(true).open(local.hot("small")).unwrap();
    let mut put = || small.write_all(&[1; 8192]).and_then(|()| small.sync_all());
    let told = (0..2048).find_map(|_| put().err()).expect("a disk of 16 MiB took more");
    assert_eq!(told.raw_os_error(), Some(libc::ENOSPC));
    drop(small);
    let file = OpenOptions::new().write(true).open(local.hot("large")).unwrap();
    // SAFETY: only numbers are passed.
    let reserved = unsafe { libc::fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, 64 << 20) };
    assert_eq!((reserved, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOSPC)));
    drop(file);
    std::fs::remove_file(local.hot("large")).unwrap();
    std::fs::remove_file(local.hot("small")).unwrap();
    // What has lost its name goes when the kernel has forgotten it, a moment after the unlink.
    wait("there is room again", || std::fs::write(local.hot("again"), vec![1; 1 << 20]).is_ok());
    let mut made = 0;
    let refused = loop {
        match File::create(local.hot(&format!("f{made}"))) {
            Ok(_) => made += 1,
            Err(error) => break error.raw_os_error(),
        }
        assert!(made < 1000, "a disk of 64 inodes took more");
    };
    println!("{made} files until it was full");
    assert_eq!(refused, Some(libc::ENOSPC));
    assert_eq!(std::fs::create_dir(local.hot("d")).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    std::fs::remove_file(local.hot("f0")).unwrap();
    wait("there is room for a directory", || std::fs::create_dir(local.hot("d")).is_ok());
    assert_eq!((local.lab.state(), local.lab.generation()), ("live".to_owned(), 1));
    // What did not fit is in the spool, so that not nothing is left.
    run_ok("umount", &[local.lab.hot.to_str().unwrap()]);
    wait("the daemon ends", || local.lab.parts().daemons().is_empty());
    drop(disk);
}
