//! What holds repairs back.

use prometheus::proto::MetricType;

use super::{Observed, Page, flag};
use crate::telemetry::held;

pub(super) fn families(page: &mut Page, observed: &Observed) {
    let held = held::held(&observed.watch.snapshot());
    let permits = held::PERMITS.iter().map(|by| page.gauge_of(&[("by", by)], flag(held == Some(by)))).collect();
    let help = "1 for each permit that holds a repair back at present.";
    page.family("steadfs_repair_held", help, MetricType::GAUGE, permits);
}
