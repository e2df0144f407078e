"""`Loss`: the loss of a copy of a torch model, as a function of parameters that may be moved about.

The copy computes inside `exact.Exact`: in float64, and on demand with next to no eps.
"""

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.checkpoint import CheckpointFunction

from minibn.pytorch.exact import WIDER, Exact, widened

NEXT_TO_NOTHING = 1e-3  # a root mean square of weights
DRAWS = 24  # so many are tried until every buffer of floating-point numbers changes


class Loss:
    """The loss of a copy of `model`, as a function of the copy's parameters, which may be moved about.

    Each call starts from the model's own buffers (running averages, power iterations), so one call
    does not change the next.

    Attributes:
        parameters: {name: the copy's parameter} of those that require gradients.
        tiny: whether eps is taken out.
        averages: names of the buffers that are looked at in `running`.
        seed: of the random numbers that it draws.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: Callable[[torch.nn.Module], torch.Tensor]) -> None:
        self.source, self.loss_fn = model, loss_fn
        self._again: Exact | None = None  # for modules that activation checkpointing calls again in backward
        self._depth = 0
        self.model = _widened(_copied(model))
        if not self.model.training:
            self.model.train()
        for module in self.model.modules():
            module.register_forward_pre_hook(self._entered, with_kwargs=True)
            module.register_forward_hook(self._left, always_call=True)
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False
                module.padding_idx = None  # that row has an effect, and torch hides its gradient
        self.tiny = True
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.devices = {p.device for p in self.model.parameters() if p.device.type == "cuda"}
        self.eps, self.share = dict[float, None](), 0.0
        self._buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        self.averages: list[str] = []
        self.seed = 0
        self._floor = torch.finfo(next(iter(model.parameters())).dtype).eps  # RMSNorm's eps, if it is None

    @torch.no_grad()
    def reset(self) -> None:
        """Bring back the model's own weights; those that are all 0 become small random numbers, so that they have an effect."""
        generators: dict = {}
        for name, p in self.source.named_parameters():
            if name in self.parameters:
                own = self.parameters[name].copy_(p)
                if not own.any():
                    own.add_(_noise(own, generators), alpha=0.02)

    @torch.no_grad()
    def scatter(self, seed: int) -> None:
        """Go to a random point near the model's own weights.

        What is 0 there, or nearly 0 (a layer scale of 1e-6), moves by 1, since a branch with nearly
        no effect could not be measured.
        """
        generators: dict = {}
        for name, p in self.source.named_parameters():
            if name in self.parameters:
                own = self.parameters[name].copy_(p)
                spread = float(torch.linalg.vector_norm(own)) / math.sqrt(own.numel() or 1)
                own.add_(_noise(own, generators, seed), alpha=0.5 * (spread if spread > NEXT_TO_NOTHING else 1.0))

    @torch.no_grad()
    def scale(self, factors: Mapping[str, float]) -> None:
        """Multiply parameters by numbers: {name: number}."""
        for name, factor in factors.items():
            self.parameters[name].mul_(factor)

    def value(self, seed: int | None = None) -> torch.Tensor:
        """The loss; random numbers that it draws (dropout) depend on `seed` alone, or on `self.seed`.

        It is computed with gradients enabled, since a loss may need some of its own (a gradient
        penalty).
        """
        exact = Exact(self.tiny, self._floor)
        with self._drawing(self.seed if seed is None else seed), torch.enable_grad(), _without_reentrant_checkpoints(), exact:
            for name, b in self.model.named_buffers():
                if name not in self._buffers or b.shape != self._buffers[name].shape:
                    raise ValueError(f"the buffer {name} was made, or changed its shape, in a forward pass: run the model once "
                                     "before report(model, loss_fn)")
                b.detach().copy_(self._buffers[name])
            loss = self.loss_fn(self.model)
        self.eps |= exact.seen
        self.share = max(self.share, exact.share)
        return _checked(loss)

    def gradients(self, names: Iterable[str], seed: int | None = None) -> tuple[float, dict[str, torch.Tensor]]:
        """(loss, {name: gradient}) of those of `names` that the loss depends on."""
        wanted = [(name, self.parameters[name]) for name in names]
        for _, p in wanted:
            p.grad = None
        seed = self.seed if seed is None else seed
        loss = self.value(seed)
        if loss.requires_grad and wanted:
            self._again = Exact(self.tiny, self._floor)
            with self._drawing(seed):
                try:
                    torch.autograd.backward(loss, inputs=[p for _, p in wanted])
                except RuntimeError as error:
                    if "second time" not in str(error):
                        raise
                    raise ValueError("loss_fn(model) must return the loss and leave its backward pass to report, but the graph "
                                     "of what it returned is freed already") from error
            self._again = None
        found = {name: p.grad for name, p in wanted if p.grad is not None}
        for _, p in wanted:
            p.grad = None
        return loss.item(), found

    def find_fullest_draw(self) -> None:
        """Choose the seed with which the most buffers change: stochastic depth leaves out branches and their averages."""
        count, found = sum(b.is_floating_point() for b in self._buffers.values()), dict[int, int]()
        for self.seed in range(DRAWS):
            found[self.seed] = len(self.changed())
            if found[self.seed] == count:
                return
        self.seed = max(found, key=found.__getitem__)

    @torch.no_grad()
    def changed(self) -> list[str]:
        """Names of the buffers of floating-point numbers that a forward pass changes."""
        self.value()
        return [name for name, b in self.model.named_buffers()
                if b.is_floating_point() and not (name in self._buffers and torch.equal(b, self._buffers[name]))]

    @torch.no_grad()
    def running(self, start: float = 1.0) -> dict[str, torch.Tensor]:
        """{name: buffer} of `averages` after a forward pass that begins with `start` times the model's own."""
        own = self._buffers
        self._buffers = own | {name: own[name] * start for name in self.averages}
        self.value()
        self._buffers = own
        after = dict(self.model.named_buffers())
        return {name: after[name].clone() for name in self.averages}

    @torch.no_grad()
    def evaluated(self, factors: Mapping[str, torch.Tensor]) -> float:
        """The loss in evaluation mode, with the model's own buffers times `factors`: {name: factor}.

        Raises:
            ValueError: `loss_fn` brings the model back to training mode.
        """
        own, modes = self._buffers, {module: module.training for module in self.model.modules()}
        self._buffers = own | {name: own[name] * factor for name, factor in factors.items()}
        self.model.eval()
        try:
            value = self.value().item()
            if any(module.training for module in modes):
                raise ValueError("loss_fn brings the model back to training mode")
            return value
        finally:
            self._buffers = own
            for module, training in modes.items():
                module.training = training

    @property
    def largest_eps(self) -> float:
        return max(self.eps, default=0.0)

    def _entered(self, _, args, kwargs):
        """Before each module's forward: inputs in float64; in backward also everything inside."""
        if self._again and not self._depth:
            self._again.__enter__()
        self._depth += self._again is not None
        return widened(args), widened(kwargs)

    def _left(self, *_):
        self._depth -= self._again is not None
        if self._again and not self._depth:
            self._again.__exit__(None, None, None)

    @contextmanager
    def _drawing(self, seed: int) -> Iterator[None]:
        """Random numbers from `seed`, float64 by default; everything as it was afterwards."""
        default, python, numpy = torch.get_default_dtype(), random.getstate(), np.random.get_state()  # noqa: NPY002
        with torch.random.fork_rng(devices=self.devices):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 the model may draw from it
            torch.set_default_dtype(torch.float64)
            try:
                yield
            finally:
                torch.set_default_dtype(default)
                random.setstate(python)
                np.random.set_state(numpy)  # noqa: NPY002


