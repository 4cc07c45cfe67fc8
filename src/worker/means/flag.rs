//! A file that exists while the worker should pause.

use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use super::limit::Limit;
use super::{Failure, Job};
use crate::worker::pause::{self, Found};

/// Nothing if somebody else has made the file.
pub(super) fn look(limit: &Limit, job: &Job, file: &Path) -> Result<Option<Found>, Failure> {
    let (file, overlay) = (file.to_owned(), job.paused.overlay.clone());
    limit.run(job, move |_| {
        let strange = pause::is_strange_flag(&file, &overlay).map_err(|error| shown(&file, &error))?;
        Ok((!strange).then_some(Found::Named))
    })
}

pub(super) fn raise(limit: &Limit, job: &Job, file: &Path) -> Result<(), Failure> {
    let (file, paused) = (file.to_owned(), job.paused.clone());
    limit.run(job, move |given_up| {
        let ready = pause::unfinished_flag(&file, &paused).map_err(|error| shown(&file, &error))?;
        if given_up.load(SeqCst) {
            return Ok(());
        }
        ready.persist(&file).map(drop).map_err(|error| shown(&file, &error.error))
    })
}

pub(super) fn lower(limit: &Limit, job: &Job, file: &Path) -> Result<(), Failure> {
    let file = file.to_owned();
    limit.run(job, move |_| pause::lower_flag(&file).map_err(|error| shown(&file, &error)))
}

fn shown(file: &Path, error: &std::io::Error) -> Failure {
    Failure::of(format!("{}: {error}", file.display()))
}
