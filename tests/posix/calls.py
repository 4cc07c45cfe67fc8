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
        "read without atime": ("f", lambda: unnoticed("f")), "list without atime": ("d", lambda: unnoticed("d")), "map and read": ("f", lambda: looks("f")), "copy from": ("prog", lambda: copies("f")), "send from": ("prog", lambda: sends("prog")), "opened and closed": ("f", lambda: opened("f", os.O_RDONLY)), "read past the end": ("f", lambda: reads_past("f")), "read of an empty one": ("empty", lambda: content("empty")), "list twice": ("d", lambda: (os.listdir("d"), os.listdir("d"))), "stat": ("f", lambda: os.stat("f")), "through a link": ("l", lambda: result_of(lambda: os.stat("l"))), "walk through it": ("d", lambda: os.stat("d/old")), "get xattr": ("f", lambda: result_of(lambda: os.getxattr("f", "user.a"))),
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

    def unnoticed(path):
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        os.listdir(fd) if path == "d" else os.read(fd, 9)
        os.close(fd)

    def looks(path):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 4, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            return memory[0:1]

    def sends(path):
        reader, writer = os.pipe()
        with open(path, "rb") as file:
            os.splice(file.fileno(), writer, 4, 0)
        os.close(reader), os.close(writer)

    def reads_past(path):
        with open(path, "rb") as file:
            os.pread(file.fileno(), 4, 100)

    def copies(path):
        with open(path, "r+b") as file, open("prog", "rb") as source:
            os.copy_file_range(source.fileno(), file.fileno(), 4)

    for name, (path, call) in changes.items():
        fill("f"), fill("empty", b""), result_of(lambda: os.link("f", "second")), os.makedirs("d/sub"), fill("d/old"), fill("prog", b"#!/bin/sh\n", 0o755), os.symlink("x", "l")
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        before = os.lstat(path)
        time.sleep(0.012)
        outcome = result_of(call)
        after = os.lstat(path)
        differ = [t for t in ("atime", "mtime", "ctime") if getattr(before, f"st_{t}_ns") != getattr(after, f"st_{t}_ns")]
        say(name, f"{differ} {outcome if outcome.startswith('E') else ''}")
        cleared()


def read_times():
    """By relatime an access counts if nothing was read since the last change, or for a day (mount(8))."""
    now = time.time()
    for name, (atime, mtime) in {"both long ago": (LONG_AGO, LONG_AGO), "read after the change": (now - 60, LONG_AGO), "read a day ago": (now - 90_000, LONG_AGO), "changed after the read": (now - 60, now - 30), "read in the future": (now + 9999, LONG_AGO)}.items():
        fill("f"), os.makedirs("d/sub"), os.symlink("f", "l")
        for path, call in (("f", lambda: content("f")), ("d", lambda: os.listdir("d")), ("l", lambda: os.readlink("l"))):
            os.utime(path, (atime, mtime), follow_symlinks=False)
            before = os.lstat(path)
            say(f"{name}, {path}", lambda: (call(), os.lstat(path).st_atime_ns != before.st_atime_ns)[1])
            say(f"{name}, {path}, again", lambda: (lambda first: (time.sleep(0.012), call(), os.lstat(path).st_atime_ns != first)[2])(os.lstat(path).st_atime_ns))
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


# ---- what Linux has beside POSIX -----------------------------------------------------------------------------------------

PATH_ALONE, EMPTY_PATH, HERE, MIB = os.O_PATH, 0x1000, -100, 1 << 20


def with_fd(path, flags, call):
    fd = os.open(path, flags)
    try:
        return call(fd)
    finally:
        os.close(fd)


def ioctl(fd, number, data):
    """What the kernel writes back."""
    buffer = bytearray(data)
    fcntl.ioctl(fd, number, buffer)
    return bytes(buffer)


def linux_sync():
    fill("f", b"0123456789")
    for name, flags in {"read": os.O_RDONLY, "write": os.O_WRONLY, "path": PATH_ALONE}.items():
        for call, do in {
            "syncfs": lambda fd: checked(libc.syncfs(fd)), "sync_file_range": lambda fd: checked(libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(4), 2)),
            "readahead": lambda fd: checked(libc.readahead(fd, ctypes.c_long(0), 10)), "fadvise": lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED),
            "fsync": os.fsync, "fdatasync": os.fdatasync, "flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_SH), "write hint": lambda fd: fcntl.fcntl(fd, 1036, struct.pack("Q", 2)) and None,
            "O_ASYNC": lambda fd: (fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC), oct(fcntl.fcntl(fd, fcntl.F_GETFL) & 0o20000)), "seals": lambda fd: fcntl.fcntl(fd, 1033, 1), "owner of signals": lambda fd: fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid()),
        }.items():
            say(f"{call} of one open to {name}", lambda: with_fd("f", flags, do))
    say("sync_file_range, wrong flags", lambda: with_fd("f", os.O_RDWR, lambda fd: checked(libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 64))))
    say("sync_file_range before 0", lambda: with_fd("f", os.O_RDWR, lambda fd: checked(libc.sync_file_range(fd, ctypes.c_long(-1), ctypes.c_long(0), 2))))
    for name, how in {"syncfs": libc.syncfs, "fsync": libc.fsync, "fdatasync": libc.fdatasync}.items():
        say(f"{name} of a directory", lambda: with_fd(".", os.O_RDONLY, lambda fd: checked(how(fd))))
    say("readahead of a directory", lambda: with_fd(".", os.O_RDONLY, lambda fd: checked(libc.readahead(fd, ctypes.c_long(0), 10))))
    say("fadvise of a directory", lambda: with_fd(".", os.O_RDONLY, lambda fd: os.posix_fadvise(fd, 0, 0, 0)))
    say("dropped pages are read again", lambda: with_fd("f", os.O_RDWR, lambda fd: (os.pwrite(fd, b"new", 0), os.fsync(fd), os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED), os.pread(fd, 3, 0))))


