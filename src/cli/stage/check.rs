//! Checks what lies on the store after the run against what fsync promised.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use flate2::Crc;
use flate2::bufread::GzDecoder;
use serde::Serialize;

use super::warc;

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its name below the store.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Sound records (or lines, or states) in it.
    pub records: u64,
    /// How many of them a successful fsync had acknowledged.
    pub acknowledged: u64,
    /// Bytes of it up to the end of the last sound record; of WARCs only.
    pub sound_bytes: u64,
    /// What is wrong with it, in words; empty is good.
    pub problems: Vec<String>,
}

impl FileReport {
    fn new(name: &str, acknowledged: u64) -> FileReport {
        FileReport { name: name.to_string(), bytes: 0, records: 0, sound_bytes: 0, acknowledged, problems: Vec::new() }
    }
}

/// Reads a WARC.gz as writer `writer` left it: every member must decompress, every record parse and be the one whose
/// turn it is, and the first `acknowledged` of them must be there. Nothing may follow them but further whole records.
pub fn warc_file(path: &Path, name: &str, writer: usize, acknowledged: u64) -> FileReport {
    let mut report = FileReport::new(name, acknowledged);
    if let Err(problem) = read_records(path, writer, &mut report) {
        report.problems.push(problem);
    }
    if report.records < acknowledged {
        report.problems.push(format!("{} acknowledged records are lost", acknowledged - report.records));
    }
    report
}

fn read_records(path: &Path, writer: usize, report: &mut FileReport) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    report.bytes = file.metadata().map_err(|e| e.to_string())?.len();
    let mut input = BufReader::with_capacity(1 << 16, file);
    loop {
        if std::io::BufRead::fill_buf(&mut input).map_err(|e| e.to_string())?.is_empty() {
            return Ok(());
        }
        let number = report.records;
        let mut data = Vec::new();
        GzDecoder::new(&mut input).read_to_end(&mut data).map_err(|e| format!("gzip member {number}: {e}"))?;
        let record = warc::parse(&data).map_err(|e| format!("record {number}: {e}"))?;
        if record.id != warc::id(writer, number) {
            return Err(format!("record {number} is out of its turn: {}", record.id));
        }
        if record.block != warc::block(writer, number) {
            return Err(format!("record {number} has other bytes than were written"));
        }
        report.records += 1;
        report.sound_bytes = input.stream_position().map_err(|e| e.to_string())?;
    }
}

/// Reads the log: lines `N text`, of which 0 to `acknowledged` - 1 must be there. A line that was answered with an
/// error may have landed and been written again, so repeats are no fault.
pub fn log_file(path: &Path, name: &str, acknowledged: u64) -> FileReport {
    let mut report = FileReport::new(name, acknowledged);
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            report.problems.push(error.to_string());
            return report;
        }
    };
    report.bytes = text.len() as u64;
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.split_once(' ').and_then(|(number, _)| number.parse::<u64>().ok()) {
            Some(number) => drop(seen.insert(number)),
            None => report.problems.push(format!("not a log line: {line:?}")),
        }
    }
    report.records = seen.len() as u64;
    let lost = (0..acknowledged).filter(|number| !seen.contains(number)).count();
    if lost > 0 {
        report.problems.push(format!("{lost} acknowledged lines are lost"));
    }
    report.problems.truncate(5);
    report
}

/// Reads the state file: JSON whose `sequence` is at least the last acknowledged one.
pub fn state_file(path: &Path, name: &str, acknowledged: u64) -> FileReport {
    let mut report = FileReport::new(name, acknowledged);
    let found = std::fs::read(path).map_err(|e| e.to_string()).and_then(|data| {
        report.bytes = data.len() as u64;
        serde_json::from_slice::<serde_json::Value>(&data).map_err(|e| format!("not JSON: {e}"))
    });
    match found.map(|value| value.get("sequence").and_then(serde_json::Value::as_u64)) {
        Ok(Some(sequence)) => {
            report.records = sequence;
            if sequence < acknowledged {
                report.problems.push(format!("holds state {sequence}, but {acknowledged} was acknowledged"));
            }
        }
        Ok(None) => report.problems.push("has no sequence".into()),
        Err(problem) => report.problems.push(problem),
    }
    report
}

