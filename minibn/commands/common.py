"""What several commands share: the folder of the output, and the flags of an experiment and of an optimiser."""

from argparse import ArgumentTypeError
from collections.abc import Collection, Container, Mapping
from dataclasses import fields
from pathlib import Path

from minibn import files, optimizer_numbers
from minibn.equivalence.methods import METHODS
from minibn.experiment import Experiment
from minibn.flags import Parser, number
from minibn.optim import StepNumbers
from minibn.optimizer_numbers import NUMBERS


def folder(path: str, *names: str) -> Path:
    """The folder at `path`, made if it is missing.

    Files of these names can be written there: that is tried now, and not when there are results to
    lose.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output must be a folder; {error.filename}: {error.strerror}") from error
    for name in names:
        with files.replacing(folder / name, commit=False):
            pass
    return folder


def experiment_flags(parser: Parser, several: bool = False, leave_out: Collection[str] = ()) -> None:
    """One flag per field of `Experiment`. With `several`, every flag but yes-or-no ones takes several values."""
    for f in fields(Experiment):
        name, when = "--" + f.name.replace("_", "-"), f.metadata["when"]
        if f.name in leave_out:
            continue
        if f.name == "milestones":
            parser.flag(name, f.metadata["help"], kind=number(float, 0), several=True, when=when)
        elif f.metadata["kind"] is bool:
            parser.flag(name, f.metadata["help"], either=True, default=f.default, when=when)
        else:
            kind = f.metadata["kind"]
            limits = number(kind, f.metadata["low"], below=f.metadata["below"]) if kind in (int, float) else None
            parser.flag(name, f.metadata["help"], kind=limits, several=several, default=f.default, choices=f.metadata["choices"],
                        when=when)


def step_flags(parser: Parser, defaults: Mapping[str, StepNumbers], when: Mapping[str, Container] | None = None) -> None:
    """--optimizer, and a flag for each number of its steps.

    Args:
        parser: what gets them.
        defaults: {optimiser: step object}, for the help.
        when: as in `Parser.flag`, for the numbers.
    """
    parser.flag("--optimizer", "whose steps they are", choices=list(METHODS), default="sgd")
    for name, one in NUMBERS.items():
        parser.flag("--" + name.replace("_", "-"), optimizer_numbers.described(name, defaults),
                    kind=number(float, 0, below=one.below), when={**(when or {}), **optimizer_numbers.when(name)})


def depth(text: str) -> int:
    """The depth of a ResNet, from a flag."""
    value: int = number(int, 8)(text)
    if (value - 2) % 6:
        raise ArgumentTypeError(f"needs 6n + 2 (8, 14, 20, 26, 32, and so on), got {text!r}")
    return value
