//! What goes wrong with the fake backing.

use proptest::prelude::*;

/// What goes wrong from a step on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The generation dies before the operation, and the next one is there at once.
    Blip,
    /// It dies during the operation, whenever that is.
    Kill,
    /// It dies at that call of the backing from here, which is done or not.
    Die { after: u64, done: bool },
    /// As `Blip`, and the next generation dies at that call, perhaps in its replay.
    Twice { after: u64, done: bool },
    /// It freezes, and is given up or goes on.
    Freeze { thaws: bool },
    /// One call does not come back, done or not; the generation is given up.
    Hang { after: u64, done: bool },
    /// Some calls take milliseconds.
    Late { after: u64, millis: u64 },
    /// Data moves in small pieces.
    Short { bytes: usize },
    /// There is nothing for longer than the deadline. A program of blips takes it for a `Blip`.
    Down,
}

/// Any of them.
pub fn mishap() -> impl Strategy<Value = Mishap> {
    let calls = || prop_oneof![3 => 0_u64..4, 1 => 0_u64..30];
    prop_oneof![
        2 => Just(Mishap::Blip),
        2 => Just(Mishap::Kill),
        5 => (calls(), any::<bool>()).prop_map(|(after, done)| Mishap::Die { after, done }),
        3 => (calls(), any::<bool>()).prop_map(|(after, done)| Mishap::Twice { after, done }),
        1 => any::<bool>().prop_map(|thaws| Mishap::Freeze { thaws }),
        2 => (calls(), any::<bool>()).prop_map(|(after, done)| Mishap::Hang { after, done }),
        1 => (calls(), 1_u64..5).prop_map(|(after, millis)| Mishap::Late { after, millis }),
        1 => (1_usize..3000).prop_map(|bytes| Mishap::Short { bytes }),
        1 => Just(Mishap::Down),
    ]
}
