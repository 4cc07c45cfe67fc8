//! An SFTP server (draft-ietf-secsh-filexfer-02) that answers as it should not. It has no disk: what a path is decides how
//! it is answered. sshfs starts it in the place of ssh, as a script that starts this test binary for one hidden test; what
//! it is told, and what it was asked, goes through files of one directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What `good` holds, and all whose names begin so.
pub const GOOD: &[u8] = b"good\n";
/// Names that no listing may have, and some that it may.
pub const NAMES: [&[u8]; 16] = [
    b"plain",
    b".",
    b"..",
    b"a/b",
    b"../up",
    b"/abs",
    b"nul\0byte",
    b"",
    b"new\nline",
    b"\x1b[2J",
    b"twice",
    b"twice",
    b"\xff\xfe",
    b"-o",
    &[b'x'; 255],
    &[b'y'; 300],
];

const REGULAR: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

/// The test's side.
pub struct Server {
    directory: PathBuf,
}

impl Server {
    /// Prepares the script below `directory`.
    pub fn new(directory: &Path) -> Server {
        let server = Server { directory: directory.join("server") };
        std::fs::create_dir(&server.directory).unwrap();
        let (exe, at) = (std::env::current_exe().unwrap(), server.directory.display());
        // The standard output of a test binary is not its own, so the two ends of the link move elsewhere.
        let script = format!(
            "#!/bin/sh\nexec 3<&0 4>&1 </dev/null >/dev/null\n\
             exec env LAB_HOSTILE={at} {} server_process {at} --exact --ignored --nocapture --test-threads=1\n",
            exe.display()
        );
        std::fs::write(server.program(), script).unwrap();
        std::fs::set_permissions(server.program(), PermissionsExt::from_mode(0o755)).unwrap();
        server
    }

    /// What sshfs starts (`ssh_command=`).
    pub fn program(&self) -> PathBuf {
        self.directory.join("instead-of-ssh")
    }

    /// From now on the server does that too.
    pub fn tell(&self, what: &str) {
        std::fs::write(self.directory.join(what), "").unwrap();
    }

    /// Every path that it was asked about.
    pub fn asked(&self) -> String {
        std::fs::read_to_string(self.directory.join("asked")).unwrap_or_default()
    }
}

/// Attributes, as they are sent.
#[derive(Clone, Copy)]
struct Attrs {
    mode: u32,
    size: u64,
    owner: (u32, u32),
    times: (u32, u32),
}

impl Attrs {
    fn of(mode: u32, size: u64) -> Attrs {
        Attrs { mode, size, owner: (0, 0), times: (1_700_000_000, 1_700_000_000) }
    }

    fn put(self, out: &mut Vec<u8>) {
        out.extend(15_u32.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        for word in [self.owner.0, self.owner.1, self.mode, self.times.0, self.times.1] {
            out.extend(word.to_be_bytes());
        }
    }
}

struct Session {
    directory: PathBuf,
    out: File,
    /// How often each path was looked at.
    looks: HashMap<String, usize>,
    /// How far each listing has come.
    listed: HashMap<String, usize>,
    asked: File,
}

/// The hidden test calls this.
pub fn main() {
    let Some(directory) = std::env::var_os("LAB_HOSTILE").map(PathBuf::from) else { return };
    // SAFETY: the script has opened both for this process, and nothing else here uses them.
    let (client, out) = unsafe { (File::from_raw_fd(3), File::from_raw_fd(4)) };
    let asked = File::options().append(true).create(true).open(directory.join("asked")).unwrap();
    let mut session = Session { directory, out, looks: HashMap::new(), listed: HashMap::new(), asked };
    if session.is_told("flood") {
        // A banner without an end, and what a terminal would obey.
        let mut words = std::io::stderr();
        let _ = words.write_all(b"\x1b]0;owned\x07\x1b[2J\n");
        for _ in 0..4096 {
            let _ = words.write_all(&[b'w'; 16 << 10]);
        }
        let _ = words.write_all(b"\n");
    }
    let mut reader = BufReader::new(client);
    loop {
        let mut length = [0; 4];
        if reader.read_exact(&mut length).is_err() {
            return;
        }
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        if reader.read_exact(&mut packet).is_err() || session.answer(&packet).is_none() {
            return;
        }
    }
}

fn string<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
    let (text, tail) = rest[4..].split_at(length);
    *rest = tail;
    text
}

