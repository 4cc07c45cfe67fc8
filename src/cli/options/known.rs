//! Names that are not steadfs's own: those of mount(8), of the kernel's mount flags, of sshfs and of ssh.

/// Options of mount(8) and fstab(5) that mean nothing to a mount helper.
pub const MOUNT: [&str; 21] = [
    "_netdev", "auto", "comment", "defaults", "fail", "group", "helper", "loud", "noauto", "nofail", "nogroup",
    "noowner", "nouser", "nousers", "owner", "silent", "uhelper", "user", "users", "_rnetdev", "nosilent",
];

/// Per-mount flags of the kernel by their names in mount(8); `ro` and `rw` are steadfs's own.
pub const FLAGS: [&str; 21] = [
    "async",
    "atime",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "lazytime",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "relatime",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
];

/// What steadfs does with an option of sshfs or libfuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Handed on; it takes no value.
    Flag,
    /// Handed on; it needs a value.
    Value,
    /// Handed on; the value is a number, octal if the second is 8.
    Number(u32),
    /// Accepted and not handed on, for the reason given.
    Drop(&'static str),
    /// Rejected, with the remedy given.
    Reject(&'static str),
}

use Fate::{Drop, Flag, Number, Reject, Value};

const CACHE: &str = "the overlay caches for itself";
const REPAIR: &str = "steadfs repairs its backing by itself";
const ACCESS: &str = "the overlay always checks permissions itself";
const SESSION: &str = "it would break the sftp session: remove it";

/// sshfs's and libfuse's options (sshfs(1) of 3.7.3, mount.fuse3(8) of 3.14).
pub const SSHFS: [(&str, Fate); 71] = [
    ("ac_attr_timeout", Drop(CACHE)),
    ("allow_root", Reject("give allow_other, or leave it out")),
    ("auto_cache", Drop(CACHE)),
    ("auto_unmount", Drop("steadfs unmounts by itself")),
    ("blksize", Reject("it is for block devices: remove it")),
    ("cache", Value),
    ("cache_clean_interval", Number(10)),
    ("cache_dir_timeout", Number(10)),
    ("cache_link_timeout", Number(10)),
    ("cache_max_size", Number(10)),
    ("cache_min_clean_interval", Number(10)),
    ("cache_stat_timeout", Number(10)),
    ("cache_timeout", Number(10)),
    ("clone_fd", Drop("it makes no difference here")),
    ("contain_symlinks", Flag),
    ("dcache_clean_interval", Number(10)),
    ("dcache_dir_timeout", Number(10)),
    ("dcache_link_timeout", Number(10)),
    ("dcache_max_size", Number(10)),
    ("dcache_min_clean_interval", Number(10)),
    ("dcache_stat_timeout", Number(10)),
    ("dcache_timeout", Number(10)),
    ("debug", Drop("give -d, or STEADFS_LOG=debug")),
    ("default_permissions", Drop(ACCESS)),
    ("delay_connect", Drop(REPAIR)),
    ("dir_cache", Value),
    ("direct_io", Flag),
    ("directport", Value),
    ("disable_hardlink", Flag),
    ("follow_symlinks", Flag),
    ("from_code", Value),
    ("fscontext", Reject("it is not supported: remove it")),
    ("gid", Number(10)),
    ("gidfile", Value),
    ("idmap", Value),
    ("kernel_cache", Drop(CACHE)),
    ("large_read", Drop("the kernel decides")),
    ("max_conns", Reject("steadfs watches one ssh connection, and providers count them: remove it")),
    ("max_read", Number(10)),
    ("max_write", Number(10)),
    ("modules", Value),
    ("negative_timeout", Drop(CACHE)),
    ("no_auto_inval_data", Drop(CACHE)),
    ("no_check_root", Flag),
    ("no_contain_symlinks", Flag),
    ("no_readahead", Flag),
    ("no_rofd_flush", Flag),
    ("noauto_cache", Drop(CACHE)),
    ("noforget", Drop("steadfs forgets inodes only when the kernel does")),
    ("nomap", Value),
    ("norellinks", Flag),
    ("passive", Reject("steadfs has no connection on its standard input: remove it")),
    ("password_stdin", Reject("steadfs logs in again after an outage with nobody there to ask: use a key")),
    ("port", Value),
    ("reconnect", Drop(REPAIR)),
    ("rellinks", Flag),
    ("remember", Drop("steadfs forgets inodes only when the kernel does")),
    ("sftp_server", Value),
    ("slave", Reject("steadfs has no connection on its standard input: remove it")),
    ("ssh_command", Value),
    ("ssh_protocol", Number(10)),
    ("sshfs_debug", Drop("give -d, or STEADFS_LOG=debug")),
    ("sshfs_sync", Flag),
    ("subdir", Value),
    ("sync_readdir", Flag),
    ("to_code", Value),
    ("transform_symlinks", Flag),
    ("uid", Number(10)),
    ("uidfile", Value),
    ("umask", Number(8)),
    ("workaround", Value),
];

/// Options of ssh that sshfs hands on by itself (`ssh_opts` of sshfs 3.7.3), in ssh's spelling.
const HANDED_ON: [&str; 57] = [
    "AddressFamily",
    "BatchMode",
    "BindAddress",
    "BindInterface",
    "CertificateFile",
    "CheckHostIP",
    "Cipher",
    "Ciphers",
    "Compression",
    "CompressionLevel",
    "ConnectionAttempts",
    "ConnectTimeout",
    "ControlMaster",
    "ControlPath",
    "ControlPersist",
    "FingerprintHash",
    "GlobalKnownHostsFile",
    "GSSAPIAuthentication",
    "GSSAPIDelegateCredentials",
    "HostbasedAuthentication",
    "HostbasedKeyTypes",
    "HostKeyAlgorithms",
    "HostKeyAlias",
    "HostName",
    "IdentitiesOnly",
    "IdentityAgent",
    "IdentityFile",
    "IPQoS",
    "KbdInteractiveAuthentication",
    "KbdInteractiveDevices",
    "KexAlgorithms",
    "LogLevel",
    "MACs",
    "NumberOfPasswordPrompts",
    "PasswordAuthentication",
    "PermitLocalCommand",
    "PKCS11Provider",
    "PreferredAuthentications",
    "ProxyCommand",
    "ProxyJump",
    "ProxyUseFdpass",
    "PubkeyAcceptedKeyTypes",
    "PubkeyAuthentication",
    "RekeyLimit",
    "RevokedHostKeys",
    "RhostsRSAAuthentication",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "SmartcardDevice",
    "StrictHostKeyChecking",
    "TCPKeepAlive",
    "UpdateHostKeys",
    "UsePrivilegedPort",
    "UserKnownHostsFile",
    "VerifyHostKeyDNS",
    "VisualHostKey",
    "Port",
];

/// Options of ssh that sshfs 3.7.3 does not know (ssh_config(5) up to OpenSSH 10).
const SSH_ONLY: [&str; 57] = [
    "AddKeysToAgent",
    "CanonicalDomains",
    "CanonicalizeFallbackLocal",
    "CanonicalizeHostname",
    "CanonicalizeMaxDots",
    "CanonicalizePermittedCNAMEs",
    "CASignatureAlgorithms",
    "ChallengeResponseAuthentication",
    "ChannelTimeout",
    "DSAAuthentication",
    "DynamicForward",
    "EnableEscapeCommandline",
    "EnableSSHKeysign",
    "EscapeChar",
    "ExitOnForwardFailure",
    "ForwardAgent",
    "ForwardX11",
    "ForwardX11Timeout",
    "ForwardX11Trusted",
    "GatewayPorts",
    "GSSAPIClientIdentity",
    "GSSAPIKexAlgorithms",
    "GSSAPIKeyExchange",
    "GSSAPIRenewalForcesRekey",
    "GSSAPIServerIdentity",
    "GSSAPITrustDns",
    "HashKnownHosts",
    "HostbasedAcceptedAlgorithms",
    "IgnoreUnknown",
    "KnownHostsCommand",
    "LocalCommand",
    "LocalForward",
    "LogVerbose",
    "NoHostAuthenticationForLocalhost",
    "ObscureKeystrokeTiming",
    "PermitRemoteOpen",
    "PubkeyAcceptedAlgorithms",
    "RemoteForward",
    "RequiredRSASize",
    "SecurityKeyProvider",
    "SendEnv",
    "SetEnv",
    "StreamLocalBindMask",
    "StreamLocalBindUnlink",
    "SyslogFacility",
    "Tag",
    "Tunnel",
    "TunnelDevice",
    "User",
    "WarnWeakCrypto",
    "XAuthLocation",
    "RefuseConnection",
    // What follows would break the session; see `SESSION`.
    "ForkAfterAuthentication",
    "RemoteCommand",
    "RequestTTY",
    "SessionType",
    "StdinNull",
];

const BREAKING: [&str; 5] = ["ForkAfterAuthentication", "RemoteCommand", "RequestTTY", "SessionType", "StdinNull"];

/// Options of ssh that may be given more than once and add up (ssh_config(5)).
const ACCUMULATE: [&str; 7] =
    ["CertificateFile", "DynamicForward", "IdentityFile", "LocalForward", "RemoteForward", "SendEnv", "SetEnv"];

/// An option of ssh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshOption {
    /// In ssh's own spelling.
    pub name: &'static str,
    /// sshfs hands it on; otherwise it has to go into the ssh command.
    pub handed_on: bool,
    /// Why it cannot be used, if so.
    pub rejected: Option<&'static str>,
}

