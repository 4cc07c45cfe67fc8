//! Programs: file operations on a few names, and what goes wrong meanwhile.

use std::fmt::Debug;
use std::ops::Range;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// Descriptors that a program has at once.
pub const SLOTS: usize = 4;

/// A path below the program's own directory: one or two components.
pub type Name = &'static str;

const NAMES: [Name; 8] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/a"];
/// What symbolic links say: some lead nowhere, some to themselves, none out of the program's directory.
const TARGETS: [&str; 5] = ["a", "b", "d/a", "e/a", "nowhere/at/all"];

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    pub read: bool,
    pub write: bool,
    pub create: bool,
    pub exclusive: bool,
    pub truncate: bool,
    pub append: bool,
    pub mode: u32,
}

/// One operation. Slots number the descriptors of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Open {
        slot: usize,
        name: &'static str,
        how: How,
    },
    Close {
        slot: usize,
    },
    /// `tone` says which bytes.
    Write {
        slot: usize,
        length: usize,
        tone: u8,
    },
    WriteAt {
        slot: usize,
        offset: usize,
        length: usize,
        tone: u8,
    },
    Read {
        slot: usize,
        length: usize,
    },
    ReadAt {
        slot: usize,
        offset: usize,
        length: usize,
    },
    Seek {
        slot: usize,
        offset: usize,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
    SetLength {
        slot: usize,
        size: usize,
    },
    Truncate {
        name: &'static str,
        size: usize,
    },
    Unlink {
        name: &'static str,
    },
    Rename {
        from: &'static str,
        to: &'static str,
    },
    Link {
        from: &'static str,
        to: &'static str,
    },
    Symlink {
        target: &'static str,
        name: &'static str,
    },
    ReadLink {
        name: &'static str,
    },
    MakeDirectory {
        name: &'static str,
        mode: u32,
    },
    RemoveDirectory {
        name: &'static str,
    },
    SetMode {
        name: &'static str,
        mode: u32,
    },
    Stat {
        name: &'static str,
    },
    StatOpen {
        slot: usize,
    },
    List {
        name: &'static str,
    },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<M> {
    pub mishap: Option<M>,
    pub op: Op,
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program<M> {
    /// The backing is as sshfs, not as a local directory.
    pub like_sshfs: bool,
    /// Outages outlive the deadline.
    pub long: bool,
    /// The kernel may believe what it has seen.
    pub caching: bool,
    /// Bytes that the write log may keep.
    pub log: u64,
    /// Small appends are gathered.
    pub gather: bool,
    pub steps: Vec<Step<M>>,
}

/// The bytes of a write: no two places of one are alike for long, and no two writes of another tone.
pub fn bytes(tone: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| tone ^ (at % 251) as u8 ^ (at / 251) as u8).collect()
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn name() -> impl Strategy<Value = Name> {
    // A few names are used often, so that operations meet.
    prop_oneof![3 => proptest::sample::select(&NAMES[..3]), 2 => proptest::sample::select(&NAMES[..])]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1_usize..200, 2 => 1_usize..5000, 1 => 1_usize..20_000, 1 => Just(4096)]
}

fn place() -> impl Strategy<Value = usize> {
    prop_oneof![2 => 0_usize..300, 2 => 0_usize..6000, 1 => 0_usize..40_000, 1 => Just(4096)]
}

fn mode() -> impl Strategy<Value = u32> {
    proptest::sample::select(&[0o644, 0o600, 0o666, 0o444, 0o400, 0o755][..])
}

fn how() -> impl Strategy<Value = How> {
    let access = prop_oneof![6 => Just((true, true)), 2 => Just((false, true)), 1 => Just((true, false))];
    (access, weighted(0.8, weighted(0.2, Just(()))), any::<u8>(), mode()).prop_map(
        |((read, write), create, dice, mode)| How {
            read,
            write,
            create: create.is_some(),
            exclusive: create == Some(Some(())),
            truncate: write && dice % 5 == 0,
            append: dice % 7 < 2,
            mode,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let data = prop_oneof![
        4 => (slot(), length(), any::<u8>()).prop_map(|(slot, length, tone)| Op::Write { slot, length, tone }),
        3 => (slot(), place(), length(), any::<u8>())
            .prop_map(|(slot, offset, length, tone)| Op::WriteAt { slot, offset, length, tone }),
        1 => (slot(), length()).prop_map(|(slot, length)| Op::Read { slot, length }),
        2 => (slot(), place(), length()).prop_map(|(slot, offset, length)| Op::ReadAt { slot, offset, length }),
        1 => (slot(), place()).prop_map(|(slot, offset)| Op::Seek { slot, offset }),
        2 => (slot(), any::<bool>()).prop_map(|(slot, data_only)| Op::Sync { slot, data_only }),
        2 => (slot(), place()).prop_map(|(slot, size)| Op::SetLength { slot, size }),
        1 => (name(), place()).prop_map(|(name, size)| Op::Truncate { name, size }),
        1 => slot().prop_map(|slot| Op::StatOpen { slot }),
    ];
    let names = prop_oneof![
        2 => name().prop_map(|name| Op::Unlink { name }),
        3 => (name(), name()).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => (name(), name()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => (proptest::sample::select(&TARGETS[..]), name()).prop_map(|(target, name)| Op::Symlink { target, name }),
        1 => name().prop_map(|name| Op::ReadLink { name }),
        2 => (proptest::sample::select(&NAMES[3..]), mode()).prop_map(|(name, mode)| Op::MakeDirectory { name, mode }),
        1 => name().prop_map(|name| Op::RemoveDirectory { name }),
        1 => (name(), mode()).prop_map(|(name, mode)| Op::SetMode { name, mode }),
        2 => name().prop_map(|name| Op::Stat { name }),
        1 => proptest::sample::select(&["", "d", "e"][..]).prop_map(|name| Op::List { name }),
    ];
    prop_oneof![
        4 => (slot(), name(), how()).prop_map(|(slot, name, how)| Op::Open { slot, name, how }),
        1 => slot().prop_map(|slot| Op::Close { slot }),
        10 => data,
        6 => names,
    ]
}

/// Any program. Before a step one of these mishaps comes in so many of a hundred.
pub fn program<M: Debug + Clone>(
    mishap: impl Strategy<Value = M>,
    percent: u32,
    steps: Range<usize>,
) -> impl Strategy<Value = Program<M>> {
    let log = prop_oneof![3 => Just(8_u64 << 20), 1 => Just(48_u64 << 10)];
    let mishap = weighted(f64::from(percent) / 100.0, mishap);
    let steps = vec((mishap, op()).prop_map(|(mishap, op)| Step { mishap, op }), steps);
    let gather = proptest::bool::weighted(0.75);
    (any::<bool>(), proptest::bool::weighted(0.2), any::<bool>(), log, steps, gather).prop_map(
        |(like_sshfs, long, caching, log, steps, gather)| Program { like_sshfs, long, caching, log, gather, steps },
    )
}
