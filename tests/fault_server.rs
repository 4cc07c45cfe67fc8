//! The server's processes die or freeze, or the server is away for a while.

mod lab;

use lab::scenario::{Fault, survive, wait_for_successor};

lab::also_runs_as!(agent_process: lab::agents::main);

#[test]
fn server_session_killed() {
    let outcome = survive("server session killed", 1.0, |lab| {
        let fault = Fault::once(|| lab.sshd.kill_sessions());
        wait_for_successor(lab, 1);
        fault
    });
    outcome.was_invisible();
}

#[test]
fn sftp_server_frozen() {
    // The link is well and the server might be busy with an fsync, so it is given the time of one: 6 s and a repair.
    let outcome = survive("sftp-server frozen", 7.5 / 1.5, |lab| {
        let fault = Fault::once(|| lab.sshd.freeze_sftp());
        wait_for_successor(lab, 1);
        fault
    });
    let (errors, sync_errors) = outcome.errors();
    let strange: Vec<_> =
        errors.iter().filter(|call| !matches!(call.errno, libc::ENOTCONN | libc::ETIMEDOUT)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(sync_errors.len() <= 2, "{sync_errors:?}");
}

#[test]
fn server_restarted_after_ten_seconds() {
    let outcome = survive("server away for 10 s", 2.0, |lab| {
        let began = lab::agent::now();
        lab.sshd.stop();
        lab::sleep_secs(10.0);
        lab.sshd.begin();
        Fault { began, healed: lab::agent::now() }
    });
    outcome.failed_fast();
}
