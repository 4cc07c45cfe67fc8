//! What it costs a call that its effects outlive the daemon: to be held against a FUSE round trip, some 10,000 ns. In a
//! mount a thread makes room and gets pages ahead; what that takes is measured apart.

use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_main};
use steadfs::backing::FileKind;
use steadfs::handover::item::{Name, Session};
use steadfs::handover::{Item, LogEvent, Memory, Sizes};

fn memory(tape: u64) -> Memory {
    let memory = Memory::create(Sizes { slots: 2048, tape }).expect("memory");
    let session = Session {
        mountpoint: b"/hot".to_vec(),
        dev: (0, 1),
        protocol: (7, 40),
        init: vec![0; 104],
        init_reply: vec![0; 80],
    };
    memory.note(&Item::Session(session)).expect("room");
    memory
}

/// Bytes that are noted before the memory is attended to, as a thread of the daemon does when that many have come in.
const BURST: u64 = 4 << 20;

fn append(c: &mut Criterion) {
    for (name, length) in [("200 B", 200), ("4 KiB", 4 << 10), ("128 KiB", 128 << 10)] {
        let mut group = c.benchmark_group("note a write");
        let data = vec![7_u8; length];
        let memory = memory(256 << 20);
        // Each replaces the one before, so that room is made by compactions, as it is in a mount.
        let item =
            Item::Log { node: 2, event: LogEvent::Write { generation: 1, offset: 0, data: data.as_slice().into() } };
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |b| b.iter_custom(|count| in_bursts(&memory, &item, length, count)));
        group.finish();
        // What that thread pays for it.
        let mut group = c.benchmark_group("make room of 4 MiB of superseded writes");
        group.throughput(Throughput::Bytes(BURST));
        let note = || (0..BURST / length as u64).for_each(|_| memory.note(&item).expect("room"));
        group.bench_function(name, |b| {
            b.iter_batched(note, |()| memory.compact().expect("room"), BatchSize::PerIteration);
        });
        group.finish();
    }
    let (memory, item) = (memory(256 << 20), Item::Lookup { node: 2, count: 1, by: 4 });
    c.bench_function("note a lookup", |b| b.iter_custom(|count| in_bursts(&memory, &item, 48, count)));
}

/// How long that many notes take; what makes room for them is not counted.
fn in_bursts(memory: &Memory, item: &Item<'_>, length: usize, count: u64) -> Duration {
    let (mut left, mut taken) = (count, Duration::ZERO);
    while left > 0 {
        memory.attend().expect("room");
        let burst = left.min(BURST / length as u64);
        let begun = Instant::now();
        (0..burst).for_each(|_| memory.note(item).expect("room"));
        taken += begun.elapsed();
        left -= burst;
    }
    taken
}

fn slots(c: &mut Criterion) {
    let memory = memory(1 << 20);
    let mut unique = 0;
    c.bench_function("enter and leave", |b| {
        b.iter(|| {
            unique += 2;
            let entered = memory.requests().enter(unique, 16, 2);
            memory.requests().leave(entered);
        });
    });
}

fn compaction(c: &mut Criterion) {
    let mut group = c.benchmark_group("100,000 nodes");
    group.sample_size(10);
    let memory = memory(256 << 20);
    for node in 2..100_002_u64 {
        let name = format!("warc-{node:08}.warc.gz");
        let names = vec![Name::new(1, name.as_bytes())];
        let item = Item::Node {
            node,
            life: 0,
            kind: FileKind::Regular,
            identity: (1, node),
            lookups: 1,
            by: (node * 2, 1),
            names,
        };
        memory.note(&item).expect("room");
    }
    group.bench_function("compact", |b| b.iter(|| memory.compact().expect("room")));
    group.bench_function("take over", |b| {
        b.iter_batched(
            || memory.fd().try_clone_to_owned().expect("a descriptor"),
            |fd| Memory::take_over(fd).expect("whole"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

#[allow(missing_docs)]
mod group {
    use super::{append, compaction, slots};
    criterion::criterion_group!(benches, append, slots, compaction);
}
use group::benches;
criterion_main!(benches);
