//! What a dead generation had sent and nobody had received yet must never be carried out: not after the link is back, not
//! on what was written meanwhile.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::Write;

use lab::agent::now;
use lab::{Lab, run, sleep_secs, wait};

lab::also_runs_as!(agent_process: lab::agents::main);

/// TCP sockets of the client whose peer is the server, as ss(8) shows them: those that may hold requests.
fn client_sockets(lab: &Lab) -> Vec<String> {
    lines(
        run(
            "ss",
            &["-tanH", "state", "connected", "exclude", "time-wait", "exclude", "syn-sent", "dst", &lab.net.server],
        )
        .stdout,
    )
}

/// Sessions that the server's kernel believes in.
fn server_sockets(lab: &Lab) -> Vec<String> {
    let port = ["sport", "=", ":22"];
    let arguments = [&["netns", "exec", &lab.net.name, "ss", "-tnH", "state", "established"], &port[..]].concat();
    lines(run("ip", &arguments).stdout)
}

fn lines(output: Vec<u8>) -> Vec<String> {
    String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn what_a_dead_generation_had_sent_is_never_carried_out() {
    let lab = Lab::new("");
    let victims = ["removed", "emptied"].map(|name| (lab.hot.join(name), lab.store.join(name)));
    for (hot, _) in &victims {
        std::fs::write(hot, "old").unwrap();
        std::fs::metadata(hot).unwrap();
    }
    let old = server_sockets(&lab);
    assert_eq!(old.len(), 1);

    lab.net.cut();
    let cut = now();
    // Sent into the dark. Whether they fail or wait is another test's business.
    let (removed, emptied) = (victims[0].0.clone(), victims[1].0.clone());
    let callers = [
        std::thread::spawn(move || std::fs::remove_file(removed)),
        std::thread::spawn(move || Ok(nix::unistd::truncate(&emptied, 0)?)),
    ];
    wait("the generation is given up", || lab.state() != "live" && lab.clients("ssh").is_empty());
    sleep_secs(1.0);
    let orphans = client_sockets(&lab);
    println!("   {:.1} s after the cut the client's kernel holds {orphans:?}", now() - cut);
    for caller in callers {
        println!("   the caller was told {:?}", caller.join().unwrap().map_err(|error| error.raw_os_error()));
    }

    // Between two retransmissions of an old kernel: the first after the cut that arrives would come at 25 s.
    sleep_secs((cut + 14.0 - now()).max(0.0));
    lab.net.heal();
    let healed = now();
    wait("the mount is live again", || lab.state() == "live");
    println!("   live {:.1} s after the healing; the server holds {:?}", now() - healed, server_sockets(&lab));
    for (hot, _) in &victims {
        let mut file = std::fs::File::create(hot).unwrap();
        file.write_all(b"newer").unwrap();
        file.sync_all().unwrap();
    }

    // Longer than a kernel waits between two of its last retransmissions.
    let mut gone = None;
    while now() < healed + 35.0 {
        for (_, cold) in &victims {
            let seen = std::fs::read_to_string(cold).unwrap_or_else(|error| error.to_string());
            assert_eq!(seen, "newer", "{} {:.1} s after the healing", cold.display(), now() - healed);
        }
        if gone.is_none() && server_sockets(&lab).len() == 1 {
            gone = Some(now() - healed);
        }
        sleep_secs(0.1);
    }
    println!("   the server let the old session go {gone:.1?} s after the healing");
    assert_ne!(server_sockets(&lab), old);
    assert_eq!(orphans, Vec::<String>::new(), "what was sent is still on its way");
    assert!(gone.is_some_and(|seconds| seconds < 5.0), "the server kept the old session: {gone:?}");
    lab.umount();
}
