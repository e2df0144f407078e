"""minibn on a GPU against PyTorch eager: a training step, NumPy's numbers, waits, the tests marked gpu, the headline.

    python benchmarks/gpu.py            at most eight minutes, on a machine with an NVIDIA GPU
    python benchmarks/gpu.py --write    and renew the table in benchmarks/README.md
    python benchmarks/gpu.py --quick    small sizes; without a GPU the CuPy rows run on the stand-in of tests/cupy_double,
                                        which shows that they run, and the others say that there is
                                        no GPU

Each row is a process of its own with a time limit, so that one that fails leaves the others in the
table.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import bench
import contenders
import numpy as np

from minibn import backend, models, nn, schedules
from minibn.optim import SGD
from minibn.training import recorder, train_step
from minibn.training.evaluation import accuracy

ROOT = Path(__file__).parent.parent
LIMIT = 460  # seconds of all rows together
FULL, LARGE, SMALL = {"depth": 32, "batch": 128}, {"depth": 32, "batch": 1024}, {"depth": 8, "batch": 64}
TINY = {"depth": 8, "width": 4, "batch": 4}
LIBRARIES, LARGE_BATCH = {"cupy": "CuPy", "torch": "PyTorch"}, ", batch 1024"
GPU_TESTS = ["backends", "backend_training", "backend_names", "labels", "equivalence", "kernels", "layers", "optim", "optimizers",
             "schedules"]
SPIN = """extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
}"""


class NoGPU(RuntimeError):
    """There is no GPU for this row."""


# ---- rows: functions that return {column: value}, run in processes of their own ----


def step_of_torch(size, turns, layout="contiguous_format", tf32=False):
    """PyTorch eager: the network of `contenders`, which a test holds against minibn's."""
    import torch

    if not torch.cuda.is_available():
        raise NoGPU("PyTorch finds no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    form = getattr(torch, layout)
    net = contenders.torch_preresnet(size["depth"], size.get("width", 16)).cuda().to(memory_format=form)
    sgd = torch.optim.SGD(net.parameters(), 0.1, **contenders.USUAL)
    x, y = (torch.tensor(array).cuda() for array in contenders.images(size["batch"]))
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=form)

    def step():
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        sgd.step()

    return {**timed(step, torch.cuda.synchronize, turns), "peak MB": torch.cuda.max_memory_allocated() >> 20}


def step_of_minibn(size, turns, library, tf32=False, measured=False):
    """minibn; `measured`: with what `fit` records at each step."""
    if library == "torch":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = tf32
    return timed(training(library, **size, measured=measured)[0], waiter(library), turns)


def numbers(size, library, dtype="float32"):
    """Three steps there and in NumPy: largest differences, relative to the largest number; and two runs there."""
    def run(name):
        step, net = training(name, **size, dtype=dtype)
        losses, gradients = [step()], [backend.to_numpy(p.grad) for p in net.parameters()]
        losses += [step(), step()]
        return backend.read(losses), gradients, [backend.to_numpy(p.data) for p in net.parameters()]

    def far(here, there):
        return f"{max(float(np.abs(a - b).max() / (np.abs(a).max() + 1e-30)) for a, b in zip(here, there, strict=True)):.0e}"

    here, there, again = run("numpy"), run(library), run(library)
    same = there[0] == again[0] and all(np.array_equal(a, b) for a, b in zip(there[2], again[2], strict=True))
    return {"loss": far([here[0][0]], [there[0][0]]), "gradients": far(here[1], there[1]), "weights": far(here[2], there[2]),
            "same bits twice": same}


def waits(size, library):
    """Whether a step, with `fit`'s measurements, waits for the GPU."""
    step, _ = training(library, **size, measured=True)
    step()
    if library == "torch":
        import torch

        torch.cuda.set_sync_debug_mode("error")
        step()
        torch.cuda.set_sync_debug_mode("default")
        return {"waits": 0}
    if on_stand_in():
        from cupy_double import counting

        with counting() as counts:
            step()
        return {"waits": sum(counts.waits.values())}
    import cupy

    spin = cupy.RawKernel(SPIN, "spin")
    spin((1,), (1,), (1000,))
    waiter(library)()
    start = time.perf_counter()
    spin((1,), (1,), (int(2e9),))  # keeps the GPU busy for about a second
    step()
    queued = time.perf_counter() - start
    waiter(library)()
    whole = time.perf_counter() - start
    return {"waits": 0 if queued < whole / 2 else "some, or the queue of launches was full",
            "queued after, ms": round(queued * 1e3), "done after, ms": round(whole * 1e3)}


