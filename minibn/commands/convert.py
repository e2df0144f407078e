"""`minibn convert`: a schedule as CSV."""

import io
import os
import sys
from collections.abc import Iterator
from itertools import islice
from math import log10
from typing import Any

from minibn import export, files, optimizer_numbers, schedules, tables
from minibn.commands.common import step_flags
from minibn.equivalence.methods import METHODS
from minibn.flags import NOT_GIVEN, NOT_ZERO, Parser, number, place
from minibn.optim import AdamStep, LionStep, MuonStep, Step, StepNumbers

DEFAULTS: dict[str, StepNumbers]
DEFAULTS = {"sgd": Step(0.1, 0.9, 5e-4), "adamw": AdamStep(1e-3, weight_decay=0.1), "lion": LionStep(1e-4, weight_decay=1.0),
            "muon": MuonStep(0.02, weight_decay=0.1)}


def run(read: str | None, output: str | None, steps: int | None, optimizer: str, schedule: str, milestones: list[int],
        factor: float, final: float, growth: float, warmup: int, nesterov: bool, decoupled: bool, to_weight_decay: float | None,
        no_rescale: bool, **numbers: float | None) -> int:
    """Write a schedule as CSV, converted to no weight decay or to another one."""
    method = METHODS[optimizer]
    stream: Iterator[Any]
    if read is not None:
        stream = export.read_csv(_lines(read), method.step)
    elif steps is None:
        raise ValueError("convert needs --steps, how many steps to write, or --read, a file of steps")
    else:
        if late := [milestone for milestone in milestones if milestone >= steps]:
            raise ValueError(f"--milestones {late[0]} is beyond the last step; it must be below --steps {steps}")
        if warmup > steps:
            raise ValueError(f"--warmup {warmup} is beyond the last step; it must be at most --steps {steps}")
        step = optimizer_numbers.chosen(DEFAULTS, optimizer, numbers)
        rates = schedules.by_name(schedule, step.lr, steps=steps, milestones=milestones, factor=factor, final=final,
                                  growth=growth)
        stream = schedules.like(step, schedules.warmup(warmup, rates))
    if decoupled:
        stream = schedules.decoupled(stream)
    if nesterov:
        stream = schedules.nesterov(stream)
    converted = method.remove(stream, band=None) if no_rescale else method.remove(stream)
    if to_weight_decay is not None:
        converted = method.add(converted, to_weight_decay)
    try:
        written = list(islice(converted, steps))
    except OverflowError as error:
        raise ValueError(f"{str(error).partition(';')[0]}; leave out --no-rescale") from error
    if steps is not None and len(written) < steps:
        raise ValueError(f"--read {read} has {len(written)} steps, fewer than --steps {steps}; leave --steps out to take all")
    if not written:
        raise ValueError(f"--read {read} has no steps, only the names of its columns")
    text = io.StringIO()
    export.write_csv(written, text)  # all of it, so that an error leaves no half of a file
    if output is None:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
        return 0
    with files.replacing(output) as file:
        file.write(text.getvalue().encode())
    rows = [row for _, row in tables.read(text.getvalue().splitlines(), output)[1]]
    print(f"{len(rows)} steps written to {output}\n{_summary(rows)}")
    return 0


def _summary(rows):
    """The range of lr, in words."""
    logs = [float(row["log10_lr"]) if "log10_lr" in row else log10(float(row["lr"]) or 5e-324) for row in rows]
    rescales = sum(float(row.get("rescale", 1)) != 1 for row in rows)
    without = f", without the {rescales} rescalings by powers of two" if rescales else ""
    return (f"lr: 10^{logs[0]:.2f} at the first step, 10^{max(logs):.2f} at most, 10^{logs[-1]:.2f} at the last{without}; "
            f"weight decay {rows[-1]['weight_decay']}")


def _lines(path: str) -> list[str]:
    """The lines of a text file, or of standard input for "-"."""
    try:
        if path == "-":
            if sys.stdin is None:
                raise ValueError("--read -: standard input is closed; give a file to --read, or open one by < FILE")
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8")
            return list(sys.stdin)
        with open(os.path.expanduser(path), newline="", encoding="utf-8") as file:
            return list(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"--read {path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as CSV in "
                         "UTF-8") from error


def flags() -> Parser:
    """Its flags."""
    parser = Parser("minibn convert", run.__doc__)
    made = {"read": NOT_GIVEN}  # of a schedule that is made here, not read
    sgd = {"optimizer": ("sgd",)}
    step_flags(parser, DEFAULTS, made)
    parser.flag("--schedule", "of lr", choices=schedules.NAMES, default="constant", when=made,
                needs={"step": "milestones", "exponential": "growth"})
    parser.flag("--steps", "how many steps to write; cosine ends there", kind=number(int, 1, 10**9))
    parser.flag("--milestones", "steps at which `step` drops lr", kind=number(int, 0), several=True, default=[],
                when={**made, "schedule": ("step",)})
    parser.flag("--factor", "by which `step` multiplies lr", kind=number(float, 0), default=0.1,
                when={**made, "schedule": ("step",)})
    parser.flag("--final", "last lr of `cosine`", kind=number(float, 0), default=0.0, when={**made, "schedule": ("cosine",)})
    parser.flag("--growth", "of `exponential`, per step", kind=number(float, 0), default=1.0,
                when={**made, "schedule": ("exponential",)})
    parser.flag("--warmup", "steps of linear warm-up", kind=number(int, 0), default=0, when=made)
    parser.flag("--nesterov", "Nesterov's momentum", yes=True, when={**sgd, "momentum": NOT_ZERO})
    parser.flag("--decoupled", "decoupled weight decay (SGDW)", yes=True, when={**sgd, "weight_decay": NOT_ZERO})
    parser.flag("--read", "take the steps from this CSV file (-: standard input) instead", metavar="FILE")
    parser.flag("--output", "write to this file, and print a summary", kind=place("leave it out to print"), metavar="FILE")
    parser.flag("--to-weight-decay", "give the result this weight decay instead of none", kind=number(float, 0))
    parser.flag("--no-rescale", "never multiply the weights; an error if lr leaves float range", yes=True, when=sgd)
    return parser
