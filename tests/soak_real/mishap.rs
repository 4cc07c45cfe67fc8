//! What goes wrong with a real sshfs.

use std::time::Duration;

use proptest::prelude::*;

use crate::lab::parts::Part;

/// One of the processes between the overlay and the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Sshfs,
    /// ssh, or what stands in its place.
    Ssh,
    /// sftp-server.
    Server,
}

/// What goes wrong from a moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Kill(Who),
    /// Whatever is in that place so long after is killed too, perhaps in its replay.
    Twice(Who, Duration),
    /// It stops, until steadfs gives it up.
    Freeze(Who),
    /// It stops and goes on, perhaps before anybody has noticed.
    Pause(Who, Duration),
    /// No packet passes for that long. Without a network ssh pauses instead.
    Cut(Duration),
    /// The link ends, and nobody can be reached for that long.
    Away(Duration),
    /// The same for longer than the deadline. A program of blips takes it for a kill.
    Down,
    /// A part of steadfs itself is killed.
    Steadfs(Part),
    /// The same, and one of the others in the same moment.
    Both(Part, Who),
}

/// See [`What`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mishap {
    /// From the beginning of the step.
    pub after: Duration,
    pub what: What,
}

/// Any of them. Kills are the most frequent: they cost the least time.
pub fn mishap() -> impl Strategy<Value = Mishap> {
    let who = || proptest::sample::select(&[Who::Sshfs, Who::Ssh, Who::Server][..]);
    let part = || proptest::sample::select(&[Part::Daemon, Part::Daemon, Part::Keeper][..]);
    let millis = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    // An operation takes a few hundred microseconds, a repair some hundred milliseconds.
    let after = prop_oneof![1 => Just(0_u64), 5 => 0_u64..3000, 1 => 0_u64..100_000].prop_map(Duration::from_micros);
    let what = prop_oneof![
        12 => who().prop_map(What::Kill),
        6 => (who(), millis(1..400)).prop_map(|(who, after)| What::Twice(who, after)),
        2 => who().prop_map(What::Freeze),
        2 => (who(), millis(1..1500)).prop_map(|(who, length)| What::Pause(who, length)),
        2 => millis(1..3500).prop_map(What::Cut),
        2 => millis(1..1000).prop_map(What::Away),
        2 => Just(What::Down),
        12 => part().prop_map(What::Steadfs),
        4 => (part(), who()).prop_map(|(part, who)| What::Both(part, who)),
    ];
    (after, what).prop_map(|(after, what)| Mishap { after, what })
}
