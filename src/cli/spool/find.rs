//! Entries by name.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::spool::{self, Listed};

/// The directories to look in.
fn dirs(given: Option<&Path>) -> Result<Vec<PathBuf>, Failure> {
    match given {
        Some(dir) => Ok(vec![dir.to_owned()]),
        None => Ok(spool::default_dirs()?),
    }
}

/// All entries.
pub fn all(given: Option<&Path>) -> Result<Vec<Listed>, Failure> {
    let mut found = Vec::new();
    for dir in dirs(given)? {
        found.extend(spool::list(&dir)?);
    }
    Ok(found)
}

/// The one entry whose name is `name`, or else begins so.
pub fn one<'a>(entries: &'a [Listed], name: &str) -> Result<&'a Listed, Failure> {
    // Nothing would name all of them.
    let begins = |entry: &&Listed| !name.is_empty() && entry.name.starts_with(name);
    let matching: Vec<&Listed> = entries.iter().filter(begins).collect();
    let exact: Vec<&Listed> = matching.iter().copied().filter(|entry| entry.name == name).collect();
    let found = if exact.is_empty() { matching } else { exact };
    let shown = super::plain(name);
    match found[..] {
        [entry] => Ok(entry),
        [] => Err(Failure::refused(format!("there is no entry '{shown}': see steadfs spool list"))),
        _ => {
            let names: Vec<&str> = found.iter().map(|entry| entry.name.as_str()).collect();
            Err(Failure::refused(format!("'{shown}' may be {}: give more of the name, or --dir", names.join(" or "))))
        }
    }
}
