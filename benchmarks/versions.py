"""One training step of this version of minibn against that of another commit, both in one process.

    git worktree add ../minibn-before 6232e67
    python benchmarks/versions.py --before ../minibn-before            about three minutes
    python benchmarks/versions.py --before ../minibn-before --write    and renew the table in benchmarks/README.md

Two processes differ by several percent, even with the same code, by where their arrays lie in
memory. In one process the versions share the memory that is freed and used again. Without
`--before` this version is measured against itself, which shows the noise.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import bench

HERE = Path(__file__).resolve().parents[1]


def main():
    options = bench.flags(__doc__, before=Path)
    size = {"depth": 8, "width": 8, "batch": 4} if options.quick else {"depth": 32, "width": 16, "batch": 128}
    before = (options.before or HERE).resolve()
    versions = {f"before: {commit(before)}": version(before, size), f"now: {commit(HERE)}": version(HERE, size)}
    rows = []
    for count in (1, 2):
        seconds = bench.alternate({name: step for name, (step, _) in versions.items()}, 1 if options.quick else 31,
                                  around={name: partial(threads, count) for name, (_, threads) in versions.items()})
        first = next(iter(seconds.values()))
        rows += [[count, name, bench.spread(s * 1e3, "{:.0f}"), bench.spread(s / first, "{:.2f}")] for name, s in seconds.items()]
    bench.report("versions", bench.table(["threads", "version", "ms per step", "time / before"], rows), options)


def version(folder, size):
    """(training step, `threads`) of the minibn in a folder, whose modules are imported beside those of other versions."""
    saved = own_modules()
    for name in saved:
        del sys.modules[name]
    paths = [str(folder), str(folder / "benchmarks")]
    sys.path[:0] = paths
    try:
        import contenders

        import minibn

        if Path(minibn.__file__).resolve().parents[1] != folder:
            sys.exit(f"versions.py: there is no minibn in {folder}; give a checkout of another commit by --before")
        step = contenders.minibn(**size)
        return step, minibn.threads if hasattr(minibn, "threads") else minibn.backend.threads  # its place in early versions
    finally:
        del sys.path[: len(paths)]
        for name in own_modules():
            del sys.modules[name]
        sys.modules.update(saved)


def own_modules():
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("minibn", "contenders")}


def commit(folder):
    """The commit of a checkout, with a + if files differ from it."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip() or folder.name


if __name__ == "__main__":
    main()
