"""Which weights of a torch module may be rescaled without changing its loss: measured, on any model.

If multiplying each parameter p by c**a_p leaves the loss as it is, wherever the weights are, then at every point

    Σ_p a_p t_p = 0,    t_p = <∂L/∂p, p>

(Euler's theorem). A backward pass at a random point gives one such equation, so the exponents of all rescaling symmetries
are the null space of a measured matrix. In float64, and with next to no eps in the normalisations, it is sharp to ten digits
and more. Its rows, reduced and rounded to fractions, are the equations that `invariance.symmetries` derives from the layers of a
minibn network.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import numpy as np
import torch

from minibn.degree import Equation, Walk
from minibn.invariance import Symmetries, probe

TINY_EPS = 1e-30  # torch refuses 0 in BatchNorm, and others would give NaN for a constant channel
NOISE, SIGNAL = 1e-11, 1e-6  # rounding lies below the one, in networks 1e-15; what matters above the other, 1e-2
EXACT = 1e-8  # a gap


def report(model: torch.nn.Module, loss_fn: Callable[[torch.nn.Module], torch.Tensor]) -> "Report":
    """Measure which parameters of `model` are scale-invariant; of the model itself nothing is changed.

    All is measured on a copy in float64, in training mode, at random weights. It takes about as many backward passes as
    the model has parameter tensors, so a small batch will do.

    Args:
        model: as it is trained, but not yet wrapped for DDP. Parameters with requires_grad=False count as constants.
        loss_fn: called as `loss_fn(model)` with that copy, gives the scalar loss of a batch that stays the same:
            `lambda model: F.cross_entropy(model(x), y)`. Inputs of the model are cast to float64. Without autocast.

    Returns:
        Report; print it, and hand it to `remove_weight_decay`.

    Raises:
        ValueError: the loss does not depend on the copy's parameters, is not finite, or is too inexact (random, or computed
            in float32 within) to tell.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of the model that gives the loss of a batch, got {type(loss_fn).__name__}")
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not own:
        raise ValueError("the model has no parameters that require gradients")
    loss = _Loss(model, loss_fn)
    start, eps = loss.parameters(), loss.eps()
    value, gradients = loss.with_gradients(start)
    names = [name for name in own if name in gradients]
    if not names:
        raise ValueError("the loss does not depend on the model's parameters: loss_fn(model) must use the model that it is "
                         "given, which is a copy")
    loss.set_eps(dict.fromkeys(eps, TINY_EPS))
    rows, sizes = _measure(loss, start, names)
    found = Symmetries({name: own[name].ndim for name in names}, Walk({}, {}, _equations(rows, sizes, names)), {})
    loss.set_eps(eps)

    def f(parameters):
        return (value, gradients) if parameters is start else loss.with_gradients(parameters)

    gaps = [max(probe(f, start, group, scales=[2.0])) for group in found.groups]
    return Report(own, found, gaps, max(eps.values(), default=0.0))


class Report:
    """What `report` measured; `str()` is a table. Iterating gives each group as a list of the model's Parameters.

    Attributes:
        groups: disjoint, finest sets of parameters (tuples of names) that are scale-invariant when scaled together.
        gaps: for each group, by how much doubling it changes loss and gradient (`invariance.probe`, the worst of its three),
            with the model's own eps: about 1e-15 where the conversion is exact.
        basis: list of {name: exponent}: every rescaling symmetry is a sum of multiples of these.
        parameters: the model's own Parameters of all groups.
    """

    groups: list[tuple[str, ...]]
    gaps: list[float]
    basis: list[dict[str, int]]

    def __init__(self, own: dict[str, torch.nn.Parameter], found: Symmetries, gaps: list[float], eps: float) -> None:
        self._own, self._found, self._eps = own, found, eps
        self.groups, self.gaps, self.basis = found.groups, gaps, found.basis

    def __iter__(self) -> Iterator[list[torch.nn.Parameter]]:
        return iter([[self._own[name] for name in group] for group in self.groups])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self for p in group]

    def is_scale_invariant(self, names: Iterable[str]) -> bool:
        """Whether multiplying all parameters in `names` by the same c > 0 leaves the loss as it is, but for eps.

        Raises:
            ValueError: a name is unknown.
        """
        return self._found.is_scale_invariant(names)

    def __str__(self):
        number = {name: i for i, group in enumerate(self.groups) for name in group}
        width = max(map(len, ["parameter", *self._own]))
        lines = [f"{'parameter':{width}}  group  gap if doubled"]
        for name in self._own:
            i = number.get(name)
            lines.append(f"{name:{width}}  " + (f"{i + 1:>5}  {self.gaps[i]:.0e}" if i is not None else f"{'-':>5}  -"))
        if not self.groups:
            return "\n".join([*lines, "", "no parameter is scale-invariant: there is nothing to convert"])
        lines += ["", f"{len(self.groups)} scale-invariant groups with {len(number)} of {len(self._own)} parameters"]
        if max(self.gaps) <= EXACT:
            lines.append("weight decay can be removed from them exactly")
        else:
            lines.append("weight decay can be removed from them approximately: the gaps come from the normalisations' eps, here "
                         f"up to {self._eps:g}; with eps = {TINY_EPS:g} it is exact")
        return "\n".join(lines)