def _without_reentrant_checkpoints():
    """`checkpoint(f, x, use_reentrant=True)` is f(x): it hides the parameters of f from the graph of the loss."""
    return patch.object(CheckpointFunction, "apply", lambda function, _, *args: function(*args))


def inner(gradient: torch.Tensor, p: torch.Tensor) -> float:
    """`<∂L/∂p, p>`, the change of the loss when p is multiplied by 1 + c, for each c."""
    p, gradient = (t.detach().flatten(1) if t.ndim > 1 else t.detach().reshape(1, -1) for t in (p, gradient))
    return float(torch.einsum("rc,rc->r", gradient, p.conj()).sum().real)  # by rows: no array as large as p


def size(gradient: torch.Tensor, p: torch.Tensor) -> float:
    """`|∂L/∂p| |p|`, what `inner` could be at most."""
    return float(torch.linalg.vector_norm(gradient.detach())) * float(torch.linalg.vector_norm(p.detach()))


def copy_of(model: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """`copy.deepcopy`, also of what a module's own functions refer to.

    For deepcopy a function is a constant. So a copy of `self.f = lambda x: layer(x)` would still
    call the layer of the original.
    """
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and value.__closure__:
                cells = tuple(CellType(memo.get(id(cell.cell_contents), cell.cell_contents)) for cell in value.__closure__)
                new = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
                new.__kwdefaults__ = value.__kwdefaults__
                vars(module)[name] = new
    return made


def _copied(model):
    """A deep copy. Tensors that are not parameters but computed from them (old `weight_norm`) are copied by value."""
    computed = {id(t): t.detach().clone() for module in model.modules() for t in vars(module).values()
                if isinstance(t, torch.Tensor) and t.grad_fn is not None}
    try:
        return copy_of(model, computed)
    except Exception as error:
        raise ValueError(f"this {type(model).__name__} cannot be copied ({error}), and report measures on a copy. Call "
                         "report before the model is wrapped (FSDP, DDP), and use `found.of(model)` after it") from error


def _widened(model):
    """`model` in float64 and complex128."""
    model = model.double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.to(WIDER.get(tensor.dtype, tensor.dtype))
    return model


def _checked(loss):
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ValueError(f"loss_fn(model) must return the scalar loss, a tensor of one number; got "
                         f"{tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__}")
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}: give loss_fn another batch")
    return loss


def _noise(like, generators, seed=0):
    """Standard normal random numbers of the shape of `like`, drawn where it is."""
    if like.device not in generators:
        generators[like.device] = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generators[like.device])