def tests():
    """The tests marked gpu."""
    files = [f"tests/test_{name}.py" for name in GPU_TESTS]
    files = [name for name in files if (ROOT / name).exists()]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=line", *files],
                          cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failed = [line[:100] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"result": lines[-1] if lines else done.stderr[-200:], **({"failed": failed[:5]} if failed else {})}


def headline(library, epochs=6):
    """The main job, shortened."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "minibn", "--quiet", "--backend", library, "--epochs", str(epochs),
                               "--output", folder], cwd=ROOT, capture_output=True, text=True)
    gap = re.search(r"gap between the losses of a step: (\S+)", done.stdout)
    return {"status": done.returncode, "gap between the losses": gap[1] if gap else done.stderr.strip()[-200:]}


# ---- what they share ----


def training(library, depth, batch, width=16, dtype="float32", measured=False):
    """(step, net): a function that takes one training step and returns its loss, and the network."""
    net = models.preresnet(depth, width=width, rng=np.random.default_rng(0), dtype=dtype)
    if library != "numpy":
        net.to(library)
    x, y = (backend.move(array, next(net.arrays())) for array in contenders.images(batch, dtype=dtype))
    if library == "torch" and backend.is_on_host(x):
        raise NoGPU("PyTorch finds no GPU")
    optimizers, loss = {"all": SGD(net.parameters(), schedules.constant(0.1, **contenders.USUAL))}, nn.CrossEntropy()
    watched = recorder.watch(net, optimizers, {})

    def step():
        before = recorder.weights(watched)
        outputs, value = train_step(net, loss, optimizers.values(), x, y)
        if measured:
            accuracy(outputs, y), recorder.measure(watched, before)
        return value

    return step, net


def waiter(library):
    """A function that waits for the GPU."""
    module = importlib.import_module(library)
    return module.cuda.synchronize if library == "torch" else module.cuda.Device().synchronize


def on_stand_in():
    """Whether `cupy` is the stand-in for it."""
    return hasattr(importlib.import_module("cupy").ndarray, "numbers")


def timed(step, wait, turns, most=12.0):
    """Median and quartiles of a step in ms, how long the CPU took to queue it, and how long the first one took."""
    whole, queued, start = [], [], time.perf_counter()
    for turn in range(2 * turns):
        begin = time.perf_counter()
        step()
        left = time.perf_counter()
        wait()
        whole.append((time.perf_counter() - begin) * 1e3)
        queued.append((left - begin) * 1e3)
        if turn > 4 and time.perf_counter() - start > most:
            break
    half = len(whole) // 2  # the first ones compile, and fill the pools
    return {"ms": round(float(np.median(whole[half:])), 2), "quartiles": bench.spread(whole[half:], "{:.2f}").partition(" ")[2],
            "queued after, ms": round(float(np.median(queued[half:])), 2), "first step, s": round(whole[0] / 1e3, 1)}


# ---- the driver ----


def plan(quick):
    """[(name, seconds it may take, function, keyword arguments)], what matters most first."""
    full, large, small = (TINY, TINY, TINY) if quick else (FULL, LARGE, SMALL)
    rows = step_rows("", {"size": full, "turns": 1 if quick else 15})
    rows += [("step: minibn on PyTorch, TF32", 40, "step_of_minibn", {**rows[0][3], "library": "torch", "tf32": True})]
    for library, label in LIBRARIES.items():
        rows += [(f"step: minibn on {label}, as in `fit`", 40, "step_of_minibn",
                  {**rows[0][3], "library": library, "measured": True}),
                 *((f"NumPy's numbers on {label}, {dtype}", 60, "numbers", {"size": small, "library": library, "dtype": dtype})
                   for dtype in ("float32", "float64")),
                 (f"waits in a step on {label}", 40, "waits", {"size": small, "library": library})]
    rows += [("tests marked gpu", 150, "tests", {})]
    rows += [(f"headline on {label}, 6 epochs", 100, "headline", {"library": name}) for name, label in LIBRARIES.items()]
    return rows + step_rows(LARGE_BATCH, {"size": large, "turns": 1 if quick else 15})


def step_rows(name, options):
    """The rows of a training step at one size; the first is PyTorch in its default layout."""
    rows = []
    for label, layout in (("NCHW", "contiguous_format"), ("channels last", "channels_last")):
        for tf32 in (False, True):
            more = {"layout": layout, "tf32": tf32} if (label, tf32) != ("NCHW", False) else {}
            rows.append((f"step: PyTorch {label}{', TF32' * tf32}{name}", 40, "step_of_torch", {**options, **more}))
    return rows + [(f"step: minibn on {label}{name}", 60, "step_of_minibn", {**options, "library": library})
                   for library, label in LIBRARIES.items()]


def run_row(function, arguments, stand_in):
    """One row, in this process: its result, or why there is none."""
    with ExitStack() as stack:
        if stand_in:
            sys.path.insert(0, str(ROOT / "tests"))
            stack.enter_context(importlib.import_module("cupy_double").in_place_of_cupy())
        try:
            return globals()[function](**arguments)
        except (NoGPU, backend.BackendError) as error:
            return {"no GPU": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def in_process(seconds, function, arguments):
    """`run_row` in a process that may take so many seconds."""
    if seconds < 5:
        return {"error": "no time left"}
    try:
        done = subprocess.run([sys.executable, __file__, "--row", json.dumps([function, arguments])], capture_output=True,
                              text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds:.0f} s"}
    found = re.search(r"^ROW (.*)$", done.stdout, re.MULTILINE)
    return json.loads(found[1]) if found else {"error": (done.stderr.strip() or "it ended without a word").splitlines()[-1][:200]}


def why_no_gpu():
    """None if CuPy finds a GPU, or PyTorch does; else one sentence."""
    try:
        backend.library("cupy")
    except backend.BackendError as error:
        try:
            return None if backend.library("torch")[1] == "cuda" else str(error)
        except backend.BackendError:
            return str(error)
    return None


def main():
    options = bench.flags(__doc__, row=str)
    if options.row:
        function, arguments = json.loads(options.row)
        print("ROW", json.dumps(run_row(function, arguments, stand_in=False), default=str))
        return
    missing = why_no_gpu()
    if missing and not options.quick:
        raise SystemExit(f"gpu.py: {missing}. With --quick it runs here, on a stand-in for CuPy, and measures nothing")
    start, found = time.monotonic(), {}
    for name, seconds, function, arguments in plan(options.quick):
        if not missing:
            found[name] = in_process(min(seconds, LIMIT - (time.monotonic() - start)), function, arguments)
        elif arguments.get("library") == "cupy" and function != "headline":
            found[name] = run_row(function, arguments, stand_in=True)
        else:
            found[name] = {"no GPU": "not run"}
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    where = "No GPU: the rows of CuPy are those of a stand-in on this CPU and say nothing of speed" if missing else gpu_name()
    bench.report("gpu", f"{as_table(found)}\n\n{where}. {time.monotonic() - start:.0f} s in all.", options)


def as_table(found):
    """Markdown: each step beside PyTorch's in its default layout at the same batch."""
    rows = []
    for name, row in found.items():
        base = found.get(f"step: PyTorch NCHW{LARGE_BATCH * name.endswith(LARGE_BATCH)}", {}).get("ms")
        row, ms = dict(row), row.get("ms")
        row.pop("ms", None)
        more = "; ".join(f"{key}: {value}" for key, value in row.items())
        rows.append([name, ms or "", f"{ms / base:.2f}" if ms and base else "", more])
    return bench.table(["what", "ms", "time / PyTorch NCHW's", "more"], rows)


def gpu_name():
    """The GPU and its libraries, in a few words."""
    try:
        import torch

        return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    except Exception as error:  # PyTorch is not installed, or does not see the GPU that CuPy sees
        return f"A GPU that PyTorch does not see ({type(error).__name__})"


if __name__ == "__main__":
    main()
