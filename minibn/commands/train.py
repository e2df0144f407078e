"""`minibn train`: one network."""

from dataclasses import asdict
from typing import Any

from minibn import backend, experiment, files, jsonable, plots
from minibn.commands.common import experiment_flags, folder
from minibn.equivalence.methods import METHODS
from minibn.experiment import Experiment
from minibn.flags import GIVEN, Parser, number
from minibn.training import interruption
from minibn.training.interruption import Stopped


def run(output: str, checkpoint: str | None, every: int, threads: int | None, quiet: bool, **settings: Any) -> int:
    """Train one network; write history.csv, history.png and result.json into the output folder."""
    one = Experiment(**settings)
    place = folder(output, "history.csv", "history.png", "result.json")
    backend.library(one.backend)
    one.split  # noqa: B018 - read now, so that Ctrl-C does not wait for it
    with interruption.deferred():
        try:
            done = experiment.run(one, checkpoint=checkpoint, every=every, threads=threads, progress=not quiet,
                                  description=one.schedule)
        except Stopped as stopped:
            stopped.history.write_csv(place / "history.csv")
            raise
        done.history.write_csv(place / "history.csv")
        plots.compare({one.schedule: done.history}, "invariant", place / "history.png",
                      f"{one.model} on {one.data}: {one.schedule}", degree=METHODS[one.optimizer].step.degree)
        result = {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss, "settings": asdict(one)}
        with files.replacing(place / "result.json") as file:
            file.write(jsonable.dumps(result, indent=1).encode())
        print(f"test accuracy {done.test_accuracy:.2%}, training loss {done.train_loss:.6f} after {len(done.history)} steps; "
              f"see {place}/history.csv, history.png, result.json")
    return 0


def flags() -> Parser:
    """Its flags."""
    parser = Parser("minibn train", run.__doc__, words={"batch_size": "--batch"})
    experiment_flags(parser)
    parser.flag("--output", "folder for what is written", default="results")
    parser.flag("--checkpoint", "save to this file, and go on from it if it is there", metavar="FILE")
    parser.flag("--every", "steps between two checkpoints", kind=number(int, 1), default=500, when={"checkpoint": GIVEN})
    parser.flag("--threads", "one for each core if not given", kind=number(int, 1))
    parser.flag("--quiet", "no progress bar", yes=True)
    return parser
