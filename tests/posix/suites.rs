//! The suites, and how each is run in a directory.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::outcome::{Cases, Outcome, read_lines, read_pjdfstest};
use crate::site::{Site, Target};

/// Whose tests run without root: nobody's, of every Debian.
const NOBODY: &str = "65534";
/// Longer than a program takes that is not stuck.
const LIMIT: Duration = Duration::from_secs(480);

/// A suite of tests.
pub struct Suite {
    pub name: &'static str,
    /// True if it needs nothing but what is in this directory and is done in seconds.
    pub is_quick: bool,
    as_root: bool,
    how: fn(&Job) -> Cases,
}

/// One run of a suite.
struct Job<'a> {
    /// Fresh and empty, on the target, and owned by who runs the suite.
    directory: PathBuf,
    /// Outside of the targets.
    scratch: &'a Path,
    output: PathBuf,
    as_root: bool,
    /// After so many seconds a time is another one: SFTP has whole ones.
    moment: &'static str,
}

pub fn all() -> Vec<Suite> {
    let suite = |name, how: fn(&Job) -> Cases| Suite { name, is_quick: false, as_root: true, how };
    vec![
        Suite { is_quick: true, ..suite("calls", calls) },
        suite("pjdfstest", pjdfstest),
        Suite { as_root: false, ..suite("pjdfstest-user", pjdfstest) },
        suite("fsx", fsx),
        suite("python", python),
        Suite { as_root: false, ..suite("python-user", python) },
        suite("git", |job| script(job, "git.sh")),
        suite("sqlite", |job| script(job, "sqlite.py")),
        suite("fio", fio),
        suite("dbench", dbench),
        suite("stress-ng", stress_ng),
    ]
}

impl Suite {
    /// Runs it on a target. What it prints goes to a file in `results`.
    pub fn run(&self, site: &Site, target: &Target, results: &Path) -> Cases {
        let directory = target.path.join(&self.name[..1]);
        // Of one that left something behind.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        if !self.as_root {
            let id = NOBODY.parse().ok();
            // What is shown of an sshfs is the server's: this may fail there or change nothing.
            let _ = std::os::unix::fs::chown(&directory, id, id);
        }
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let output = results.join(format!("{}.{}.log", self.name, target.name));
        let moment = if target.name.contains("sshfs") { "1.1" } else { "0.02" };
        let job = Job { directory, scratch: site.lab.directory(), output, as_root: self.as_root, moment };
        let cases = (self.how)(&job);
        // Not all of them tidy up.
        let _ = std::fs::remove_dir_all(&job.directory);
        cases
    }
}

/// How a program ended.
struct Ended {
    /// Absent if a signal ended it, or it had to be killed.
    code: Option<i32>,
    said: String,
}

impl Job<'_> {
    /// A program of whoever runs the suite.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = if self.as_root {
            Command::new(program.as_ref())
        } else {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program.as_ref());
            command
        };
        command.current_dir(&self.directory).env("TMPDIR", &self.directory).env("HOME", &self.directory);
        command.env("LC_ALL", "C.UTF-8").env("NO_COLOR", "1");
        command
    }

    /// Runs a program for no longer than this. One that does not even die when it is killed is left alone.
    fn ended(&self, command: &mut Command, limit: Duration) -> Ended {
        let mut output = File::options().create(true).append(true).read(true).open(&self.output).unwrap();
        let before = output.metadata().unwrap().len();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
        let mut child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let until = Instant::now() + limit;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() >= until => {
                    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        use std::io::{Read, Seek, SeekFrom};
        let mut said = Vec::new();
        output.seek(SeekFrom::Start(before)).unwrap();
        output.read_to_end(&mut said).unwrap();
        Ended { code: status.and_then(|status| status.code()), said: String::from_utf8_lossy(&said).into_owned() }
    }
}

/// A program whose exit code is all that counts.
fn verdict(ended: &Ended) -> Outcome {
    match ended.code {
        Some(0) => Outcome::Pass,
        code => {
            let last = ended.said.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect::<Vec<_>>();
            Outcome::Fail(format!("{code:?}: {}", last.into_iter().rev().collect::<Vec<_>>().join("; ")))
        }
    }
}

