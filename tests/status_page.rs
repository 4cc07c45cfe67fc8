//! The status page in a browser: headless Chromium (scripts/deps), served by the daemon's own code over loopback.

#[allow(dead_code)]
#[path = "telemetry/rig.rs"]
mod rig;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rig::Rig;
use steadfs::config::MetricsListen;
use steadfs::supervisor::Event;

/// Chromium starts slowly on a busy machine; longer than this it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a name must not do.
const HOSTILE: &str = "hot <img src=x onerror=document.title='owned'>&\u{202e}\"'";

struct Site {
    rig: Rig,
    address: SocketAddr,
}

impl Site {
    fn new() -> Site {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let rig = Rig::new(|config| {
            config.telemetry.listen = Some(MetricsListen::Tcp(free));
            let parent = config.home.parent().map(Path::to_owned).expect("it has one");
            config.home = parent.join(HOSTILE);
            config.overlays[0].mountpoint = config.home.clone();
        });
        Site { rig, address: free }
    }

    fn url(&self) -> String {
        format!("http://{}/?live=no", self.address)
    }

    /// Headers and body.
    fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).expect("it is served");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
        (head.to_lowercase(), body.to_owned())
    }

    fn is_well(&self) {
        self.rig.read_ok();
        self.rig.observed.watch.update(|snapshot| {
            (snapshot.state, snapshot.generation, snapshot.outages) = ("live", 2, 1);
            snapshot.next = "probe".into();
            snapshot.probe_ok_at = Some(SystemTime::now());
            snapshot.probe_took = Some(Duration::from_millis(12));
        });
        self.rig.observed.watch.publish(Event::Recovered { generation: 2, outage_secs: 2.3 });
    }

    fn is_in_an_outage(&self) {
        self.is_well();
        let ago = |minutes: u64| SystemTime::now() - Duration::from_secs(60 * minutes);
        let watch = &self.rig.observed.watch;
        watch.update(|snapshot| {
            snapshot.state = "waiting";
            snapshot.begin_outage(ago(7), Instant::now() - Duration::from_secs(420));
            snapshot.why = Some("ssh: connect to host box port 23: <b>No route to host</b>\u{1b}[31m".into());
            snapshot.next = "start generation 3".into();
            snapshot.next_at = Some(SystemTime::now() + Duration::from_secs(20));
        });
        for (began, reason, lasted) in
            [(820, "process_exit", 2.3), (700, "probe_late", 4500.0), (350, "call_late", 61.0)]
        {
            watch.publish(Event::OutageBegan { since: ago(began), reason: reason.into(), detail: "silence".into() });
            watch.publish(Event::Recovered { generation: 2, outage_secs: lasted });
        }
        let reason = "<script>alert(1)</script>".into();
        watch.publish(Event::OutageBegan { since: ago(7), reason, detail: "silence".into() });
        let detail = "<script>document.title='owned'</script>".into();
        watch.publish(Event::StartFailed { generation: 3, detail, halted: false, retry_in_secs: Some(20.0) });
        self.rig.wait(|| self.get("/").1.contains("start_failed"));
    }
}

/// Runs Chromium once and returns what it printed. It is no more than a program that is given a page: it has no network but
/// loopback, and a profile of its own.
fn chromium(arguments: &[String]) -> (String, String) {
    let profile = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child =
        command.spawn().expect("chromium is needed: run scripts/deps, or install Debian's package chromium");
    let read = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().expect("it is piped")));
    let err = read(Box::new(child.stderr.take().expect("it is piped")));
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is ours") {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("chromium did not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let (out, err) = (out.join().expect("it ends"), err.join().expect("it ends"));
    assert!(status.success(), "{err}");
    (out, err)
}

