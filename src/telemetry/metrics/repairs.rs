//! What holds repairs back, and how many were started.

use prometheus::proto::MetricType;

use super::{Observed, Page, flag};
use crate::supervisor::permit::HeldBy;

pub(super) fn families(page: &mut Page, observed: &Observed) {
    let log = observed.watch.snapshot().repair_log;
    let held = HeldBy::ALL
        .iter()
        .map(|by| page.gauge_of(&[("by", by.name())], flag(log.held.iter().any(|held| held.by == *by))))
        .collect();
    let help = "1 for each permit that holds a repair back at present.";
    page.family("steadfs_repair_held", help, MetricType::GAUGE, held);
    page.counter(
        "steadfs_repairs_started_total",
        "Repairs that were started, ordered ones included.",
        log.started_total as f64,
    );
    let help = "1 while the deploy lock counts as held, whether there is anything to repair or not.";
    page.gauge("steadfs_deploy_lock_active", help, flag(log.deploy_lock_active));
    let age = log.deploy_lock_age.map_or(-1.0, |age| age.as_secs_f64());
    page.gauge(
        "steadfs_deploy_lock_age_seconds",
        "Age of the deploy lock's file by its mtime; -1 if there is none.",
        age,
    );
}