def linux_ranges():
    fill("f", bytes(range(256)) * 64), fill("g", bytes(range(256)) * 64)
    with open("f", "r+b") as one, open("g", "r+b") as other:
        a, b = one.fileno(), other.fileno()
        say("FICLONE", lambda: fcntl.ioctl(b, 0x40049409, a))
        say("FICLONERANGE", lambda: ioctl(b, 0x4020940D, struct.pack("qQQQ", a, 0, 4096, 0)) and None)
        say("FIDEDUPERANGE", lambda: struct.unpack_from("i", ioctl(a, 0xC0189436, struct.pack("QQHHI", 0, 4096, 1, 0, 0) + struct.pack("qQQiI", b, 0, 0, 0, 0)), 24 + 24)[0] < 0)
        say("FIEMAP", lambda: struct.unpack_from("I", ioctl(a, 0xC020660B, struct.pack("QQIIII", 0, 1 << 40, 1, 0, 8, 0) + bytes(56 * 8)), 20)[0] > 0)
        say("FIBMAP", lambda: struct.unpack("i", ioctl(a, 1, bytes(4)))[0] >= 0)
        say("FIBMAP by a user", lambda: as_user(lambda: ioctl(a, 1, bytes(4))))
        say("FS_IOC_GETVERSION", lambda: len(ioctl(a, 0x80087601, bytes(8))))
        say("FS_IOC_FSGETXATTR", lambda: struct.unpack_from("I", ioctl(a, 0x801C581F, bytes(28)))[0] & 0x3FFFFFFF)
        say("FS_IOC_SETFLAGS, nodump", lambda: (ioctl(a, 0x40086602, struct.pack("l", 0x40)), struct.unpack("i", ioctl(a, 0x80086601, bytes(8))[:4])[0] & 0x40)[1])
        say("FS_IOC_SETFLAGS, unknown", lambda: ioctl(a, 0x40086602, struct.pack("l", 0x40000000)) and None)
        say("FS_IOC_SETFLAGS by another", lambda: as_user(lambda: with_fd("f", os.O_RDONLY, lambda fd: ioctl(fd, 0x40086602, struct.pack("l", 0x40))) and None))
        say("FIOQSIZE", lambda: struct.unpack("q", ioctl(a, 0x5460, bytes(8)))[0])
        say("FIOCLEX", lambda: fcntl.ioctl(a, 0x5451))
        say("FIONBIO", lambda: ioctl(a, 0x5421, struct.pack("i", 1)) and oct(fcntl.fcntl(a, fcntl.F_GETFL) & os.O_NONBLOCK))
        say("FIFREEZE by a user", lambda: as_user(lambda: ioctl(a, 0xC0045877, bytes(4))))
        say("immutable", lambda: (ioctl(a, 0x40086602, struct.pack("l", 0x10)), result_of(lambda: opened("f", os.O_WRONLY)), result_of(lambda: os.unlink("f")), result_of(lambda: os.chmod("f", 0o600)), result_of(lambda: os.link("f", "ff")), result_of(lambda: os.rename("f", "ff")))[1:])
        say("immutable no longer", lambda: (ioctl(a, 0x40086602, struct.pack("l", 0)), os.chmod("f", 0o644))[1:])
        say("append only", lambda: (ioctl(a, 0x40086602, struct.pack("l", 0x20)), result_of(lambda: opened("f", os.O_WRONLY)), result_of(lambda: os.truncate("f", 0)), result_of(lambda: os.unlink("f")))[1:])
        say("append only no longer", lambda: ioctl(a, 0x40086602, struct.pack("l", 0)) and None)


