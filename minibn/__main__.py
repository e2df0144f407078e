"""Command line: `python -m minibn`, or `minibn`."""

import argparse
import math
import sys

from minibn import data, headline


def main(arguments=None):
    """Run the headline experiment; returns the exit status: 0 the same run, 1 not the same run, 2 bad flags."""
    parser = argparse.ArgumentParser(prog="minibn", description=headline.__doc__.partition("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default = headline.Settings()
    parser.add_argument("--depth", type=_depth, default=default.depth, help="layers of the PreResNet, 6n + 2")
    parser.add_argument("--epochs", type=_between(int, 1), default=default.epochs, help="passes through the 1,437 images")
    parser.add_argument("--batch", type=_between(int, 2, data.TRAIN_IMAGES), default=default.batch, help="images a step")
    parser.add_argument("--lr", type=_between(float, 0), default=default.lr, help="highest learning rate with weight decay")
    parser.add_argument("--momentum", type=_between(float, 0, math.nextafter(1, 0)), default=default.momentum, help=" ")
    parser.add_argument("--weight-decay", type=_between(float, 0), default=default.weight_decay, help=" ")
    parser.add_argument("--seed", type=_between(int, 0), default=default.seed, help="of the weights and the shuffling")
    parser.add_argument("--dtype", choices=list(headline.TOLERANCE), default=default.dtype, help=" ")
    parser.add_argument("--output", default="results", help="folder for the figure and the CSV files")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    flags = vars(parser.parse_args(arguments))
    folder, quiet = flags.pop("output"), flags.pop("quiet")
    try:
        same = headline.run(headline.Settings(**flags), folder, progress=not quiet)
    except (ValueError, ArithmeticError, OSError) as error:
        parser.exit(2, f"minibn: {error}\n")
    return 0 if same else 1


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


if __name__ == "__main__":
    sys.exit(main())
