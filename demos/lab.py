"""What the demos share: the flags (`--quick`, `--output`, `--data`), the looks of the figures, and the claims they end with."""

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler

from minibn.experiment import DATA

_parser = argparse.ArgumentParser()
_parser.add_argument("--quick", action="store_true", help="a smaller version, of some seconds")
_parser.add_argument("--output", type=Path, default=Path("results/demos"), help="folder for the picture and the verdict")
_parser.add_argument("--data", choices=list(DATA), default="digits", help="images, in demos that use `lab.images`")
_parser.add_argument("--path", help="where they are, if they are not the digits")
_parser.add_argument("--no-checksum", action="store_true", help="they need not be the original files")
flags, _ = _parser.parse_known_args()  # an editor's notebook kernel has flags of its own
flags.quick = flags.quick or os.environ.get("MINIBN_QUICK", "0") not in ("", "0")  # where there is no command line
images = {"data": flags.data, "path": flags.path, "checksum": not flags.no_checksum}  # of an `Experiment`
flags.output.mkdir(parents=True, exist_ok=True)
_start = time.perf_counter()
_claims = []

mpl.rcParams.update({
    "font.size": 14, "axes.titlesize": 14, "legend.fontsize": 12, "legend.frameon": False, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2, "figure.constrained_layout.use": True,
    "axes.formatter.min_exponent": 4,  # 0.002, not 2 x 10^-3
    "axes.prop_cycle": cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"])})
WIDE = {"linewidth": 6, "alpha": 0.35}  # for the first of two curves that lie on top of each other


def size(full, quick):
    """`full`, or `quick` with --quick."""
    return quick if flags.quick else full


SKIPPED = 77  # the exit status of a demo that lacks a library, by convention


def need(module, name, install):
    """Leave with one sentence, and status SKIPPED, unless the Python `module` of the library `name` can be imported."""
    if importlib.util.find_spec(module) is None:
        print(f"skipped: needs {name}; install it with: {install}", file=sys.stderr)
        raise SystemExit(SKIPPED)


def figure(rows=1, columns=2, height=4.2, width=9.5, **options):
    """(figure, axes) of `plt.subplots`, in inches."""
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def legend(fig, columns=2, **options):
    """One legend below all panels, where it covers no curve, with each label once."""
    found = {label: handle for axis in fig.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    fig.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, **options)


def claim(text, measured, holds):
    """Print a claim, what was measured, and whether it holds."""
    _claims.append({"claim": text, "measured": measured, "holds": bool(holds)})
    print(f"claim:    {text}\nmeasured: {measured}\nverdict:  {'holds' if holds else 'DOES NOT HOLD'}\n")


def finish(name, doc, fig):
    """Save the picture, a small version of it and the claims, and fail unless every claim holds."""
    fig.savefig(flags.output / f"{name}.png", dpi=110)
    fig.savefig(flags.output / f"{name}-small.png", dpi=75)
    title = ((doc or "").strip() or name).splitlines()[0]  # sphinx-gallery runs scripts without their docstring
    verdict = {"title": title, "claims": _claims, "seconds": round(time.perf_counter() - _start, 1)}
    (flags.output / f"{name}.json").write_text(json.dumps(verdict, indent=1), encoding="utf-8")
    print(f"{flags.output}/{name}.png, {verdict['seconds']} s")
    if not all(c["holds"] for c in _claims):
        raise SystemExit("a claim does not hold")