def linux_copies():
    def pattern(size):
        return b"".join(struct.pack("I", number) for number in range(size // 4))

    fill("big", pattern(3 * MIB)), fill("dst", b"")
    with open("big", "r+b", 0) as source, open("dst", "r+b", 0) as target:
        one, two = source.fileno(), target.fileno()

        def all_of(call, left):
            done = 0
            while left - done > 0:
                more = call(done, left - done)
                if not more:
                    break
                done += more
            return done

        say("copy_file_range of 3 MiB", lambda: (all_of(lambda at, left: os.copy_file_range(one, two, left, at, at), 3 * MIB), hash_of("dst") == hash_of("big")))
        say("copy_file_range at once", lambda: os.copy_file_range(one, two, 3 * MIB, 0, 0))
        say("copy_file_range by offsets of the files", lambda: (os.lseek(one, 5, 0), os.lseek(two, 0, 0), os.copy_file_range(one, two, 100), os.lseek(one, 0, 1), os.lseek(two, 0, 1), content("dst")[:100] == content("big")[5:105])[2:])
        say("copy_file_range, unknown flags", lambda: checked(libc.copy_file_range(one, None, two, None, 10, 1)))
        say("copy_file_range to one that appends", lambda: with_fd("dst", os.O_WRONLY | os.O_APPEND, lambda fd: os.copy_file_range(one, fd, 10, 0)))
        say("copy_file_range from a directory", lambda: with_fd(".", os.O_RDONLY, lambda fd: os.copy_file_range(fd, two, 10, 0, 0)))
        say("copy_file_range from a pipe", lambda: os.copy_file_range(os.pipe()[0], two, 10))
        say("copy_file_range to another user's", lambda: as_user(lambda: with_fd("big", os.O_RDONLY, lambda fd: os.copy_file_range(fd, two, 10, 0, 0))))
        os.ftruncate(two, 0)
        os.pwrite(one, b"fresh", 0)
        say("copy_file_range of what was just written", lambda: (os.copy_file_range(one, two, 5, 0, 0), content("dst")))
        say("sendfile of 3 MiB", lambda: (os.ftruncate(two, 0), os.lseek(two, 0, 0), all_of(lambda at, left: os.sendfile(two, one, at, left), 3 * MIB), hash_of("dst") == hash_of("big"))[2:])
        say("sendfile to one that appends", lambda: with_fd("dst", os.O_WRONLY | os.O_APPEND, lambda fd: os.sendfile(fd, one, 0, 10)))
        left, right = socket.socketpair()
        say("sendfile to a socket", lambda: (os.sendfile(left.fileno(), one, 0, 5000), len(right.recv(9999))))
        reader, writer = os.pipe()
        say("splice from a file", lambda: (os.splice(one, writer, 4096, 4), os.read(reader, 9999) == content("big")[4:4100]))
        again, into = os.pipe()
        say("tee", lambda: (os.write(writer, b"teeth"), checked(libc.tee(reader, into, 5, 0)), os.read(again, 9), os.splice(reader, two, 5, None, 7), content("dst")[7:12]))
        buffer = ctypes.create_string_buffer(b"from memory", 11)
        vector = struct.pack("PN", ctypes.addressof(buffer), 11)
        say("vmsplice", lambda: (checked(libc.vmsplice(writer, vector, 1, 0)), os.splice(reader, two, 11, None, 0), content("dst")[:11]))
        say("splice to one that appends", lambda: with_fd("dst", os.O_WRONLY | os.O_APPEND, lambda fd: (os.write(writer, b"x"), os.splice(reader, fd, 1))))
        say("splice past the end", lambda: os.splice(one, writer, 100, 1 << 40))
        os.set_blocking(reader, False)
        result_of(lambda: os.read(reader, 9999))
        say("splice of what was just written", lambda: (os.pwrite(one, b"NEW", 8), os.splice(one, writer, 3, 8), os.read(reader, 9)))
    gone("big")


def linux_handles():
    fill("f", b"by handle"), os.mkdir("d"), fill("d/g"), os.symlink("f", "l")

    def handle_of(path, flags=0):
        buffer = ctypes.create_string_buffer(struct.pack("Ii", 120, 0) + bytes(120))
        checked(libc.name_to_handle_at(HERE, os.fsencode(path), buffer, ctypes.byref(ctypes.c_int()), flags))
        return buffer

    def by_handle(buffer, flags):
        return with_fd(".", os.O_RDONLY, lambda mount: checked(libc.open_by_handle_at(mount, buffer, flags)))

    for path, flags in (("f", os.O_RDWR), ("d", os.O_RDONLY | os.O_DIRECTORY), ("l", PATH_ALONE), (".", os.O_RDONLY)):
        say(f"open_by_handle_at of {path}", lambda: os.path.samestat(os.fstat(by_handle(handle_of(path), flags)), os.lstat(path)))
    say("read", lambda: os.read(by_handle(handle_of("f"), os.O_RDONLY), 99))
    say("as a user", lambda: as_user(lambda: by_handle(handle_of("f"), os.O_RDONLY) and None))
    say("too small", lambda: checked(libc.name_to_handle_at(HERE, b"f", struct.pack("Ii", 0, 0), ctypes.byref(ctypes.c_int()), 0)))
    say("of nothing", lambda: handle_of("nothing") and None)
    say("wrong flags", lambda: handle_of("f", 0x8000) and None)
    say("same for two names", lambda: (os.link("f", "second"), handle_of("f").raw == handle_of("second").raw)[1])
    kept = handle_of("f")
    say("after a rename", lambda: (os.rename("f", "h"), os.read(by_handle(kept, os.O_RDONLY), 99))[1])
    gone("h"), gone("second")
    say("after the unlink", lambda: by_handle(kept, os.O_RDONLY) and None)
    say("nonsense", lambda: by_handle(ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + bytes(8)), os.O_RDONLY) and None)


def linux_events():
    fill("f"), os.mkdir("d")
    for name, flags in {"read": os.O_RDONLY, "write": os.O_WRONLY}.items():
        for kind, lease in {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}.items():
            say(f"{kind} lease of one open to {name}", lambda: with_fd("f", flags, lambda fd: (fcntl.fcntl(fd, 1024, lease), fcntl.fcntl(fd, 1025))))
    say("lease by another user", lambda: as_user(lambda: with_fd("f", os.O_RDONLY, lambda fd: fcntl.fcntl(fd, 1024, fcntl.F_RDLCK))))
    say("lease of a directory", lambda: with_fd("d", os.O_RDONLY, lambda fd: fcntl.fcntl(fd, 1024, fcntl.F_RDLCK)))

    def signalled(number, arm, cause):
        """Whether that arrives."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        fd = arm()
        result_of(cause)
        got = signal.sigtimedwait({number}, 0.2) is not None
        os.close(fd)
        return got

    def lease():
        fd = os.open("f", os.O_RDONLY)
        fcntl.fcntl(fd, 1024, fcntl.F_RDLCK)
        return fd

    def notify(what):
        def do():
            fd = os.open("d", os.O_RDONLY)
            fcntl.fcntl(fd, 1026, what)
            return fd
        return do

    say("a lease is broken", lambda: as_user(lambda: signalled(signal.SIGIO, lease, lambda: opened("f", os.O_WRONLY | os.O_NONBLOCK)), 0, 0))
    for name, what, cause in (("create", 4, lambda: fill("d/n")), ("modify", 2, lambda: fill("d/n", b"x")), ("attributes", 32, lambda: os.chmod("d/n", 0o600)), ("rename", 16, lambda: os.rename("d/n", "d/m")), ("delete", 8, lambda: os.unlink("d/m")), ("access", 1, lambda: (fill("d/a"), content("d/a")))):
        say(f"F_NOTIFY, {name}", lambda: as_user(lambda: signalled(signal.SIGIO, notify(what), cause), 0, 0))
    say("F_NOTIFY of a file", lambda: with_fd("f", os.O_RDONLY, lambda fd: fcntl.fcntl(fd, 1026, 4)))

    def fanotify(init, flags, mask, path, cause):
        group = checked(libc.fanotify_init(init | 2, os.O_RDONLY))
        try:
            checked(libc.fanotify_mark(group, 1 | flags, ctypes.c_ulonglong(mask), HERE, os.fsencode(path)))
            cause()
            data, masks = os.read(group, 8192), []
            while data:
                length, _, _, _, mask, fd, _ = struct.unpack_from("IBBHQii", data)
                masks.append(hex(mask))
                if fd >= 0:
                    os.close(fd)
                data = data[length:]
            return masks
        finally:
            os.close(group)

    say("fanotify of a file", lambda: fanotify(0, 0, 0x20 | 0x2 | 0x8, "f", lambda: fill("f")))
    say("fanotify of what is in a directory", lambda: fanotify(0, 0, 0x08000020, "d", lambda: content("d/a")))
    for name, init in (("by handle", 0x200), ("by handle and name", 0xE00)):
        say(f"fanotify {name}, of a file", lambda: fanotify(init, 0, 0x2 | 0x4, "f", lambda: fill("f")))
        say(f"fanotify {name}, of a directory", lambda: fanotify(init, 0, 0x100 | 0x200, "d", lambda: (fill("d/x"), os.unlink("d/x"))))
    say("fanotify by a user", lambda: as_user(lambda: fanotify(0x200, 0, 0x20, "f", lambda: content("f"))))
    say("fanotify that permits", lambda: permitted())

    fd = libc.inotify_init1(os.O_NONBLOCK)

    def events():
        found, data = [], b""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            pass
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            found.append(f"{mask:x}")
            data = data[16 + length:]
        return found

    def watched(path, mask, *calls):
        number = checked(libc.inotify_add_watch(fd, os.fsencode(path), mask))
        for call in calls:
            call()
        found = events()
        libc.inotify_rm_watch(fd, number)
        events()
        return found

    fill("w"), os.mkdir("v")
    say("inotify of a file", lambda: watched("w", 0xFFF, lambda: fill("w"), lambda: content("w"), lambda: os.link("w", "w2"), lambda: os.unlink("w2"), lambda: os.rename("w", "x"), lambda: os.unlink("x")))
    fill("w")
    say("inotify, once", lambda: watched("w", 0x80000020, lambda: content("w"), lambda: content("w")))
    say("inotify, directories only", lambda: watched("w", 0x01000FFF))
    say("inotify of a link", lambda: (os.symlink("w", "wl"), watched("wl", 0x02000FFF, lambda: os.unlink("wl")))[1])
    say("inotify of a directory that goes", lambda: watched("v", 0xFFF, lambda: os.rmdir("v")))
    fill("w")
    say("inotify, mapped", lambda: watched("w", 0xFFF, lambda: mapped_write("w")))
    say("inotify, of two names", lambda: (os.link("w", "w3"), watched("w3", 0xFFF, lambda: fill("w", b"y")))[1])
    say("inotify, allocated, copied, cut", lambda: watched("w", 0x2, lambda: os.truncate("w", 2), lambda: with_fd("w", os.O_RDWR, lambda file: result_of(lambda: fallocate(file, 0, 0, 4096))), lambda: with_fd("w", os.O_RDWR, lambda file: with_fd("f", os.O_RDONLY, lambda source: os.copy_file_range(source, file, 2, 0, 0)))))
    os.close(fd)


def mapped_write(path):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4) as memory:
        memory[0:1] = b"m"
        memory.flush()


def permitted():
    """An opening that a listener has to allow, and does not."""
    group = checked(libc.fanotify_init(0x4, os.O_RDONLY))
    checked(libc.fanotify_mark(group, 1, ctypes.c_ulonglong(0x10000), HERE, b"f"))
    child = os.fork()
    if child == 0:
        os._exit(0 if result_of(lambda: content("f")) == "EPERM" else 1)
    _, _, _, _, _, fd, _ = struct.unpack_from("IBBHQii", os.read(group, 4096))
    os.write(group, struct.pack("iI", fd, 2))
    os.close(fd)
    refused = os.waitpid(child, 0)[1] == 0
    os.close(group)
    return refused


def linux_statx():
    fill("f", b"12345"), os.symlink("f", "l"), os.mkdir("d")

    def statx(path, flags, mask, fd=HERE):
        buffer = ctypes.create_string_buffer(256)
        checked(libc.statx(fd, os.fsencode(path), flags, mask, buffer))
        return buffer.raw

    for path in ("f", "l", "d", "nothing"):
        for name, flags in {"follow": 0, "no follow": 0x100, "no automount": 0x800, "force": 0x2000, "cached": 0x4000}.items():
            def fields():
                found = statx(path, flags, 0x7FF)
                kept, size = struct.unpack_from("I", found)[0] & 0x7FF, struct.unpack_from("Q", found, 40)[0]
                return hex(kept), size if path != "d" else "", oct(struct.unpack_from("H", found, 28)[0]), struct.unpack_from("I", found, 16)[0]
            say(f"{path}, {name}", fields)
    say("of a descriptor", lambda: with_fd("f", os.O_RDONLY, lambda fd: struct.unpack_from("Q", statx("", EMPTY_PATH, 0x7FF, fd), 40)[0]))
    say("wrong flags", lambda: statx("f", 0x6000, 0x7FF) and None)
    say("reserved mask", lambda: statx("f", 0, 0x80000000) and None)
    say("attributes", lambda: hex(struct.unpack_from("Q", statx("f", 0, 0x7FF), 8)[0]))
    say("immutable", lambda: (with_fd("f", os.O_RDONLY, lambda fd: ioctl(fd, 0x40086602, struct.pack("l", 0x10))), hex(struct.unpack_from("Q", statx("f", 0, 0x7FF), 8)[0]), with_fd("f", os.O_RDONLY, lambda fd: ioctl(fd, 0x40086602, struct.pack("l", 0))))[1])
    say("root of a mount", lambda: hex(struct.unpack_from("Q", statx("f", 0, 0x7FF), 8)[0] & 0x2000))
    say("number of the mount", lambda: struct.unpack_from("I", statx("f", 0, 0x17FF))[0] & 0x1000)
    say("alignment of O_DIRECT", lambda: struct.unpack_from("I", statx("f", 0, 0x27FF))[0] & 0x2000)
    say("device as by stat", lambda: os.makedev(*struct.unpack_from("II", statx("f", 0, 0x7FF), 136)) == os.stat("f").st_dev)


def openat2(path, flags=os.O_RDONLY, resolve=0, bits=0, fd=HERE, size=24, more=b""):
    return checked(libc.syscall(437, fd, os.fsencode(path), struct.pack("QQQ", flags, bits, resolve) + more, size))


def linux_openat2():
    os.makedirs("d/e")
    fill("d/f"), fill("f")
    for name, aim in {"d/up": "../f", "d/abs": "/etc/passwd", "d/side": "f", "d/root": "/f", "d/loop": "loop", "d/magic": "/proc/self/exe", "d/dir": "e"}.items():
        os.symlink(aim, name)
    base = os.open("d", PATH_ALONE)
    flags = {"none": 0, "no xdev": 1, "no magic links": 2, "no links": 4, "beneath": 8, "in root": 16, "beneath, no links": 12, "in root, no links": 20, "beneath and in root": 24, "unknown": 64}
    for (name, resolve), path in itertools.product(flags.items(), ("f", "e/..", "../f", "/f", "up", "abs", "side", "root", "loop", "magic", "dir", "dir/../f", "e/../../f", "nothing", "f/", "f/x", ".", "..")):
        say(f"{path}, {name}", lambda: os.close(openat2(path, PATH_ALONE, resolve, fd=base)))
    for name, resolve in flags.items():
        say(f"create, {name}", lambda: (os.close(openat2("new", os.O_CREAT | os.O_RDWR, resolve, 0o640, base)), mode("d/new"), os.unlink("d/new"))[1])
        say(f"create by a link, {name}", lambda: (os.symlink("made", "d/tomade"), os.close(openat2("tomade", os.O_CREAT | os.O_RDWR, resolve, 0o600, base)), kind("d/made"))[2])
        gone("d/made"), gone("d/tomade")
    say("cached", lambda: (os.stat("d/f"), os.close(openat2("f", os.O_RDONLY, 32, fd=base)))[1])
    say("cached, create", lambda: os.close(openat2("n", os.O_RDWR | os.O_CREAT, 32, 0o600, base)))
    say("bits without O_CREAT", lambda: openat2("f", os.O_RDONLY, 0, 0o600, base))
    say("bits that are not", lambda: openat2("n2", os.O_RDWR | os.O_CREAT, 0, 0o10600, base))
    say("unknown flags", lambda: openat2("f", 1 << 40, 0, 0, base))
    say("larger, of zeros", lambda: os.close(openat2("f", os.O_RDONLY, 0, 0, base, 32, bytes(8))))
    say("larger", lambda: openat2("f", os.O_RDONLY, 0, 0, base, 32, b"12345678"))
    say("smaller", lambda: openat2("f", os.O_RDONLY, 0, 0, base, 16))
    os.close(base)


def linux_at():
    fill("f"), os.mkdir("d"), os.symlink("f", "l"), os.symlink("nowhere", "dangling")
    directory = os.open("d", os.O_RDONLY)
    for name, bits in {"regular": stat.S_IFREG | 0o640, "no kind": 0o600, "fifo": stat.S_IFIFO | 0o600, "socket": stat.S_IFSOCK | 0o600, "character": stat.S_IFCHR | 0o600, "block": stat.S_IFBLK | 0o600, "directory": stat.S_IFDIR | 0o700, "link": stat.S_IFLNK | 0o777}.items():
        say(f"mknodat, {name}", lambda: (checked(libc.mknodat(directory, b"n", bits, ctypes.c_ulong(os.makedev(1, 3)))), stat.filemode(os.lstat("d/n").st_mode), os.lstat("d/n").st_rdev)[1:])
        gone("d/n")
    say("whiteout by rename", lambda: (fill("w"), renameat2("w", "w2", 4), stat.filemode(os.lstat("w").st_mode), os.lstat("w").st_rdev)[2:])
    for name, flags in {"none": 0, "noreplace": 1, "exchange": 2, "both": 3, "unknown": 16}.items():
        for other in ("nothing", "file", "directory"):
            fill("a", b"A")
            make(other, "b")
            say(f"renameat2 with a directory's descriptor, {name}, to {other}", lambda: (checked(libc.renameat2(HERE, b"a", directory, b"../b", flags)), kind("a"), kind("b"))[1:])
            gone("a"), gone("b")
    for path, flags in itertools.product(("f", "l", "dangling", "d"), (0, 0x400, EMPTY_PATH, 0x100)):
        say(f"linkat of {path}, flags {flags:x}", lambda: (checked(libc.linkat(HERE, path.encode(), HERE, b"new", flags)), kind("new"))[1])
        gone("new")
    say("linkat of an empty path", lambda: with_fd("f", PATH_ALONE, lambda fd: (checked(libc.linkat(fd, b"", HERE, b"new", EMPTY_PATH)), os.stat("new").st_nlink)[1]))
    gone("new")
    say("linkat of an empty path by a user", lambda: as_user(lambda: with_fd("f", PATH_ALONE, lambda fd: checked(libc.linkat(fd, b"", HERE, b"new", EMPTY_PATH)))))
    say("linkat of a descriptor's link", lambda: with_fd("f", PATH_ALONE, lambda fd: (checked(libc.linkat(HERE, f"/proc/self/fd/{fd}".encode(), HERE, b"new", 0x400)), os.stat("new").st_nlink)[1]))
    gone("new")
    os.chmod("f", 0o640)
    for path, flags, bits in itertools.product(("f", "l", "dangling", "nothing"), (0, 0x100, 0x200, 0x300, 0x8000), (0, 4, 7, 8)):
        say(f"faccessat2 of {path}, flags {flags:x}, for {bits}", lambda: checked(libc.syscall(439, HERE, path.encode(), bits, flags)))
        say(f"faccessat2 of {path}, flags {flags:x}, for {bits}, by a user", lambda: as_user(lambda: checked(libc.syscall(439, HERE, path.encode(), bits, flags))))
    say("faccessat2 of a descriptor", lambda: with_fd("f", PATH_ALONE, lambda fd: checked(libc.syscall(439, fd, b"", 4, EMPTY_PATH))))

    def effective(flags):
        os.setgroups(())
        os.setresgid(0, USER, 0)
        os.setresuid(0, USER, 0)
        return checked(libc.syscall(439, HERE, b"f", 2, flags))

    for flags in (0, 0x200):
        say(f"access of an effective user, flags {flags:x}", lambda: as_user(lambda: effective(flags), 0, 0))
    for path, flags in itertools.product(("f", "l", "dangling", "d"), (0, 0x100, EMPTY_PATH, 0x8000)):
        say(f"fchmodat2 of {path}, flags {flags:x}", lambda: (checked(libc.syscall(452, HERE, path.encode(), 0o604, flags)), mode("f"))[1])
        os.chmod("f", 0o640)
    say("fchmodat2 of a descriptor", lambda: with_fd("f", PATH_ALONE, lambda fd: (checked(libc.syscall(452, fd, b"", 0o601, EMPTY_PATH)), mode("f"))[1]))
    for path, flags in itertools.product(("f", "l", "dangling"), (0, 0x100)):
        say(f"fchownat of {path}, flags {flags:x}", lambda: (checked(libc.fchownat(HERE, path.encode(), 5, 6, flags)), os.lstat(path).st_uid, os.stat("f").st_uid)[1:])
    say("fchownat of a descriptor", lambda: with_fd("f", PATH_ALONE, lambda fd: (checked(libc.fchownat(fd, b"", 7, 7, EMPTY_PATH)), os.stat("f").st_uid)[1]))
    for (one, atime), (other, mtime) in itertools.product({"now": (0, NOW), "omit": (0, OMIT), "a time": (9, 5)}.items(), repeat=2):
        def moved():
            os.utime("f", (LONG_AGO, LONG_AGO))
            with_fd("f", os.O_RDONLY, lambda fd: checked(libc.futimens(fd, struct.pack("qqqq", *atime, *mtime))))
            found = os.stat("f")
            return [value if value < 1_500_000_000_000_000_000 else "now" for value in (found.st_atime_ns, found.st_mtime_ns)]
        say(f"futimens, {one} and {other}", moved)
    say("utimensat, omit twice, of nothing", lambda: set_times("nothing", (0, OMIT), (0, OMIT)))
    say("utimensat, omit twice, keeps ctime", lambda: (lambda before: (time.sleep(0.012), set_times("f", (0, OMIT), (0, OMIT)), os.stat("f").st_ctime_ns == before)[2])(os.stat("f").st_ctime_ns))
    say("utimensat of a descriptor", lambda: with_fd("f", PATH_ALONE, lambda fd: (checked(libc.utimensat(fd, b"", struct.pack("qqqq", 3, 4, 5, 6), EMPTY_PATH)), os.stat("f").st_mtime_ns)[1]))
    say("unlinkat, remove a file as a directory", lambda: checked(libc.unlinkat(HERE, b"f", 0x200)))
    say("unlinkat, unknown flags", lambda: checked(libc.unlinkat(HERE, b"f", 0x8000)))
    say("close_range", lambda: as_user(lambda: [os.open("f", os.O_RDONLY) and None for _ in range(4)] and (checked(libc.syscall(436, directory + 1, 1 << 20, 4)), checked(libc.syscall(436, directory, directory, 0)), result_of(lambda: os.fstat(directory)))[1:], 0, 0))
    for size in (1, 20, 24, 32, 48, 64, 280, 4096):
        def listed():
            for number in range(40):
                opened(f"d/{'n' * (number * 6 + 1)}", os.O_CREAT | os.O_RDWR)
            fd, buffer, count, rounds = os.open("d", os.O_RDONLY), ctypes.create_string_buffer(size), 0, 0
            try:
                while True:
                    got = checked(libc.syscall(217, fd, buffer, size))
                    if not got:
                        return count
                    at = 0
                    while at < got:
                        count, at = count + 1, at + struct.unpack_from("H", buffer, at + 16)[0]
            finally:
                os.close(fd)
        say(f"getdents, buffers of {size} bytes", listed if size in (1, 20, 280, 4096) else lambda: result_of(listed) in ("EINVAL", "42"))
    os.close(directory)


def linux_path_descriptors():
    os.makedirs("d/e")
    fill("d/f", b"inside"), fill("f", b"data"), os.symlink("f", "l"), os.link("f", "second")
    file, directory, link = os.open("f", PATH_ALONE), os.open("d", PATH_ALONE), os.open("l", PATH_ALONE | os.O_NOFOLLOW)
    again = lambda fd: f"/proc/self/fd/{fd}"
    for name, call in {
        "fstat": lambda: (os.fstat(file).st_size, os.fstat(file).st_nlink), "read": lambda: os.read(file, 1), "write": lambda: os.write(file, b"x"), "ftruncate": lambda: os.ftruncate(file, 1),
        "fchmod": lambda: os.fchmod(file, 0o600), "fchown": lambda: os.fchown(file, 1, 1), "fsync": lambda: os.fsync(file), "flags": lambda: oct(fcntl.fcntl(file, fcntl.F_GETFL)), "fstatvfs": lambda: os.fstatvfs(file).f_namemax,
        "getxattr": lambda: os.getxattr(file, "user.a"), "mmap": lambda: mmap.mmap(file, 4), "lseek": lambda: os.lseek(file, 0, 0), "ioctl": lambda: fcntl.ioctl(file, 0x80086601, bytes(8)) and None, "dup": lambda: os.close(os.dup(file)),
        "opened again": lambda: with_fd(again(file), os.O_RDWR, lambda fd: os.pwrite(fd, b"D", 0)), "chmod": lambda: (os.chmod(again(file), 0o640), mode("f"))[1], "xattr": lambda: (os.setxattr(again(file), "user.a", b"1"), os.getxattr("f", "user.a"))[1],
        "utime": lambda: (os.utime(again(file), (1, 2)), os.stat("f").st_mtime)[1], "truncate": lambda: (os.truncate(again(file), 3), os.stat("f").st_size)[1], "exec": lambda: subprocess.run([again(file)], pass_fds=[file]).returncode,
        "fchdir": lambda: (os.fchdir(directory), os.listdir("."), os.chdir(".."))[1], "fchdir to a file": lambda: os.fchdir(file), "openat below": lambda: os.read(os.open("f", os.O_RDONLY, dir_fd=directory), 9),
        "listed": lambda: os.listdir(directory), "listed again": lambda: os.listdir(again(directory)), "mkdirat": lambda: os.mkdir("m", dir_fd=directory), "renameat": lambda: os.rename("m", "n", src_dir_fd=directory, dst_dir_fd=directory), "symlinkat": lambda: os.symlink("x", "s", dir_fd=directory),
        "unlinkat": lambda: os.unlink("s", dir_fd=directory), "rmdirat": lambda: os.rmdir("n", dir_fd=directory), "openat below a file": lambda: os.open("x", os.O_RDONLY, dir_fd=file), ".. of it": lambda: os.path.samestat(os.stat("..", dir_fd=directory), os.stat(".")),
        "a link, readlinkat": lambda: os.readlink("", dir_fd=link), "a link, fstat": lambda: stat.filemode(os.fstat(link).st_mode), "a link, fchownat": lambda: checked(libc.fchownat(link, b"", 3, 3, EMPTY_PATH)), "a link, linkat": lambda: (checked(libc.linkat(link, b"", HERE, b"l2", EMPTY_PATH)), os.readlink("l2"))[1],
    }.items():
        say(name, call)
    os.rename("f", "g")
    say("after a rename", lambda: (os.fstat(file).st_nlink, os.readlink(again(file)).endswith("/g")))
    os.unlink("g")
    say("after one name went", lambda: (os.fstat(file).st_nlink, content(again(file))))
    os.unlink("second")
    say("after all names went", lambda: os.fstat(file).st_nlink)
    say("after all names went, opened again", lambda: content(again(file)))
    say("after all names went, linked", lambda: checked(libc.linkat(file, b"", HERE, b"third", EMPTY_PATH)))
    say("after all names went, chmod", lambda: (os.chmod(again(file), 0o604), oct(os.fstat(file).st_mode))[1])
    os.rename("d", "moved")
    say("a directory that was renamed", lambda: os.read(os.open("f", os.O_RDONLY, dir_fd=directory), 9))
    os.mkdir("deep")
    os.chdir("deep")
    os.rmdir("../deep")
    for name, call in {"getcwd": os.getcwd, "create": lambda: fill("x"), "stat": lambda: os.stat(".").st_nlink, "..": lambda: os.path.exists(".."), "list": lambda: os.listdir("."), "mkdir": lambda: os.mkdir("x"), "chmod": lambda: os.chmod(".", 0o700), "access": lambda: os.access(".", os.W_OK)}.items():
        say(f"in a directory that is gone, {name}", call)
    os.chdir("..")


def linux_memory():
    fill("f", b"m" * 16384)
    with open("f", "r+b") as file:
        fd = file.fileno()
        libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p

        def placed(address):
            if address == ctypes.c_void_p(-1).value:
                checked(-1)
            return ctypes.c_void_p(address)

        def mapped(length, protection, flags, offset=0):
            return placed(libc.mmap(None, ctypes.c_size_t(length), protection, flags, fd, ctypes.c_long(offset)))

        both = mmap.PROT_READ | mmap.PROT_WRITE
        say("populated", lambda: ctypes.string_at(mapped(8192, both, mmap.MAP_SHARED | 0x8000), 3))
        say("synchronous", lambda: mapped(4096, both, 0x3 | 0x80000) and None)
        say("validated", lambda: ctypes.string_at(mapped(4096, both, 0x3), 1))
        say("of an unaligned offset", lambda: mapped(4096, both, mmap.MAP_SHARED, 100) and None)
        place = mapped(16384, both, mmap.MAP_SHARED)
        for name, advice in {"normal": 0, "random": 1, "sequential": 2, "willneed": 3, "dontneed": 4, "free": 8, "dontfork": 10, "hugepage": 14, "dontdump": 16, "cold": 20, "pageout": 21, "populate to read": 22, "populate to write": 23}.items():
            say(f"madvise {name}", lambda: checked(libc.madvise(place, ctypes.c_size_t(8192), advice)))
        say("madvise remove", lambda: (checked(libc.madvise(place, ctypes.c_size_t(4096), 9)), os.pread(fd, 2, 0), os.pread(fd, 2, 4096), ctypes.string_at(place, 2)))
        for name, flags in {"async": 1, "invalidate": 2, "sync": 4, "async and sync": 5, "unknown": 8}.items():
            say(f"msync {name}", lambda: checked(libc.msync(place, ctypes.c_size_t(16384), flags)))
        say("mlock", lambda: checked(libc.mlock(place, ctypes.c_size_t(8192))))
        say("mincore", lambda: checked(libc.mincore(place, ctypes.c_size_t(8192), ctypes.create_string_buffer(4))))
        say("mremap", lambda: ctypes.string_at(placed(libc.mremap(mapped(8192, both, mmap.MAP_SHARED), ctypes.c_size_t(8192), ctypes.c_size_t(16384), 1)), 2))
        say("read into a map of itself", lambda: (lambda at: checked(libc.pread(fd, at, ctypes.c_size_t(100), ctypes.c_long(8192))))(mapped(4096, both, mmap.MAP_SHARED)))
        say("written from a map of itself", lambda: (lambda at: checked(libc.pwrite(fd, at, ctypes.c_size_t(4096), ctypes.c_long(4096))))(mapped(16384, both, mmap.MAP_SHARED)))
        say("content by then", lambda: hash_of("f"))
        say("executed", lambda: mapped(4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE) and None)


class Ring:
    """One call at a time (io_uring(7))."""

    def __init__(self):
        parameters = bytearray(120)
        self.fd = checked(libc.syscall(425, 4, (ctypes.c_char * 120).from_buffer(parameters)))
        numbers = struct.unpack_from("10I", parameters, 40) + struct.unpack_from("10I", parameters, 80)
        (_, self.sq_tail, self.sq_mask, _, _, _, self.sq_array), (self.cq_head, _, self.cq_mask, _, _, self.cqes) = numbers[:7], numbers[10:16]
        self.sq = mmap.mmap(self.fd, self.sq_array + 4 * 4, mmap.MAP_SHARED, offset=0)
        self.cq = mmap.mmap(self.fd, self.cqes + 16 * 8, mmap.MAP_SHARED, offset=0x8000000)
        self.sqes = mmap.mmap(self.fd, 64 * 4, mmap.MAP_SHARED, offset=0x10000000)

    def do(self, operation, fd=-1, offset=0, address=0, length=0, flags=0):
        tail = struct.unpack_from("I", self.sq, self.sq_tail)[0]
        index = tail & struct.unpack_from("I", self.sq, self.sq_mask)[0]
        struct.pack_into("BBHiQQIIQ", self.sqes, 64 * index, operation, 0, 0, fd, offset, address, length, flags, 7)
        struct.pack_into("3Q", self.sqes, 64 * index + 40, 0, 0, 0)
        struct.pack_into("I", self.sq, self.sq_array + 4 * index, index)
        struct.pack_into("I", self.sq, self.sq_tail, tail + 1)
        checked(libc.syscall(426, self.fd, 1, 1, 1, None, 8))
        head = struct.unpack_from("I", self.cq, self.cq_head)[0]
        result = struct.unpack_from("i", self.cq, self.cqes + 16 * (head & struct.unpack_from("I", self.cq, self.cq_mask)[0]) + 8)[0]
        struct.pack_into("I", self.cq, self.cq_head, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


def linux_ring():
    try:
        ring = Ring()
    except OSError as error:
        say("there is none", lambda: error.errno)
        return
    here = HERE & 0xFFFFFFFF
    buffer = ctypes.create_string_buffer(b"by the ring", 4096)
    address = ctypes.addressof(buffer)
    name = lambda text: ctypes.create_string_buffer(os.fsencode(text))
    one, two, three = name("f"), name("g"), name("d")
    place = ctypes.addressof
    fill("f", b"")
    fd = os.open("f", os.O_RDWR)
    extended = ctypes.create_string_buffer(256)
    for words, call in {
        "write": lambda: ring.do(23, fd, 0, address, 11), "read": lambda: (ring.do(22, fd, 3, address + 100, 99), buffer[100:108]), "fsync": lambda: ring.do(3, fd), "datasync": lambda: ring.do(3, fd, flags=1),
        "allocate": lambda: (ring.do(17, fd, 0, 8192, 0), os.fstat(fd).st_size), "sync_file_range": lambda: ring.do(8, fd, 0, 0, 4096, 2), "advise": lambda: ring.do(24, fd, 0, 0, 10, 3),
        "rename": lambda: (ring.do(35, HERE, place(two), place(one), here), sorted(os.listdir("."))), "mkdir": lambda: (ring.do(37, HERE, 0, place(three), 0o750), mode("d")), "statx": lambda: (ring.do(21, HERE, place(extended), place(two), 0x7FF), struct.unpack_from("Q", extended, 40)[0]),
        "open": lambda: os.read(ring.do(18, HERE, 0, place(two), 0, os.O_RDONLY), 11), "open exclusively": lambda: ring.do(18, HERE, 0, place(two), 0o600, os.O_RDWR | os.O_CREAT | os.O_EXCL), "link": lambda: (ring.do(39, HERE, place(one), place(two), here), os.stat("f").st_nlink), "unlink": lambda: (ring.do(36, HERE, 0, place(two)), sorted(os.listdir("."))), "rmdir": lambda: ring.do(36, HERE, 0, place(three), 0, 0x200),
        "symlink": lambda: (ring.do(38, HERE, place(three), place(two)), os.readlink("d")), "unlink of nothing": lambda: ring.do(36, HERE, 0, place(two)), "poll": lambda: ring.do(6, fd, flags=5), "close": lambda: ring.do(19, os.dup(fd)),
    }.items():
        say(words, call)
    os.close(fd)


LINUX = (linux_sync, linux_ranges, linux_copies, linux_handles, linux_events, linux_statx, linux_openat2, linux_at, linux_path_descriptors, linux_memory, linux_ring)


GROUPS = (lengths, bytes_in_names, slashes, kinds_one, renames, creation_modes, permissions, sticky, set_id_bits, chmods, times, changed_times, read_times, data, nameless, locks, xattrs, access_lists, directories, links, special, maps, notices, concurrent, *LINUX)

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
