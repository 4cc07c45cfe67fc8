use proptest::prelude::*;

use super::*;
use crate::handover::item::{Bytes, FORMAT, PIECE};
use crate::log::{Attempt, Change};

fn session() -> Item<'static> {
    Item::Session(Session {
        mountpoint: b"/hot".to_vec(),
        dev: (0, 7),
        protocol: (7, 40),
        init: vec![1, 2, 3],
        init_reply: vec![4],
    })
}

fn name() -> impl Strategy<Value = Name<'static>> {
    (1_u64..4, "[a-d]").prop_map(|(parent, name)| Name { parent, name: name.into_bytes().into() })
}

fn kind() -> impl Strategy<Value = FileKind> {
    prop_oneof![Just(FileKind::Regular), Just(FileKind::Directory)]
}

fn bytes(most: usize) -> impl Strategy<Value = Bytes<'static>> {
    proptest::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

fn event() -> impl Strategy<Value = LogEvent<'static>> {
    prop_oneof![
        6 => (1_u64..3, 0_u64..64, bytes(24))
            .prop_map(|(generation, offset, data)| LogEvent::Write { generation, offset, data }),
        2 => (1_u64..3, 0_u64..64).prop_map(|(generation, size)| LogEvent::SetSize { generation, size }),
        1 => (0_u64..64).prop_map(|size| LogEvent::Attempt(Attempt::SetSize(size))),
        1 => (0_u64..32, 32_u64..64).prop_map(|(from, to)| LogEvent::Attempt(Attempt::Write(from, to))),
        1 => (0_u64..64).prop_map(LogEvent::LearnSize),
        1 => (1_u64..3, 0_u64..64).prop_map(|(generation, size)| LogEvent::Found { generation, size }),
        1 => (0_u64..64).prop_map(LogEvent::FoundCommitted),
        3 => Just(LogEvent::Begin),
        1 => Just(LogEvent::BeginReplay),
        3 => (0_u64..6, 1_u64..3).prop_map(|(serial, generation)| LogEvent::Committed { serial, generation }),
        1 => (0_u64..6, any::<bool>()).prop_map(|(serial, again)| LogEvent::Failed { serial, again }),
        1 => Just(LogEvent::SendAgain),
        1 => Just(LogEvent::Abandon),
        1 => (0_u64..64).prop_map(LogEvent::Displace),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        any::<bool>().prop_map(|exchange| Outcome::Done { exchange }),
        Just(Outcome::NotDone),
        Just(Outcome::InDoubt)
    ]
}

/// Of few numbers, so that they meet.
fn item() -> impl Strategy<Value = Item<'static>> {
    let id = || 1_u64..6;
    prop_oneof![
        4 => (id(), kind(), 0_u64..3, proptest::collection::vec(name(), 0..3)).prop_map(|(node, kind, lookups, names)| {
            Item::Node { node, life: lookups as u32, kind, identity: (1, node), lookups, by: (0, 0), names }
        }),
        1 => id().prop_map(|node| Item::Gone { node }),
        3 => (id(), name()).prop_map(|(node, name)| Item::Named { node, name }),
        2 => name().prop_map(Item::Unnamed),
        2 => name().prop_map(Item::Seen),
        2 => (id(), 1_u64..3, id()).prop_map(|(node, count, by)| Item::Lookup { node, count, by }),
        2 => (id(), 1_u64..3).prop_map(|(node, count)| Item::Forget { node, count }),
        3 => (id(), name(), name()).prop_map(|(ticket, from, to)| Item::Renaming { ticket, from, to }),
        3 => (id(), outcome()).prop_map(|(ticket, outcome)| Item::Renamed { ticket, outcome }),
        1 => (name(), name()).prop_map(|(from, to)| Item::Doubtful { from, to }),
        1 => Just(Item::RenamesSettled),
        2 => (id(), id(), any::<i32>(), id(), id())
            .prop_map(|(handle, node, flags, told, by)| Item::Opened { handle, node, flags, told, by }),
        1 => (id(), id()).prop_map(|(handle, count)| Item::Told { handle, count }),
        1 => id().prop_map(|handle| Item::Closed { handle }),
        2 => (id(), id(), id()).prop_map(|(handle, node, by)| Item::DirOpened { handle, node, by }),
        2 => (id(), any::<(bool, bool)>(), proptest::collection::vec((bytes(5), proptest::option::of(kind())), 0..3))
            .prop_map(|(handle, (first, last), entries)| {
                let entries = entries.into_iter().map(|(name, kind)| Entry { name, kind, ino: handle }).collect();
                Item::Listed { handle, first, last, entries }
            }),
        1 => id().prop_map(|handle| Item::DirClosed { handle }),
        8 => (id(), event()).prop_map(|(node, event)| Item::Log { node, event }),
        1 => (id(), id(), any::<i32>()).prop_map(|(node, count, errno)| Item::Refused { node, count, errno }),
        1 => id().prop_map(|handle| Item::Lost { handle }),
        1 => id().prop_map(|node| Item::Settled { node }),
        1 => bytes(3).prop_map(Item::HiddenAdded),
        1 => bytes(3).prop_map(Item::HiddenRemoved),
        1 => bytes(3).prop_map(Item::Backing),
        1 => bytes(3).prop_map(|value| Item::Aside { key: "worker", value }),
        1 => id().prop_map(|hidden| Item::Counters(Counters { hidden, ..Counters::default() })),
    ]
}