fn dom(site: &Site) -> String {
    let (dom, said) = chromium(&["--dump-dom".into(), site.url()]);
    let complaints: Vec<_> = said.lines().filter(|line| line.contains("CONSOLE") || line.contains("Refused")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    dom
}

/// Where pictures go: kept if somebody wants to look at them.
fn pictures() -> (PathBuf, Option<tempfile::TempDir>) {
    match std::env::var_os("STEADFS_SCREENSHOTS") {
        Some(kept) => (kept.into(), None),
        None => {
            let directory = tempfile::tempdir().expect("a directory");
            (directory.path().to_owned(), Some(directory))
        }
    }
}

/// Takes a picture and returns its width and height, and how many bytes it has.
fn picture(site: &Site, name: &str, size: (u32, u32), dark: bool) -> (u32, u32, usize) {
    let (directory, _kept) = pictures();
    let path = directory.join(format!("{name}.png"));
    let mut arguments =
        vec![format!("--screenshot={}", path.display()), format!("--window-size={},{}", size.0, size.1)];
    if dark {
        arguments.push("--blink-settings=preferredColorScheme=0".into());
    }
    arguments.push(site.url());
    chromium(&arguments);
    let png = std::fs::read(&path).expect("there is a picture");
    assert_eq!(&png[1..4], b"PNG");
    let number = |at: usize| u32::from_be_bytes([png[at], png[at + 1], png[at + 2], png[at + 3]]);
    (number(16), number(20), png.len())
}

#[test]
fn a_browser_shows_a_mount_that_is_well() {
    let site = Site::new();
    site.is_well();
    let dom = dom(&site);
    for text in
        [r#"<span class="state">live</span>"#, "Last 24 hours", "box:/jobs", "Latest events", "recovered", "pid 77"]
    {
        assert!(dom.contains(text), "{text} is not in {dom}");
    }
    let (width, height, bytes) = picture(&site, "well", (1000, 1500), false);
    assert_eq!((width, height), (1000, 1500));
    // An empty page has a tenth of that.
    assert!(bytes > 40_000, "{bytes}");
}

#[test]
fn a_browser_shows_an_outage_and_no_name_becomes_markup() {
    let site = Site::new();
    site.is_in_an_outage();
    let dom = dom(&site);
    for text in
        [r#"<span class="state down">waiting</span>"#, "Outage for 7m", "No route to host", "goes on", "5 outages"]
    {
        assert!(dom.contains(text), "{text} is not in {dom}");
    }
    assert!(dom.contains("<title>waiting: ") && !dom.contains("owned</title>"), "{dom}");
    for markup in ["<script", "<img", "<b>", "\u{202e}", "\u{1b}"] {
        assert!(!dom.contains(markup), "{markup:?} is in {dom}");
    }
    assert!(dom.contains("&lt;img src=x") && dom.contains("\\u{202e}") && dom.contains("&lt;script&gt;"), "{dom}");
    assert!(picture(&site, "outage", (1000, 1500), false).2 > 40_000);
    assert!(picture(&site, "outage-dark", (1000, 1500), true).2 > 40_000);
    // As narrow as Chromium's windows get.
    assert_eq!(picture(&site, "outage-phone", (500, 2400), false).0, 500);
}

#[test]
fn the_page_is_kept_by_nobody_and_may_load_nothing() {
    let site = Site::new();
    let (head, body) = site.get("/");
    for header in [
        "content-security-policy: default-src 'none'; style-src 'self';",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "content-type: text/html; charset=utf-8",
    ] {
        assert_eq!(head.matches(header).count(), 1, "{header}: {head}");
    }
    assert!(head.starts_with("http/1.1 200") && body.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{head}");
    assert!(body.contains("http-equiv=\"refresh\"") && !site.get("/?live=no").1.contains("http-equiv=\"refresh\""));
    assert!(!body.contains("http:") && !body.contains("https:") && !body.contains("<script"));
    let (head, style) = site.get("/style.css");
    assert!(head.contains("content-type: text/css") && style.contains("prefers-color-scheme: dark"), "{head}");
    assert!(!style.contains("url(") && !style.contains("@import"));
}
