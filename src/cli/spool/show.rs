//! `steadfs spool show`.

use std::path::Path;

use super::list::Shown;
use super::{Failure, bytes, find, plain, say, say_json};
use crate::spool::{Entry, Header, Listed, SpoolError, printable_path};

/// Arguments of `steadfs spool show`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Its name, or as much of it as no other begins with.
    entry: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints it; fails if the entry is damaged.
pub fn run(args: &Args, dir: Option<&Path>) -> Result<(), Failure> {
    let entries = find::all(dir)?;
    let listed = find::one(&entries, &args.entry)?;
    let checked = Entry::open(&listed.path).and_then(|entry| entry.verify());
    if args.json {
        let mut shown = Shown::of(listed);
        shown.damage = checked.as_ref().err().map(ToString::to_string);
        say_json(&shown)?;
    } else if let Ok(header) = &listed.header {
        say(&describe(listed, header, &checked));
    }
    Ok(checked?)
}

fn describe(entry: &Listed, header: &Header, checked: &Result<(), SpoolError>) -> String {
    let size = |size: Option<u64>, none: &str| size.map_or(none.into(), bytes);
    let extents = match header.extents.len() {
        0 => "nothing".into(),
        count => format!("{} in {count} piece{}", bytes(header.data_len()), if count == 1 { "" } else { "s" }),
    };
    let checksums = match checked {
        Ok(()) => "good",
        Err(SpoolError::Damaged { .. }) => "bad",
        Err(_) => "not checked",
    };
    let mut lines = vec![
        entry.name.clone(),
        format!("  state      {}", entry.state.word()),
        format!("  overlay    {}", printable_path(&header.overlay)),
        format!("  backing    {}", plain(&header.backing)),
        format!("  file       {}", printable_path(&header.path)),
        format!("  saved      {}", humantime::format_rfc3339_seconds(header.at)),
        format!("  reason     {}", plain(&header.reason)),
        format!("  cut first  {}", size(header.cut, "no")),
        format!("  last size  {}", size(header.size, "unknown")),
        format!("  checksums  {checksums}"),
        format!("  holds      {extents}"),
    ];
    lines.extend(header.extents.iter().map(|e| format!("    {} at {}, crc32 {:08x}", bytes(e.len), e.offset, e.crc32)));
    lines.join("\n") + "\n"
}