fn put(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text);
}

impl Session {
    fn is_told(&self, what: &str) -> bool {
        self.directory.join(what).exists()
    }

    /// One packet: its kind, the id, the rest.
    fn send(&mut self, kind: u8, id: u32, body: &[u8]) -> Option<()> {
        let mut packet = ((body.len() + 5) as u32).to_be_bytes().to_vec();
        packet.push(kind);
        packet.extend(id.to_be_bytes());
        packet.extend(body);
        self.out.write_all(&packet).ok()
    }

    fn status(&mut self, id: u32, code: u32) -> Option<()> {
        let mut body = code.to_be_bytes().to_vec();
        put(&mut body, b"");
        put(&mut body, b"");
        self.send(101, id, &body)
    }

    fn answer(&mut self, packet: &[u8]) -> Option<()> {
        let (kind, mut rest) = (packet[0], &packet[1..]);
        if kind == 1 {
            // Version 3, where the id would be.
            let mut body = Vec::new();
            put(&mut body, b"statvfs@openssh.com");
            put(&mut body, b"2");
            return self.send(2, 3, &body);
        }
        let id = u32::from_be_bytes(rest[..4].try_into().unwrap());
        rest = &rest[4..];
        let text = String::from_utf8_lossy(string(&mut rest)).into_owned();
        let path = if kind == 200 {
            String::new()
        } else {
            text.split('/').filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/")
        };
        writeln!(self.asked, "{kind} {}", path.escape_default()).unwrap();
        match (kind, path.as_str()) {
            (7 | 8 | 17, "silent") | (5, "mute") => Some(()),
            (7 | 8 | 17, "wrong-id") => self.send(105, id.wrapping_add(77), &[0; 4]),
            (7 | 8 | 17, "garbage") => self.send(199, id, &[0xee; 50]),
            (7 | 8 | 17, "cut-short") => self.send(105, id, &[0, 0, 0, 15, 0]),
            (7 | 8 | 17, "vast") => self.out.write_all(&[0xff, 0xff, 0xff, 0xf0, 105]).ok(),
            (7 | 8 | 17, "tiny") => self.out.write_all(&[0, 0, 0, 0]).ok(),
            (7 | 8 | 17, "hangs-up") => None,
            (7 | 8 | 17, path) => match self.attrs(path) {
                Some(attrs) => {
                    let mut body = Vec::new();
                    attrs.put(&mut body);
                    self.send(105, id, &body)
                }
                None => self.status(id, 2),
            },
            (3 | 11, path) => {
                self.listed.remove(path);
                let mut body = Vec::new();
                put(&mut body, path.as_bytes());
                self.send(102, id, &body)
            }
            (4, _) => self.status(id, 0),
            (5, path) => {
                let offset = u64::from_be_bytes(rest[..8].try_into().unwrap());
                let wanted = u32::from_be_bytes(rest[8..12].try_into().unwrap());
                let path = path.to_owned();
                self.read(id, &path, offset, wanted)
            }
            (12, path) => {
                let path = path.to_owned();
                self.list(id, &path)
            }
            (19, path) => {
                let target: &[u8] = match path {
                    "links/absolute" => b"/etc/passwd",
                    "links/up" => b"../../../../../../etc/passwd",
                    "links/self" => b"self",
                    "links/nul" => b"/etc/pas\0swd",
                    "links/empty" => b"",
                    "links/long" => &[b'z'; 60_000],
                    _ => &std::fs::read(self.directory.join("target")).unwrap_or_default(),
                };
                let mut body = 1_u32.to_be_bytes().to_vec();
                put(&mut body, target);
                put(&mut body, target);
                Attrs::of(LINK, 0).put(&mut body);
                self.send(104, id, &body)
            }
            (200, _) if text == "statvfs@openssh.com" => {
                let absurd = ["zeros", "ones"].map(|name| self.is_told(name));
                let figures: [u64; 11] = match absurd {
                    [_, true] => [u64::MAX; 11],
                    [true, _] => [0; 11],
                    _ => [4096, 4096, 1000, 500, 500, 100, 50, 50, 7, 0, 255],
                };
                let body: Vec<u8> = figures.iter().flat_map(|figure| figure.to_be_bytes()).collect();
                self.send(201, id, &body)
            }
            _ => self.status(id, 3),
        }
    }

