//! Calls on a few names and descriptors, drawn from dice.

use crate::dice::Dice;

/// Descriptors that a process has at once.
pub const SLOTS: usize = 5;
/// Names in the crowded directory.
pub const CROWD: u64 = 160;
/// Whoever is not root.
pub const NOBODY: u32 = 65534;
/// Sizes and offsets stay below.
const REACH: u64 = 300_000;

const NAMES: [&str; 16] =
    ["a", "b", "c", "l", "d", "d/a", "d/b", "d/l", "d/e", "d/e/a", "d/e/b", "e", "e/a", "e/b", "l/a", "e/f"];
/// None leads out of the process's directory.
const TARGETS: [&str; 6] = ["a", "d", "d/e", "e/a", "l", "nowhere/at/all"];
// No setgid: what FUSE leaves of it is in docs/posix-differences.md.
const MODES: [u32; 10] = [0o644, 0o600, 0o666, 0o755, 0o700, 0o777, 0o4755, 0o4711, 0o400, 0o1777];
const KEYS: [&str; 4] = ["user.a", "user.b", "trusted.t", "user.longer.than.the.others"];

/// What the filesystem below can do.
#[derive(Debug, Clone, Copy)]
pub struct Able {
    /// All that a local one can; else what SFTP passes on.
    pub local: bool,
    /// Holes are looked for, so nothing is allocated: what is allocated and not written is a hole or not, as the page cache has it.
    pub holes: bool,
    /// Descriptors that are open, a bit for each: most calls are on one of these.
    pub open: u32,
}

