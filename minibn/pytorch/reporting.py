"""`report`: which parameters of a model are scale-invariant, so that an optimizer's weight decay can be taken out of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from minibn.invariance import Symmetries
from minibn.pytorch import averages, scales
from minibn.pytorch.loss import Loss
from minibn.pytorch.measure import Measured, measure

HIDES = ("in {}: its class is not torch's own, and may hide an eps (a tensor, compiled code) or compute in float32")


def report(model: torch.nn.Module, loss_fn: Callable[[torch.nn.Module], torch.Tensor], optimizer: Any = None) -> "Report":
    """Measure which parameters of `model` are scale-invariant. The model itself is not changed.

    Everything is measured on a copy in float64, in training mode, at random weights. It takes about
    one backward pass for each parameter tensor that is not scale-invariant alone, so a small batch
    is enough. Each group is tried over the whole range of scales that a conversion uses, 2**-8 to
    2**8.

    Args:
        model: as it is trained, but not yet wrapped for FSDP. Parameters with requires_grad=False
            count as constants.
        loss_fn: called as `loss_fn(model)` with that copy. It returns the scalar loss of a batch
            that is the same in every call: `lambda model: F.cross_entropy(model(x), y)`. Inputs of
            the model are cast to float64, and what meets its outputs is as well (weights of
            classes, a teacher's logits). Do not use autocast in it. It is called many times, so it
            should change nothing of its own: put a teacher into evaluation mode. Hooks of the
            model's modules are called as often.
        optimizer: the torch optimizer, or several in a list. With it the table shows what
            `remove_weight_decay` will do.

    Returns:
        Report; print it, and hand it to `remove_weight_decay`.

    Raises:
        ValueError: the loss does not depend on the copy's parameters, is not finite, or is too
            inexact (random, or computed in float32 within) to tell.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of the model that gives the loss of a batch, got "
                        f"{type(loss_fn).__name__}")
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("report needs the model before torch.jit.script: call it, and remove_weight_decay, and script the model "
                         "after that")
    if any(torch.nn.parameter.is_lazy(t) for t in [*model.parameters(), *model.buffers()]):
        raise ValueError("the model has lazy layers, whose weights do not exist yet: run it once before report(model, loss_fn)")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no parameters that require gradients")
    loss = Loss(model, loss_fn)
    try:
        measured = measure(loss)
    except ValueError as error:
        if "exact enough" not in str(error):
            raise
        raise ValueError(f"{error}. loss_fn must give the same for the same weights. Look "
                         f"{_suspects(model) or 'for randomness'}"
                         ) from error
    return Report(model, loss, measured, optimizer)


