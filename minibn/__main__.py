"""Command line, `minibn` or `python -m minibn`: the headline experiment, and the commands in `COMMANDS`."""

import io
import multiprocessing
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from minibn import backend, data, experiment, explore, export, files, jsonable, kernels, plots, schedules, sweep, tables
from minibn.equivalence import add_weight_decay, remove_weight_decay
from minibn.experiment import MODELS, NORMS, Experiment
from minibn.flags import GIVEN, NOT_GIVEN, Parser, number
from minibn.invariance import symmetries
from minibn.paper import headline
from minibn.training import interruption
from minibn.training.interruption import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: the headline's two runs differ, or a run of a sweep failed. 2: bad flags or input.
    128 + number of the signal: stopped, by Ctrl-C (130) or SIGTERM (143), at the end of a step.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # letters that its encoding lacks become "?"
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    named = bool(arguments) and arguments[0] in COMMANDS
    command, make_parser = COMMANDS[arguments[0]] if named else (compare, _compare_flags)
    parser = make_parser()
    if arguments and not named and not arguments[0].startswith("-"):
        parser.error(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
    flags = parser.parse(arguments[named:])
    try:
        return command(**flags)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stopped:
        saved = (f"saved at step {stopped.step} in {stopped.path}; the same command goes on from there" if stopped.path else
                 "nothing was saved: no --checkpoint" if "checkpoint" in flags else "nothing was saved")
        print(f"\nminibn: stopped by {stopped.signal.name}; {saved}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt as stopped:
        print(f"\nminibn: stopped{f'; {stopped}' if str(stopped) else ''}", file=sys.stderr)
        return 130
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        parser.exit(2, f"minibn: {parser.in_flags(what)}\n")
    except (ValueError, TypeError, ArithmeticError, MemoryError, ImportError, BrokenExecutor, backend.BackendError) as error:
        what = f"not enough memory: {error}" if isinstance(error, MemoryError) else str(error)
        parser.exit(2, f"minibn: {parser.in_flags(what)}\n")


def compare(output: str, quiet: bool, **settings: Any) -> int:
    """Train one network twice, with weight decay and with the converted schedule, and compare."""
    return 0 if headline.run(headline.settings(**settings), _folder(output), progress=not quiet) else 1


def train(output: str, checkpoint: str | None, every: int, threads: int | None, quiet: bool, **settings: Any) -> int:
    """Train one network; write history.csv, history.png and result.json into the output folder."""
    one = Experiment(**settings)
    folder = _folder(output)
    backend.library(one.backend)
    one.split  # noqa: B018 - read now, so that Ctrl-C does not wait for it
    with interruption.deferred():
        try:
            done = experiment.run(one, checkpoint=checkpoint, every=every, threads=threads, progress=not quiet,
                                  description=one.schedule)
        except Stopped as stopped:
            stopped.history.write_csv(folder / "history.csv")
            raise
        done.history.write_csv(folder / "history.csv")
        plots.compare({one.schedule: done.history}, "invariant", folder / "history.png",
                      f"{one.model} on {one.data}: {one.schedule}")
        result = {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss, "settings": asdict(one)}
        with files.replacing(folder / "result.json") as file:
            file.write(jsonable.dumps(result, indent=1).encode())
        print(f"test accuracy {done.test_accuracy:.2%}, training loss {done.train_loss:.6f} after {len(done.history)} steps; "
              f"see {folder}/history.csv, history.png, result.json")
    return 0


def run_sweep(output: str, workers: int | None, dask: str | None, retry: bool, quiet: bool, seeds: int,
              milestones: list[float] | None, **axes: Any) -> int:
    """Train every combination of settings and seeds, and record one JSON line per run. A stopped sweep continues where it was."""
    axes = {name: value if isinstance(value, list) else [value] for name, value in axes.items()}
    configurations = sweep.grid(**axes, milestones=[milestones], seed=range(seeds))
    for configuration in configurations:
        Experiment(**configuration)  # raises now
    for name in axes["backend"] if dask is None else ():
        backend.library(name)
    try:
        with _executor(workers, dask) as executor:
            records = sweep.run(sweep.train, configurations, output, executor, retry=retry, progress=not quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the runs that ended are in {output}; the same command goes on with the others") from None
    varied = [name for name, values in axes.items() if len(values) > 1]
    print("  ".join([f"{name:>12}" for name in varied] + ["test accuracy (mean of seeds)"]))
    failed = 0
    for i in range(0, len(records), seeds):
        results = [record["result"]["test_accuracy"] for record in records[i : i + seeds] if "result" in record]
        failed += seeds - len(results)
        setting = "  ".join(f"{records[i]['configuration'][name]!s:>12}" for name in varied)
        print(f"{setting}  {np.mean(results):.2%}" if results else f"{setting}  failed: {records[i]['error']}")
    print(f"{len(records)} runs, {failed} failed: see {output}")
    return 1 if failed else 0


@contextmanager
def _executor(workers, dask):
    if dask is None:
        with ProcessPoolExecutor(workers or kernels.cores(), get_context("spawn"), initializer=sweep.end_with_parent) as executor:
            try:
                yield executor
            except BaseException:
                for worker in multiprocessing.active_children():  # or this would wait until their runs are done
                    worker.kill()
                raise
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError("--dask needs dask.distributed: pip install distributed") from error
    with Client(dask) as client, client.get_executor() as executor:
        yield executor


def convert_schedule(read: str | None, output: str | None, steps: int | None, schedule: str, lr: float, momentum: float,
                     weight_decay: float, milestones: list[int], factor: float, final: float, growth: float, warmup: int,
                     nesterov: bool, decoupled: bool, to_weight_decay: float | None, no_rescale: bool) -> int:
    """Write a schedule as CSV, converted to no weight decay or to another one."""
    if read is not None:
        stream = export.read_csv(_lines(read))
    elif steps is None:
        raise ValueError("convert needs --steps, how many steps to write, or --read, a file of steps")
    else:
        if late := [milestone for milestone in milestones if milestone >= steps]:
            raise ValueError(f"--milestones {late[0]} is beyond the last step; it must be below --steps {steps}")
        stream = schedules.by_name(schedule, lr, steps=steps, milestones=milestones, factor=factor, final=final, growth=growth,
                                   momentum=momentum, weight_decay=weight_decay)
        stream = schedules.warmup(warmup, stream)
    if decoupled:
        stream = schedules.decoupled(stream)
    if nesterov:
        stream = schedules.nesterov(stream)
    converted = remove_weight_decay(stream, band=None if no_rescale else 2.0**32)
    if to_weight_decay is not None:
        converted = add_weight_decay(converted, to_weight_decay)
    text = io.StringIO()
    export.write_csv(islice(converted, steps), text)  # all of it, so that an error leaves no half of a file
    if output is None:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
        return 0
    with files.replacing(output) as file:
        file.write(text.getvalue().encode())
    rows = [row for _, row in tables.read(text.getvalue().splitlines(), output)[1]]
    logs = [float(row["log10_lr"]) for row in rows]
    rescales = sum(float(row["rescale"]) != 1 for row in rows)
    print(f"{len(rows)} steps written to {output}")
    if rows:
        print(f"lr: 10^{logs[0]:.2f} at the first step, 10^{max(logs):.2f} at most, 10^{logs[-1]:.2f} at the last, without the "
              f"{rescales} rescalings by powers of two; weight decay {rows[-1]['weight_decay']}")
    return 0


def _lines(path: str) -> list[str]:
    """The lines of a text file, or of standard input for "-"."""
    try:
        if path == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8")
            return list(sys.stdin)
        with open(os.path.expanduser(path), newline="", encoding="utf-8") as file:
            return list(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"--read {path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as CSV in "
                         "UTF-8") from error


def _folder(path: str) -> Path:
    """The folder at `path`, made if it is missing."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output must be a folder; {error.filename} is a file: File exists") from error
    return folder


def show_symmetries(model: str, depth: int | None, norm: str, no_affine: bool, explain: str | None) -> int:
    """Print which weights of a model may be rescaled, or explain one."""
    sizes = {"depth": depth} if depth else {}
    network = MODELS[model](norm=NORMS[norm], affine=not no_affine, eps=0.0, rng=np.random.default_rng(0), **sizes)
    found = symmetries(network)
    print(found.explain(explain) if explain else found)
    sys.stdout.flush()
    return 0


def show_explorer(port: int, headless: bool) -> int:
    """Open a page with sliders on which a usual and a converted run train side by side. Needs no internet."""
    explore.serve(port, headless=headless)
    return 0


def _compare_flags() -> Parser:
    parser = Parser("minibn", compare.__doc__, f"other commands: {', '.join(COMMANDS)}; each has --help")
    default = headline.settings()
    parser.flag("--depth", "layers of the PreResNet, 6n + 2", kind=_depth, default=default.depth)
    parser.flag("--epochs", "passes through the 1,437 images", kind=number(int, 1), default=default.epochs)
    parser.flag("--batch", "images per step", kind=number(int, 2, data.TRAIN_IMAGES), default=default.batch)
    _sgd_flags(parser, default.lr, default.momentum, default.weight_decay)
    parser.flag("--seed", "of the weights and the shuffling", kind=number(int, 0), default=default.seed)
    parser.flag("--dtype", "of all numbers", choices=list(headline.TOLERANCE), default=default.dtype)
    parser.flag("--backend", "array library", choices=backend.LIBRARIES, default=default.backend)
    parser.flag("--output", "folder for the figure and the CSV files", default="results")
    parser.flag("--quiet", "no progress bars", yes=True)
    return parser


def _train_flags() -> Parser:
    parser = Parser("minibn train", train.__doc__, words={"batch_size": "--batch"})
    _experiment_flags(parser)
    parser.flag("--output", "folder for what is written", default="results")
    parser.flag("--checkpoint", "save to this file, and go on from it if it is there", metavar="FILE")
    parser.flag("--every", "steps between two checkpoints", kind=number(int, 1), default=500, when={"checkpoint": GIVEN})
    parser.flag("--threads", "one for each core if not given", kind=number(int, 1))
    parser.flag("--quiet", "no progress bar", yes=True)
    return parser


def _sweep_flags() -> Parser:
    parser = Parser("minibn sweep", run_sweep.__doc__, "every setting may be given several values", {"batch_size": "--batch"})
    _experiment_flags(parser, several=True, leave_out=["seed"])
    parser.flag("--seeds", "runs of each setting, with seeds 0, 1, and so on", kind=number(int, 1), default=1)
    parser.flag("--output", "JSON Lines file to append to", default="results/sweep.jsonl")
    parser.flag("--workers", "processes, one for each core if not given", kind=number(int, 1), when={"dask": NOT_GIVEN})
    parser.flag("--dask", "run on the Dask cluster with this scheduler instead", metavar="ADDRESS")
    parser.flag("--retry", "run again what failed before", yes=True)
    parser.flag("--quiet", "no progress bar", yes=True)
    return parser


def _experiment_flags(parser, several=False, leave_out=()):
    """One flag per field of `Experiment`. With `several`, every flag but yes-or-no ones takes several values."""
    for f in fields(Experiment):
        name, when = "--" + f.name.replace("_", "-"), f.metadata["when"]
        if f.name in leave_out:
            continue
        if f.name == "milestones":
            parser.flag(name, f.metadata["help"], kind=number(float, 0), several=True, when=when)
        elif isinstance(f.default, bool):
            parser.flag(name, f.metadata["help"], either=True, default=f.default, when=when)
        else:
            kind = type(f.default) if isinstance(f.default, (int, float)) else str
            limits = number(kind, f.metadata["low"], below=f.metadata["below"]) if kind is not str else None
            parser.flag(name, f.metadata["help"], kind=limits, several=several, default=f.default, choices=f.metadata["choices"],
                        when=when)


def _convert_flags() -> Parser:
    parser = Parser("minibn convert", convert_schedule.__doc__)
    made = {"read": NOT_GIVEN}  # of a schedule that is made here, not read
    _sgd_flags(parser, 0.1, 0.9, 5e-4, made)
    parser.flag("--schedule", "of lr", choices=schedules.NAMES, default="constant", when=made,
                needs={"step": "milestones", "exponential": "growth"})
    parser.flag("--steps", "how many steps to write; cosine ends there", kind=number(int, 1))
    parser.flag("--milestones", "steps at which `step` drops lr", kind=number(int, 0), several=True, default=[],
                when={**made, "schedule": ("step",)})
    parser.flag("--factor", "by which `step` multiplies lr", kind=number(float, 0), default=0.1,
                when={**made, "schedule": ("step",)})
    parser.flag("--final", "last lr of `cosine`", kind=number(float, 0), default=0.0, when={**made, "schedule": ("cosine",)})
    parser.flag("--growth", "of `exponential`, per step", kind=number(float, 0), default=1.0,
                when={**made, "schedule": ("exponential",)})
    parser.flag("--warmup", "steps of linear warm-up", kind=number(int, 0), default=0, when=made)
    parser.flag("--nesterov", "Nesterov's momentum", yes=True)
    parser.flag("--decoupled", "decoupled weight decay (SGDW)", yes=True)
    parser.flag("--read", "take the steps from this CSV file (-: standard input) instead", metavar="FILE")
    parser.flag("--output", "write to this file, and print a summary", metavar="FILE")
    parser.flag("--to-weight-decay", "give the result this weight decay instead of none", kind=number(float, 0))
    parser.flag("--no-rescale", "let lr grow out of float range", yes=True)
    return parser


def _symmetries_flags() -> Parser:
    parser = Parser("minibn symmetries", show_symmetries.__doc__)
    parser.add_argument("model", choices=list(MODELS), help="network")
    parser.flag("--depth", "layers of a resnet or preresnet, 6n + 2", kind=_depth, when={"model": ("resnet", "preresnet")})
    parser.flag("--norm", "normalisation", choices=list(NORMS), default="batch")
    parser.flag("--no-affine", "normalisations without gamma and beta", yes=True)
    parser.flag("--explain", "say in a sentence what this one may be scaled with", metavar="PARAMETER")
    return parser


def _explore_flags() -> Parser:
    parser = Parser("minibn explore", show_explorer.__doc__)
    parser.flag("--port", "of this computer; 0 takes a free one", kind=number(int, 0, 65535), default=explore.PORT)
    parser.flag("--headless", "do not open a browser", yes=True)
    return parser


def _sgd_flags(parser, lr, momentum, weight_decay, when=None):
    parser.flag("--lr", "highest learning rate with weight decay", kind=number(float, 0), default=lr, when=when)
    parser.flag("--momentum", "from 0 to below 1", kind=number(float, 0, below=1), default=momentum, when=when)
    parser.flag("--weight-decay", "L2, as PyTorch's SGD has it", kind=number(float, 0), default=weight_decay, when=when)


def _depth(text):
    depth = number(int, 8)(text)
    if (depth - 2) % 6:
        raise ArgumentTypeError(f"needs 6n + 2 (8, 14, 20, 26, 32, and so on), got {text!r}")
    return depth


COMMANDS: dict[str, tuple[Callable[..., int], Callable[[], Parser]]]
COMMANDS = {"train": (train, _train_flags), "sweep": (run_sweep, _sweep_flags), "convert": (convert_schedule, _convert_flags),
            "symmetries": (show_symmetries, _symmetries_flags), "explore": (show_explorer, _explore_flags)}

if __name__ == "__main__":
    sys.exit(main())
