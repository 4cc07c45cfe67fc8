//! What the gate costs a call that needs nothing from the backing: the price of a deadline.

use std::sync::mpsc::channel;
use std::time::Duration;

use criterion::{Criterion, criterion_main};
use steadfs::backing::fake::FakeBacking;
use steadfs::backing::{Backing, ExitSink};
use steadfs::config::CallPolicy;
use steadfs::gate::{Class, Gate, Op};

fn submit(c: &mut Criterion) {
    let gate = Gate::new(CallPolicy::default(), |_, _| {}).expect("a thread can be started");
    let backing = FakeBacking::new().expect("a directory");
    let exits: ExitSink = std::sync::Arc::new(|_| {});
    gate.open(backing.start(1, Duration::from_secs(5), exits).expect("the fake starts"));
    let (sender, replies) = channel();
    c.bench_function("submit one call and take its reply", |b| {
        b.iter(|| {
            let sender = sender.clone();
            gate.submit(Op::Getattr, Class::Meta, 0, |_| Ok(1), move |result| _ = sender.send(result));
            replies.recv()
        });
    });
    c.bench_function("submit 64 calls and take their replies", |b| {
        b.iter(|| {
            for _ in 0..64 {
                let sender = sender.clone();
                gate.submit(Op::Getattr, Class::Meta, 0, |_| Ok(1), move |result| _ = sender.send(result));
            }
            for _ in 0..64 {
                let _ = replies.recv();
            }
        });
    });
    gate.stop();
}

#[allow(missing_docs)]
mod group {
    use super::submit;
    criterion::criterion_group!(benches, submit);
}
use group::benches;
criterion_main!(benches);