type Records = Vec<(u16, Vec<u8>)>;

fn encode(item: &Item<'_>) -> (u16, Vec<u8>) {
    item.encode(|kind, parts| (kind, parts.concat())).expect("it can be encoded")
}

fn fold(records: &[(u16, Vec<u8>)]) -> Result<Picture, ItemError> {
    Picture::fold(records.iter().map(|(kind, payload)| Ok((*kind, payload.as_slice()))))
}

fn records(picture: &Picture) -> Records {
    let mut all = Vec::new();
    picture
        .items(|item| {
            all.push(encode(item));
            Ok::<_, ItemError>(())
        })
        .expect("they can be encoded");
    all
}

proptest! {
    #[test]
    fn any_prefix_comes_to_a_picture_whose_items_come_to_it_again(
        items in proptest::collection::vec(item(), 0..60), cut in any::<prop::sample::Index>(),
    ) {
        let all: Records = std::iter::once(session()).chain(items).map(|item| encode(&item)).collect();
        let cut = 1 + cut.index(all.len());
        let picture = fold(&all[..cut]).expect("a prefix");
        let shorter = records(&picture);
        prop_assert_eq!(&fold(&shorter).expect("the same"), &picture);
        prop_assert_eq!(&records(&fold(&shorter).expect("the same")), &shorter, "and there are no fewer");
        // What follows a compaction comes to the same as what follows the records it replaced.
        let after: Records = shorter.into_iter().chain(all[cut..].iter().cloned()).collect();
        prop_assert_eq!(fold(&after).expect("the same"), fold(&all).expect("whole"));
    }

    /// Each name leads to the node that has it, and to no other.
    #[test]
    fn names_and_nodes_agree(items in proptest::collection::vec(item(), 0..60)) {
        let mut picture = Picture::default();
        items.into_iter().for_each(|item| picture.apply(item));
        let mut count = 0;
        for (&node, found) in &picture.nodes {
            for name in &found.names {
                prop_assert_eq!(picture.node(name), Some(node));
                count += 1;
            }
        }
        prop_assert_eq!(picture.by_name.len(), count);
    }
}

#[test]
fn a_log_is_the_same_when_its_calls_are_made_again() {
    let mut live = FileLog::default();
    let mut picture = Picture::default();
    let mut note = |event: LogEvent<'_>| {
        let (kind, payload) = encode(&Item::Log { node: 5, event });
        picture.apply(Item::decode(kind, &payload, "").expect("an item"));
        picture.inodes[&5].log.clone()
    };
    note(LogEvent::LearnSize(10));
    live.learn_size(10);
    note(LogEvent::Write { generation: 1, offset: 10, data: b"data"[..].into() });
    live.record(1, Change::Write(10, &mut b"data".to_vec())).expect("live");
    note(LogEvent::Begin);
    let crate::log::file::Begin::Commit(ticket) = live.begin() else { panic!("dirty") };
    note(LogEvent::Attempt(Attempt::SetSize(3)));
    live.attempt(Attempt::SetSize(3));
    note(LogEvent::SetSize { generation: 1, size: 3 });
    live.record(1, Change::SetSize(3)).expect("live");
    let again = note(LogEvent::Committed { serial: ticket.serial(), generation: 1 });
    live.committed(&ticket, 1).expect("live");
    assert_eq!(again, live);
    note(LogEvent::Committed { serial: ticket.serial(), generation: 1 });
    assert!(live.committed(&ticket, 1).is_err(), "and what was refused is refused again");
    let again = note(LogEvent::Abandon);
    live.abandon();
    assert_eq!(again, live);
}

