"""`minibn symmetries`: which weights may be rescaled."""

import sys

import numpy as np

from minibn.commands.common import depth as depth_of
from minibn.experiment import MODELS, NORMS
from minibn.flags import Parser
from minibn.invariance import symmetries


def run(model: str, depth: int | None, norm: str, no_affine: bool, explain: str | None) -> int:
    """Print which weights of a model may be rescaled, or explain one."""
    sizes = {"depth": depth} if depth else {}
    network = MODELS[model](norm=NORMS[norm], affine=not no_affine, eps=0.0, rng=np.random.default_rng(0), **sizes)
    found = symmetries(network)
    print(found.explain(explain) if explain else found)
    sys.stdout.flush()
    return 0


def flags() -> Parser:
    """Its flags."""
    parser = Parser("minibn symmetries", run.__doc__)
    parser.add_argument("model", choices=list(MODELS), help="network")
    parser.flag("--depth", "layers of a resnet or preresnet, 6n + 2", kind=depth_of, when={"model": ("resnet", "preresnet")})
    parser.flag("--norm", "normalisation", choices=list(NORMS), default="batch")
    parser.flag("--no-affine", "normalisations without gamma and beta", yes=True)
    parser.flag("--explain", "say in a sentence what this one may be scaled with", metavar="PARAMETER")
    return parser
