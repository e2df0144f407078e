"""`minibn train`: one network."""

import os
from dataclasses import asdict
from typing import Any

from minibn import backend, experiment, files, jsonable, plots
from minibn.commands.common import experiment_flags, folder
from minibn.equivalence.methods import METHODS
from minibn.experiment import Experiment
from minibn.flags import GIVEN, Parser, number, place
from minibn.training import interruption
from minibn.training.interruption import Stopped

FILES = ("history.csv", "history.png", "result.json")


def run(output: str, checkpoint: str | None, every: int, threads: int | None, quiet: bool, **settings: Any) -> int:
    """Train one network; write history.csv, history.png and result.json into the output folder."""
    one = Experiment(**settings)
    to = folder(output, *FILES)
    if checkpoint is not None and _place(checkpoint) in [_place(to / name) for name in FILES]:
        raise ValueError(f"--checkpoint {checkpoint} is a file that is written at the end, too: {to}/{', '.join(FILES)}; give "
                         "another file")
    plots.ready()
    backend.library(one.backend)
    one.split  # noqa: B018 - read now, so that Ctrl-C does not wait for it
    with interruption.deferred():
        try:
            done = experiment.run(one, checkpoint=checkpoint, every=every, threads=threads, progress=not quiet,
                                  description=one.schedule)
        except Stopped as stopped:
            stopped.history.write_csv(to / "history.csv")
            raise
        done.history.write_csv(to / "history.csv")
        result = {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss, "settings": asdict(one)}
        with files.replacing(to / "result.json") as file:
            file.write(jsonable.dumps(result, indent=1).encode())
        plots.compare({one.schedule: done.history}, "invariant", to / "history.png",
                      f"{one.model} on {one.data}: {one.schedule}", degree=METHODS[one.optimizer].step.degree)
        print(f"test accuracy {done.test_accuracy:.2%}, training loss {done.train_loss:.6f} after {len(done.history)} steps; "
              f"see {to}/{', '.join(FILES)}")
    return 0


def _place(path):
    return os.path.realpath(os.path.expanduser(path))


def flags() -> Parser:
    """Its flags."""
    parser = Parser("minibn train", run.__doc__, words={"batch_size": "--batch"})
    experiment_flags(parser)
    parser.flag("--output", "folder for what is written", kind=place("give a folder"), default="results")
    parser.flag("--checkpoint", "save to this file, and go on from it if it is there", kind=place("give a file"), metavar="FILE")
    parser.flag("--every", "steps between two checkpoints", kind=number(int, 1), default=500, when={"checkpoint": GIVEN})
    parser.flag("--threads", "one for each core if not given", kind=number(int, 1))
    parser.flag("--quiet", "no progress bar", yes=True)
    return parser
