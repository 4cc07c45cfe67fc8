use std::os::fd::AsFd;

use super::*;
use crate::handover::item::{LogEvent, Name, Session};
use crate::handover::slots::RESENT;

const SIZES: Sizes = Sizes { slots: 64, tape: 16 << 20 };

fn session() -> Item<'static> {
    Item::Session(Session {
        mountpoint: b"/hot".to_vec(),
        dev: (0, 7),
        protocol: (7, 40),
        init: vec![1, 2, 3],
        init_reply: vec![4],
    })
}

fn memory() -> Memory {
    let memory = Memory::create(SIZES).expect("memory");
    memory.note(&session()).expect("room");
    memory
}

fn successor(memory: &Memory) -> Result<(Memory, Inherited), HandoverError> {
    Memory::take_over(memory.fd().try_clone_to_owned().expect("a descriptor"))
}

fn write(offset: u64, data: &[u8]) -> Item<'_> {
    Item::Log { node: 2, event: LogEvent::Write { generation: 1, offset, data: data.into() } }
}

#[test]
fn a_successor_sees_what_was_noted_and_what_was_in_flight() {
    let first = memory();
    first.note(&write(0, b"data")).expect("room");
    first.pulse().beat(5);
    let _unanswered = first.requests().enter(10, 16, 2);
    let (second, inherited) = successor(&first).expect("whole");
    assert_eq!(inherited.picture, first.picture().expect("whole"));
    assert_eq!(inherited.picture.inodes[&2].log.cost(), 4 + 96);
    assert_eq!((inherited.requests.len(), inherited.torn, inherited.successions), (1, None, 1));
    assert_eq!(second.pulse().last().at_ms, 5);
    let again = second.requests().enter(10 | RESENT, 16, 2);
    assert_eq!(again.deaths(), 1);
    second.requests().leave(again);
    second.note(&write(4, b"more")).expect("room");
    let (_, inherited) = successor(&second).expect("whole");
    assert_eq!((inherited.requests.len(), inherited.successions), (0, 2));
    assert_eq!(inherited.picture.inodes[&2].log.size(), None);
}

#[test]
fn memory_of_nobody_is_refused() {
    let memory = Memory::create(SIZES).expect("memory");
    assert_eq!(successor(&memory).err(), Some(ItemError::NoSession.into()));
}

#[test]
fn writing_and_committing_for_ever_needs_bounded_room() {
    let memory = memory();
    let data = vec![7; 100 << 10];
    let mut compactions = 0;
    for round in 0..1000_u64 {
        let committed = LogEvent::Committed { serial: round + 1, generation: 1 };
        for item in [&write(round, &data), &Item::Log { node: 2, event: LogEvent::Begin }] {
            memory.note(item).expect("room");
        }
        memory.note(&Item::Log { node: 2, event: committed }).expect("room");
        // Half of the time nobody looks after it.
        if round % 300 < 150 {
            compactions += u64::from(memory.compact_if_due().expect("room").is_some());
        }
    }
    assert!(compactions > 0);
    assert!(memory.picture().expect("whole").inodes[&2].log.is_clean());
    let done = memory.compact().expect("room").expect("always");
    assert!(done.after < 1000, "{done:?}");
}

#[test]
fn what_does_not_fit_is_an_error_and_what_was_noted_stays() {
    let memory = memory();
    let data = vec![7; 1 << 20];
    let noted = (0..100).take_while(|n| memory.note(&write(n << 20, &data)).is_ok()).count();
    assert_eq!(noted, 15);
    assert!(matches!(memory.note(&write(1 << 40, &data)), Err(HandoverError::Tape(TapeError::Full { .. }))));
    let (_, inherited) = successor(&memory).expect("whole");
    assert_eq!(inherited.picture.inodes[&2].log.cost(), 15 * ((1 << 20) + 96));
    memory.note(&Item::Log { node: 2, event: LogEvent::Abandon }).expect("there is room for a little");
    memory.note(&write(1 << 40, &data)).expect("and now for much");
}

#[test]
fn notes_of_many_threads_and_compactions_agree() {
    let memory = Memory::create(Sizes { tape: 64 << 20, ..SIZES }).expect("memory");
    memory.note(&session()).expect("room");
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..4_u64)
            .map(|node| {
                let memory = &memory;
                scope.spawn(move || {
                    for n in 0..3000_u64 {
                        let data = n.to_le_bytes();
                        let event = LogEvent::Write { generation: 1, offset: n * 8, data: data[..].into() };
                        memory.note(&Item::Log { node, event }).expect("room");
                    }
                })
            })
            .collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            memory.compact().expect("room");
        }
    });
    let (_, inherited) = successor(&memory).expect("whole");
    for node in 1..4 {
        let mut log = inherited.picture.inodes[&node].log.clone();
        let data: Vec<u8> = log.abandon().extents().flat_map(|(_, data)| data.to_vec()).collect();
        assert!(data.chunks(8).map(|n| u64::from_le_bytes(n.try_into().expect("8"))).eq(0..3000));
    }
}