class Report:
    """What `report` measured; `str()` is a table. Iterating gives each group as a list of the model's Parameters.

    Attributes:
        groups: disjoint, finest sets of parameters (tuples of names) that are scale-invariant when
            scaled together.
        gaps: for each group, by how much its scale changes the loss, with the model's own eps:
            |dL/d log c| / (|∂L/∂w| |w|), about 1e-15 where the conversion is exact.
        change: the relative changes of loss and gradient when all groups are doubled, with the
            model's own eps.
        measured: names of all parameters that required gradients.
        unknown: names of parameters without any effect on this batch. Nothing can be said of them.
        refused: {tuple of names: why they are in no group, though the equations at the measured
            points would allow it}.
        hints: list of sentences: what would have to be changed in the model to convert more.
        basis: list of {name: exponent}: every rescaling symmetry is a sum of multiples of these.
        parameters: the model's own Parameters of all groups.
    """

    groups: list[tuple[str, ...]]
    gaps: list[float]
    basis: list[dict[str, int]]

    def __init__(self, model: torch.nn.Module, loss: Loss, measured: Measured, optimizer: Any) -> None:
        self.model, self.optimizer, self.unknown = model, optimizer, measured.unknown
        own, self.measured = dict(model.named_parameters()), frozenset(loss.parameters)
        axes = _axes({n: own[n].shape for n in measured.names})
        self._found = Symmetries(axes, measured.equations, sizes={n: own[n].numel() for n in axes})
        self.basis, self.refused = self._found.basis, dict[tuple[str, ...], str]()
        loss.find_fullest_draw()
        groups = [g for g in self._found.groups if not self._excluded(g)]
        holds = scales.holding(loss, groups, measured.cancelled)
        self._refuse(groups, holds, "scale-invariant near the measured weights only, not from 2**-8 to 2**8 times these")
        groups = [g for g, holding in zip(groups, holds, strict=True) if holding]
        self.carried = averages.carried(loss, groups, lambda g: all(axes[n] < 2 and n not in measured.cancelled for n in g),
                                        measured.cancelled)
        self.cancelled = measured.cancelled
        gaps = scales.own_gaps(loss, groups, measured.cancelled)
        self.change, near = (gaps.value, gaps.gradient), [gap <= scales.APPROXIMATE for gap in gaps.groups]
        self._refuse(groups, near, f"eps, up to {loss.largest_eps:g}, has too large a part in their gradient: gap above "
                                   f"{scales.APPROXIMATE}")
        self.groups = [g for g, small in zip(groups, near, strict=True) if small]
        self.gaps = [gap for gap, small in zip(gaps.groups, near, strict=True) if small]
        self.eps = loss.largest_eps
        self.hints = [*_tied(model, self.groups), *self._fused(measured.slices, own), *self._left_out()]

    def __iter__(self) -> Iterator[list[torch.nn.Parameter]]:
        own = dict(self.model.named_parameters())
        return iter([[own[name] for name in group] for group in self.groups])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self for p in group]

    def is_scale_invariant(self, names: Iterable[str]) -> bool:
        """Whether multiplying all parameters in `names` by the same c > 0 leaves the loss unchanged, apart from effects of eps.

        Raises:
            ValueError: a name is unknown.
        """
        names = set(names)
        if names & set(self.unknown):
            return False
        return self._found.is_scale_invariant(names) and not any(names & set(group) for group in self.refused)

    def of(self, model: torch.nn.Module) -> "Report":
        """The same report for another copy of the model, with parameters of the same names: sharded, compiled or deep-copied."""
        other = object.__new__(Report)
        vars(other).update(vars(self), model=unwrapped(model))
        missing = sorted({n for g in self.groups for n in g} - {n for n, _ in other.model.named_parameters()})
        if missing:
            raise ValueError(f"this model has no parameters named {missing[:4]}: give a copy of the model that was measured")
        return other

    def sets(self, with_averages: bool) -> list[tuple[str, ...]]:
        """What a conversion makes of `groups`: see `averages.Carried`, or just these."""
        kept = {name for group in self.groups for name in group}
        chosen = self.carried.sets if with_averages else self.groups
        return [group for group in chosen if set(group) <= kept]

    def gap(self, names: Iterable[str]) -> float:
        """The largest gap of the sets that have one of these parameters; 0 if none has."""
        names = set(names)
        return max((gap for group, gap in zip(self.groups, self.gaps, strict=True) if names & set(group)), default=0.0)

    def _excluded(self, group):
        """Note why a group of the equations is none, if it is none."""
        sparse = {f"{name}.weight" for name, m in self.model.named_modules()
                  if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag) and m.sparse}
        renormed = {f"{name}.weight" for name, m in self.model.named_modules()
                    if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag) and m.max_norm is not None}
        modules = {name.rpartition(".")[0] for name in group}
        if sparse & set(group):
            self.refused[group] = "an embedding with sparse gradients: torch's optimizers do not decay it"
        elif renormed & set(group):
            self.refused[group] = "an embedding with max_norm: torch shortens its rows in each forward pass"
        elif self.unknown and len(modules) > 1:
            self.refused[group] = "parameters without effect on this batch may belong to them"
        return group in self.refused

    def _refuse(self, groups, good, reason):
        self.refused |= {group: reason for group, holds in zip(groups, good, strict=True) if not holds}

    def _fused(self, slices, own):
        grouped = {name for group in self.groups for name in group}
        for name, parts in slices.items():
            if name not in grouped:
                rows = own[name].shape[0]
                ranges = [f"{i * rows // n} to {(i + 1) * rows // n - 1}" for i, n in parts]
                yield (f"{name}: its rows {' and '.join(ranges)} of {rows} are scale-invariant, the others are not. A "
                       "parameter of their own (q, k and v apart) could be converted")

    def _left_out(self):
        if self.carried.left_out:
            names = [n for group in self.carried.left_out for n in group]
            yield (f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} stay as they are, so that BatchNorm's "
                   "running averages after a layer with a bias can be carried along. To convert them, leave out that bias, or "
                   "give remove_weight_decay averages=False")
        if self.carried.unfit:
            yield (f"remove_weight_decay refuses this model, unless averages=False: running averages cannot be carried along: "
                   f"{', '.join(self.carried.unfit[:4])}")
        if self.groups and self.carried.evaluation is None:
            yield "loss_fn fails for the model in evaluation mode, so it is not known whether evaluation would be right, too"
        elif self.groups and (self.carried.evaluation or 0.0) > averages.FIT:
            yield ("remove_weight_decay refuses this model, unless averages=False: in evaluation mode rescaled weights change "
                   f"the loss by {self.carried.evaluation:.1e} of it: the model "
                   "keeps something of its batches outside its buffers, or has a buffer that no forward pass updates")

    def __str__(self):
        from minibn.pytorch.table import table  # which also knows optimizers, and these know reports

        return table(self)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inside = getattr(model, "_orig_mod", None)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            inside = model.module
        if inside is None:
            return model
        model = inside


def _axes(shapes):
    """{name: number of axes longer than 1}, by which parameters are told apart.

    It is 2 or more for the weights of a layer, 1 for a bias of such a layer, and 0 for other
    vectors, which are the last to be converted.
    """
    axes = {name: sum(length > 1 for length in shape) for name, shape in shapes.items()}
    layers = {name.rpartition(".")[0] for name, count in axes.items() if count >= 2}
    return {name: count if count >= 2 else int(name.rpartition(".")[0] in layers) for name, count in axes.items()}


def _suspects(model):
    """Modules that look like normalisations of somebody's own."""
    own = [name for name, m in model.named_modules()
           if "norm" in type(m).__name__.lower() and not type(m).__module__.startswith("torch.")]
    return HIDES.format(", ".join(own[:4])) if own else ""


def _tied(model, groups):
    grouped = {name for group in groups for name in group}
    homes: dict = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        homes.setdefault(p, []).append(name)
    for names in homes.values():
        if len(names) > 1 and not grouped & set(names):
            yield (f"{' and '.join(names)} are one tensor (tied): what is invariant as an input embedding is not as an "
                   "output layer. Untied, the embedding may be converted")
