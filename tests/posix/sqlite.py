"""Works with SQLite in a directory, in each of its journal modes; a line for each step."""

import os
import signal
import sqlite3
import subprocess
import sys
import traceback

CHILD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
number = int(sys.argv[2])
while True:
    db.execute("begin immediate")
    for _ in range(20):
        db.execute("insert into t values(?, ?)", (number, bytes(number % 2000)))
        number += 1
    db.execute("commit")
    print(number, flush=True)
"""


def opened(path, mode):
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    found = db.execute(f"pragma journal_mode={mode}").fetchone()[0]
    assert found == mode, f"journal mode {found}"
    return db


def is_whole(db):
    found = db.execute("pragma integrity_check").fetchall()
    assert found == [("ok",)], found


def rows(path, mode):
    db = opened(path, mode)
    db.execute("create table t(id integer primary key, data blob)")
    for number in range(0, 400, 20):
        db.execute("begin")
        db.executemany("insert into t values(?, ?)", [(n, bytes(n * 7)) for n in range(number, number + 20)])
        db.execute("rollback" if number % 100 == 80 else "commit")
    assert db.execute("select count(*) from t").fetchone()[0] == 320
    db.execute("delete from t where id % 3 = 0")
    db.execute("vacuum")
    is_whole(db)
    db.close()


def two_at_once(path, mode):
    for start in (1_000_000, 2_000_000):
        children.append(child(path, start))
    for one in children:
        for _ in range(8):
            assert one.stdout.readline()
    end_children()
    is_whole(opened(path, mode))


def killed_in_the_middle(path, mode):
    for start in range(3_000_000, 3_000_500, 100):
        db = opened(path, mode)
        begin = (db.execute("select max(id) from t").fetchone()[0] or start) + 1
        db.close()
        one = child(path, begin)
        children.append(one)
        told = [int(one.stdout.readline()) for _ in range(3)][-1]
        end_children()
        db = opened(path, mode)
        is_whole(db)
        assert db.execute("select max(id) from t").fetchone()[0] >= told - 1
        db.close()


def backup(path, mode):
    db, other = opened(path, mode), sqlite3.connect(path + ".copy")
    db.backup(other)
    is_whole(other)
    assert list(db.execute("select count(*) from t")) == list(other.execute("select count(*) from t"))
    other.close()
    db.close()


def mapped(path, mode):
    db = opened(path, mode)
    db.execute("pragma mmap_size=268435456")
    assert db.execute("select sum(length(data)) from t").fetchone()[0] > 0
    db.execute("insert into t values(9000000, zeroblob(300000))")
    is_whole(db)
    db.close()


children = []


def child(path, start):
    command = [sys.executable, "-c", CHILD, path, str(start)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end_children():
    while children:
        one = children.pop()
        one.send_signal(signal.SIGKILL)
        one.wait()
        one.stdout.close()


os.chdir(sys.argv[1])
for mode in ("delete", "truncate", "persist", "wal"):
    for step in (rows, two_at_once, killed_in_the_middle, backup, mapped):
        name = f"{mode}, {step.__name__.replace('_', ' ')}"
        try:
            step(f"db-{mode}", mode)
            print(f"ok {name}", flush=True)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1].lineno
            print(f"not ok {name}: {type(error).__name__}: {error} (line {where})", flush=True)
        finally:
            end_children()
