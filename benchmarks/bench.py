"""What the benchmarks share: contenders timed in turn, the machine's own peaks, and the tables in README.md.

Machines drift: other work, heat, neighbours on the same processor. So contenders always take turns
within one run, and what is quoted is the median of the ratios, turn by turn, with its spread from
the first to the third quartile.
"""

import argparse
import platform
import re
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from minibn import kernels
from minibn.kernels.threads import map_chunks

README = Path(__file__).parent / "README.md"


def flags(doc, **options):
    """The flags that every benchmark has: --quick (small and few turns), --write (renew its table in README.md)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns: shows that it runs, not how fast")
    parser.add_argument("--write", action="store_true", help="renew this benchmark's table in benchmarks/README.md")
    for name, kind in options.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def alternate(contenders, turns, prepare=None, around=None):
    """{name: seconds of each turn} of functions called in turn.

    A turn is a row of calls, at least two and at least 20 ms of them, and the last counts: the
    first ones wake the contender's own threads, let those of the one before fall asleep (PyTorch's
    wait actively for some milliseconds), and bring its memory back into the cache.

    Args:
        contenders: {name: function without arguments}.
        turns: how many.
        prepare: {name: function} to call before each call, not counted.
        around: {name: maker of the context manager in which a turn is}; if not given, minibn's
            contenders run in `kernels.threads`, as `training.fit` does, and the others with their
            own threads.
    """
    prepare, around = prepare or {}, around or {}
    seconds = {name: [] for name in contenders}
    for _ in range(turns):
        for name, function in contenders.items():
            default = nullcontext if name.startswith(("PyTorch", "MyGrad")) else kernels.threads
            with around.get(name, default)():
                calls = []
                while len(calls) < 2 or sum(calls) < 0.02:
                    prepare.get(name, lambda: None)()
                    start = time.perf_counter()
                    function()
                    calls.append(time.perf_counter() - start)
            seconds[name].append(calls[-1])
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values, form="{:.3g}"):
    """"median (first quartile-third quartile)"."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{form.format(middle)} ({form.format(low)}-{form.format(high)})"


def table(header, rows):
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def gemm_peak(dtype="float32", size=1536):
    """GFLOP/s of one large matrix product on each core at once; the best of seven."""
    a = np.ones((size, size), dtype)
    seconds = min(alternate({"gemm": lambda: map_chunks(lambda s: a @ a, kernels.cores(), 8, 8)}, 7)["gemm"])
    return 2 * size**3 * kernels.cores() / seconds / 1e9


def copy_peak(megabytes=8):
    """GB/s, read and written, of copying an array of the size of an activation, by all cores; the best of seven."""
    a = np.ones((megabytes, 2**18), "float32")
    b = np.empty_like(a)
    copy = lambda: map_chunks(lambda s: np.copyto(b[s], a[s]), len(a), a[0].nbytes)  # noqa: E731
    return 2 * a.nbytes / min(alternate({"copy": copy}, 7)["copy"]) / 1e9


def machine():
    """Processor, cores, libraries, in a line."""
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        name = platform.processor() or platform.machine()
    blas = ", ".join(f"{one['internal_api']} {one['version']} {one.get('architecture', '')}".strip()
                     for one in threadpool_info() if one["user_api"] == "blas")
    parts = [f"{name}, {kernels.cores()} cores", f"Python {platform.python_version()}", f"NumPy {np.__version__} ({blas})"]
    try:
        import torch

        parts.append(f"PyTorch {torch.__version__}")
    except ImportError:
        pass
    return "; ".join(parts)


def report(name, text, options):
    """Print the table and the machine, and with --write put them into README.md."""
    put(name, f"{text}\n\n{machine()}.", options)


def put(name, text, options):
    """Print the text, and with --write put it into README.md between the comments that name the benchmark."""
    print(text)
    if options.write:
        page = README.read_text(encoding="utf-8")
        begin, end = f"<!-- {name}: written by python benchmarks/{name}.py --write -->\n", f"<!-- end of {name} -->"
        README.write_text(re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{text}\n\n{end}", page,
                                 flags=re.DOTALL), encoding="utf-8")