/// The case that says that a suite came to its end.
fn end(cases: &mut Cases, ended: &Ended, is_good: bool) {
    cases.insert("(its end)".into(), if is_good { Outcome::Pass } else { verdict(ended) });
}

/// A file of this directory.
fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/posix").join(file)
}

/// A program that `make posix` has installed.
fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/posix/tools/bin").join(name)
}

fn interpreted(job: &Job, file: &str) -> Command {
    // Others than root need not get at the sources.
    let copy = job.scratch.join(file);
    std::fs::copy(here(file), &copy).unwrap();
    std::fs::set_permissions(&copy, Permissions::from_mode(0o644)).unwrap();
    let interpreter = if file.ends_with(".py") { "/usr/bin/python3" } else { "/bin/sh" };
    let mut command = job.command(interpreter);
    command.arg(copy).arg(&job.directory);
    command
}

fn script(job: &Job, file: &str) -> Cases {
    let ended = job.ended(&mut interpreted(job, file), LIMIT);
    let mut cases = read_lines(&ended.said);
    end(&mut cases, &ended, ended.code == Some(0));
    cases
}

fn calls(job: &Job) -> Cases {
    script(job, "calls.py")
}

fn pjdfstest(job: &Job) -> Cases {
    let config = job.scratch.join("pjdfstest.toml");
    let text = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\n\
                [settings]\nnaptime = NAP\n\n[dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    std::fs::write(&config, text.replace("NAP", job.moment)).unwrap();
    std::fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
    let program = job.scratch.join("pjdfstest");
    std::fs::copy(tool("pjdfstest"), &program).unwrap();
    let mut command = job.command(program);
    command.arg("-c").arg(&config).arg("-p").arg(&job.directory).args(["-s", "/dev/shm"]);
    let ended = job.ended(&mut command, LIMIT);
    let mut cases = read_pjdfstest(&ended.said);
    let is_whole = ended.said.contains("Summary:");
    end(&mut cases, &ended, is_whole);
    cases
}

fn fsx(job: &Job) -> Cases {
    // By what each may be refused for: over SFTP there are no holes.
    let mixes = [
        (
            "basic",
            "read = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\nclose_open = 1\nfsync = 1\nfdatasync = 1\ninvalidate = 1\n",
        ),
        ("sent", "sendfile = 5\nposix_fadvise = 1\nclose_open = 1\n"),
        ("allocated", "posix_fallocate = 5\n"),
        ("holes", "punch_hole = 5\n"),
        ("copied", "copy_file_range = 5\n"),
        (
            "all",
            "sendfile = 2\nposix_fadvise = 1\nclose_open = 1\nposix_fallocate = 2\npunch_hole = 2\ncopy_file_range = 2\nfsync = 1\ninvalidate = 1\n",
        ),
    ];
    let mut cases = Cases::new();
    for (name, weights) in mixes {
        let config = job.scratch.join("fsx.toml");
        std::fs::write(&config, format!("[weights]\n{weights}")).unwrap();
        for seed in ["1", "2"] {
            let file = job.directory.join(format!("{name}-{seed}"));
            let mut command = job.command(tool("fsx"));
            command.arg("-f").arg(&config).args(["-N", "1500", "-S", seed, "-P"]).arg(job.scratch).arg(&file);
            let ended = job.ended(&mut command, LIMIT);
            cases.insert(format!("{name}, seed {seed}"), verdict(&ended));
        }
    }
    cases
}

/// Modules of Python's own tests that are about files.
const MODULES: [&str; 27] = [
    "test_os",
    "test_posix",
    "test_shutil",
    "test_tempfile",
    "test_pathlib",
    "test_glob",
    "test_fcntl",
    "test_mmap",
    "test_fileio",
    "test_file",
    "test_stat",
    "test_genericpath",
    "test_posixpath",
    "test_filecmp",
    "test_fileinput",
    "test_tarfile",
    "test_gzip",
    "test_mailbox",
    "test_dbm",
    "test_dbm_dumb",
    "test_dbm_gnu",
    "test_dbm_ndbm",
    "test_shelve",
    "test_sqlite3",
    "test_unicode_file",
    "test_unicode_file_functions",
    "test_py_compile",
];

fn python(job: &Job) -> Cases {
    let mut cases = Cases::new();
    // Without root it is about permissions, and only some modules know any.
    let modules = if job.as_root { &MODULES[..] } else { &MODULES[..6] };
    for module in modules {
        let mut command = interpreted(job, "python_suite.py");
        let ended = job.ended(command.arg(module), LIMIT);
        cases.extend(read_lines(&ended.said).into_iter().map(|(case, outcome)| (format!("{module}: {case}"), outcome)));
        cases.insert(format!("{module}: (its end)"), verdict(&ended));
    }
    cases
}

fn fio(job: &Job) -> Cases {
    let jobs: [(&str, &[&str]); 6] = [
        ("psync", &["--ioengine=psync", "--rw=randwrite"]),
        ("psync direct", &["--ioengine=psync", "--direct=1", "--rw=randwrite"]),
        ("mmap", &["--ioengine=mmap", "--rw=randwrite", "--bs=4k"]),
        ("libaio direct", &["--ioengine=libaio", "--iodepth=16", "--direct=1", "--rw=randwrite"]),
        ("io_uring", &["--ioengine=io_uring", "--iodepth=16", "--rw=randwrite"]),
        ("append, synchronous", &["--ioengine=psync", "--rw=write", "--sync=1", "--file_append=1", "--size=1m"]),
    ];
    let mut cases = Cases::new();
    for (name, arguments) in jobs {
        let mut command = job.command("fio");
        command.args(["--name=verify", "--size=8m", "--bs=8k", "--numjobs=2", "--verify=crc32c", "--verify_fatal=1"]);
        command.args(["--do_verify=1", "--verify_state_save=0", "--minimal", "--fallocate=none"]).args(arguments);
        command.arg(format!("--directory={}", job.directory.display()));
        cases.insert(name.into(), verdict(&job.ended(&mut command, LIMIT)));
    }
    cases
}

fn dbench(job: &Job) -> Cases {
    let mut command = job.command("dbench");
    command.args(["-t", "8", "-D"]).arg(&job.directory).arg("4");
    let ended = job.ended(&mut command, LIMIT);
    // Its clients complain and it ends well all the same.
    let complaint = ended.said.lines().find(|line| line.contains("ERROR") || line.contains("failed"));
    let outcome = complaint.map_or_else(|| verdict(&ended), |line| Outcome::Fail(line.to_owned()));
    Cases::from([("four clients".to_owned(), outcome)])
}

/// Of its filesystem class, what is about the filesystem that it runs in.
const STRESSORS: &str = "access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fanotify \
    fcntl fiemap file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka \
    lockf lockofd mknod mmap msync mmapaddr open readahead rename revio seek sendfile symlink sync-file touch utime verity \
    xattr";

fn stress_ng(job: &Job) -> Cases {
    let mut cases = Cases::new();
    for stressor in STRESSORS.split_whitespace() {
        let mut command = job.command("stress-ng");
        command.arg(format!("--{stressor}")).args(["1", "-t", "1", "--verify", "--temp-path"]).arg(&job.directory);
        // So that no more memory or space is used than there is in any target.
        command.args([
            "--hdd-bytes",
            "16m",
            "--iomix-bytes",
            "16m",
            "--fallocate-bytes",
            "16m",
            "--dirdeep-bytes",
            "16m",
            "--chdir-dirs",
            "256",
        ]);
        let ended = job.ended(&mut command, Duration::from_secs(40));
        // stress-ng(1): what the exit codes mean.
        let outcome = match ended.code {
            Some(3 | 4) => Outcome::Skip("no resources, or not there".into()),
            _ if ended.said.contains("unrecognized option") => continue,
            _ => match ended.said.lines().find(|line| line.contains("fail:")) {
                Some(line) => Outcome::Fail(line.to_owned()),
                None => verdict(&ended),
            },
        };
        cases.insert(stressor.into(), outcome);
    }
    cases
}
