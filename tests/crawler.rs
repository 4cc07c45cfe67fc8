//! A real crawler, which knows nothing of steadfs, writes WARCs through three faults: they are whole, and so is the mirror.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::agents::record;
use lab::scenario::wait_for_successor;
use lab::{Lab, run, run_ok};
use nix::sys::signal::Signal;

/// Pages of the site.
const PAGES: usize = 120;
/// What the server makes a client wait for one.
const DELAY: Duration = Duration::from_millis(150);
/// Longest a crawl may take, faults included.
const LIMIT: Duration = Duration::from_secs(90);

/// A page: links to two others, then text that does not compress to nothing.
fn page(number: usize) -> Vec<u8> {
    let links: String = [2 * number + 1, 2 * number + 2]
        .iter()
        .filter(|&&next| next < PAGES)
        .map(|next| format!("<a href=\"/page{next}.html\">{next}</a>\n"))
        .collect();
    let noise: String =
        (0..4).flat_map(|part| record((number * 4 + part) as u64)).map(|b| format!("{b:02x}")).collect();
    format!("<html><body>{links}<p>{noise}</p></body></html>\n").into_bytes()
}

fn number_of(target: &str) -> Option<usize> {
    let name = target.strip_prefix('/')?;
    let number = if name.is_empty() { 0 } else { name.strip_prefix("page")?.strip_suffix(".html")?.parse().ok()? };
    (number < PAGES).then_some(number)
}

fn answer(mut stream: TcpStream, served: &AtomicUsize) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request);
    let target = request.split_whitespace().nth(1).unwrap_or_default();
    std::thread::sleep(DELAY);
    let (status, body) = match number_of(target) {
        Some(number) => ("200 OK", page(number)),
        None => ("404 Not Found", b"none\n".to_vec()),
    };
    served.fetch_add(usize::from(status.starts_with("200")), Ordering::SeqCst);
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n")?;
    stream.write_all(b"Connection: close\r\n\r\n")?;
    stream.write_all(&body)
}

/// Serves the site for as long as the test lives; returns its address and the number of pages served.
fn serve() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    std::thread::spawn(move || {
        // A client that goes away is no failure of the site.
        listener.incoming().flatten().for_each(|stream| _ = answer(stream, &counter));
    });
    (address, served)
}

/// Runs warcio, a public checker of WARC files, from PyPI, which is kept in a directory of the build's.
fn warcio(arguments: &[&str]) -> Output {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("warcio");
    if !home.join("warcio").exists() {
        run_ok("python3", &["-m", "pip", "install", "--quiet", "--target", home.to_str().unwrap(), "warcio==1.7.4"]);
    }
    let mut command = Command::new("python3");
    command.args(["-m", "warcio.cli"]).args(arguments).env("PYTHONPATH", home).stdin(Stdio::null()).output().unwrap()
}

fn warcs(directory: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.to_str().unwrap().ends_with(".warc.gz")).collect()
}

#[test]
fn a_crawl_through_three_faults_leaves_a_sound_warc() {
    assert!(warcio(&["--version"]).status.success());
    let lab = Lab::new("");
    let (address, served) = serve();
    let log = lab.path("wget.log");
    let hot = lab.hot.to_str().unwrap();
    let mut wget = Command::new("wget")
        .args(["--mirror", "--no-verbose", "--execute", "robots=off", "--tries=1"])
        .args([&format!("--warc-file={hot}/crawl"), "--warc-max-size=1M", &format!("--warc-tempdir={hot}")])
        .args([&format!("--directory-prefix={hot}"), &format!("http://{address}/")])
        .arg("--no-proxy")
        .current_dir(&lab.hot)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let wait_for = |pages: usize| lab::wait("the crawl goes on", || served.load(Ordering::SeqCst) >= pages);
    wait_for(PAGES / 5);
    lab.signal("sshfs", Signal::SIGKILL);
    wait_for_successor(&lab, 1);
    wait_for(PAGES * 2 / 5);
    lab.signal("ssh", Signal::SIGSTOP);
    wait_for_successor(&lab, 2);
    wait_for(PAGES * 3 / 5);
    lab.sshd.kill_sessions();
    wait_for_successor(&lab, 3);
    let said = || std::fs::read_to_string(&log).unwrap();
    while wget.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < LIMIT, "wget does not end: {}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = wget.wait().unwrap();
    println!("== wget: {PAGES} pages in {:.1} s, {status}", begun.elapsed().as_secs_f64());
    assert!(status.success(), "{status}: {}", said());

    let mirror = lab.store.join(&address);
    for number in 0..PAGES {
        let name = if number == 0 { "index.html".into() } else { format!("page{number}.html") };
        let stored = std::fs::read(mirror.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(stored == page(number), "{name} differs from what was served: {} bytes", stored.len());
    }
    let mut responses = 0;
    for warc in warcs(&lab.store) {
        let path = warc.to_str().unwrap();
        assert!(run("gzip", &["-t", path]).status.success(), "gzip -t {path}: {}", said());
        let check = warcio(&["check", path]);
        assert!(check.status.success(), "warcio check {path}: {check:?}");
        let index = warcio(&["index", "-f", "warc-type", path]);
        responses += String::from_utf8_lossy(&index.stdout).matches("\"response\"").count();
    }
    println!("   {} WARC files, {responses} responses", warcs(&lab.store).len());
    assert!(responses >= PAGES, "only {responses} responses of {PAGES} pages are in the WARCs");
    lab.umount();
}