#[test]
fn a_rename_is_known_whole_or_not_at_all() {
    let mut picture = Picture::default();
    let (a, b) = (Name::new(1, b"a"), Name::new(1, b"b"));
    let node = |node, name: &Name<'static>| Item::Node {
        node,
        life: 0,
        kind: FileKind::Regular,
        identity: (0, 0),
        lookups: 1,
        by: (2, 1),
        names: vec![name.clone()],
    };
    picture.apply(node(2, &a));
    picture.apply(node(3, &b));
    picture.apply(Item::Renaming { ticket: 1, from: a.clone(), to: b.clone() });
    assert_eq!((picture.node(&a), picture.node(&b), picture.renaming.len()), (Some(2), Some(3), 1));
    let mut exchanged = picture.clone();
    exchanged.apply(Item::Renamed { ticket: 1, outcome: Outcome::Done { exchange: true } });
    assert_eq!((exchanged.node(&a), exchanged.node(&b), exchanged.renaming.len()), (Some(3), Some(2), 0));
    picture.apply(Item::Renamed { ticket: 1, outcome: Outcome::Done { exchange: false } });
    assert_eq!((picture.node(&a), picture.node(&b)), (None, Some(2)));
    assert!(picture.nodes[&3].names.is_empty(), "its handles go on");
}

#[test]
fn what_an_unanswered_request_was_granted_is_known() {
    let mut picture = Picture::default();
    let names = vec![Name::new(1, b"a")];
    picture.apply(Item::Node {
        node: 2,
        life: 1,
        kind: FileKind::Regular,
        identity: (0, 0),
        lookups: 0,
        by: (0, 0),
        names,
    });
    picture.apply(Item::Lookup { node: 2, count: 1, by: 40 });
    picture.apply(Item::Lookup { node: 2, count: 1, by: 42 });
    picture.apply(Item::Opened { handle: 9, node: 2, flags: 0, told: 0, by: 42 });
    picture.apply(Item::DirOpened { handle: 3, node: 1, by: 44 });
    assert_eq!(picture.granted(42 | 1 << 63), [Grant::Lookups { node: 2, count: 1 }, Grant::File(9)]);
    assert_eq!(picture.granted(44), [Grant::Directory(3)]);
    assert_eq!(picture.granted(0), []);
    assert_eq!((picture.counters.handle, picture.counters.directory, picture.counters.node), (9, 3, 2));
}

#[test]
fn what_does_not_begin_with_a_session_is_refused() {
    let one = encode(&Item::Closed { handle: 1 });
    assert_eq!(fold(&[one]), Err(ItemError::NoSession));
}

/// If this fails, the encoding has changed: raise [`FORMAT`], and then this.
#[test]
fn the_encoding_is_that_of_the_format() {
    let mut log = FileLog::default();
    log.learn_size(4);
    log.record(2, Change::Write(4, &mut b"data".to_vec())).expect("live");
    let items = [
        Item::Node {
            node: 300,
            life: 7,
            kind: FileKind::Symlink,
            identity: (1, 2),
            lookups: 3,
            by: (4, 5),
            names: vec![Name::new(1, b"n")],
        },
        Item::Log { node: 5, event: LogEvent::Is(Cow::Borrowed(&log)) },
        Item::Opened { handle: 1, node: 2, flags: 3, told: 4, by: 5 },
        Item::Listed {
            handle: 1,
            first: true,
            last: false,
            entries: vec![Entry { name: b"e".as_slice().into(), kind: Some(FileKind::Fifo), ino: 600 }],
        },
        Item::Counters(Counters { node: 1, life: 6, handle: 2, directory: 3, hidden: 4, rename: 5 }),
    ];
    let all: Vec<u8> = items.iter().flat_map(|item| encode(item).1).collect();
    assert_eq!((FORMAT, xxhash_rust::xxh3::xxh3_64(&all)), (2, ENCODED), "{all:?}");
}

const ENCODED: u64 = 3803229384707219636;

#[test]
fn a_listing_in_pieces_is_known_when_the_last_of_them_is() {
    let names: Vec<String> = (0..2 * PIECE + 7).map(|number| format!("n{number}")).collect();
    let mut picture = Picture::default();
    picture.apply(session());
    picture.apply(Item::DirOpened { handle: 1, node: 1, by: 0 });
    let mut seen = Vec::new();
    let note = |first, last, piece: &[String]| {
        let entry = |name: &String| Entry { name: name.as_bytes().to_vec().into(), kind: None, ino: 9 };
        picture.apply(Item::Listed { handle: 1, first, last, entries: piece.iter().map(entry).collect() });
        let directory = &picture.directories[&1];
        seen.push((directory.listing.len(), directory.is_whole));
        assert_eq!(fold(&records(&picture)).as_ref(), Ok(&picture));
        Ok::<_, ItemError>(())
    };
    pieces(&names, true, note).expect("taken");
    assert_eq!(seen, [(PIECE, false), (2 * PIECE, false), (2 * PIECE + 7, true)]);
    picture.apply(Item::Listed { handle: 1, first: true, last: false, entries: Vec::new() });
    assert_eq!((picture.directories[&1].listing.len(), picture.directories[&1].is_whole), (0, false));
}
