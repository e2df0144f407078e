"""Command line, `minibn` or `python -m minibn`: the headline experiment, and the commands in `COMMANDS`."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor

from minibn import backend
from minibn.commands import compare, convert, explore, sweep, symmetries, train
from minibn.flags import Parser
from minibn.training.interruption import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: the headline's two runs differ, or a run of a sweep failed. 2: bad flags or input.
    128 + number of the signal: stopped, by Ctrl-C (130) or SIGTERM (143), at the end of a step.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started, as `minibn … >&-` does
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # letters that its encoding lacks become "?"
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    named = bool(arguments) and arguments[0] in COMMANDS
    command, make_parser = COMMANDS[arguments[0]] if named else (compare.run, lambda: compare.flags(", ".join(COMMANDS)))
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
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        parser.exit(2, f"minibn: {parser.in_flags(what)}\n")
    except (ValueError, TypeError, ArithmeticError, MemoryError, ImportError, BrokenExecutor, backend.BackendError) as error:
        what = f"not enough memory: {error}" if isinstance(error, MemoryError) else str(error)
        parser.exit(2, f"minibn: {parser.in_flags(what)}\n")


COMMANDS: dict[str, tuple[Callable[..., int], Callable[[], Parser]]]
COMMANDS = {"train": (train.run, train.flags), "sweep": (sweep.run, sweep.flags), "convert": (convert.run, convert.flags),
            "symmetries": (symmetries.run, symmetries.flags), "explore": (explore.run, explore.flags)}

if __name__ == "__main__":
    sys.exit(main())
