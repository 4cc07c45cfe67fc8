use super::*;
use crate::backing::fake::FakeBacking;
use crate::config::CallPolicy;

#[test]
fn who_hears_of_an_outage_finds_it_in_the_snapshot_and_its_time_never_gets_less() {
    let (watch, inbox) = (Watch::default(), Inbox::new());
    let events = watch.subscribe();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).expect("a gate");
    let backing = Arc::new(FakeBacking::new().expect("a directory"));
    let control = backing.control();
    control.set_start_delay(Duration::from_millis(500));
    let policy = RepairPolicy { backoff_min: Duration::from_millis(10), ..RepairPolicy::default() };
    let deadline = CallPolicy::default().deadline;
    let supervisor =
        Supervisor::begin(inbox, backing, Arc::clone(&gate), Arc::new(|_| {}), policy, deadline, watch.clone())
            .expect("it begins");
    let (mut began, mut recovered, mut last) = (0, 0, Duration::ZERO);
    while recovered < 4 {
        let event = events.recv_timeout(Duration::from_millis(1));
        let snapshot = watch.snapshot();
        assert!(snapshot.outage_total >= last, "{:?} after {last:?}", snapshot.outage_total);
        last = snapshot.outage_total;
        match event {
            Ok((_, Event::OutageBegan { .. })) => {
                began += 1;
                assert_eq!((snapshot.outages, snapshot.outage_since.is_some()), (began, true));
            }
            Ok((_, Event::Recovered { .. })) => {
                recovered += 1;
                assert_eq!((snapshot.state, snapshot.outage_since), ("live", None));
                // The first start was quick enough not to be told of as an outage.
                assert_eq!(began, recovered - 1);
                control.kill_generation();
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                assert!(began > 0 || last.is_zero(), "what was not told does not count: {last:?}");
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the supervisor ended"),
        }
    }
    assert!(last >= Duration::from_millis(3 * 500), "{last:?}");
    supervisor.stop();
    gate.stop();
}
