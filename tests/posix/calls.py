"""Makes calls in a directory and says what came of each, for comparison with the same calls elsewhere.

A line is `said GROUP, CALL: RESULT`. Results do not depend on where or when: no times, inode numbers or devices."""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import pickle
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
USER, OTHER = 65534, 1
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
LONG_AGO = 1_000_000_000
group = ""


def checked(result):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def result_of(call):
    try:
        value = call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:  # an answer too, though not one that was expected
        return f"{type(error).__name__}({error})"
    return "0" if value is None else str(value).replace("\n", " ")


def say(name, call):
    words = result_of(call) if callable(call) else str(call)
    print(f"said {group}, {name}: {words}", flush=True)


def as_user(call, uid=USER, gid=USER, groups=(), umask=None):
    """Does it in a process of somebody else."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if uid:
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            if umask is not None:
                os.umask(umask)
            os.write(writer, pickle.dumps(result_of(call)))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else "died"


def fill(path, data=b"data", mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    return path


def content(path):
    with open(path, "rb") as file:
        return file.read()


def mode(path):
    return oct(os.lstat(path).st_mode & 0o7777)


def opened(path, flags, permissions=0o644):
    os.close(os.open(path, flags, permissions))


def kind(path):
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return "nothing"
    return f"{stat.filemode(found.st_mode)[0]}{found.st_size if stat.S_ISREG(found.st_mode) else ''}"


KINDS = ("nothing", "file", "directory", "full", "link", "dangling", "loop", "tolink", "fifo", "socket")


def make(what, path):
    if what == "file":
        fill(path)
    elif what == "directory":
        os.mkdir(path)
    elif what == "full":
        os.mkdir(path)
        fill(f"{path}/inner")
    elif what == "link":
        fill(f"{path}.aim")
        os.symlink(os.path.basename(path) + ".aim", path)
    elif what == "tolink":
        os.mkdir(f"{path}.aim")
        os.symlink(os.path.basename(path) + ".aim", path)
    elif what == "dangling":
        os.symlink("nowhere", path)
    elif what == "loop":
        os.symlink(os.path.basename(path), path)
    elif what in ("fifo", "socket"):
        try:
            os.mknod(path, (stat.S_IFIFO if what == "fifo" else stat.S_IFSOCK) | 0o644)
        except PermissionError:
            pass  # over SFTP there are none, and what follows is done on nothing


def each_kind():
    for number, what in enumerate(KINDS):
        path = f"k{number}"
        yield what, path


def gone(path):
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    except OSError as error:
        print(f"# {group}: {path} stays: {error}")


def cleared():
    for entry in os.listdir("."):
        gone(entry)


def renameat2(old, new, flags):
    checked(libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags))


def fallocate(fd, how, offset, length):
    checked(libc.fallocate(fd, how, ctypes.c_long(offset), ctypes.c_long(length)))


def set_times(path, atime, mtime, flags=0):
    """Each is (seconds, nanoseconds)."""
    times = struct.pack("qqqq", *atime, *mtime)
    checked(libc.utimensat(-100, os.fsencode(path), times, flags))


# ---- names ---------------------------------------------------------------------------------------------------------------


def lengths():
    for length in (1, 254, 255, 256):
        name = "n" * length
        say(f"create, {length} bytes", lambda: opened(name, os.O_CREAT | os.O_EXCL | os.O_RDWR))
        say(f"stat, {length} bytes", lambda: kind(name))
        say(f"mkdir, {length} bytes", lambda: os.mkdir("d" * length))
        say(f"symlink, {length} bytes", lambda: os.symlink("x", "s" * length))
        say(f"mkfifo, {length} bytes", lambda: os.mkfifo("f" * length))
        say(f"link, {length} bytes", lambda: os.link("n", "l" * length))
        say(f"rename, {length} bytes", lambda: os.rename("n" * min(length, 255), "r" * length))
        say(f"unlink, {length} bytes", lambda: os.unlink("l" * length))
        say(f"rmdir, {length} bytes", lambda: os.rmdir("d" * length))
        fill("n")
    top = os.getcwd()
    for total in (4094, 4095, 4096):
        path, name = ".", "p" * 200
        while len(path) + 201 < total - 210:
            path += "/" + name
        os.makedirs(path, exist_ok=True)
        file = path + "/" + "q" * min(255, total - len(path) - 1)
        file += "/." * ((total - len(file)) // 2) if len(file) < total else ""
        file = file[:total]
        say(f"stat of a path of {total} bytes", lambda: os.stat(file))
        say(f"create by a path of {total} bytes", lambda: opened(file, os.O_CREAT | os.O_RDWR))
    path = []
    for number in range(30):
        os.mkdir("e" * 200)
        os.chdir("e" * 200)
    say("below 6000 bytes of path", lambda: (fill("f"), os.stat("f").st_size)[1])
    say("listed there", lambda: os.listdir("."))
    say("getcwd there", lambda: len(os.getcwd()) - len(top))
    os.chdir(top)
    say("removed from below", lambda: shutil.rmtree("e" * 200))


def bytes_in_names():
    names = [bytes([b, 0x78]) for b in range(1, 256) if b != 0x2F] + [b"a:b", b"a\\b", b"-rf", b" ", b"a.", b"...", b"a\n", b"\xff" * 255]
    for name in names:
        with open(name, "wb"):
            pass
    say("as many as were made", lambda: sorted(os.listdir(b".")) == sorted(names))
    say("which", lambda: [n for n in names if not os.path.exists(n)])
    say("renamed", lambda: [os.rename(n, b"z" + n[:200]) for n in names if n != b"z"] and None)
    say("as many as before", lambda: len(os.listdir(b".")))
    say("é in two forms", lambda: [opened(n, os.O_CREAT | os.O_EXCL) for n in ("\u00e9", "e\u0301")] and None)
    say("A and a", lambda: [opened(n, os.O_CREAT | os.O_EXCL) for n in ("Aa", "aA")] and None)


def slashes():
    fill("file")
    os.mkdir("dir")
    os.symlink("dir", "todir")
    os.symlink("file", "tofile")
    for name in ("", "/", "//", "/.", "/.."):
        for what in ("file", "dir", "todir", "tofile", "none"):
            path = what + name
            say(f"stat {path}", lambda: stat.filemode(os.stat(path).st_mode)[0])
            say(f"lstat {path}", lambda: stat.filemode(os.lstat(path).st_mode)[0])
            say(f"open {path}", lambda: opened(path, os.O_RDONLY))
            if name:
                for call, do in (
                    ("create", lambda: opened(path, os.O_CREAT | os.O_RDWR)),
                    ("create exclusively", lambda: opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)),
                    ("mkdir", lambda: os.mkdir(path)),
                    ("symlink", lambda: os.symlink("x", path)),
                    ("mkfifo", lambda: os.mkfifo(path)),
                    ("link", lambda: os.link("file", path)),
                    ("rename to", lambda: os.rename("file", path)),
                    ("rename from", lambda: os.rename(path, "elsewhere")),
                    ("unlink", lambda: os.unlink(path)),
                    ("rmdir", lambda: os.rmdir(path)),
                ):
                    say(f"{call} {path}", do)
                    for again in ("none", "elsewhere"):
                        if os.path.lexists(again):
                            os.rmdir(again) if os.path.isdir(again) and not os.path.islink(again) else os.unlink(again)
                    for again, anew in (("file", fill), ("dir", os.mkdir), ("todir", lambda p: os.symlink("dir", p)), ("tofile", lambda p: os.symlink("file", p))):
                        if not os.path.lexists(again):
                            anew(again)
    say("stat of nothing", lambda: os.stat(""))
    say("mkdir .", lambda: os.mkdir("."))
    say("rmdir .", lambda: os.rmdir("dir/."))
    say("rmdir ..", lambda: os.rmdir("dir/.."))
    say("unlink .", lambda: os.unlink("dir/."))
    say("rename .", lambda: os.rename("dir/.", "x"))
    say("rename to ..", lambda: os.rename("dir", "dir/.."))


# ---- calls on every kind of thing ----------------------------------------------------------------------------------------


def kinds_one():
    flags = {
        "read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT,
        "exclusive": os.O_RDWR | os.O_CREAT | os.O_EXCL, "truncate": os.O_RDWR | os.O_TRUNC, "read and truncate": os.O_TRUNC,
        "create and truncate": os.O_CREAT | os.O_TRUNC | os.O_WRONLY, "directory": os.O_DIRECTORY, "no follow": os.O_NOFOLLOW,
        "create, no follow": os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR, "path": os.O_PATH, "path of link": os.O_PATH | os.O_NOFOLLOW,
        "direct": os.O_RDONLY | os.O_DIRECT, "append": os.O_WRONLY | os.O_APPEND, "sync": os.O_RDWR | os.O_SYNC,
        "nameless": os.O_TMPFILE | os.O_RDWR, "nameless, read": os.O_TMPFILE, "create directory": os.O_CREAT | os.O_DIRECTORY,
        "no atime": os.O_RDONLY | os.O_NOATIME, "both bits": 3,
    }
    calls = {f"open, {name}": (lambda path, value=value: opened(path, value | os.O_NONBLOCK)) for name, value in flags.items()}
    calls |= {
        "mkdir": os.mkdir, "rmdir": os.rmdir, "unlink": os.unlink, "readlink": os.readlink, "mkfifo": os.mkfifo,
        "symlink": lambda p: os.symlink("x", p), "mknod": lambda p: os.mknod(p, stat.S_IFREG | 0o600),
        "device": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)), "chdir": lambda p: (os.chdir(p), os.chdir(top))[2:],
        "listdir": lambda p: os.listdir(p), "chmod": lambda p: os.chmod(p, 0o700), "chown": lambda p: os.chown(p, USER, USER),
        "lchown": lambda p: os.lchown(p, USER, USER), "truncate": lambda p: os.truncate(p, 2), "truncate longer": lambda p: os.truncate(p, 9),
        "utime": lambda p: os.utime(p, (1, 1)), "utime of link": lambda p: os.utime(p, (1, 1), follow_symlinks=False),
        "access": lambda p: os.access(p, os.R_OK), "statvfs": lambda p: os.statvfs(p).f_namemax,
        "getxattr": lambda p: os.getxattr(p, "user.a"), "setxattr": lambda p: os.setxattr(p, "user.a", b"1"),
        "setxattr of link": lambda p: os.setxattr(p, "user.a", b"1", follow_symlinks=False),
        "trusted xattr of link": lambda p: os.setxattr(p, "trusted.a", b"1", follow_symlinks=False),
        "listxattr": lambda p: os.listxattr(p), "removexattr": lambda p: os.removexattr(p, "user.none"),
        "below": lambda p: os.stat(p + "/inner").st_size, "create below": lambda p: opened(p + "/new", os.O_CREAT | os.O_RDWR),
        "link to": lambda p: os.link(p, "l"), "link of link": lambda p: os.link(p, "l", follow_symlinks=False),
        "link from": lambda p: os.link(fill("f"), p), "size": lambda p: kind(p), "links": lambda p: os.stat(p).st_nlink,
        "fchmodat of link": lambda p: checked(libc.syscall(452, -100, p.encode(), 0o600, 0x100)),
    }
    top = os.getcwd()
    for name, call in calls.items():
        for what, path in each_kind():
            make(what, path)
            say(f"{name}, {what}", lambda: call(path))
            say(f"{name}, {what}, then", lambda: (kind(path), mode(path) if os.path.lexists(path) and not os.path.islink(path) else ""))
            os.chdir(top)
            cleared()


def renames():
    for flags, (one, other) in itertools.product((0, 1, 2, 4, 3, 8), itertools.product(KINDS, KINDS)):
        if flags > 2 and (one, other) not in (("file", "file"), ("file", "nothing"), ("directory", "nothing")):
            continue
        make(one, "a")
        make(other, "b")
        say(f"flags {flags}, {one} to {other}", lambda: renameat2("a", "b", flags))
        say(f"flags {flags}, {one} to {other}, then", lambda: (kind("a"), kind("b"), sorted(os.listdir("."))))
        cleared()
    os.makedirs("a/b/c")
    fill("a/f")
    say("into itself", lambda: os.rename("a", "a/b/x"))
    say("onto its parent", lambda: os.rename("a/b", "a"))
    say("onto itself", lambda: os.rename("a", "a"))
    say("exchange with a child", lambda: renameat2("a", "a/b", 2))
    say("directory to another parent", lambda: (os.rename("a/b", "moved"), os.path.samefile("moved/..", "."))[1])
    os.link("a/f", "a/g")
    say("over a link of itself", lambda: (os.rename("a/f", "a/g"), sorted(os.listdir("a")))[1])
    say("keeps the inode", lambda: (lambda i: (os.rename("a/g", "h"), os.stat("h").st_ino == i)[1])(os.stat("a/g").st_ino))
    with open("open", "w+b", 0) as file:
        fill("over")
        os.rename("over", "open")
        say("over one that is open", lambda: (file.write(b"x"), os.fstat(file.fileno()).st_nlink, content("open")))
    with open("h", "r+b", 0) as file:
        os.rename("h", "i")
        say("one that is open", lambda: (file.write(b"12"), content("i"), os.fstat(file.fileno()).st_nlink))


# ---- owners and permissions ----------------------------------------------------------------------------------------------


def creation_modes():
    makers = {
        "open": lambda p, m: opened(p, os.O_CREAT | os.O_EXCL | os.O_RDWR, m), "mkdir": os.mkdir, "mkfifo": os.mkfifo,
        "mknod": lambda p, m: os.mknod(p, stat.S_IFREG | m), "socket": lambda p, m: os.mknod(p, stat.S_IFSOCK | m),
        "symlink": lambda p, m: os.symlink("x", p),
    }
    for mask, (name, call), bits in itertools.product((0, 0o22, 0o77, 0o777), makers.items(), (0, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o6711)):
        old = os.umask(mask)
        say(f"{name} {oct(bits)} with umask {oct(mask)}", lambda: (call("x", bits), mode("x"))[1])
        os.umask(old)
        cleared()
    owner = lambda p: (os.lstat(p).st_uid, os.lstat(p).st_gid, mode(p))
    for bits in (0o777, 0o2777, 0o3777):
        os.mkdir("d")
        os.chown("d", OTHER, OTHER)
        os.chmod("d", bits)
        for name, call in makers.items():
            for who, groups in ((0, ()), (USER, ()), (USER, (OTHER,))):
                say(f"{name} in a directory {oct(bits)} by {who} in {groups}", lambda: as_user(lambda: call("d/x", 0o2775), who, who, groups, umask=0o22))
                say(f"{name} in a directory {oct(bits)} by {who} in {groups}, owner", lambda: owner("d/x"))
                gone("d/x")
        cleared()


def permissions():
    attempts = {
        "read": lambda p: opened(p, os.O_RDONLY), "write": lambda p: opened(p, os.O_WRONLY), "truncate": lambda p: os.truncate(p, 1),
        "append": lambda p: opened(p, os.O_WRONLY | os.O_APPEND), "create": lambda p: opened(p, os.O_CREAT | os.O_RDWR),
        "R_OK": lambda p: os.access(p, os.R_OK), "W_OK": lambda p: os.access(p, os.W_OK), "X_OK": lambda p: os.access(p, os.X_OK),
        "exec": lambda p: subprocess.run([os.path.abspath(p)]).returncode, "chmod": lambda p: os.chmod(p, 0o777),
        "utime": lambda p: os.utime(p, (1, 1)), "utime now": lambda p: os.utime(p), "xattr": lambda p: os.setxattr(p, "user.a", b""),
        "no atime": lambda p: opened(p, os.O_RDONLY | os.O_NOATIME), "link": lambda p: os.link(p, p + "l"),
        "read and truncate": lambda p: opened(p, os.O_RDONLY | os.O_TRUNC),
    }
    who = {"owner": (USER, USER), "group": (2, OTHER), "other": (3, 3), "root": (0, 0)}
    for bits in (0, 0o100, 0o200, 0o400, 0o700, 0o010, 0o020, 0o040, 0o001, 0o002, 0o004, 0o777):
        for (name, call), (role, (uid, gid)) in itertools.product(attempts.items(), who.items()):
            os.mkdir("d")
            os.chmod("d", 0o777)
            fill("d/f", b"#!/bin/sh\n")
            os.chown("d/f", USER, OTHER)
            os.chmod("d/f", bits)
            say(f"{name} of {oct(bits)} by {role}", lambda: as_user(lambda: call("d/f"), uid, gid))
            gone("d")
    inside = {
        "list": lambda: os.listdir("d"), "stat": lambda: os.stat("d/f").st_size, "create": lambda: opened("d/n", os.O_CREAT), "mkdir": lambda: os.mkdir("d/m"),
        "unlink": lambda: os.unlink("d/f"), "rename": lambda: os.rename("d/f", "d/g"), "chdir": lambda: os.chdir("d"), "rmdir": lambda: os.rmdir("d/e"),
        "symlink": lambda: os.symlink("x", "d/s"), "link": lambda: os.link("d/f", "d/l"), "mkfifo": lambda: os.mkfifo("d/p"), "none": lambda: os.stat("d/none"),
    }
    for bits in (0, 0o100, 0o200, 0o300, 0o400, 0o500, 0o700, 0o030, 0o007, 0o1777):
        for (name, call), (role, (uid, gid)) in itertools.product(inside.items(), who.items()):
            os.makedirs("d/e")
            fill("d/f")
            os.chown("d/f", USER, OTHER)
            os.chown("d", USER, OTHER)
            os.chmod("d", bits)
            say(f"{name} in {oct(bits)} by {role}", lambda: as_user(call, uid, gid))
            gone("d")


def sticky():
    for owner, bits in itertools.product((USER, OTHER), (0o1777, 0o777)):
        for name, call in {
            "unlink": lambda: os.unlink("d/f"), "rmdir": lambda: os.rmdir("d/e"), "rename from": lambda: os.rename("d/f", "d/x"),
            "rename over": lambda: os.rename("d/own", "d/f"), "exchange": lambda: renameat2("d/own", "d/f", 2), "rename out": lambda: os.rename("d/f", "o/f"),
        }.items():
            os.mkdir("d")
            os.mkdir("o")
            os.chmod("o", 0o777)
            os.mkdir("d/e")
            for file in ("d/f", "d/own"):
                fill(file)
            os.chown("d/own", USER, USER)
            os.chmod("d", bits)
            os.chown("d", owner, owner)
            say(f"{name} in {oct(bits)} of {owner}", lambda: as_user(call))
            cleared()


def set_id_bits():
    def data(path):
        with open(path, "r+b", 0) as file:
            file.write(b"x")

    def mapped(path):
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4) as memory:
            memory[0:1] = b"z"

    def allocated(path):
        with open(path, "r+b") as file:
            fallocate(file.fileno(), 0, 0, 8192)

    def copied(path):
        with open(path, "r+b") as file, open("src", "rb") as source:
            os.copy_file_range(source.fileno(), file.fileno(), 4)

    changes = {
        "write": data, "truncate": lambda p: os.truncate(p, 1), "same size": lambda p: os.truncate(p, 4), "open truncating": lambda p: opened(p, os.O_WRONLY | os.O_TRUNC),
        "mapped": mapped, "allocate": allocated, "copy": copied, "utime": lambda p: os.utime(p), "chmod": lambda p: os.chmod(p, 0o7755),
        "chown to the same": lambda p: os.chown(p, USER, OTHER), "chown to nobody": lambda p: os.chown(p, -1, -1), "chgrp": lambda p: os.chown(p, -1, 4),
        "chgrp to own": lambda p: os.chown(p, -1, USER), "xattr": lambda p: os.setxattr(p, "user.a", b"1"), "rename": lambda p: (os.rename(p, "x"), os.rename("x", p))[2:],
        "link": lambda p: os.link(p, "y"),
    }
    for (name, call), bits, (role, uid, gid, groups) in itertools.product(
        changes.items(), (0o6755, 0o6777, 0o2767, 0o4711, 0o6666), (("root", 0, 0, ()), ("owner", USER, USER, (OTHER,)), ("owner, not of the group", USER, USER, ()), ("other", 3, 3, ()))
    ):
        os.chmod(".", 0o777)
        fill("src", b"copy")
        fill("f")
        os.chown("f", USER, OTHER)
        os.chmod("f", bits)
        say(f"{name} of {oct(bits)} by {role}", lambda: as_user(lambda: call("f"), uid, gid, groups))
        say(f"{name} of {oct(bits)} by {role}, mode", lambda: (mode("f"), os.stat("f").st_uid, os.stat("f").st_gid))
        cleared()
    os.mkdir("d")
    os.chmod("d", 0o7777)
    say("chown of a directory", lambda: (os.chown("d", 5, 5), mode("d"))[1])
    fill("c")
    say("a capability", lambda: os.setxattr("c", "security.capability", struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)))
    say("a capability is gone after a write", lambda: (data("c"), os.listxattr("c"))[1])
    shutil.copy("/usr/bin/id", "id")
    os.chown("id", 5, 5)
    os.chmod("id", 0o6755)
    say("a program that is another's", lambda: as_user(lambda: subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout))


def chmods():
    for bits in (0o644, 0o1644, 0o2644, 0o4644, 0o7777, 0):
        for what, (role, uid, gid, groups) in itertools.product(("file", "directory", "fifo"), (("root", 0, 0, ()), ("owner", USER, USER, ()), ("owner in the group", USER, USER, (OTHER,)), ("other", 3, 3, ()))):
            make(what, "f")
            os.chown("f", USER, OTHER)
            say(f"{oct(bits)} of a {what} by {role}", lambda: as_user(lambda: os.chmod("f", bits), uid, gid, groups))
            say(f"{oct(bits)} of a {what} by {role}, then", lambda: mode("f"))
            cleared()
    for (uid, gid), (role, user, own, groups) in itertools.product(((-1, -1), (USER, -1), (OTHER, -1), (-1, OTHER), (-1, 7), (0, 0)), (("owner", USER, USER, ()), ("owner in the group", USER, USER, (OTHER,)), ("other", 3, 3, ()))):
        fill("f")
        os.chown("f", USER, USER)
        say(f"chown to {uid} {gid} by {role}", lambda: as_user(lambda: os.chown("f", uid, gid), user, own, groups))
        say(f"chown to {uid} {gid} by {role}, then", lambda: (os.stat("f").st_uid, os.stat("f").st_gid))
        cleared()
    with open(fill("f"), "rb") as file:
        say("fchmod", lambda: (os.fchmod(file.fileno(), 0o6711), mode("f"))[1])
        say("fchown", lambda: (os.fchown(file.fileno(), 9, 9), os.stat("f").st_uid)[1])
        os.unlink("f")
        say("fchmod of one without a name", lambda: (os.fchmod(file.fileno(), 0o600), oct(os.fstat(file.fileno()).st_mode))[1])
        say("fchown of one without a name", lambda: (os.fchown(file.fileno(), 8, 8), os.fstat(file.fileno()).st_uid)[1])
        say("futimens of one without a name", lambda: (os.utime(file.fileno(), (5, 6)), os.fstat(file.fileno()).st_mtime)[1])
    say("large ids", lambda: (fill("g"), os.chown("g", 4_000_000_000, 4_000_000_001), os.stat("g").st_uid, os.stat("g").st_gid)[2:])


# ---- times ---------------------------------------------------------------------------------------------------------------


def times():
    set_to = {"a time": (LONG_AGO, 123_456_789), "now": (0, NOW), "omit": (0, OMIT), "before 1970": (-5, 1), "the last nanosecond": (7, 999_999_999), "too many nanoseconds": (7, 1_000_000_000), "2039": (2_200_000_000, 1), "2500": (16_725_225_600, 0)}
    for (one, atime), (other, mtime) in itertools.product(set_to.items(), set_to.items()):
        fill("f")
        os.utime("f", (1, 2))
        call = lambda: (set_times("f", atime, mtime), *(t if t < 1_500_000_000_000_000_000 or t > 1_990_000_000_000_000_000 else "now" for t in (os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns)))[1:]
        say(f"{one} and {other}", call)
    for (one, atime), bits, (role, uid) in itertools.product((("a time", (5, 0)), ("now", (0, NOW)), ("omit", (0, OMIT))), (0o600, 0o666, 0o400), (("owner", USER), ("other", 3))):
        fill("f")
        os.chown("f", USER, USER)
        os.chmod("f", bits)
        say(f"{one} of {oct(bits)} by {role}", lambda: as_user(lambda: set_times("f", atime, atime), uid))
        say(f"{one} and omit of {oct(bits)} by {role}", lambda: as_user(lambda: set_times("f", atime, (0, OMIT)), uid))
    os.symlink("f", "l")
    say("of a link", lambda: (set_times("l", (5, 6), (7, 8), 0x100), os.lstat("l").st_mtime_ns)[1])


def changed_times():
    """Which times a call changes; each is set long ago first."""
    changes = {
        "read": ("f", lambda: content("f")), "write": ("f", lambda: fill("f")), "write of nothing": ("f", lambda: writes("f", b"")), "truncate": ("f", lambda: os.truncate("f", 1)),
        "truncate to the same": ("f", lambda: os.truncate("f", 4)), "ftruncate to the same": ("f", lambda: ftruncate("f", 4)), "open truncating": ("f", lambda: opened("f", os.O_WRONLY | os.O_TRUNC)), "open truncating an empty one": ("empty", lambda: opened("empty", os.O_WRONLY | os.O_TRUNC)),
        "chmod": ("f", lambda: os.chmod("f", 0o600)), "chown": ("f", lambda: os.chown("f", 1, 1)), "link": ("f", lambda: os.link("f", "d/n")), "xattr": ("f", lambda: os.setxattr("f", "user.a", b"1")),
        "rename": ("f", lambda: (os.rename("f", "g"), os.rename("g", "f"))), "unlink of a link": ("f", lambda: os.unlink("second")), "allocate": ("f", lambda: allocate("f", 0)), "punch": ("f", lambda: allocate("f", 3)),
        "create in it": ("d", lambda: fill("d/n")), "open in it": ("d", lambda: opened("d/old", os.O_CREAT | os.O_RDWR)), "mkdir in it": ("d", lambda: os.mkdir("d/n")), "symlink in it": ("d", lambda: os.symlink("x", "d/n")), "mkfifo in it": ("d", lambda: os.mkfifo("d/n")),
        "link in it": ("d", lambda: os.link("f", "d/n")), "unlink in it": ("d", lambda: os.unlink("d/old")), "rmdir in it": ("d", lambda: os.rmdir("d/sub")), "rename in it": ("d", lambda: os.rename("d/old", "d/n")), "rename out of it": ("d", lambda: os.rename("d/old", "n")),
        "rename into it": ("d", lambda: os.rename("f", "d/n")), "list": ("d", lambda: os.listdir("d")), "mmap": ("f", lambda: maps("f")), "copy": ("f", lambda: copies("f")), "failed create": ("d", lambda: result_of(lambda: opened("d/old", os.O_CREAT | os.O_EXCL))),
        "failed rmdir": ("d", lambda: result_of(lambda: os.rmdir("d"))), "exec": ("prog", lambda: subprocess.run(["./prog"])), "readlink": ("l", lambda: os.readlink("l")),
    }

    def writes(path, data):
        with open(path, "r+b", 0) as file:
            os.write(file.fileno(), data)

    def ftruncate(path, size):
        with open(path, "r+b", 0) as file:
            os.ftruncate(file.fileno(), size)

    def allocate(path, how):
        with open(path, "r+b") as file:
            fallocate(file.fileno(), how, 0, 4096)

    def maps(path):
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4) as memory:
            memory[0:1] = b"z"
            memory.flush()

    def copies(path):
        with open(path, "r+b") as file, open("prog", "rb") as source:
            os.copy_file_range(source.fileno(), file.fileno(), 4)

    for name, (path, call) in changes.items():
        fill("f"), fill("empty", b""), result_of(lambda: os.link("f", "second")), os.makedirs("d/sub"), fill("d/old"), fill("prog", b"#!/bin/sh\n", 0o755), os.symlink("x", "l")
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        before = os.lstat(path)
        time.sleep(0.012)
        outcome = result_of(call)
        if name == "rename into it":
            pass
        after = os.lstat(path)
        differ = [t for t in ("mtime", "ctime") if getattr(before, f"st_{t}_ns") != getattr(after, f"st_{t}_ns")]
        say(name, f"{differ} {outcome if outcome.startswith('E') else ''}")
        cleared()


# ---- data ----------------------------------------------------------------------------------------------------------------


def data():
    MIB = 1 << 20
    with open("f", "w+b", 0) as file:
        fd = file.fileno()
        os.pwrite(fd, b"end", MIB)
        say("size after a hole", lambda: os.fstat(fd).st_size)
        say("few blocks", lambda: os.fstat(fd).st_blocks < 100)
        say("zeros in a hole", lambda: os.pread(fd, 4096, 4096) == bytes(4096))
        say("SEEK_DATA", lambda: os.lseek(fd, 0, os.SEEK_DATA) in (MIB,))
        say("SEEK_HOLE", lambda: os.lseek(fd, 0, os.SEEK_HOLE))
        say("SEEK_HOLE in data", lambda: os.lseek(fd, MIB, os.SEEK_HOLE))
        say("SEEK_DATA past the end", lambda: os.lseek(fd, 2 * MIB, os.SEEK_DATA))
        say("SEEK_HOLE past the end", lambda: os.lseek(fd, 2 * MIB, os.SEEK_HOLE))
        say("SEEK_DATA before 0", lambda: os.lseek(fd, -1, os.SEEK_DATA))
        say("SEEK_END", lambda: os.lseek(fd, -3, os.SEEK_END))
        say("SEEK_SET before 0", lambda: os.lseek(fd, -1, os.SEEK_SET))
        say("SEEK_CUR before 0", lambda: os.lseek(fd, -(1 << 40), os.SEEK_CUR))
        say("seek far", lambda: os.lseek(fd, 1 << 42, os.SEEK_SET))
        say("read far", lambda: os.read(fd, 10))
        say("no such whence", lambda: os.lseek(fd, 0, 9))
    for name, how in {"plain": 0, "keep": 1, "punch": 3, "punch alone": 2, "collapse": 8, "zero": 16, "zero, keep": 17, "insert": 32, "unshare": 64, "unknown": 1 << 20, "punch and zero": 19, "collapse and keep": 9}.items():
        for place, offset, length in (("in", 4096, 4096), ("at the end", 61440, 4096), ("over the end", 61440, 40960), ("unaligned", 100, 500), ("past", 1 << 20, 4096), ("of nothing", 0, 0), ("before 0", -1, 4096), ("to before 0", 0, -1), ("all", 0, 65536)):
            fill("g", bytes(range(256)) * 256)
            with open("g", "r+b") as file:
                say(f"allocate {name} {place}", lambda: fallocate(file.fileno(), how, offset, length))
                say(f"allocate {name} {place}, then", lambda: (os.fstat(file.fileno()).st_size, hash_of("g")))
    with open("g", "rb") as file:
        say("allocate what is only read", lambda: fallocate(file.fileno(), 0, 0, 10))
        say("ftruncate what is only read", lambda: os.ftruncate(file.fileno(), 0))
        say("write what is only read", lambda: os.write(file.fileno(), b"x"))
        say("fsync what is only read", lambda: os.fsync(file.fileno()))
    with open("g", "wb") as file:
        say("read what is only written", lambda: os.read(file.fileno(), 1))
        say("pread what is only written", lambda: os.pread(file.fileno(), 1, 0))
    with open("h", "w+b", 0) as file:
        fd = file.fileno()
        say("pwrite before 0", lambda: os.pwrite(fd, b"x", -1))
        say("pread before 0", lambda: os.pread(fd, 1, -1))
        say("write nothing", lambda: os.write(fd, b""))
        say("read nothing", lambda: os.read(fd, 0))
        say("read at the end", lambda: os.read(fd, 5))
        say("truncate longer", lambda: (os.ftruncate(fd, 5000), os.pread(fd, 10, 4995)))
        say("truncate before 0", lambda: os.ftruncate(fd, -1))
        say("truncate beyond all", lambda: os.ftruncate(fd, (1 << 63) - 1))
        say("truncate to 8 TiB", lambda: (os.ftruncate(fd, 1 << 43), os.fstat(fd).st_size))
        say("write at 8 TiB", lambda: os.pwrite(fd, b"x", 1 << 43))
        say("write at 4 GiB", lambda: (os.ftruncate(fd, 0), os.pwrite(fd, b"far", (4 << 30) + 5), os.pread(fd, 4, (4 << 30) + 4), os.fstat(fd).st_size))
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, 0)
        say("writev", lambda: os.writev(fd, [b"ab", b"", b"cd"]))
        say("preadv", lambda: (lambda a, b: (os.preadv(fd, [a, b], 1), bytes(a), bytes(b)))(bytearray(1), bytearray(5)))
        say("pwritev2, append", lambda: (os.pwritev(fd, [b"E"], 0, 0x10), content("h")))
        say("pwritev2, sync", lambda: os.pwritev(fd, [b"E"], 0, 4))
        say("preadv2, no wait", lambda: os.preadv(fd, [bytearray(2)], 0, 8) in (2, -1))
        say("datasync", lambda: os.fdatasync(fd))
        say("sync_file_range", lambda: checked(libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 7)))
        say("syncfs", lambda: checked(libc.syncfs(fd)))
        say("fadvise", lambda: [os.posix_fadvise(fd, 0, 0, a) for a in range(6)])
        say("fadvise of a kind that is not", lambda: os.posix_fadvise(fd, 0, 0, 99))
        say("readahead", lambda: checked(libc.readahead(fd, ctypes.c_long(0), 10)))
        say("fstat", lambda: (oct(os.fstat(fd).st_mode), os.fstat(fd).st_nlink, os.fstat(fd).st_size))
        say("flags", lambda: oct(fcntl.fcntl(fd, fcntl.F_GETFL)))
        say("append by fcntl", lambda: (fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND), os.lseek(fd, 0, 0), os.write(fd, b"!"), content("h")[-1:]))
        say("direct by fcntl", lambda: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT))
    fill("h", b"0123456789")
    fd = os.open("h", os.O_RDWR | os.O_APPEND)
    say("append", lambda: (os.write(fd, b"a"), os.lseek(fd, 0, 1), os.lseek(fd, 0, 0), os.write(fd, b"b"), content("h")))
    say("pwrite of one that appends", lambda: (os.pwrite(fd, b"c", 0), content("h")))
    os.close(fd)
    fd = os.open("r", os.O_RDWR | os.O_CREAT)
    limited = {
        "write beyond": lambda: os.pwrite(fd, b"x", 6000), "write up to": lambda: os.pwrite(fd, b"x" * 100, 4950),
        "truncate beyond": lambda: os.ftruncate(fd, 6000), "allocate beyond": lambda: fallocate(fd, 0, 0, 6000),
        "write at": lambda: os.pwrite(fd, b"x", 5000),
    }

    def within(call):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        return call()

    for name, call in limited.items():
        say(f"{name} the limit", lambda: as_user(lambda: within(call), 0, 0))
        say(f"{name} the limit, size", lambda: os.fstat(fd).st_size)
    os.close(fd)
    fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    block = mmap.mmap(-1, 8192)
    block[:] = b"d" * 8192
    say("direct write", lambda: os.writev(fd, [block]))
    say("direct read", lambda: os.preadv(fd, [block], 4096))
    say("direct then not", lambda: content("direct") == b"d" * 8192)
    say("direct write with a wrong offset", lambda: os.pwritev(fd, [block], 100))
    say("direct read with a wrong length", lambda: os.preadv(fd, [memoryview(block)[:100]], 0))
    os.close(fd)
    fill("src", bytes(range(200)) * 1000), fill("dst", b"")
    with open("src", "rb") as source, open("dst", "r+b") as target, open("src", "r+b") as both:
        one, two, three = source.fileno(), target.fileno(), both.fileno()
        say("copy_file_range", lambda: os.copy_file_range(one, two, 150_000, 100, 50) == 150_000 and os.fstat(two).st_size)
        say("copy_file_range, content", lambda: content("dst") == bytes(50) + content("src")[100:150_100])
        say("copy_file_range over itself", lambda: os.copy_file_range(three, three, 1000, 0, 500))
        say("copy_file_range within", lambda: (os.copy_file_range(three, three, 1000, 0, 100_000), hash_of("src")))
        say("copy_file_range at the end", lambda: os.copy_file_range(one, two, 1000, 1 << 30, 0))
        say("copy_file_range to what is only read", lambda: os.copy_file_range(two, one, 10, 0, 0))
        say("copy_file_range to another filesystem", lambda: copied_to_tmp(one))
        say("sendfile", lambda: (os.lseek(two, 0, 0), os.sendfile(two, one, 0, 5000), content("dst")[:5000] == content("src")[:5000]))
        reader, writer = os.pipe()
        say("splice", lambda: (os.splice(one, writer, 4096, 0), len(os.read(reader, 9999)), os.write(writer, b"abc"), os.splice(reader, two, 3, None, 10), content("dst")[10:13]))


def copied_to_tmp(fd):
    with open(f"/dev/shm/posix-calls-{os.getpid()}", "wb") as file:
        os.unlink(file.name)
        return os.copy_file_range(fd, file.fileno(), 10, 0, 0)


def hash_of(path):
    import zlib
    return zlib.crc32(content(path))


def nameless():
    fd = os.open(fill("f", b"0123"), os.O_RDWR)
    os.unlink("f")
    say("written", lambda: (os.write(fd, b"ab"), os.pread(fd, 9, 0)))
    say("links", lambda: os.fstat(fd).st_nlink)
    say("truncated", lambda: (os.ftruncate(fd, 3), os.fstat(fd).st_size))
    say("synced", lambda: os.fsync(fd))
    say("opened again", lambda: opened(f"/proc/self/fd/{fd}", os.O_RDONLY))
    say("opened again to write", lambda: (opened(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC), os.fstat(fd).st_size))
    say("linked again", lambda: os.link(f"/proc/self/fd/{fd}", "again", follow_symlinks=True))
    say("xattr", lambda: (os.setxattr(fd, "user.a", b"1"), os.getxattr(fd, "user.a")))
    say("a new one of that name", lambda: (fill("f", b"new"), os.pread(fd, 9, 0), content("f")))
    say("listed", lambda: sorted(os.listdir(".")))
    os.close(fd)
    os.mkdir("d")
    fd = os.open(fill("d/g"), os.O_RDWR)
    os.unlink("d/g")
    say("its directory removed", lambda: os.rmdir("d"))
    say("written after that", lambda: os.write(fd, b"zz"))
    os.close(fd)
    fd = os.open(fill("two"), os.O_RDWR)
    os.link("two", "second")
    os.unlink("two")
    say("one of two names", lambda: (os.fstat(fd).st_nlink, os.write(fd, b"!"), content("second")))
    os.close(fd)
    say("O_TMPFILE", lambda: opened(".", os.O_TMPFILE | os.O_RDWR))

    def temporary(flags):
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | flags, 0o640)
        try:
            os.write(fd, b"t")
            found = os.fstat(fd)
            os.link(f"/proc/self/fd/{fd}", "named", follow_symlinks=True)
            return found.st_nlink, oct(found.st_mode), content("named"), os.fstat(fd).st_nlink
        finally:
            os.close(fd)

    say("O_TMPFILE, linked", lambda: temporary(0))
    say("O_TMPFILE with O_EXCL, linked", lambda: temporary(os.O_EXCL))
    os.mkdir("gone")
    fd = os.open("gone", os.O_RDONLY)
    os.rmdir("gone")
    say("a removed directory, stat", lambda: os.fstat(fd).st_nlink)
    say("a removed directory, listed", lambda: os.listdir(fd))
    say("a removed directory, create", lambda: os.open("x", os.O_CREAT | os.O_RDWR, dir_fd=fd))
    say("a removed directory, mkdir", lambda: os.mkdir("x", dir_fd=fd))
    say("a removed directory, lookup", lambda: os.stat("x", dir_fd=fd))
    say("a removed directory, rename", lambda: os.rename("second", "x", dst_dir_fd=fd))
    say("a removed directory, link", lambda: os.link("second", "x", dst_dir_fd=fd))
    say("a removed directory, chmod", lambda: os.fchmod(fd, 0o700))
    say("a removed directory, fsync", lambda: os.fsync(fd))
    os.close(fd)


# ---- locks ---------------------------------------------------------------------------------------------------------------


def locks():
    fill("f", bytes(100))
    fd = os.open("f", os.O_RDWR)

    def elsewhere(call):
        def do():
            other = os.open("f", os.O_RDWR)
            return call(other)
        return as_user(do, 0, 0)

    lock = lambda fd, kind, start=0, length=0: fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)
    for one, other in itertools.product((fcntl.LOCK_SH, fcntl.LOCK_EX), repeat=2):
        fcntl.flock(fd, one)
        say(f"flock {one} then {other}", lambda: elsewhere(lambda o: fcntl.flock(o, other | fcntl.LOCK_NB)))
        fcntl.flock(fd, fcntl.LOCK_UN)
        lock(fd, one, 10, 20)
        say(f"lockf {one} then {other}, over", lambda: elsewhere(lambda o: lock(o, other, 15, 2)))
        say(f"lockf {one} then {other}, beside", lambda: elsewhere(lambda o: lock(o, other, 30, 2)))
        say(f"lockf {one} then {other}, by the same", lambda: lock(fd, other, 0, 99))
        say(f"lockf {one}, asked", lambda: elsewhere(lambda o: struct.unpack("hhqqi4x", fcntl.fcntl(o, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)))[:4]))
        fcntl.lockf(fd, fcntl.LOCK_UN)
    say("unlocked", lambda: elsewhere(lambda o: lock(o, fcntl.LOCK_EX)))
    lock(fd, fcntl.LOCK_EX)
    os.close(os.open("f", os.O_RDONLY))
    say("gone with any close", lambda: elsewhere(lambda o: lock(o, fcntl.LOCK_EX)))
    OFD_SET = 37
    record = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
    say("OFD", lambda: fcntl.fcntl(fd, OFD_SET, record) and None)
    second = os.open("f", os.O_RDWR)
    say("OFD, by another descriptor", lambda: fcntl.fcntl(second, OFD_SET, record) and None)
    os.close(second)
    say("OFD lives on", lambda: elsewhere(lambda o: lock(o, fcntl.LOCK_EX)))
    say("wrong kind", lambda: fcntl.fcntl(fd, OFD_SET, struct.pack("hhqqi4x", 7, 0, 0, 10, 0)))
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    say("exclusive by a reader", lambda: lock(fd, fcntl.LOCK_EX))
    say("flock exclusive by a reader", lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    say("read lease", lambda: fcntl.fcntl(fd, 1024, fcntl.F_RDLCK))
    say("lease, asked", lambda: fcntl.fcntl(fd, 1025))
    os.close(fd)
    directory = os.open(".", os.O_RDONLY)
    say("flock of a directory", lambda: fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB))
    say("dnotify", lambda: fcntl.fcntl(directory, 1026, 4))
    os.close(directory)


# ---- extended attributes and lists of access -----------------------------------------------------------------------------


def xattrs():
    for what in ("file", "directory"):
        make(what, "x")
        for name, size in (("user.a", 0), ("user.a", 10), ("user." + "n" * 250, 1), ("user." + "n" * 251, 1), ("user.big", 3000), ("user.huge", 65537), ("user.", 1), ("trusted.t", 3), ("security.s", 3), ("system.s", 3), ("none", 1), ("other.o", 1), ("user.é", 2)):
            say(f"{what}, set {name[:12]} {len(name)}, {size} bytes", lambda: os.setxattr("x", name, b"v" * size))
            say(f"{what}, get {name[:12]} {len(name)}, {size} bytes", lambda: len(os.getxattr("x", name)))
            for flags in (os.XATTR_CREATE, os.XATTR_REPLACE):
                say(f"{what}, set {name[:12]} {len(name)}, {size} bytes, flags {flags}", lambda: os.setxattr("x", name, b"w", flags))
        say(f"{what}, list", lambda: sorted(name[:12] for name in os.listxattr("x")))
        say(f"{what}, unknown flags", lambda: os.setxattr("x", "user.a", b"w", 8))
        say(f"{what}, both flags", lambda: os.setxattr("x", "user.a", b"w", 3))
        buffer = ctypes.create_string_buffer(4)
        say(f"{what}, too small", lambda: (os.setxattr("x", "user.ten", b"0123456789"), checked(libc.getxattr(b"x", b"user.ten", buffer, 4))))
        say(f"{what}, length alone", lambda: checked(libc.getxattr(b"x", b"user.ten", None, 0)))
        say(f"{what}, list too small", lambda: checked(libc.listxattr(b"x", buffer, 4)))
        os.chown("x", USER, USER)
        for role, uid in (("owner", USER), ("other", 3)):
            for name in ("user.u", "trusted.t", "security.s"):
                say(f"{what}, set {name} by {role}", lambda: as_user(lambda: os.setxattr("x", name, b"1"), uid))
                say(f"{what}, get {name} by {role}", lambda: as_user(lambda: os.getxattr("x", name), uid))
            say(f"{what}, list by {role}", lambda: as_user(lambda: len(os.listxattr("x")), uid))
        say(f"{what}, remove", lambda: os.removexattr("x", "user.ten"))
        say(f"{what}, remove again", lambda: os.removexattr("x", "user.ten"))
        os.chmod("x", 0o1777)
        say(f"{what}, set in a sticky one by other", lambda: as_user(lambda: os.setxattr("x", "user.v", b"1"), 3))
        cleared()


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, ident & 0xFFFFFFFF) for tag, bits, ident in entries)


U_OBJ, U, G_OBJ, G, MASK, O = 1, 2, 4, 8, 16, 32


def access_lists():
    ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
    fill("f", mode=0o600)
    say("none", lambda: os.getxattr("f", ACCESS))
    say("set", lambda: os.setxattr("f", ACCESS, acl((U_OBJ, 6, -1), (U, 4, USER), (G_OBJ, 0, -1), (G, 6, 7), (MASK, 6, -1), (O, 0, -1))))
    say("mode", lambda: mode("f"))
    say("get", lambda: len(os.getxattr("f", ACCESS)))
    for role, uid, gid, groups in (("named user", USER, USER, ()), ("named group", 9, 7, ()), ("supplementary group", 9, 9, (7,)), ("other", 3, 3, ())):
        for name, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
            say(f"{name} by {role}", lambda: as_user(lambda: opened("f", flags), uid, gid, groups))
        say(f"access by {role}", lambda: as_user(lambda: [os.access("f", a) for a in (4, 2, 1)], uid, gid, groups))
    say("mask by chmod", lambda: (os.chmod("f", 0o640), os.getxattr("f", ACCESS).hex()))
    say("write by named group within the mask", lambda: as_user(lambda: opened("f", os.O_WRONLY), 9, 7))
    say("listed", lambda: os.listxattr("f"))
    say("set by other", lambda: as_user(lambda: os.setxattr("f", ACCESS, acl((U_OBJ, 7, -1), (G_OBJ, 7, -1), (O, 7, -1))), 3))
    say("remove by other", lambda: as_user(lambda: os.removexattr("f", ACCESS), 3))
    say("nonsense", lambda: os.setxattr("f", ACCESS, b"xx"))
    say("without a mask", lambda: os.setxattr("f", ACCESS, acl((U_OBJ, 6, -1), (U, 4, USER), (G_OBJ, 0, -1), (O, 0, -1))))
    say("default of a file", lambda: os.setxattr("f", DEFAULT, acl((U_OBJ, 7, -1), (G_OBJ, 5, -1), (O, 0, -1))))
    say("as a mode", lambda: (os.setxattr("f", ACCESS, acl((U_OBJ, 6, -1), (G_OBJ, 4, -1), (O, 4, -1))), mode("f"), os.listxattr("f")))
    say("removed", lambda: os.removexattr("f", ACCESS))
    say("of no file", lambda: os.setxattr("nothing", ACCESS, acl((U_OBJ, 6, -1), (G_OBJ, 4, -1), (O, 4, -1))))
    os.mkdir("d")
    os.chmod("d", 0o777)
    say("default", lambda: os.setxattr("d", DEFAULT, acl((U_OBJ, 7, -1), (U, 7, 9), (G_OBJ, 5, -1), (MASK, 7, -1), (O, 0, -1))))
    for mask in (0o22, 0o77):
        for role, uid in (("root", 0), ("user", USER)):
            for name, call in {"create": lambda p: opened(p, os.O_CREAT | os.O_RDWR, 0o666), "mkdir": lambda p: os.mkdir(p, 0o777), "mknod": lambda p: os.mknod(p, stat.S_IFREG | 0o666), "mkfifo": lambda p: os.mkfifo(p, 0o666), "symlink": lambda p: os.symlink("x", p)}.items():
                say(f"{name} below, umask {oct(mask)}, by {role}", lambda: as_user(lambda: call("d/n"), uid, uid, umask=mask))
                say(f"{name} below, umask {oct(mask)}, by {role}, mode", lambda: mode("d/n"))
                say(f"{name} below, umask {oct(mask)}, by {role}, access", lambda: os.getxattr("d/n", ACCESS, follow_symlinks=False).hex())
                say(f"{name} below, umask {oct(mask)}, by {role}, default", lambda: os.getxattr("d/n", DEFAULT, follow_symlinks=False).hex())
                say(f"{name} below, umask {oct(mask)}, by {role}, named user reads", lambda: as_user(lambda: os.access("d/n", os.R_OK), 9, 9))
                gone("d/n")
    say("list of a directory", lambda: os.setxattr("d", ACCESS, acl((U_OBJ, 7, -1), (U, 7, USER), (G_OBJ, 0, -1), (MASK, 7, -1), (O, 0, -1))))
    say("create by the named user", lambda: as_user(lambda: opened("d/u", os.O_CREAT | os.O_RDWR)))
    say("create by another", lambda: as_user(lambda: opened("d/v", os.O_CREAT | os.O_RDWR), 3))
    say("default removed", lambda: (os.removexattr("d", DEFAULT), os.listxattr("d")))
    fill("s", mode=0o2755)
    os.chown("s", USER, OTHER)
    os.chmod("s", 0o2755)
    say("set by an owner who is not of the group", lambda: as_user(lambda: os.setxattr("s", ACCESS, acl((U_OBJ, 7, -1), (U, 5, 9), (G_OBJ, 5, -1), (MASK, 5, -1), (O, 5, -1)))))
    say("set by an owner who is not of the group, mode", lambda: mode("s"))


# ---- directories, links and inodes ---------------------------------------------------------------------------------------


def directories():
    os.mkdir("d")
    names = {f"entry-{number:05}" for number in range(3000)}
    for number, name in enumerate(sorted(names)):
        if number % 3 == 0:
            os.symlink("x", f"d/{name}")
        else:
            opened(f"d/{name}", os.O_CREAT | os.O_WRONLY)
    say("all are listed", lambda: set(os.listdir("d")) == names and len(os.listdir("d")) == 3000)
    say("kinds", lambda: sum(entry.is_symlink() for entry in os.scandir("d")))
    say("numbers as by stat", lambda: all(entry.inode() == os.lstat(entry.path).st_ino for entry in list(os.scandir("d"))[:200]))
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long

    class Entry(ctypes.Structure):
        _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("len", ctypes.c_ushort), ("kind", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]

    handle = ctypes.c_void_p(libc.opendir(b"d"))

    def following():
        found = libc.readdir(handle)
        return Entry.from_address(found).name.decode() if found else None

    places, seen = [], []
    while True:
        place = libc.telldir(handle)
        name = following()
        if name is None:
            break
        places.append(place)
        seen.append(name)
    say("with . and ..", lambda: len(seen))

    def again(index):
        libc.seekdir(handle, ctypes.c_long(places[index]))
        return following() == seen[index]

    say("seekdir", lambda: [again(index) for index in (0, 1, 17, 2500, 300, 2999, 5)])
    libc.rewinddir(handle)
    fill("d/new")
    say("rewound", lambda: sum(1 for _ in iter(following, None)))
    libc.rewinddir(handle)
    found = []
    for number, name in enumerate(iter(following, None)):
        if name.startswith("entry"):
            found.append(name)
            os.unlink(f"d/{name}")
    say("removed while listed", lambda: (len(found), len(set(found)), os.listdir("d")))
    libc.closedir(handle)
    say("links of a directory", lambda: (os.mkdir("e"), os.stat("e").st_nlink, os.mkdir("e/a"), os.mkdir("e/b"), os.stat("e").st_nlink, os.rmdir("e/a"), os.stat("e").st_nlink)[1::2])
    say("size of a directory", lambda: os.stat("e").st_size > 0)
    say(".. and . are numbered", lambda: os.path.samefile("e/.", "e") and os.path.samefile("e/b/..", "e"))
    with os.scandir("e") as entries:
        first = [entry.name for entry in entries]
    say("read of a directory", lambda: os.read(os.open("e", os.O_RDONLY), 10))
    say("fsync of a directory", lambda: os.fsync(os.open("e", os.O_RDONLY)))
    say("ftruncate of a directory", lambda: os.ftruncate(os.open("e", os.O_RDONLY), 10))
    say("seek of a directory", lambda: os.lseek(os.open("e", os.O_RDONLY), 0, 0))
    say("a link to a directory", lambda: os.link("e", "f"))
    say("two handles", lambda: (sorted(os.listdir("e")), first))


def links():
    fill("f", b"one")
    os.mkdir("d")
    say("made", lambda: os.link("f", "d/g"))
    say("same number", lambda: os.stat("f").st_ino == os.stat("d/g").st_ino)
    say("count", lambda: (os.stat("f").st_nlink, os.stat("d/g").st_nlink))
    say("same content", lambda: (fill("d/g", b"other"), content("f")))
    say("same mode", lambda: (os.chmod("f", 0o600), mode("d/g")))
    say("listed with the same number", lambda: [e.inode() for e in os.scandir("d")] == [os.stat("f").st_ino])
    with open("f", "r+b", 0) as file:
        os.unlink("f")
        say("count after an unlink", lambda: (os.fstat(file.fileno()).st_nlink, os.stat("d/g").st_nlink))
        say("written by the other", lambda: (file.write(b"X"), content("d/g")))
    say("replaced", lambda: (fill("h", b"h"), os.rename("h", "d/g"), content("d/g"), os.stat("d/g").st_nlink))
    os.symlink("d/g", "s")
    say("to a symbolic link", lambda: (os.link("s", "t", follow_symlinks=False), os.readlink("t")))
    say("of a symbolic link, followed", lambda: (os.link("s", "u", follow_symlinks=True), kind("u")))
    say("number of the link's link", lambda: os.lstat("s").st_ino == os.lstat("t").st_ino)
    say("of a fifo", lambda: (os.mkfifo("p"), os.link("p", "q"), os.stat("q").st_nlink))
    say("by another user", lambda: as_user(lambda: os.link("d/g", "mine")))
    say("by descriptor", lambda: checked(libc.linkat(os.open("d/g", os.O_RDONLY), b"", -100, b"byfd", 0x1000)))
    say("a thousand", lambda: [os.link("d/g", f"n{number}") for number in range(1000)] and os.stat("d/g").st_nlink)
    for length in (1, 255, 1023, 4094, 4095, 4096):
        say(f"symbolic, of {length} bytes", lambda: (os.symlink("t" * length, f"l{length}"), len(os.readlink(f"l{length}")), os.lstat(f"l{length}").st_size))
    say("symbolic, of none", lambda: os.symlink("", "empty"))
    say("symbolic, of any bytes", lambda: (os.symlink(b"\x01\xff\n", b"bytes"), os.readlink(b"bytes")))
    buffer = ctypes.create_string_buffer(3)
    say("readlink, too small", lambda: checked(libc.readlink(b"l255", buffer, 3)))
    say("mode of a symbolic one", lambda: (mode("s"), os.lstat("s").st_nlink))
    fill("c0")
    for number in range(1, 45):
        os.symlink(f"c{number - 1}", f"c{number}")
    say("40 one after the other", lambda: os.stat("c40").st_size)
    say("41 one after the other", lambda: os.stat("c41").st_size)
    say("absolute", lambda: (os.symlink("/etc/passwd", "abs"), os.stat("abs").st_size > 0))
    say("upwards", lambda: (os.symlink("../../../../../../../../etc/passwd", "up"), os.stat("up").st_size > 0))


# ---- the rest ------------------------------------------------------------------------------------------------------------


def special():
    say("fifo, made", lambda: os.mkfifo("p"))
    if os.path.exists("p"):
        threading.Thread(target=lambda: fill_fifo(), daemon=True).start()
        say("fifo", lambda: content("p"))
        say("fifo, writer alone", lambda: opened("p", os.O_WRONLY | os.O_NONBLOCK))
    say("device", lambda: (os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)), os.stat("null").st_rdev == os.makedev(1, 3), os.write(os.open("null", os.O_WRONLY), b"x"), content("null"))[1:])
    say("device by a user", lambda: as_user(lambda: os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))))
    say("block device", lambda: (os.mknod("blk", stat.S_IFBLK | 0o600, os.makedev(250, 300)), os.stat("blk").st_rdev == os.makedev(250, 300)))
    os.chdir(".")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        say("socket, bind", lambda: server.bind("sock"))
        say("socket, kind", lambda: (kind("sock"), mode("sock")))
        say("socket, connect", lambda: (server.listen(1), client.connect("sock"), client.send(b"x")))
        with socket.socket(socket.AF_UNIX) as second:
            say("socket, bind again", lambda: second.bind("sock"))
    say("socket, open", lambda: opened("sock", os.O_RDWR))
    shutil.copy("/bin/sleep", "prog")
    say("exec", lambda: subprocess.run(["./prog", "0"]).returncode)
    running = subprocess.Popen(["./prog", "30"])
    say("busy, write", lambda: opened("prog", os.O_WRONLY))
    say("busy, truncate", lambda: os.truncate("prog", 0))
    say("busy, unlink", lambda: os.unlink("prog"))
    running.kill()
    running.wait()
    shutil.copy("/bin/true", "true")
    with open("true", "r+b"):
        say("exec of one that is written", lambda: subprocess.run(["./true"]).returncode)
    fill("script", b"#!/bin/sh\necho said\n", 0o755)
    say("script", lambda: subprocess.run(["./script"], capture_output=True).stdout)
    os.chmod("true", 0o644)
    say("exec without the bit", lambda: subprocess.run(["./true"]).returncode)
    say("statvfs", lambda: (os.statvfs(".").f_namemax, os.statvfs(".").f_bsize, os.statvfs(".").f_frsize, os.statvfs(".").f_files > 0, os.statvfs(".").f_blocks > 0))
    say("blksize", lambda: os.stat("true").st_blksize)
    say("blocks", lambda: os.stat("true").st_blocks * 512 >= os.stat("true").st_size > 0)
    buffer = ctypes.create_string_buffer(256)
    say("statx, mask", lambda: (checked(libc.statx(-100, b"true", 0, 0xFFF, buffer)), hex(struct.unpack_from("I", buffer)[0] & 0xFFF)))
    say("pathconf", lambda: [os.pathconf(".", name) for name in ("PC_LINK_MAX", "PC_NAME_MAX", "PC_PATH_MAX", "PC_CHOWN_RESTRICTED", "PC_NO_TRUNC")])
    say("FIGETBSZ", lambda: struct.unpack("i", fcntl.ioctl(os.open("true", os.O_RDONLY), 2, bytes(4))))
    say("FS_IOC_GETFLAGS", lambda: struct.unpack("i", fcntl.ioctl(os.open("true", os.O_RDONLY), 0x80086601, bytes(8))[:4])[0] & 0x30)
    say("FIONREAD", lambda: struct.unpack("i", fcntl.ioctl(os.open("script", os.O_RDONLY), 0x541B, bytes(4))))
    say("unknown ioctl", lambda: fcntl.ioctl(os.open("true", os.O_RDONLY), 0x99887766, bytes(8)))
    handle = ctypes.create_string_buffer(struct.pack("Ii", 120, 0) + bytes(120))
    say("name_to_handle_at", lambda: checked(libc.name_to_handle_at(-100, b"true", handle, ctypes.byref(ctypes.c_int()), 0)))
    say("poll", lambda: (lambda p: (p.register(os.open("script", os.O_RDWR)), [e for _, e in p.poll(0)])[1])(select.poll()))
    say("epoll", lambda: select.epoll().register(os.open("script", os.O_RDWR)))
    say("EXDEV, rename", lambda: os.rename("script", "/dev/shm/posix-calls"))
    say("EXDEV, link", lambda: os.link("script", "/dev/shm/posix-calls"))
    say("openat2, beneath", lambda: checked(libc.syscall(437, -100, b"../..", struct.pack("QQQ", 0, 0, 8), 24)))
    os.mkdir("root")
    fill("root/inner")
    say("chroot", lambda: as_user(lambda: (os.chroot("root"), os.stat("/inner").st_size)[1], 0, 0))
    say("a bind mount", lambda: as_user(lambda: bound(), 0, 0))


def bound():
    checked(libc.unshare(0x20000))
    checked(libc.mount(b"none", b"/", None, 0x44000, None))
    checked(libc.mount(b"root", b"root", None, 4096, None))
    checked(libc.mount(b"none", b"root", None, 4096 | 32 | 1, None))
    return content("root/inner"), result_of(lambda: fill("root/new")), result_of(lambda: os.rmdir("root")), result_of(lambda: os.rename("root", "other")), result_of(lambda: os.chmod("root/inner", 0))


def fill_fifo():
    with open("p", "wb") as pipe:
        pipe.write(b"through")


def maps():
    fill("f", bytes(10_000))
    with open("f", "r+b") as file:
        with mmap.mmap(file.fileno(), 10_000) as one, mmap.mmap(file.fileno(), 10_000) as two:
            one[5:8] = b"abc"
            say("seen by another map", lambda: two[5:8])
            say("seen by read", lambda: os.pread(file.fileno(), 3, 5))
            os.pwrite(file.fileno(), b"xyz", 9000)
            say("a write is seen", lambda: one[9000:9003])
            say("flushed", lambda: one.flush())
            say("past the end", lambda: one[9_999:])
            os.truncate("f", 9_001)
            say("cut within the page", lambda: one[8_999:9_003])
            os.truncate("f", 10_000)
            say("and made longer again", lambda: os.pread(file.fileno(), 5, 8_999))
            os.unlink("f")
            one[0:1] = b"!"
            say("after the unlink", lambda: os.pread(file.fileno(), 1, 0))
        say("private", lambda: private(file.fileno()))
    fill("g")
    with open("g", "rb") as file:
        say("shared and writable of a reader", lambda: mmap.mmap(file.fileno(), 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
        say("shared of a reader", lambda: mmap.mmap(file.fileno(), 4, mmap.MAP_SHARED, mmap.PROT_READ)[:])
        say("executable", lambda: mmap.mmap(file.fileno(), 4, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)[:])
    with open("g", "ab") as file:
        say("of a writer", lambda: mmap.mmap(file.fileno(), 4, mmap.MAP_SHARED, mmap.PROT_READ))
    say("of a directory", lambda: mmap.mmap(os.open(".", os.O_RDONLY), 4, mmap.MAP_SHARED, mmap.PROT_READ))

    def beyond():
        with open("h", "w+b") as file:
            file.truncate(8192)
            with mmap.mmap(file.fileno(), 8192) as memory:
                file.truncate(0)
                return memory[5000]

    say("beyond the end", lambda: as_user(beyond, 0, 0))
    fd = os.open("i", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    os.ftruncate(fd, 8192)
    say("of a direct one", lambda: (mmap.mmap(fd, 8192)[:1], None)[0])
    memory = mmap.mmap(fd, 8192)
    memory[0:3] = b"dir"
    say("of a direct one, written and synced", lambda: (memory.flush(), content("i")[:3]))


def private(fd):
    with mmap.mmap(fd, 100, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[50:51] = b"p"
        return os.pread(fd, 1, 50)


def notices():
    fd = libc.inotify_init1(os.O_NONBLOCK)
    os.mkdir("d")
    checked(libc.inotify_add_watch(fd, b"d", 0xFFF))

    def events():
        found, data = [], b""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            pass
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            found.append(f"{mask:x} {data[16:16 + length].rstrip(bytes(1)).decode()}".strip())
            data = data[16 + length:]
        return found

    for name, call in {
        "create": lambda: fill("d/f"), "read": lambda: content("d/f"), "chmod": lambda: os.chmod("d/f", 0o600), "truncate": lambda: os.truncate("d/f", 1), "rename": lambda: os.rename("d/f", "d/g"),
        "link": lambda: os.link("d/g", "d/h"), "mkdir": lambda: os.mkdir("d/m"), "symlink": lambda: os.symlink("x", "d/s"), "xattr": lambda: os.setxattr("d/g", "trusted.a", b"1"), "utime": lambda: os.utime("d/g"), "unlink": lambda: os.unlink("d/h"),
        "rmdir": lambda: os.rmdir("d/m"), "list": lambda: os.listdir("d"), "rename out": lambda: os.rename("d/g", "g"), "rename in": lambda: os.rename("g", "d/i"), "rename over": lambda: os.rename(fill("d/j"), "d/i"), "last": lambda: (os.unlink("d/i"), os.unlink("d/s"), os.rmdir("d")),
    }.items():
        result_of(call)
        time.sleep(0.01)
        say(name, lambda: events())


def concurrent():
    def workers(count, call):
        children = []
        for number in range(count):
            child = os.fork()
            if child == 0:
                try:
                    call(number)
                    os._exit(0)
                except BaseException as error:
                    print(f"# {group}: {error!r}", flush=True)
                    os._exit(1)
            children.append(child)
        return sum(os.waitpid(child, 0)[1] != 0 for child in children)

    def appends(number):
        fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for line in range(200):
            os.write(fd, f"{number} {line:0100}\n".encode())

    say("appends", lambda: (workers(4, appends), len(content("log").splitlines()), len({line for line in content("log").splitlines() if len(line) == 102})))

    def exclusively(number):
        for turn in range(100):
            try:
                os.close(os.open(f"x{turn}", os.O_CREAT | os.O_EXCL | os.O_RDWR))
                fill(f"won-{turn}-{number}")
            except FileExistsError:
                pass

    say("exclusive creation", lambda: (workers(4, exclusively), sum(name.startswith("won") for name in os.listdir("."))))

    def renames_over(number):
        for turn in range(100):
            with open(f"r{number}", "w") as file:
                file.write(f"{number} {turn}" * 100)
            os.rename(f"r{number}", "target")
            content("target")

    say("renames over one name", lambda: (workers(4, renames_over), len(content("target")) > 300))

    def mkdirs(number):
        for turn in range(60):
            try:
                os.mkdir(f"m{turn}")
            except FileExistsError:
                pass
            try:
                os.rmdir(f"m{turn}")
            except FileNotFoundError:
                pass

    say("mkdir and rmdir", lambda: (workers(4, mkdirs), [name for name in os.listdir(".") if name[0] == "m"]))

    def counted(number):
        fd = os.open("counter", os.O_RDWR | os.O_CREAT)
        for turn in range(60):
            fcntl.lockf(fd, fcntl.LOCK_EX)
            value = int(os.pread(fd, 20, 0) or b"0")
            os.pwrite(fd, b"%d" % (value + 1), 0)
            fcntl.lockf(fd, fcntl.LOCK_UN)

    say("counted under a lock", lambda: (workers(4, counted), content("counter")))


GROUPS = (lengths, bytes_in_names, slashes, kinds_one, renames, creation_modes, permissions, sticky, set_id_bits, chmods, times, changed_times, data, nameless, locks, xattrs, access_lists, directories, links, special, maps, notices, concurrent)

os.chdir(sys.argv[1])
os.umask(0o022)
base = os.getcwd()
for function in GROUPS:
    if len(sys.argv) > 2 and function.__name__ not in sys.argv[2:]:
        continue
    group = function.__name__.replace("_", " ")
    os.mkdir(f"{base}/{function.__name__}")
    os.chdir(f"{base}/{function.__name__}")
    begun = time.monotonic()
    try:
        function()
    except Exception as error:
        line = error.__traceback__
        while line.tb_next:
            line = line.tb_next
        print(f"said {group}, (its end): {type(error).__name__} {error} in line {line.tb_lineno}".replace(base, ""), flush=True)
    else:
        print(f"said {group}, (its end): 0", flush=True)
    print(f"# {group}: {time.monotonic() - begun:.1f} s", flush=True)
    os.chdir(base)
