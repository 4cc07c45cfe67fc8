//! A network namespace with one link to this one.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{run, run_ok};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Addresses are of 198.18.0.0/15, which RFC 2544 sets aside for tests.
pub struct Net {
    pub name: String,
    pub server: String,
    near: String,
    far: String,
}

impl Net {
    pub fn new() -> Net {
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("sfs{pid}x{number}");
        let (near, far) = (format!("sf{}n{number}", pid % 100_000), format!("sf{}f{number}", pid % 100_000));
        let subnet = format!("198.18.{}", pid.wrapping_add(number * 7) % 250 + 1);
        let net = Net { server: format!("{subnet}.2"), name, near, far };
        run_ok("ip", &["netns", "add", &net.name]);
        run_ok("ip", &["link", "add", &net.near, "type", "veth", "peer", "name", &net.far, "netns", &net.name]);
        run_ok("ip", &["addr", "add", &format!("{subnet}.1/30"), "dev", &net.near]);
        run_ok("ip", &["link", "set", &net.near, "up"]);
        run_ok("ip", &["-n", &net.name, "addr", "add", &format!("{subnet}.2/30"), "dev", &net.far]);
        run_ok("ip", &["-n", &net.name, "link", "set", &net.far, "up"]);
        run_ok("ip", &["-n", &net.name, "link", "set", "lo", "up"]);
        net
    }

    fn inside(&self, arguments: &[&str]) {
        run_ok("ip", &[&["netns", "exec", &self.name], arguments].concat());
    }

    /// Drops every packet, both ways, without a word to either side.
    pub fn cut(&self) {
        let rules = "add table inet cut; \
            add chain inet cut i { type filter hook input priority 0; policy drop; }; \
            add chain inet cut o { type filter hook output priority 0; policy drop; }";
        self.inside(&["nft", rules]);
    }

    pub fn heal(&self) {
        self.inside(&["nft", "delete table inet cut"]);
    }

    /// Limits the rate both ways.
    pub fn shape(&self, rate: &str) {
        let shape = ["root", "tbf", "rate", rate, "burst", "16k", "latency", "400ms"];
        run_ok("tc", &[&["qdisc", "add", "dev", &self.near], &shape[..]].concat());
        run_ok("tc", &[&["-n", &self.name, "qdisc", "add", "dev", &self.far], &shape[..]].concat());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        run("ip", &["link", "del", &self.near]);
        run("ip", &["netns", "del", &self.name]);
    }
}
