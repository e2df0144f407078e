"""What the interpreter's lock costs a training step: one free-threaded Python, with its lock and without.

    python3.13t benchmarks/lock.py            about a minute; needs a free-threaded Python with NumPy
    python3.13t benchmarks/lock.py --write    and renew the table in benchmarks/README.md

A process has the lock or has none, so each contender is a process of its own. They take turns.
"""

import os
import subprocess
import sys
import sysconfig

import bench
import contenders
import numpy as np

from minibn import kernels

LOCK = {"with the lock": "1", "without": "0"}


def main():
    options = bench.flags(__doc__, serve=int)
    if options.serve:
        serve(options.serve, options.quick)
        return
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        sys.exit(f"lock.py: {sys.executable} always has the lock. Give a free-threaded Python, whose name ends in t "
                 "(python3.13t)")
    rows = []
    for threads in (1, 2):
        steps = {name: asked(threads, flag, options.quick) for name, flag in LOCK.items()}
        seconds = bench.alternate(steps, 2 if options.quick else 25)
        first = seconds["with the lock"]
        rows += [[threads, name, bench.spread(s * 1e3, "{:.0f}"), bench.spread(s / first, "{:.2f}")]
                 for name, s in seconds.items()]
    bench.report("lock", bench.table(["threads", "interpreter", "ms per step", "time / that with the lock"], rows), options)


def asked(threads, flag, quick):
    """A function that takes one step in a process of its own, which ends with this one."""
    command = [sys.executable, __file__, "--serve", str(threads), *(["--quick"] if quick else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHON_GIL": flag})

    def step():
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n", "the process with the training step has ended"

    return step


def serve(threads, quick):
    """Take a step for each line that comes in."""
    step = contenders.minibn(**({"depth": 8, "width": 8, "batch": 4} if quick else {}))
    with kernels.threads(threads), np.errstate(all="ignore"):
        for _ in sys.stdin:
            step()
            print("done", flush=True)


if __name__ == "__main__":
    main()
