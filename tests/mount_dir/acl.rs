//! POSIX ACLs of the backing (acl(5)): kept, inherited, and obeyed. Written as the kernel's own format, so that no tool is needed.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// include/uapi/linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry, little-endian.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;

/// rwx for the owner, `user` as given, nothing for the others.
fn with_user(user: u32, permissions: u16) -> Vec<u8> {
    acl(&[
        (USER_OBJ, 7, NOBODY),
        (USER, permissions, user),
        (GROUP_OBJ, 0, NOBODY),
        (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    ])
}

fn set(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both names end with NUL, and the value is as long as is said.
    match unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    let mut value = vec![0; 1024];
    // SAFETY: as above; the buffer is as long as is said.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

fn run_as(rig: &Rig, user: u32, script: &str) -> bool {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(rig.mountpoint()).uid(user).gid(user);
    command.output().expect("sh runs").status.success()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn an_acl_is_kept_and_obeyed() {
    let rig = Rig::new(LOCAL);
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(rig.hot("f"), "text").unwrap();
    std::fs::set_permissions(rig.hot("f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(!run_as(&rig, 4321, "cat f") && !run_as(&rig, 4322, "cat f"));
    set(&rig.hot("f"), ACCESS, &with_user(4321, 4)).unwrap();
    assert_eq!(get(&rig.cold("f"), ACCESS), Some(with_user(4321, 4)), "the backing has it");
    assert_eq!(get(&rig.hot("f"), ACCESS), Some(with_user(4321, 4)));
    assert!(run_as(&rig, 4321, "cat f") && !run_as(&rig, 4321, ": >> f") && !run_as(&rig, 4322, "cat f"));
    // chmod(2) of the group's bits is one of the mask.
    std::fs::set_permissions(rig.hot("f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(!run_as(&rig, 4321, "cat f"));
    assert_eq!(mode(&rig.cold("f")), 0o600);
    // Somebody who may write it because of an ACL.
    set(&rig.hot("f"), ACCESS, &with_user(4321, 6)).unwrap();
    assert!(run_as(&rig, 4321, "echo more >> f"));
    assert_eq!(mode(&rig.hot("f")), mode(&rig.cold("f")));
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let rig = Rig::new(LOCAL);
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["twin", "plain"] {
        std::fs::create_dir(rig.hot(name)).unwrap();
        std::os::unix::fs::chown(rig.hot(name), Some(4321), Some(4321)).unwrap();
    }
    set(&rig.hot("twin"), DEFAULT, &with_user(4322, 6)).unwrap();
    let script = "umask 077; : > f; mkdir d; mkfifo p; ln -s x l";
    assert!(run_as(&rig, 4321, &format!("cd twin && {{ {script}; }}")));
    assert!(run_as(&rig, 4321, &format!("cd plain && {{ {script}; }}")));
    // What the backing's own filesystem makes of the same calls.
    let own = rig.cold("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(4321), Some(4321)).unwrap();
    set(&own, DEFAULT, &with_user(4322, 6)).unwrap();
    std::fs::set_permissions(rig.cold(""), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(&own).uid(4321).gid(4321);
    assert!(command.status().unwrap().success());
    for name in ["f", "d", "p", "l"] {
        let (made, expected) = (rig.cold("twin").join(name), own.join(name));
        assert_eq!(mode(&made), mode(&expected), "{name}");
        for acl in [ACCESS, DEFAULT] {
            assert_eq!(get(&made, acl).filter(|_| name != "l"), get(&expected, acl).filter(|_| name != "l"), "{name}");
        }
        assert_eq!(std::fs::symlink_metadata(made).unwrap().uid(), 4321);
    }
    assert!(run_as(&rig, 4322, "cat twin/f") && !run_as(&rig, 4323, "cat twin/f"));
    assert_eq!((mode(&rig.cold("plain/f")), mode(&rig.cold("plain/d"))), (0o600, 0o700));
}

#[test]
fn a_backing_without_acls_lets_everybody_pass_by_permissions() {
    // NFS version 4, FAT, ZFS with acltype=off.
    let rig = Rig::new(LOCAL);
    rig.control().inject(Fault::new(What::Errno(Errno::EOPNOTSUPP)).on(&[Call::GetXattr, Call::SetXattr]));
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::write(rig.hot("d/f"), "text").unwrap();
    std::fs::set_permissions(rig.hot("d"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::set_permissions(rig.hot("d/f"), PermissionsExt::from_mode(0o664)).unwrap();
    std::os::unix::fs::chown(rig.hot("d"), Some(4321), Some(4322)).unwrap();
    std::os::unix::fs::chown(rig.hot("d/f"), Some(4321), Some(4322)).unwrap();
    assert!(run_as(&rig, 4322, "cat d/f && echo x >> d/f"), "by the group");
    assert!(!run_as(&rig, 4323, "cat d/f"));
    assert_eq!(std::fs::read(rig.hot("d/f")).unwrap(), b"textx\n", "by root");
    assert!(run_as(&rig, 4321, "umask 077; : > d/g; mkdir d/e"));
    assert_eq!((mode(&rig.cold("d/g")), mode(&rig.cold("d/e"))), (0o600, 0o700));
    let refused = set(&rig.hot("d/f"), ACCESS, &with_user(4321, 6));
    assert_eq!(refused.map_err(|error| error.raw_os_error()), Err(Some(libc::EOPNOTSUPP)));
}

#[test]
fn system_attributes_are_set_for_nobody() {
    let rig = Rig::new(LOCAL);
    std::fs::write(rig.hot("f"), "text").unwrap();
    for name in ["system.nfs4_acl", "system.other"] {
        let refused = set(&rig.hot("f"), name, b"x").map_err(|error| error.raw_os_error());
        assert_eq!(refused, Err(Some(libc::EOPNOTSUPP)), "{name}");
    }
    assert_eq!(rig.control().calls(Call::SetXattr), 0);
}

#[test]
fn where_owners_or_permissions_are_shown_otherwise_acls_do_not_count() {
    let rig = Rig::with(LOCAL, PATIENCE, |config| config.umask = Some(0o040));
    std::fs::set_permissions(rig.cold(""), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(rig.cold("f"), "text").unwrap();
    set(&rig.cold("f"), ACCESS, &with_user(4321, 4)).unwrap();
    assert!(!run_as(&rig, 4321, "cat f"));
}

#[test]
fn a_umask_counts_where_there_are_no_acls() {
    let rig = Rig::new(SSHFS);
    let made = Command::new("sh").arg("-c").arg("umask 027; : > f; mkdir d").current_dir(rig.mountpoint()).status();
    assert!(made.unwrap().success());
    assert_eq!((mode(&rig.cold("f")), mode(&rig.cold("d"))), (0o640, 0o750));
}
