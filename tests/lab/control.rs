//! Asks a daemon for its status without starting a program.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::PATIENCE;

/// What `steadfs status` shows of the one daemon that has its runtime files in that directory.
pub fn status(runtime: &Path) -> std::io::Result<Value> {
    let run = std::fs::read_dir(runtime)?.next().ok_or(std::io::ErrorKind::NotFound)??;
    let mut socket = UnixStream::connect(run.path().join("control.sock"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"{\"request\":\"status\"}\n")?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