/// CRC-32 of the first `length` bytes of a file; `None` when it is shorter or cannot be read.
pub fn prefix_crc(path: &Path, length: u64) -> Option<u32> {
    let mut input = File::open(path).ok()?.take(length);
    let mut crc = Crc::new();
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    while done < length {
        match input.read(&mut buffer).ok()? {
            0 => return None,
            n => {
                crc.update(&buffer[..n]);
                done += n as u64;
            }
        }
    }
    Some(crc.sum())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(numbers: impl IntoIterator<Item = u64>, cut: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.warc.gz");
        let mut data: Vec<u8> = numbers.into_iter().flat_map(|n| warc::member(1, n)).collect();
        data.truncate(data.len() - cut);
        std::fs::write(&path, data).unwrap();
        (dir, path)
    }

    #[test]
    fn a_whole_file_passes_with_records_beyond_the_acknowledged() {
        let (_dir, path) = write(0..10, 0);
        let report = warc_file(&path, "a", 1, 8);
        assert_eq!((report.records, report.problems.as_slice()), (10, &[][..]));
    }

    #[test]
    fn a_torn_tail_is_found() {
        let (_dir, path) = write(0..10, 5);
        let report = warc_file(&path, "a", 1, 9);
        assert_eq!(report.records, 9);
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].starts_with("gzip member 9"));
    }

    #[test]
    fn acknowledged_records_that_are_missing_at_the_end_are_found() {
        let (_dir, path) = write(0..10, 0);
        assert_eq!(warc_file(&path, "a", 1, 12).problems, ["2 acknowledged records are lost"]);
    }

    #[test]
    fn a_hole_in_the_middle_is_found() {
        let (_dir, path) = write([0, 1, 3], 0);
        assert!(warc_file(&path, "a", 1, 3).problems[0].starts_with("record 2 is out of its turn"));
    }

    #[test]
    fn a_file_of_another_writer_is_found() {
        let (_dir, path) = write(0..3, 0);
        assert!(!warc_file(&path, "a", 0, 3).problems.is_empty());
    }

    #[test]
    fn zeros_where_a_record_should_be_are_found() {
        let (_dir, path) = write(0..3, 0);
        let mut data = std::fs::read(&path).unwrap();
        let length = data.len();
        data[length - 4000..].fill(0);
        std::fs::write(&path, data).unwrap();
        assert!(!warc_file(&path, "a", 1, 3).problems.is_empty());
    }

    #[test]
    fn a_missing_file_is_a_problem() {
        let report = warc_file(Path::new("/nonexistent/a"), "a", 1, 0);
        assert_eq!(report.problems.len(), 1);
    }

    #[test]
    fn log_lines_may_repeat_but_not_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "0 a\n1 b\n1 b\n2 c\n").unwrap();
        assert_eq!(log_file(&path, "log", 3).problems, Vec::<String>::new());
        assert_eq!(log_file(&path, "log", 4).problems, ["1 acknowledged lines are lost"]);
        std::fs::write(&path, "0 a\nx").unwrap();
        assert_eq!(log_file(&path, "log", 1).problems, ["not a log line: \"x\""]);
    }

    #[test]
    fn an_old_or_broken_state_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, r#"{"sequence": 4}"#).unwrap();
        assert!(state_file(&path, "state", 4).problems.is_empty());
        assert_eq!(state_file(&path, "state", 5).problems.len(), 1);
        std::fs::write(&path, "").unwrap();
        assert_eq!(state_file(&path, "state", 0).problems.len(), 1);
    }

    #[test]
    fn the_crc_is_of_the_prefix_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"123456789tail").unwrap();
        assert_eq!(prefix_crc(&path, 9), Some(0xcbf4_3926));
        assert_eq!(prefix_crc(&path, 14), None);
    }
}
