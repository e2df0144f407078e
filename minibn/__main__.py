"""Command line, `minibn` or `python -m minibn`: the headline experiment, and the commands in `COMMANDS`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from minibn import backend, data, experiment, export, plots, schedules, sweep
from minibn.equivalence import add_weight_decay, remove_weight_decay
from minibn.experiment import MODELS, NORMS, Experiment
from minibn.invariance import symmetries
from minibn.paper import headline


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: the headline's two runs differ, or a run of a sweep failed. 2: bad flags or input.
    130: stopped by Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    named = bool(arguments) and arguments[0] in COMMANDS
    command, make_parser = COMMANDS[arguments[0]] if named else (compare, _compare_flags)
    parser = make_parser()
    if arguments and not named and not arguments[0].startswith("-"):
        parser.error(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
    flags = vars(parser.parse_args(arguments[named:]))
    try:
        return command(**flags)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nminibn: stopped; what was saved can be continued by the same command", file=sys.stderr)
        return 130
    except (ValueError, ArithmeticError, OSError, ImportError, BrokenExecutor, backend.BackendError) as error:
        parser.exit(2, f"minibn: {error}\n")


def compare(output: str, quiet: bool, **settings: Any) -> int:
    """Train one network twice, with weight decay and with the converted schedule, and compare."""
    return 0 if headline.run(headline.settings(**settings), output, progress=not quiet) else 1


def train(output: str, checkpoint: str | None, every: int, threads: int | None, quiet: bool, **settings: Any) -> int:
    """Train one network; write history.csv, history.png and result.json into the output folder."""
    one = Experiment(**settings)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    done = experiment.run(one, checkpoint=checkpoint, every=every, threads=threads, progress=not quiet, description=one.schedule)
    done.history.write_csv(folder / "history.csv")
    plots.compare({one.schedule: done.history}, "invariant", folder / "history.png", f"{one.model} on {one.data}: {one.schedule}")
    result = {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss, "settings": asdict(one)}
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
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
    with _executor(workers, dask) as executor:
        records = sweep.run(sweep.train, configurations, output, executor, retry=retry, progress=not quiet)
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
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
            yield executor
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError("--dask needs dask.distributed: pip install distributed") from error
    with Client(dask) as client, client.get_executor() as executor:
        yield executor


def convert_schedule(read: str | None, steps: int | None, schedule: str, lr: float, momentum: float, weight_decay: float,
            milestones: list[int], factor: float, final: float, growth: float, warmup: int, nesterov: bool, decoupled: bool,
            to_weight_decay: float | None, no_rescale: bool) -> int:
    """Write a schedule as CSV, converted to no weight decay or to another one."""
    with nullcontext(sys.stdin) if read is None or read == "-" else open(read, newline="", encoding="utf-8") as file:
        if read is not None:
            stream = export.read_csv(file)
        elif steps is None:
            raise ValueError("convert needs --steps, how many steps to write, or --read, a file of steps")
        else:
            stream = schedules.by_name(schedule, lr, steps=steps, milestones=milestones, factor=factor, final=final,
                                       growth=growth, momentum=momentum, weight_decay=weight_decay)
            stream = schedules.warmup(warmup, stream)
        if decoupled:
            stream = schedules.decoupled(stream)
        if nesterov:
            stream = schedules.nesterov(stream)
        converted = remove_weight_decay(stream, band=None if no_rescale else 2.0**32)
        if to_weight_decay is not None:
            converted = add_weight_decay(converted, to_weight_decay)
        export.write_csv(islice(converted, steps), sys.stdout)
        sys.stdout.flush()
    return 0


def show_symmetries(model: str, depth: int | None, norm: str, no_affine: bool, explain: str | None) -> int:
    """Print which weights of a model may be rescaled, or explain one."""
    sizes = {"depth": depth} if depth else {}
    if sizes and model not in ("resnet", "preresnet"):
        raise ValueError(f"--depth is for resnet and preresnet, not {model}")
    network = MODELS[model](norm=NORMS[norm], affine=not no_affine, eps=0.0, rng=np.random.default_rng(0), **sizes)
    found = symmetries(network)
    print(found.explain(explain) if explain else found)
    sys.stdout.flush()
    return 0


def _parser(command, name, **options):
    return argparse.ArgumentParser(prog=name, description=command.__doc__,
                                   formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)


def _compare_flags() -> argparse.ArgumentParser:
    parser = _parser(compare, "minibn", epilog=f"other commands: {', '.join(COMMANDS)}; each has --help")
    default = headline.settings()
    parser.add_argument("--depth", type=_depth, default=default.depth, help="layers of the PreResNet, 6n + 2")
    parser.add_argument("--epochs", type=_between(int, 1), default=default.epochs, help="passes through the 1,437 images")
    parser.add_argument("--batch", type=_between(int, 2, data.TRAIN_IMAGES), default=default.batch, help="images per step")
    _sgd_flags(parser, default.lr, default.momentum, default.weight_decay)
    parser.add_argument("--seed", type=_between(int, 0), default=default.seed, help="of the weights and the shuffling")
    parser.add_argument("--dtype", choices=list(headline.TOLERANCE), default=default.dtype, help="of all numbers")
    parser.add_argument("--backend", choices=backend.LIBRARIES, default=default.backend, help="array library")
    parser.add_argument("--output", default="results", help="folder for the figure and the CSV files")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _train_flags() -> argparse.ArgumentParser:
    parser = _parser(train, "minibn train")
    _experiment_flags(parser)
    parser.add_argument("--output", default="results", help="folder for what is written")
    parser.add_argument("--checkpoint", metavar="FILE", help="save to this file, and go on from it if it is there")
    parser.add_argument("--every", type=_between(int, 1), default=500, help="steps between two checkpoints")
    parser.add_argument("--threads", type=_between(int, 1), help="one for each core if not given")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _sweep_flags() -> argparse.ArgumentParser:
    parser = _parser(run_sweep, "minibn sweep", epilog="every setting may be given several values")
    _experiment_flags(parser, nargs="+", leave_out=["seed"])
    parser.add_argument("--seeds", type=_between(int, 1), default=1, help="runs of each setting, with seeds 0, 1, …")
    parser.add_argument("--output", default="results/sweep.jsonl", help="JSON Lines file to append to")
    parser.add_argument("--workers", type=_between(int, 1), help="processes, one for each core if not given")
    parser.add_argument("--dask", metavar="ADDRESS", help="run on the Dask cluster with this scheduler instead")
    parser.add_argument("--retry", action="store_true", help="run again what failed before")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _experiment_flags(parser, nargs=None, leave_out=()):
    """One flag per field of `Experiment`. With `nargs`, every flag but yes-or-no ones takes several values."""
    for f in fields(Experiment):
        flag, text = "--" + f.name.replace("_", "-"), f.metadata["help"]
        if f.name in leave_out:
            continue
        if f.name == "milestones":
            parser.add_argument(flag, type=_between(float, 0), nargs="+", help=text)
        elif isinstance(f.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default, help=text)
        else:
            kind = str if f.default is None else type(f.default)
            parser.add_argument(flag, type=kind, nargs=nargs, default=f.default, choices=f.metadata["choices"], help=text)


def _convert_flags() -> argparse.ArgumentParser:
    parser = _parser(convert_schedule, "minibn convert")
    _sgd_flags(parser, 0.1, 0.9, 5e-4)
    parser.add_argument("--schedule", choices=schedules.NAMES, default="constant", help="of lr")
    parser.add_argument("--steps", type=_between(int, 1), help="how many steps to write; cosine ends there")
    parser.add_argument("--milestones", type=_between(int, 0), nargs="+", default=[], help="steps at which `step` drops lr")
    parser.add_argument("--factor", type=_between(float, 0), default=0.1, help="by which `step` multiplies lr")
    parser.add_argument("--final", type=_between(float, 0), default=0.0, help="last lr of `cosine`")
    parser.add_argument("--growth", type=_between(float, 0), default=1.0, help="of `exponential`, per step")
    parser.add_argument("--warmup", type=_between(int, 0), default=0, help="steps of linear warm-up")
    parser.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    parser.add_argument("--decoupled", action="store_true", help="decoupled weight decay (SGDW)")
    parser.add_argument("--read", metavar="FILE", help="take the steps from this CSV file (-: standard input) instead")
    parser.add_argument("--to-weight-decay", type=_between(float, 0), help="give the result this weight decay instead of none")
    parser.add_argument("--no-rescale", action="store_true", help="let lr grow out of float range")
    return parser


def _symmetries_flags() -> argparse.ArgumentParser:
    parser = _parser(show_symmetries, "minibn symmetries")
    parser.add_argument("model", choices=list(MODELS), help="network")
    parser.add_argument("--depth", type=_depth, help="layers of a resnet or preresnet, 6n + 2")
    parser.add_argument("--norm", choices=list(NORMS), default="batch", help="normalisation")
    parser.add_argument("--no-affine", action="store_true", help="normalisations without γ and β")
    parser.add_argument("--explain", metavar="PARAMETER", help="say in a sentence what this one may be scaled with")
    return parser


def _sgd_flags(parser, lr, momentum, weight_decay):
    parser.add_argument("--lr", type=_between(float, 0), default=lr, help="highest learning rate with weight decay")
    parser.add_argument("--momentum", type=_between(float, 0, math.nextafter(1, 0)), default=momentum, help="below 1")
    parser.add_argument("--weight-decay", type=_between(float, 0), default=weight_decay, help="L2, as PyTorch's SGD has it")


def _between(kind, low, high=math.inf):
    """A parser of numbers from `low` to `high` for argparse."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or math.isinf(value):
            limits = f"of at least {low}" if high == math.inf else f"from {low} to {high:.6g}"
            raise argparse.ArgumentTypeError(f"needs {'a whole' if kind is int else 'a'} number {limits}, got {text!r}")
        return value

    return parse


def _depth(text):
    depth = _between(int, 8)(text)
    if (depth - 2) % 6:
        raise argparse.ArgumentTypeError(f"needs 6n + 2 (8, 14, 20, 26, 32, …), got {text!r}")
    return depth


COMMANDS: dict[str, tuple[Callable[..., int], Callable[[], argparse.ArgumentParser]]]
COMMANDS = {"train": (train, _train_flags), "sweep": (run_sweep, _sweep_flags), "convert": (convert_schedule, _convert_flags),
            "symmetries": (show_symmetries, _symmetries_flags)}

if __name__ == "__main__":
    sys.exit(main())
