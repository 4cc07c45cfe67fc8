use proptest::prelude::*;

use super::*;
use crate::handover::arena::Sizes;

fn tape(bytes: u64) -> Tape {
    let arena = Arc::new(Arena::create(Sizes { slots: 1, tape: bytes }).expect("memory"));
    open(&arena).expect("an empty tape").0
}

type All = Vec<(u16, Vec<u8>)>;

fn collect(scan: &mut Scan<'_>) -> Result<All, TapeError> {
    scan.map(|record| record.map(|record| (record.kind, record.payload.to_vec()))).collect()
}

fn open(arena: &Arc<Arena>) -> Result<(Tape, All, Option<Torn>), TapeError> {
    Tape::open(Arc::clone(arena), collect)
}

fn all(tape: &Tape) -> All {
    tape.read(collect).expect("not damaged")
}

/// The bytes of a tape, and where its last record begins.
fn raw(tape: &Tape) -> (Vec<u8>, u64) {
    tape.read(|scan| (scan.bytes.to_vec(), tape.arena.word(at::LAST[0]).load(Relaxed)))
}

/// Keeps the last record of each kind.
fn newest(scan: &mut Scan<'_>, copy: &mut Copy<'_>) -> Result<(), TapeError> {
    let mut kinds = std::collections::BTreeMap::new();
    for record in scan {
        let record = record?;
        kinds.insert(record.kind, record.payload.to_vec());
    }
    kinds.into_iter().try_for_each(|(kind, payload)| copy.append(kind, &[&payload]))
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_tape_that_is_cut_or_altered_in_its_last_record_ends_before_it(
        payloads in payloads(), at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<bool>(),
    ) {
        let tape = tape(1 << 20);
        for (kind, payload) in (0..).zip(&payloads) {
            tape.append(kind, &[payload]).expect("room");
        }
        let (mut bytes, last) = raw(&tape);
        let at = last as usize + at.index(bytes.len() - last as usize);
        let payload_end = last as usize + (HEADER as usize) + payloads[payloads.len() - 1].len();
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1_u8 << bit;
        }
        let mut scan = Scan::new(&bytes, last, 0);
        let read = collect(&mut scan).expect("no error at the end");
        // Zeros that fill up are no part of it.
        let whole = at >= payload_end;
        prop_assert_eq!(read.len(), payloads.len() - usize::from(!whole));
        // Cut at its start it is not there at all.
        prop_assert_eq!(scan.torn().is_some(), !(whole || cut && at == last as usize));
        for (read, payload) in read.iter().zip(&payloads) {
            prop_assert_eq!(&read.1, payload);
        }
    }

    #[test]
    fn a_tape_that_is_altered_in_the_middle_is_refused(
        payloads in payloads(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
    ) {
        let tape = tape(1 << 20);
        for payload in &payloads {
            tape.append(1, &[payload]).expect("room");
        }
        tape.append(2, &[b"last"]).expect("room");
        let (mut bytes, last) = raw(&tape);
        let at = at.index(last as usize);
        bytes[at] ^= 1_u8 << bit;
        let mut start = 0;
        let mut padding = false;
        for payload in &payloads {
            let end = start + HEADER as usize + payload.len();
            padding |= (end..end.next_multiple_of(8)).contains(&at);
            if at < end.next_multiple_of(8) {
                break;
            }
            start = end.next_multiple_of(8);
        }
        match collect(&mut Scan::new(&bytes, last, 0)) {
            Ok(_) => prop_assert!(padding),
            Err(TapeError::Damaged { at, .. }) => prop_assert!(!padding && at == start as u64),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn parts_come_to_one_payload(parts in payloads()) {
        let tape = tape(1 << 20);
        tape.append(9, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("room");
        prop_assert_eq!(all(&tape), [(9, parts.concat())]);
    }
}

#[test]
fn a_tape_is_continued() {
    let first = tape(1 << 20);
    first.append(1, &[b"one"]).expect("room");
    let (second, read, torn) = open(&first.arena).expect("the same");
    assert_eq!((read, torn), (vec![(1, b"one".to_vec())], None));
    second.append(2, &[b"two"]).expect("room");
    assert_eq!(all(&second).len(), 2);
}

#[test]
fn a_torn_end_is_written_over() {
    let first = tape(1 << 20);
    first.append(1, &[b"one"]).expect("room");
    let start = first.len();
    first.append(2, &[b"two"]).expect("room");
    // SAFETY: nobody else is there.
    unsafe { first.arena.write(0, start + HEADER, b"T") };
    let (second, read, torn) = open(&first.arena).expect("a prefix");
    assert_eq!((read.len(), torn.map(|torn| torn.at)), (1, Some(start)));
    second.append(3, &[b"three"]).expect("room");
    let (_, read, torn) = open(&first.arena).expect("whole");
    assert_eq!((read, torn), (vec![(1, b"one".to_vec()), (3, b"three".to_vec())], None));
}

#[test]
fn a_full_tape_says_so_and_stays_as_it_is() {
    let tape = tape(4096);
    let mut count = 0;
    let error = loop {
        match tape.append(1, &[&[7; 100]]) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, TapeError::Full { limit: 4096, needed: 136, .. }), "{error}");
    assert_eq!(all(&tape).len(), count);
    assert_eq!(tape.compact(|_| true, newest).expect("it fits").map(|done| done.after), Some(136));
    tape.append(1, &[&[7; 100]]).expect("room again");
}

#[test]
fn a_compaction_that_fails_changes_nothing() {
    let tape = tape(4096);
    tape.append(1, &[b"one"]).expect("room");
    let result = tape.compact(
        |_| true,
        |_, copy| {
            copy.append(1, &[&[0; 3000]])?;
            copy.append(1, &[&[0; 3000]])
        },
    );
    assert!(matches!(result, Err(TapeError::Full { .. })));
    assert_eq!(all(&tape), [(1, b"one".to_vec())]);
    assert_eq!(open(&tape.arena).expect("the same").1.len(), 1);
}

#[test]
fn what_is_appended_during_a_compaction_follows_it() {
    let tape = tape(64 << 20);
    for number in 0..1000_u64 {
        tape.append(1, &[&number.to_le_bytes()]).expect("room");
    }
    std::thread::scope(|scope| {
        let writers: Vec<_> = (2..5)
            .map(|kind| {
                let tape = &tape;
                scope.spawn(move || (0..5000_u64).for_each(|n| tape.append(kind, &[&n.to_le_bytes()]).expect("room")))
            })
            .collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            // Records of writers are kept, others come down to one.
            let rewrite = |scan: &mut Scan<'_>, copy: &mut Copy<'_>| {
                let all = collect(scan)?;
                let newest = all.iter().rfind(|(kind, _)| *kind == 1).expect("one at least");
                copy.append(1, &[&newest.1])?;
                all.iter().filter(|(kind, _)| *kind != 1).try_for_each(|(kind, payload)| copy.append(*kind, &[payload]))
            };
            tape.compact(|_| true, rewrite).expect("room");
        }
    });
    for tape in [&tape, &open(&tape.arena).expect("whole").0] {
        let all = all(tape);
        assert_eq!(all.len(), 15_001);
        for kind in 2..5 {
            let numbers = all
                .iter()
                .filter(|(its, _)| *its == kind)
                .map(|(_, n)| u64::from_le_bytes(n[..].try_into().expect("8")));
            assert!(numbers.eq(0..5000), "in order");
        }
    }
}

#[test]
fn a_compaction_is_due_when_it_halves_the_tape() {
    let tape = tape(64 << 20);
    let mut appended = 0;
    while !tape.is_due() {
        tape.append(1, &[&[1; 4000]]).expect("room");
        appended += 4000;
    }
    assert!(appended > WORTHWHILE / 2);
    let done = tape.compact(Tape::is_due, newest).expect("room").expect("it was due");
    assert!(done.before >= WORTHWHILE && done.after < 5000 && !tape.is_due());
    assert_eq!(tape.compact(Tape::is_due, newest).expect("nothing to do"), None);
}
