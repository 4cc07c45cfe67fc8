"""A replay service: reads what crawls have finished, as another user of their group. replay.py JOBS REPORT: until SIGTERM."""

import json
import os
import signal
import sys
import time

JOBS, REPORT = sys.argv[1], sys.argv[2]
over = False


def stop(_signal, _frame):
    global over
    over = True


signal.signal(signal.SIGTERM, stop)
with open(REPORT, "a", buffering=1) as report:
    looks, known = 0, {}
    # It has to have looked; who fails all the time ends all the same, and has told of it.
    rounds = 0
    while not over or (looks <= 3 and rounds < 50):
        rounds += 1
        try:
            for source in sorted(os.listdir(JOBS)):
                for job in sorted(os.listdir(os.path.join(JOBS, source))):
                    warcs = os.path.join(JOBS, source, job, "warcs")
                    there = set(os.listdir(warcs)) if os.path.isdir(warcs) else set()
                    lost = known.get(warcs, set()) - there
                    if lost:
                        report.write(json.dumps({"event": "lost", "where": warcs, "what": sorted(lost)}) + "\n")
                    known[warcs] = there
                    for name in sorted(there)[-1:]:
                        with open(os.path.join(warcs, name), "rb") as file:
                            if not file.read(32):
                                report.write(json.dumps({"event": "empty", "where": warcs, "what": name}) + "\n")
            looks += 1
        except OSError as error:
            report.write(json.dumps({"event": "error", "errno": error.errno, "what": str(error)}) + "\n")
        time.sleep(0.2)
    report.write(json.dumps({"event": "ended", "looks": looks, "files": sum(map(len, known.values()))}) + "\n")