    fn attrs(&mut self, path: &str) -> Option<Attrs> {
        let looks = self.looks.entry(path.to_owned()).or_default();
        *looks += 1;
        let file = |mode| Attrs::of(mode, GOOD.len() as u64);
        let turned = self.is_told("turn");
        Some(match path {
            "" | "names" | "endless" | "links" | "odd" | "grown" => Attrs::of(DIRECTORY, 0),
            "mute" => Attrs::of(REGULAR, 100 << 20),
            "short" | "status" | "error" => file(REGULAR),
            path if path.starts_with("good") => file(REGULAR),
            "long" => Attrs::of(REGULAR, 100),
            "odd/huge" => Attrs::of(REGULAR, 1 << 63),
            "odd/endless" => Attrs::of(REGULAR, u64::MAX),
            "odd/times" => Attrs { times: (u32::MAX, 0), ..file(REGULAR) },
            "odd/setuid" => file(0o106_755),
            "odd/character" => file(0o020_666),
            "odd/block" => file(0o060_666),
            "odd/nobody" => Attrs { owner: (u32::MAX, u32::MAX), ..file(REGULAR) },
            "odd/typeless" => file(0),
            "odd/all-bits" => file(u32::MAX),
            "turns" => file(if turned { LINK } else { REGULAR }),
            "turns-dir" => Attrs::of(if turned { LINK } else { DIRECTORY }, 0),
            "turns-dir/secret" => file(REGULAR),
            path if path.starts_with("links/") => file(LINK),
            path if path.starts_with("names/") => file(REGULAR),
            _ => return None,
        })
    }

    fn read(&mut self, id: u32, path: &str, offset: u64, wanted: u32) -> Option<()> {
        let data: Vec<u8> = match path {
            // Twice as much as there is room for.
            "long" => vec![b'L'; wanted as usize * 2 + 10],
            "short" if offset == 0 => b"go".to_vec(),
            // OK, and no data.
            "status" => return self.status(id, 0),
            "error" => return self.status(id, u32::MAX),
            "odd/huge" | "odd/endless" => vec![b'h'; (wanted as usize).min(1000)],
            "short" => Vec::new(),
            _ => GOOD.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default().to_vec(),
        };
        if data.is_empty() {
            return self.status(id, 1);
        }
        let mut body = Vec::new();
        put(&mut body, &data);
        self.send(103, id, &body)
    }

    fn list(&mut self, id: u32, path: &str) -> Option<()> {
        let done = self.listed.entry(path.to_owned()).or_default();
        *done += 1;
        let round = *done;
        let names: Vec<Vec<u8>> = match (path, round) {
            ("endless", _) => (0..25).map(|at| format!("{round:08}-{at:02}-{:0>3900}", 0).into_bytes()).collect(),
            ("names", 1) => NAMES.iter().map(|name| name.to_vec()).collect(),
            ("odd", 1) => {
                ["huge", "endless", "times", "setuid", "character", "block", "nobody", "typeless", "all-bits"]
                    .map(|name| name.as_bytes().to_vec())
                    .to_vec()
            }
            ("", 1) => vec![b"good".to_vec(), b"odd".to_vec(), b"names".to_vec()],
            // It has more entries than there are in the packet.
            ("grown", 1) => {
                let mut body = u32::MAX.to_be_bytes().to_vec();
                put(&mut body, b"one");
                return self.send(104, id, &body);
            }
            _ => return self.status(id, 1),
        };
        let mut body = (names.len() as u32).to_be_bytes().to_vec();
        for name in names {
            put(&mut body, &name);
            put(&mut body, b"");
            self.attrs(&format!("{path}/{}", String::from_utf8_lossy(&name)))
                .unwrap_or(Attrs::of(REGULAR, 5))
                .put(&mut body);
        }
        self.send(104, id, &body)
    }
}
