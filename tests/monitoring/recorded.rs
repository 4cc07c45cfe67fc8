//! Compat metrics as a daemon would have written them, minute by minute: events and states of a scenario go through the
//! code that writes the files, and what it renders is recorded as series for promtool.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use steadfs::config::CallPolicy;
use steadfs::overlay::Counts;
use steadfs::supervisor::{Event, Snapshot};
use steadfs::telemetry::compat::metrics::{Look, render};
use steadfs::telemetry::compat::state::State;
use steadfs::telemetry::compat::targets;
use steadfs::telemetry::overlays::{Place, Seen};

use super::exposition::Page;

/// What happens in one minute.
#[derive(Default)]
pub struct Minute {
    /// The supervisor's state; `live` if not said.
    pub state: Option<&'static str>,
    pub events: Vec<Event>,
    /// The mount is gone.
    pub unmounted: bool,
}

/// All series of a scenario of that many minutes, in promtool's notation. promtool's time begins in 1970.
pub fn record(minutes: u64, scenario: impl Fn(u64) -> Minute) -> BTreeMap<String, String> {
    let mut series: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut state, mut outage_since) = (State::default(), None);
    for minute in 0..minutes {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60);
        let Minute { state: word, events, unmounted } = scenario(minute);
        events.iter().for_each(|event| state.applies.fold(now, event));
        let snapshot = Snapshot { state: word.unwrap_or("live"), ..Snapshot::default() };
        if snapshot.state == "live" {
            outage_since = None;
        } else {
            outage_since.get_or_insert(minute);
        }
        let age = Duration::from_secs(outage_since.map_or(0, |since| (minute - since) * 60));
        let place = if unmounted { Place::Nothing } else { Place::Overlay };
        let overlays = [Seen { mountpoint: "/srv/jobs/hc".into(), counts: Counts::default(), place }];
        let calls = CallPolicy::default();
        let targets = targets::targets(&overlays, &snapshot, age, &calls);
        let backing_ok = targets::backing(&snapshot, age, &calls).is_none();
        state.observe(&targets, now);
        let look = Look { now, ok: true, enabled: true, lock_active: false, lock_age: None, backing_ok, targets };
        let page = Page::parse(&render(&look, &state));
        assert_eq!(page.complaints(), Vec::<String>::new());
        for sample in page.all() {
            let labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            let name = format!("{}{{{}}}", sample.name, labels.join(","));
            series.entry(name).or_default().push(sample.value.to_string());
        }
    }
    series.into_iter().map(|(name, values)| (name, values.join(" "))).collect()
}
