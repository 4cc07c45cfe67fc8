//! `dir:` over a mount of FUSE, here an overlay of our own.

use std::sync::Arc;
use std::time::Duration;

use steadfs::backing::Backing;
use steadfs::backing::dir::DirBacking;

use crate::rig::{LOCAL, PATIENCE, Rig};

#[test]
fn a_fuse_mount_below_is_not_relied_on() {
    let rig = Rig::new(LOCAL);
    let below = || DirBacking::new(rig.mountpoint().to_owned()).expect("absolute");
    let relied_on = |backing: &DirBacking| {
        let traits = backing.traits();
        (traits.stable_inodes, traits.keeps_unlinked, traits.owners)
    };
    let backing = below();
    assert_eq!(relied_on(&backing), (false, false, true));
    let generation = backing.start(1, PATIENCE, Arc::new(|_| {})).expect("it starts");
    assert_eq!(relied_on(&backing), (false, false, true));
    generation.abort();
    generation.retire().expect("nothing is left behind");
    drop((generation, backing));
    // The question itself must not hang.
    rig.control().freeze();
    let backing = below();
    let started = std::time::Instant::now();
    assert_eq!(relied_on(&backing), (false, false, true));
    assert!(started.elapsed() < Duration::from_secs(5));
    rig.control().thaw();
}
