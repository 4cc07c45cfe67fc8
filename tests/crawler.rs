//! A real crawler (wget --mirror --warc-file) writes through three faults, and its WARC is sound: gzip says so, and so
//! does warcio, a public WARC checker.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, run_ok, wait};
use nix::sys::signal::Signal;

/// Pages of the site; each takes the server a moment, so that the crawl outlasts the faults.
const PAGES: u32 = 120;
const PER_PAGE: Duration = Duration::from_millis(120);

/// A web site: each page links to the next two.
fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        lines.by_ref().find(String::is_empty)?;
        std::thread::sleep(PER_PAGE);
        let number: Option<u32> = request.split(['/', '.']).nth(2).and_then(|word| word.parse().ok());
        let reply = match number.filter(|&number| number < PAGES) {
            Some(number) => {
                let links: String =
                    [number + 1, number * 2].map(|next| format!("<a href=\"/p/{next}.html\">{next}</a>\n")).concat();
                let body = format!("<html>{links}{}</html>", format!("page {number} ").repeat(3000));
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
            None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
        };
        stream.write_all(reply.as_bytes()).ok()?;
    }
    None
}

/// warcio from PyPI, in a directory of the build's.
fn warcio() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("warcio");
    if !target.join("warcio").exists() {
        run_ok("python3", &["-m", "pip", "install", "--quiet", "--target", target.to_str().unwrap(), "warcio==1.7.4"]);
    }
    target
}

#[test]
fn a_crawl_through_three_faults_leaves_a_sound_warc() {
    let checker = warcio();
    let lab = Lab::new("");
    lab.wait_state("live");
    let address = site();
    let log = std::fs::File::create(lab.path("wget.log")).unwrap();
    let mut wget = Command::new("wget")
        .args(["--mirror", "--no-verbose", "--tries=2", "--timeout=20", "--no-proxy"])
        .arg(format!("--warc-file={}", lab.hot.join("crawl").display()))
        .arg(format!("--directory-prefix={}", lab.hot.join("mirror").display()))
        .arg(format!("http://{address}/p/1.html"))
        .current_dir(&lab.hot)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let warc = lab.store.join("crawl.warc.gz");
    let size = || std::fs::metadata(&warc).map_or(0, |meta| meta.len());
    wait("the crawl is under way", || size() > 2000);
    type Fault = (&'static str, fn(&Lab));
    let faults: [Fault; 3] = [
        ("sshfs killed", |lab| lab.signal("sshfs", Signal::SIGKILL)),
        ("ssh frozen", |lab| lab.signal("ssh", Signal::SIGSTOP)),
        ("server session killed", |lab| lab.sshd.kill_sessions()),
    ];
    for (generation, (name, fault)) in (1_u64..).zip(faults) {
        fault(&lab);
        wait(name, || lab.status()["generation"].as_u64() > Some(generation));
        lab.wait_state("live");
        let before = size();
        wait("the crawl goes on", || {
            assert_eq!(wget.try_wait().unwrap(), None, "{}", std::fs::read_to_string(lab.path("wget.log")).unwrap());
            size() > before
        });
    }
    let started = Instant::now();
    let status = wget.wait().unwrap();
    println!("the crawl took {:.0} s more and ended with {status}", started.elapsed().as_secs_f64());
    let warc = warc.to_str().unwrap();
    run_ok("gzip", &["-t", warc]);
    let check = Command::new("python3")
        .args(["-m", "warcio.cli", "check", "-v", warc])
        .env("PYTHONPATH", checker)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{words}{}", std::fs::read_to_string(lab.path("wget.log")).unwrap());
    let pages = words.matches("digest pass").count();
    assert!(pages as u32 >= PAGES - 1, "only {pages} records: {words}");
    lab.umount();
}

#[test]
#[ignore = "a process of other tests, not a test"]
fn agent_process() {
    lab::agent::main();
}
