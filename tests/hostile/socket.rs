//! Clients of the control socket and of the metrics that mean no good.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lab::{mount_of, wait};
use crate::rig::Rig;
use crate::user::as_nobody;

/// A mount of a directory, its control socket, and its port for metrics.
fn mounted() -> (Rig, PathBuf, u16) {
    let mut rig = Rig::new();
    std::fs::write(rig.path("store/good"), crate::server::GOOD).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let source = format!("dir:{}", rig.path("store").display());
    let options = format!("guard=no,metrics=127.0.0.1:{port}");
    let command = rig.steadfs(&["mount", "-f", &source, rig.hot.to_str().unwrap(), "-o", &options]);
    rig.serve(command);
    let run = std::fs::read_dir(rig.path("run")).unwrap().next().unwrap().unwrap().path();
    (rig, run.join("control.sock"), port)
}

fn ask(mut socket: UnixStream, request: &[u8]) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Who is hung up on cannot write either.
    let _ = socket.write_all(request);
    let mut line = String::new();
    let _ = BufReader::new(socket).read_line(&mut line);
    line
}

fn answers(rig: &Rig, within: Duration) {
    let started = Instant::now();
    let output = rig.steadfs(&["status", rig.hot.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(started.elapsed() < within, "status took {:?}", started.elapsed());
}

fn open_wide(rig: &Rig, socket: &Path) {
    for path in [rig.directory(), &rig.path("run"), socket.parent().unwrap()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o777)).unwrap();
}

#[test]
fn somebody_else_is_refused_however_wide_the_socket_is_open() {
    let (rig, socket, _) = mounted();
    // As it is he does not even get there.
    let path = socket.clone();
    let closed = as_nobody(move || UnixStream::connect(path).map(drop)).join().unwrap();
    assert_eq!(closed.expect_err("it is open to all").kind(), std::io::ErrorKind::PermissionDenied);
    open_wide(&rig, &socket);
    for request in [&b"{\"request\":\"status\"}\n"[..], b"{\"request\":\"umount\",\"lazy\":true}\n", b"nonsense\n", b""]
    {
        let path = socket.clone();
        let said = as_nobody(move || ask(UnixStream::connect(path).unwrap(), request)).join().unwrap();
        assert!(said.contains("only root and the owner") && !said.contains("generation"), "{said}");
    }
    assert!(mount_of(&rig.hot).is_some(), "he has unmounted it");
    std::fs::set_permissions(rig.path("run"), PermissionsExt::from_mode(0o700)).unwrap();
    rig.end();
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let (rig, socket, _) = mounted();
    open_wide(&rig, &socket);
    let path = socket.clone();
    // More than the daemon may have descriptors.
    let theirs = as_nobody(move || (0..600).filter_map(|_| UnixStream::connect(&path).ok()).collect::<Vec<_>>());
    let theirs = theirs.join().unwrap();
    let mut ours: Vec<_> = (0..600).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    // One letter of a request each, and no more.
    ours.iter_mut().for_each(|socket| _ = socket.write_all(b"{"));
    assert!(theirs.len() > 500 && ours.len() > 500);
    std::fs::set_permissions(rig.path("run"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::set_permissions(socket.parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
    answers(&rig, Duration::from_secs(10));
    let pid = rig.status()["pid"].as_u64().unwrap();
    // Those that are broken off are closed as soon as somebody gets to it.
    let held = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    wait("few descriptors are held", || held() < 300);
    rig.is_well(&rig.status()["pid"].clone());
    drop((theirs, ours));
    rig.end();
}

#[test]
fn requests_that_are_none_are_answered_and_nothing_more() {
    let (rig, socket, _) = mounted();
    let deep = [b"[".repeat(4000), b"\n".to_vec()].concat();
    let unasked = b"{\"request\":\"umount\",\"lazy\":\"yes\"}\n".to_vec();
    let long = [b"{\"request\":\"status\",\"x\":\"".to_vec(), b"y".repeat(1 << 20), b"\"}\n".to_vec()].concat();
    for request in [b"\n".to_vec(), b"\0\xff\n".to_vec(), b"{}\n".to_vec(), deep, unasked, long] {
        let said = ask(UnixStream::connect(&socket).unwrap(), &request);
        // Who goes on talking after he was told is hung up on, and may not hear it.
        assert!(said.contains("failed") || said.is_empty(), "{said}");
        assert!(said.len() < 1000, "{said}");
    }
    answers(&rig, Duration::from_secs(10));
    assert!(mount_of(&rig.hot).is_some());
    rig.end();
}

#[test]
fn scrapers_that_say_nothing_cost_no_call_its_descriptor() {
    let (rig, _, port) = mounted();
    let silent =
        as_nobody(move || (0..600).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect::<Vec<_>>());
    let silent = silent.join().unwrap();
    assert!(silent.len() > 500);
    let pid = rig.status()["pid"].clone();
    // Those that are broken off are closed as soon as somebody gets to it.
    let held = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    wait("few descriptors are held", || held() < 300);
    rig.is_well(&pid);
    answers(&rig, Duration::from_secs(10));
    drop(silent);
    // Room again, once it has seen them go.
    crate::lab::wait("metrics are served", || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let mut text = String::new();
        let asked = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut text).is_ok() && text.contains("200 OK")
    });
    rig.end();
}
