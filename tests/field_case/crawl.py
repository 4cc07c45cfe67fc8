"""One crawl: writes to its job directory as archiving crawlers do, and knows nothing of what is below it.

crawl.py JOB_DIRECTORY REPORT: until SIGTERM. REPORT, on a local disk, gets one JSON object a line: what was closed and what it
holds, what failed, and a last line when the crawl ends in order.
"""

import errno
import hashlib
import json
import os
import signal
import sys
import time

JOB, REPORT = sys.argv[1], sys.argv[2]
ROLLOVER = 1 << 20
# What such jobs take for trouble of the machines below; anything else ends the crawl.
INFRASTRUCTURE = {107, 5, 110, 101, 111, 113, 28, 116, 13, 1}
over = False


def stop(_signal, _frame):
    global over
    over = True


signal.signal(signal.SIGTERM, stop)
report = open(REPORT, "a", buffering=1)


def tell(**what):
    report.write(json.dumps({"at": time.time(), **what}) + "\n")


def tried(what, call):
    """Does it, again and again while the trouble is below."""
    began = time.time()
    while True:
        try:
            return call()
        except OSError as error:
            tell(event="error", what=what, errno=error.errno, waited=time.time() - began)
            if error.errno not in INFRASTRUCTURE or over:
                raise
            time.sleep(0.5)


def path(*names):
    return os.path.join(JOB, *names)


def read_state():
    try:
        with open(path(".archive_state.json")) as state:
            return json.load(state)
    except (FileNotFoundError, ValueError):
        # None yet; or power failed between the truncation and the write: what there is tells how far it came.
        there = [0] + [int(name[5:11]) for name in os.listdir(path(".tmpcrawl"))] if os.path.isdir(path(".tmpcrawl")) else [0]
        return {"warc": max(there), "records": 0}


def write_state(state):
    # Truncated in place, as it is.
    with open(path(".archive_state.json"), "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())


class Warc:
    def __init__(self, number):
        self.name = f"warc-{number:06}.warc.gz"
        self.at = path(".tmpcrawl", self.name)
        self.file = tried("open", lambda: os.open(self.at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data):
        while data:
            count = tried("write", lambda: os.write(self.file, data))
            self.digest.update(data[:count])
            self.size += count
            data = data[count:]

    def close(self):
        tried("close", lambda: os.close(self.file))
        link = path("warcs", self.name)
        try:
            tried("link", lambda: os.link(self.at, link))
        except FileExistsError:
            pass
        one, other = os.stat(self.at), os.stat(link)
        if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
            raise OSError(errno.EXDEV, "the link is another file")
        tell(event="closed", name=self.name, size=self.size, sha256=self.digest.hexdigest())


def main():
    state = tried("state", read_state)
    for name in (".tmpcrawl", "warcs"):
        tried("mkdir", lambda: os.makedirs(path(name), mode=0o750, exist_ok=True))
    state["warc"] += 1
    tried("state", lambda: write_state(state))
    warc = Warc(state["warc"])
    tell(event="begun", warc=warc.name)
    while not over:
        state["records"] += 1
        warc.write(hashlib.sha256(f"{JOB} {state['records']}".encode()).digest() * 256)
        with_log = f"{time.time():.3f} record {state['records']}\n"

        def log():
            with open(path("crawl.log"), "a") as file:
                file.write(with_log)

        tried("log", log)
        if state["records"] % 8 == 0:
            tried("state", lambda: write_state(state))
            temporary = path(f"progress.tmp.{os.getpid()}")

            def progress():
                with open(temporary, "w") as file:
                    file.write(str(state["records"]))
                os.rename(temporary, path("progress"))

            tried("progress", progress)
            # Whole seconds are what SFTP has.
            times = tried("newest", lambda: {entry.name: int(entry.stat().st_mtime) for entry in os.scandir(path(".tmpcrawl"))})
            if times.get(warc.name) != max(times.values()):
                tell(event="wrong", what=f"the newest of {times} is not {warc.name}")
        if warc.size >= ROLLOVER:
            warc.close()
            state["warc"] += 1
            tried("state", lambda: write_state(state))
            warc = Warc(state["warc"])
        time.sleep(0.05)
    warc.close()
    tried("state", lambda: write_state(state))
    tell(event="ended", records=state["records"], warcs=state["warc"])


main()
