//! What was given with an option is nobody else's to read.

use nix::sys::signal::Signal;

use crate::lab::parts::Part;
use crate::lab::{process, wait};
use crate::rig::Rig;

/// The command line of each process of a mount that is steadfs.
fn lines(rig: &Rig) -> Vec<String> {
    let all = [rig.parts().keepers(), rig.parts().daemons()].concat();
    all.into_iter().map(|pid| String::from_utf8_lossy(&process::command_line(pid)).replace('\0', " ")).collect()
}

#[test]
fn nobody_reads_an_option_in_the_list_of_processes_or_in_what_steadfs_says() {
    for background in [false, true] {
        let mut rig = Rig::new();
        let hook = rig.path("hook");
        std::fs::write(&hook, "#!/bin/sh\nexit 0\n").unwrap();
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let hook = format!("on_outage={} --token SESAME", hook.display());
        let mut command = rig.mount(&format!("on_recovery=sh:true SESAME,{hook}"));
        if background {
            let mut line: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            line.retain(|word| word != "-f");
            let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
            let output = rig.steadfs(&words).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        } else {
            command.env("STEADFS_LOG", "debug");
            rig.serve(command);
        }
        wait("a keeper and a daemon", || lines(&rig).len() == 2 && rig.status()["keeper"]["can_succeed"] == true);
        assert!(lines(&rig).iter().all(|line| !line.contains("SESAME") && !line.contains("on_")), "{:?}", lines(&rig));
        assert!(
            lines(&rig).iter().any(|line| line.contains(rig.hot.to_str().unwrap())),
            "the mountpoint stays: {:?}",
            lines(&rig)
        );
        // Nor those that come after them.
        for part in [Part::Daemon, Part::Keeper] {
            let old = rig.parts().kill(part).unwrap();
            wait("another one", || {
                let now = [rig.parts().keepers(), rig.parts().daemons()].concat();
                now.len() == 2 && !now.contains(&old) && rig.status()["keeper"]["can_succeed"] == true
            });
            assert!(lines(&rig).iter().all(|line| !line.contains("SESAME")), "{:?}", lines(&rig));
        }
        // An outage and a recovery, with their hooks.
        rig.signal_sshfs(Signal::SIGKILL);
        wait("it is repaired", || rig.status()["generation"].as_u64() > Some(1) && rig.status()["state"] == "live");
        let hot = rig.hot.to_str().unwrap();
        for arguments in [&["status", hot][..], &["status", "--json", hot]] {
            let said = rig.steadfs(arguments).output().unwrap();
            assert!(!String::from_utf8_lossy(&said.stdout).contains("SESAME"), "{said:?}");
        }
        let own = std::fs::read_dir(rig.path("run")).unwrap().next().unwrap().unwrap().path().join("log");
        let log = rig.log() + &std::fs::read_to_string(own).unwrap_or_default();
        assert!(!log.contains("SESAME"), "{log}");
        if background {
            assert!(rig.steadfs(&["umount", hot]).status().unwrap().success());
        } else {
            rig.end();
        }
    }
}
