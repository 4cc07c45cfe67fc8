//! A network namespace with one link to this one, which can be cut and slowed down.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{run, run_ok};

/// Names of namespaces begin with this and the pid of their test; the sweep goes by it.
pub const PREFIX: &str = "steadfs-lab-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The server lives inside, steadfs outside.
pub struct Net {
    /// Name of the namespace.
    pub name: String,
    /// Address of the server.
    pub server: String,
    near: String,
    far: String,
}

impl Net {
    /// Makes the namespace, the link and the addresses, a /30 of 198.18.0.0/15, which RFC 2544 sets aside for tests.
    pub fn new() -> Net {
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("{PREFIX}{pid}-{number}");
        // Names of interfaces end at 15 bytes.
        let (near, far) = (format!("sfn{pid}x{number}"), format!("sff{pid}x{number}"));
        let taken = String::from_utf8_lossy(&run("ip", &["-4", "-o", "addr"]).stdout).into_owned();
        let base = |index: u32| u32::from_be_bytes([198, 18, 0, 0]) + (index % 0x8000) * 4;
        let first = pid.wrapping_mul(31).wrapping_add(number);
        let address = |base: u32, host: u32| std::net::Ipv4Addr::from(base + host).to_string();
        let base = (first..).map(base).find(|&b| !taken.contains(&format!("{}/30", address(b, 1)))).unwrap();
        let net = Net { name, server: address(base, 2), near, far };
        run_ok("ip", &["netns", "add", &net.name]);
        run_ok("ip", &["link", "add", &net.near, "type", "veth", "peer", "name", &net.far, "netns", &net.name]);
        run_ok("ip", &["addr", "add", &format!("{}/30", address(base, 1)), "dev", &net.near]);
        run_ok("ip", &["link", "set", &net.near, "up"]);
        run_ok("ip", &["-n", &net.name, "addr", "add", &format!("{}/30", net.server), "dev", &net.far]);
        run_ok("ip", &["-n", &net.name, "link", "set", &net.far, "up"]);
        run_ok("ip", &["-n", &net.name, "link", "set", "lo", "up"]);
        net
    }

    fn nft(&self, rules: &str) {
        run_ok("ip", &["netns", "exec", &self.name, "nft", rules]);
    }

    /// Drops every packet, both ways, without a word to either side.
    pub fn cut(&self) {
        self.nft(
            "add table inet cut; \
             add chain inet cut i { type filter hook input priority 0; policy drop; }; \
             add chain inet cut o { type filter hook output priority 0; policy drop; }",
        );
    }

    /// Undoes [`Net::cut`].
    pub fn heal(&self) {
        self.nft("delete table inet cut");
    }

    /// Limits the rate both ways; `rate` as tc(8) takes it.
    pub fn shape(&self, rate: &str) {
        let shape = ["root", "tbf", "rate", rate, "burst", "16k", "latency", "400ms"];
        run_ok("tc", &[&["qdisc", "add", "dev", &self.near], &shape[..]].concat());
        run_ok("tc", &[&["-n", &self.name, "qdisc", "add", "dev", &self.far], &shape[..]].concat());
    }

    /// Undoes [`Net::shape`].
    pub fn unshape(&self) {
        run_ok("tc", &["qdisc", "del", "dev", &self.near, "root"]);
        run_ok("tc", &["-n", &self.name, "qdisc", "del", "dev", &self.far, "root"]);
    }
}

/// Processes of a namespace: all of them were started by a laboratory.
pub fn inhabitants(name: &str) -> Vec<i32> {
    let output = run("ip", &["netns", "pids", name]);
    String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Ends everything in a namespace and removes it; its end of the link takes the other one along.
pub fn remove(name: &str) {
    super::process::end(&inhabitants(name));
    run("ip", &["netns", "del", name]);
}

impl Drop for Net {
    fn drop(&mut self) {
        run("ip", &["link", "del", &self.near]);
        remove(&self.name);
    }
}