/// By name or by descriptor.
#[derive(Debug, Clone, Copy)]
pub enum At {
    Name(&'static str),
    Slot(usize),
}

/// One call. `tone` says which bytes.
#[derive(Debug, Clone)]
pub enum Call {
    Open {
        slot: usize,
        name: &'static str,
        flags: i32,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Write {
        slot: usize,
        at: Option<u64>,
        length: usize,
        tone: u8,
    },
    Read {
        slot: usize,
        at: Option<u64>,
        length: usize,
    },
    Seek {
        slot: usize,
        whence: i32,
        offset: i64,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
    SetLength {
        at: At,
        size: u64,
    },
    Allocate {
        slot: usize,
        how: i32,
        offset: u64,
        length: u64,
    },
    Copy {
        from: usize,
        to: usize,
        at: u64,
        to_at: u64,
        length: usize,
    },
    Splice {
        from: usize,
        to: usize,
        at: u64,
        to_at: u64,
        length: usize,
    },
    /// Through a shared map: reads, or writes and syncs.
    Map {
        slot: usize,
        at: u64,
        length: u64,
        write: Option<u8>,
    },
    Unlink {
        name: &'static str,
    },
    RemoveDirectory {
        name: &'static str,
    },
    MakeDirectory {
        name: &'static str,
        mode: u32,
    },
    Rename {
        from: &'static str,
        to: &'static str,
        flags: u32,
    },
    Link {
        from: &'static str,
        to: &'static str,
        follow: bool,
    },
    Symlink {
        target: &'static str,
        name: &'static str,
    },
    ReadLink {
        name: &'static str,
    },
    /// A fifo.
    MakeNode {
        name: &'static str,
        mode: u32,
    },
    SetMode {
        at: At,
        mode: u32,
    },
    SetOwner {
        at: At,
        uid: u32,
        gid: u32,
        follow: bool,
    },
    /// Seconds and nanoseconds long ago.
    SetTimes {
        at: At,
        follow: bool,
        atime: (i64, i64),
        mtime: (i64, i64),
    },
    SetXattr {
        at: At,
        key: &'static str,
        length: usize,
        tone: u8,
        flags: i32,
    },
    GetXattr {
        at: At,
        key: &'static str,
    },
    ListXattr {
        at: At,
    },
    RemoveXattr {
        at: At,
        key: &'static str,
    },
    SetList {
        name: &'static str,
        default: bool,
        bits: u16,
    },
    Stat {
        at: At,
        follow: bool,
    },
    Access {
        name: &'static str,
        mode: i32,
    },
    List {
        name: &'static str,
    },
    /// Makes names in the crowded directory.
    Crowd {
        first: u64,
        count: u64,
    },
    /// Reads it and removes every third name meanwhile.
    Thin {
        rest: u64,
    },
    /// The same by somebody who is not root.
    AsNobody(Box<Call>),
}

type Draw = fn(&mut Dice, Able) -> Call;

/// Any of them.
pub fn any(dice: &mut Dice, able: Able) -> Call {
    if able.local && dice.below(12) == 0 {
        return Call::AsNobody(Box::new(one(dice, able)));
    }
    one(dice, able)
}

fn one(dice: &mut Dice, able: Able) -> Call {
    let weights: [(u64, Draw); 5] =
        [(16, opening), (36, data), (20, names), (if able.local { 18 } else { 10 }, attributes), (4, many)];
    let mut left = dice.below(weights.iter().map(|(weight, _)| weight).sum());
    for (weight, make) in weights {
        if left < weight {
            return make(dice, able);
        }
        left -= weight;
    }
    unreachable!("the dice stay below the sum")
}

fn pick<T: Copy>(dice: &mut Dice, from: &[T]) -> T {
    from[dice.below(from.len() as u64) as usize]
}

fn any_slot(dice: &mut Dice) -> usize {
    dice.below(SLOTS as u64) as usize
}

/// Mostly one that is open.
fn slot(dice: &mut Dice, able: Able) -> usize {
    let open: Vec<usize> = (0..SLOTS).filter(|slot| able.open & 1 << slot != 0).collect();
    if open.is_empty() || dice.below(10) == 0 { any_slot(dice) } else { pick(dice, &open) }
}

fn name(dice: &mut Dice) -> &'static str {
    pick(dice, &NAMES)
}

fn at(dice: &mut Dice, able: Able) -> At {
    if dice.below(3) == 0 { At::Slot(slot(dice, able)) } else { At::Name(name(dice)) }
}

/// Mostly small, sometimes large, often at the edge of a block.
fn place(dice: &mut Dice) -> u64 {
    match dice.below(4) {
        0 => dice.below(200),
        1 => dice.below(REACH / 4096) * 4096,
        2 => dice.below(20_000),
        _ => dice.below(REACH),
    }
}

fn length(dice: &mut Dice) -> usize {
    (match dice.below(6) {
        0 => dice.below(100_000),
        1 => 4096 * (1 + dice.below(4)),
        _ => 1 + dice.below(3000),
    }) as usize
}

fn opening(dice: &mut Dice, able: Able) -> Call {
    if dice.below(5) == 0 {
        return Call::Close { slot: slot(dice, able) };
    }
    let mut flags = pick(dice, &[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
    let mut add = |flag: i32, one_in: u64| {
        if dice.below(one_in) == 0 {
            flags |= flag
        }
    };
    add(libc::O_TRUNC, 6);
    add(libc::O_EXCL | libc::O_CREAT, 10);
    add(libc::O_APPEND, 5);
    add(libc::O_NOFOLLOW, 6);
    add(libc::O_SYNC, 20);
    add(libc::O_DSYNC, 20);
    let special = dice.below(40);
    match special {
        0..2 => flags = libc::O_RDONLY | libc::O_DIRECTORY,
        // A descriptor by its path alone.
        2..4 if able.local => flags = libc::O_PATH,
        4..7 if able.local && !able.holes => flags = libc::O_RDWR | libc::O_DIRECT | (flags & libc::O_CREAT),
        _ if !special.is_multiple_of(4) => flags |= libc::O_CREAT,
        _ => {}
    }
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        flags &= !libc::O_TRUNC;
    }
    Call::Open { slot: any_slot(dice), name: name(dice), flags, mode: pick(dice, &MODES) }
}

fn data(dice: &mut Dice, able: Able) -> Call {
    let (slot, tone) = (slot(dice, able), dice.next() as u8);
    let offset = if dice.below(2) == 0 { None } else { Some(place(dice)) };
    match dice.below(if able.local { 24 } else { 19 }) {
        0..7 => Call::Write { slot, at: offset, length: length(dice), tone },
        7..12 => Call::Read { slot, at: offset, length: length(dice) },
        12 => Call::Seek {
            slot,
            whence: pick(dice, &[libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END]),
            offset: dice.below(5000) as i64 - 500,
        },
        13 => Call::Sync { slot, data_only: dice.below(2) == 0 },
        14 => Call::SetLength { at: at(dice, able), size: place(dice) },
        15..17 => {
            Call::Map { slot, at: place(dice), length: length(dice) as u64, write: (tone % 2 == 0).then_some(tone) }
        }
        17 => Call::Splice {
            from: slot,
            to: self::slot(dice, able),
            at: place(dice),
            to_at: place(dice),
            length: length(dice) % 30_000,
        },
        18 => Call::Sync { slot, data_only: false },
        19..21 => Call::Copy {
            from: slot,
            to: self::slot(dice, able),
            at: place(dice),
            to_at: place(dice),
            length: length(dice),
        },
        21..23 if able.holes => {
            Call::Seek { slot, whence: pick(dice, &[libc::SEEK_DATA, libc::SEEK_HOLE]), offset: place(dice) as i64 }
        }
        _ => {
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let all = [punch, 0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_ZERO_RANGE];
            let how = if able.holes { punch } else { pick(dice, &all) };
            Call::Allocate { slot, how, offset: place(dice), length: 1 + place(dice) }
        }
    }
}

fn names(dice: &mut Dice, able: Able) -> Call {
    let (one, other) = (name(dice), name(dice));
    let flags = |dice: &mut Dice| match dice.below(4) {
        0 => libc::RENAME_NOREPLACE,
        1 => libc::RENAME_EXCHANGE,
        _ => 0,
    };
    match dice.below(12) {
        0..2 => Call::Unlink { name: one },
        2 => Call::RemoveDirectory { name: one },
        3..5 => Call::MakeDirectory { name: one, mode: pick(dice, &[0o755, 0o777, 0o700, 0o1777, 0o2775]) },
        5..8 => Call::Rename { from: one, to: other, flags: if able.local { flags(dice) } else { 0 } },
        // sshfs remembers attributes by name: what is changed by one name is seen by the other some seconds later.
        8 if able.local => Call::Link { from: one, to: other, follow: dice.below(3) == 0 },
        9 => Call::Symlink { target: pick(dice, &TARGETS), name: one },
        10 => Call::ReadLink { name: one },
        _ if able.local => Call::MakeNode { name: one, mode: pick(dice, &MODES) },
        _ => Call::List { name: one },
    }
}

fn attributes(dice: &mut Dice, able: Able) -> Call {
    let (at, follow) = (at(dice, able), dice.below(3) != 0);
    let time = |dice: &mut Dice| match dice.below(4) {
        0 if able.local => (0, libc::UTIME_OMIT),
        1 if able.local => (0, libc::UTIME_NOW),
        _ => (1_000_000_000 + dice.below(1000) as i64, if able.local { dice.below(1_000_000_000) as i64 } else { 0 }),
    };
    match dice.below(if able.local { 17 } else { 9 }) {
        0..3 => Call::Stat { at, follow },
        3 => Call::Access { name: name(dice), mode: dice.below(8) as i32 },
        4 => Call::List { name: pick(dice, &["d", "e", "d/e", "l"]) },
        5..7 => Call::SetMode { at, mode: if able.local { pick(dice, &MODES) } else { 0o700 } },
        7..9 => Call::SetTimes { at, follow: follow || !able.local, atime: time(dice), mtime: time(dice) },
        9 => Call::SetOwner { at, uid: pick(dice, &[0, NOBODY, 5]), gid: pick(dice, &[0, NOBODY, 7]), follow },
        10..12 => Call::SetXattr {
            at,
            key: pick(dice, &KEYS),
            length: dice.below(120) as usize,
            tone: dice.next() as u8,
            flags: pick(dice, &[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]),
        },
        12 => Call::GetXattr { at, key: pick(dice, &KEYS) },
        13 => Call::ListXattr { at },
        14 => Call::RemoveXattr { at, key: pick(dice, &KEYS) },
        _ => Call::SetList { name: name(dice), default: dice.below(2) == 0, bits: dice.below(8) as u16 },
    }
}

fn many(dice: &mut Dice, _: Able) -> Call {
    match dice.below(3) {
        0 => Call::Thin { rest: dice.below(3) },
        _ => Call::Crowd { first: dice.below(CROWD), count: dice.below(CROWD / 3) },
    }
}