/// What sshfs or libfuse calls `name`.
pub fn sshfs(name: &str) -> Option<Fate> {
    SSHFS.iter().find(|(known, _)| *known == name).map(|(_, fate)| *fate)
}

/// The option of ssh of that name, whatever its case.
pub fn ssh(name: &str) -> Option<SshOption> {
    let find = |names: &'static [&'static str]| names.iter().find(|known| known.eq_ignore_ascii_case(name)).copied();
    let (name, handed_on) = match find(&HANDED_ON) {
        Some(name) => (name, true),
        None => (find(&SSH_ONLY)?, false),
    };
    Some(SshOption { name, handed_on, rejected: BREAKING.contains(&name).then_some(SESSION) })
}

/// True for an option of ssh of which each value counts, in ssh's spelling.
pub fn accumulates(name: &str) -> bool {
    ACCUMULATE.contains(&name)
}

/// Names of options that sshfs or ssh has and that are refused.
pub fn refused() -> impl Iterator<Item = &'static str> {
    SSHFS.iter().filter(|(_, fate)| matches!(fate, Reject(_))).map(|(name, _)| *name).chain(BREAKING)
}

/// True for an option of mount(8) or fstab(5) that is to be ignored.
pub fn ignored(name: &str) -> bool {
    MOUNT.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

/// All names, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    let flags = FLAGS.iter().chain(&MOUNT).copied();
    let sshfs = SSHFS.iter().filter(|(_, fate)| !matches!(fate, Reject(_))).map(|(name, _)| *name);
    flags.chain(sshfs).chain(HANDED_ON).chain(SSH_ONLY.iter().copied().filter(|name| !BREAKING.contains(name)))
}

/// Those of sshfs and ssh that may be given.
pub fn handed_on() -> impl Iterator<Item = &'static str> {
    names().skip(FLAGS.len() + MOUNT.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_listed_twice() {
        let mut all: Vec<&str> = FLAGS
            .iter()
            .chain(&MOUNT)
            .chain(&HANDED_ON)
            .chain(&SSH_ONLY)
            .chain(SSHFS.iter().map(|(name, _)| name))
            .copied()
            .collect();
        all.sort_unstable();
        let before = all.len();
        all.dedup();
        assert_eq!(all.len(), before);
    }

    #[test]
    fn ssh_names_ignore_case() {
        assert_eq!(ssh("serveraliveinterval").map(|option| option.name), Some("ServerAliveInterval"));
        assert_eq!(ssh("setenv").map(|option| option.handed_on), Some(false));
        assert_eq!(ssh("Host"), None);
    }
}