#[test]
fn memory_of_a_dead_process_needs_no_copy_of_the_descriptor_but_the_keepers() {
    let first = memory();
    let kept = first.fd().as_fd().try_clone_to_owned().expect("a descriptor");
    let picture = first.picture().expect("whole");
    drop(first);
    assert_eq!(Memory::take_over(kept).expect("whole").1.picture, picture);
}

/// A process that is killed at each of its appends in turn; see [`super::super::crash`].
#[cfg(debug_assertions)]
mod crashes {
    use std::os::fd::{AsRawFd, FromRawFd, RawFd};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, Stdio};

    use super::*;

    const FD: &str = "STEADFS_TEST_MEMORY";
    const CHILD: &str = "handover::memory::tests::crashes::child";

    fn script() -> Vec<Item<'static>> {
        let node = |node, name: &'static [u8]| Item::Node {
            node,
            life: 0,
            kind: crate::backing::FileKind::Regular,
            identity: (0, 0),
            lookups: 1,
            by: (2, 1),
            names: vec![Name::new(1, name)],
        };
        let (from, to) = (Name::new(1, b"a"), Name::new(1, b"b"));
        vec![
            session(),
            node(2, b"a"),
            Item::Opened { handle: 1, node: 2, flags: 1, told: 0, by: 4 },
            write(0, b"one"),
            write(3, b"two"),
            Item::Renaming { ticket: 1, from, to },
            Item::Renamed { ticket: 1, outcome: super::super::super::item::Outcome::Done { exchange: false } },
            Item::Closed { handle: 1 },
        ]
    }

    /// What the processes do: note everything, but compact before the last two items.
    #[test]
    fn child() {
        let Some(fd) = std::env::var(FD).ok().and_then(|fd| fd.parse::<RawFd>().ok()) else { return };
        // SAFETY: the parent has opened it for this process, and nobody else here knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = Memory::with(Arc::new(Arena::open(fd).expect("memory"))).expect("empty").0;
        let script = script();
        let _unanswered = memory.requests().enter(4, 14, 2);
        let (first, last) = script.split_at(script.len() - 2);
        first.iter().for_each(|item| memory.note(item).expect("room"));
        memory.compact().expect("room");
        last.iter().for_each(|item| memory.note(item).expect("room"));
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }

    /// Picture after a death there, and how many requests were in flight.
    fn die(crash: &str) -> Result<(Picture, usize), HandoverError> {
        let memory = Memory::create(SIZES).expect("memory");
        let fd = memory.fd().as_raw_fd();
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args([CHILD, "--exact", "--test-threads=1"]).env(FD, fd.to_string()).env("STEADFS_CRASH", crash);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: fcntl(2) is async-signal-safe, and changes only the child's descriptor.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let status = command.status().expect("this test can be run again");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{crash}: {status}");
        let (_, inherited) = successor(&memory)?;
        assert_eq!((inherited.torn, inherited.unrecorded), (None, 0));
        Ok((inherited.picture, inherited.requests.len()))
    }

    fn after(items: usize) -> Picture {
        let mut picture = Picture::default();
        script().into_iter().take(items).for_each(|item| picture.apply(item));
        picture
    }

    #[test]
    fn a_kill_at_any_append_leaves_everything_before_it() {
        let all = script().len();
        let compacted = {
            let mut count = 0;
            after(all - 2)
                .items(|_| {
                    count += 1;
                    Ok::<_, ItemError>(())
                })
                .expect("counted");
            count
        };
        for append in 1..=all + compacted {
            for stage in ["before", "middle", "late", "after"] {
                // Appends of the compaction change nothing.
                let before = match append {
                    _ if append <= all - 2 => append - 1,
                    _ if append <= all - 2 + compacted => all - 2,
                    _ => append - 1 - compacted,
                };
                let in_compaction = (all - 2 + 1..=all - 2 + compacted).contains(&append);
                let items = before + usize::from(stage == "after" && !in_compaction);
                let crash = format!("{append}:{stage}");
                match die(&crash) {
                    Ok((picture, in_flight)) => {
                        assert_eq!(picture, after(items), "{crash}");
                        assert_eq!(in_flight, 1, "{crash}");
                    }
                    Err(error) => assert!(items == 0 && error == ItemError::NoSession.into(), "{crash}: {error}"),
                }
            }
        }
        assert_eq!(die("1000").expect("nothing was in the way").0, after(all));
    }
}
