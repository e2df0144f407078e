"""`minibn` without a command: the headline experiment."""

from typing import Any

from minibn import backend, data, kernels
from minibn.commands.common import depth, folder, step_flags
from minibn.flags import Parser, number, place
from minibn.paper import headline


def run(output: str, workers: int | None, quiet: bool, **settings: Any) -> int:
    """Train one network twice, with weight decay and with the converted schedule, and compare."""
    if workers is None:  # one process for each run, unless they would share a GPU
        workers = min(kernels.cores(), 2) if settings["backend"] == "numpy" else 1
    same = headline.run(headline.settings(**settings), folder(output, *headline.FILES), progress=not quiet, workers=workers)
    return 0 if same else 1


def flags(commands: str) -> Parser:
    """Its flags; `commands` are the names of the others, for the help."""
    parser = Parser("minibn", run.__doc__, f"other commands: {commands}; each has --help")
    default = headline.settings()
    parser.flag("--depth", "layers of the PreResNet, 6n + 2", kind=depth, default=default.depth)
    parser.flag("--epochs", "passes through the 1,437 images", kind=number(int, 1), default=default.epochs)
    parser.flag("--batch", "images per step", kind=number(int, 2, data.TRAIN_IMAGES), default=default.batch)
    step_flags(parser, headline.DEFAULTS)
    parser.flag("--seed", "of the weights and the shuffling", kind=number(int, 0), default=default.seed)
    parser.flag("--dtype", "of all numbers", choices=list(headline.TOLERANCE), default=default.dtype)
    parser.flag("--backend", "array library", choices=backend.LIBRARIES, default=default.backend)
    parser.flag("--output", "folder for the figure and the CSV files", kind=place("give a folder"), default="results")
    parser.flag("--workers", "processes, 1 or 2; with NumPy, 2 if there are two cores", kind=number(int, 1, 2))
    parser.flag("--quiet", "no progress bars", yes=True)
    return parser