class _Loss:
    """A copy of the model in float64, as a function {name: array} -> loss."""

    def __init__(self, model, loss_fn):
        self.model, self.loss_fn = copy.deepcopy(model).double(), loss_fn
        self.smallest = torch.finfo(next(model.parameters()).dtype).eps  # RMSNorm's eps, if it is None
        if not model.training:
            self.model.train()
        for module in self.model.modules():
            module.register_forward_pre_hook(lambda _, args, kwargs: (_double(args), _double(kwargs)), with_kwargs=True)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.devices = {p.device for p in self.model.parameters() if p.device.type == "cuda"}

    def eps(self):
        """{name of a module that has an eps: its value}."""
        found = {name: module.eps for name, module in self.model.named_modules() if hasattr(module, "eps")}
        return {name: self.smallest if eps is None else eps for name, eps in found.items() if isinstance(eps, float | int | None)}

    def set_eps(self, eps):
        for name, value in eps.items():
            self.model.get_submodule(name).eps = value

    def parameters(self):
        return {name: p.detach().cpu().numpy().copy() for name, p in self.trained.items()}

    def with_gradients(self, parameters):
        """(loss, {name: gradient}), of those parameters that the loss depends on; each time with the same random numbers."""
        with torch.no_grad():
            for name, value in parameters.items():
                self.trained[name].copy_(torch.as_tensor(value))
        with torch.random.fork_rng(devices=self.devices), torch.enable_grad():
            loss = self.loss_fn(self.model)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ValueError(f"loss_fn(model) must return the scalar loss, a tensor of one number; got "
                             f"{tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__}")
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()}: give loss_fn another batch")
        if not loss.requires_grad:
            return loss.item(), {}
        gradients = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True)
        found = {name: g for name, g in zip(self.trained, gradients, strict=True) if g is not None}
        return loss.item(), {name: g.cpu().numpy() for name, g in found.items()}


def _double(x):
    """`x` with all floating-point tensors in it cast to float64."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, dict):
        return {key: _double(value) for key, value in x.items()}
    if type(x) in (tuple, list):
        return type(x)(map(_double, x))
    return x


def _measure(loss, start, names):
    """Matrices (rows, parameters) of t and of |∂L/∂p| |p|, at random points near `start`; until more rows tell nothing new."""
    rng = np.random.default_rng(0)
    rows, sizes = np.empty((2, 0, len(names)))
    while len(rows) < len(_row_space(rows, sizes)[0]) + 3:
        point = {}
        for name, p in start.items():
            spread = np.sqrt(np.mean(p**2)) or 1.0  # what starts at 0 need not stay there
            point[name] = rng.uniform(0.5, 2) * p + rng.normal(0, 0.5 * spread, p.shape)
        _, gradients = loss.with_gradients(point)
        size = np.array([np.linalg.norm(gradients[n]) * np.linalg.norm(point[n]) for n in names])
        rows = np.vstack([rows, np.array([np.vdot(gradients[n], point[n]) for n in names]) / (size.max() or 1.0)])
        sizes = np.vstack([sizes, size / (size.max() or 1.0)])
    return rows, sizes


def _row_space(rows, sizes):
    """(orthonormal basis of the rows divided by `scale`, scale); parameters without any effect have scale 1 and zeros."""
    scale = sizes.max(axis=0, initial=0)
    effect = scale > NOISE
    scale = np.where(effect, scale, 1.0)
    _, values, basis = np.linalg.svd(np.where(effect, rows / scale, 0.0), full_matrices=False)
    values = values / values.max(initial=1e-300)
    if np.any((values > NOISE) & (values < SIGNAL)):
        raise ValueError("the loss is not exact enough to tell which parameters are scale-invariant: the measured gradients "
                         "are neither dependent nor independent. loss_fn must give the same for the same weights, the model must "
                         "compute in the float64 it is given, and have the eps of its normalisations as their attribute `eps`")
    return basis[values > NOISE], scale


def _equations(rows, sizes, names):
    """The row space in reduced form, rounded to fractions, as `degree.Equation`s between the parameters' exponents."""
    basis, scale = _row_space(rows, sizes)
    pivots = []
    for i in range(len(basis)):  # Gauss-Jordan elimination, each pivot the largest that is left
        j, k = np.unravel_index(np.abs(basis[i:]).argmax(), basis[i:].shape)
        basis[[i, i + j]] = basis[[i + j, i]]
        basis[i] /= basis[i, k]
        others = np.arange(len(basis)) != i
        basis[others] -= np.outer(basis[others, k], basis[i])
        pivots.append(k)
    equations = []
    for row, k in zip(basis * scale, pivots, strict=True):
        row = row / row[k]
        exact = [Fraction(float(c)).limit_denominator(12) for c in row]
        if np.max(np.abs(row - np.array(exact, float))) > 1e-4:
            raise ValueError(f"the measured exponents of rescalings with {names[k]}, {row[np.abs(row) > 1e-4]}, are not small "
                             "fractions: the loss is not exact enough, or random")
        equations.append(Equation({n: c for n, c in zip(names, exact, strict=True) if c}, "the loss", "measured"))
    return equations
