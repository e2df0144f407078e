"""`Exact`: torch's functions in float64, and on demand with next to no eps in the normalisations.

Wherever eps stands, an attribute of a module or a number in its code, and wherever the code casts to
float32, `Exact` sees the call on its way into torch and changes it.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

TINY_EPS = 1e-30  # torch refuses 0 in BatchNorm, and others would give NaN for a constant channel
CONSTANT = 1e-24  # a variance below this share of the squared mean is what rounding left of a constant
LARGEST_EPS = 1e-2  # a number up to this one that is added to a tensor is taken for an eps
WIDER = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
         torch.complex64: torch.complex128}
EPS_AT = {"layer_norm": 4, "rms_norm": 3, "group_norm": 4, "batch_norm": 7, "instance_norm": 7, "normalize": 3}
CENTRED = {"layer_norm", "group_norm", "batch_norm", "instance_norm"}
DEFAULT_EPS = dict.fromkeys(EPS_AT, 1e-5) | {"normalize": 1e-12}
ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
CASTS = {"float", "half", "bfloat16"}
OWN_TENSORS = {"grad", "backward"}  # functions that need the same tensor objects


class Exact(TorchFunctionMode):
    """Inside `with`, torch's functions compute in float64; with `tiny`, also with `TINY_EPS` in place of their own eps.

    Attributes:
        seen: {every eps that was met: None}, in order: what a normalisation was given, or a small
            number added to a tensor.
        share: the largest mean of eps / (variance + eps) in a normalisation; without `tiny` only.
    """

    def __init__(self, tiny: bool, floor: float = TINY_EPS) -> None:
        super().__init__()
        self.tiny, self.floor, self.seen, self.share = tiny, floor, dict[float, None](), 0.0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name in CASTS:
            return args[0].double() if args and not args[0].is_complex() else args[0]
        args, kwargs = _of_one_width(name, args, kwargs)
        args = tuple(WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        if kwargs.get("dtype") in WIDER:
            kwargs["dtype"] = WIDER[kwargs["dtype"]]
        if name in EPS_AT:
            args, kwargs = self._normalisation(name, args, kwargs)
        elif name in ADDITIONS:
            small = [isinstance(a, float) and 0 < a <= LARGEST_EPS for a in args]
            if any(small) and not self.tiny and isinstance(args[0], torch.Tensor):
                self._note(args[0].detach(), args[small.index(True)])
            args = tuple(self._eps(a) if is_eps else a for a, is_eps in zip(args, small, strict=True))
        return function(*args, **kwargs)

    def _normalisation(self, name, args, kwargs):
        at = EPS_AT[name]
        if len(args) > at and args[at] is not None:
            args = (*args[:at], self._eps(args[at]), *args[at + 1 :])
        elif kwargs.get("eps") is not None:
            kwargs["eps"] = self._eps(kwargs["eps"])
        else:  # torch's default, or that of RMSNorm, which is the dtype's
            kwargs["eps"] = self._eps(self.floor if name == "rms_norm" else DEFAULT_EPS[name])
        if not self.tiny:
            self._note(_variance(name, args, kwargs), args[at] if len(args) > at and args[at] is not None else kwargs["eps"])
        elif name in CENTRED and _of_its_input(name, args, kwargs):
            x, args = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
            args = (_without_constants(name, (x, *args), kwargs), *args)
        return args, kwargs

    def _note(self, variance, eps):
        self.share = max(self.share, float((eps / (variance.abs() + eps)).mean()))

    def _eps(self, x):
        if not isinstance(x, float | int) or not x > 0:
            return x
        if x != TINY_EPS:
            self.seen[x] = None
        return TINY_EPS if self.tiny else x


def widened(x: Any) -> Any:
    """`x` with all floating-point tensors in it in float64, all complex ones in complex128."""
    if isinstance(x, torch.Tensor):
        return x.to(WIDER.get(x.dtype, x.dtype))
    if isinstance(x, dict):
        return {key: widened(value) for key, value in x.items()}
    if type(x) in (tuple, list):
        return type(x)(map(widened, x))
    return x


def _of_one_width(name, args, kwargs):
    """(args, kwargs), in float64 where tensors of both widths meet, such as the copy's outputs and weights of classes."""
    if len(args) + len(kwargs) < 2:  # most of the calls look up an attribute
        return args, kwargs
    dtypes = {a.dtype for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)}
    if dtypes.isdisjoint(WIDER.values()) or dtypes.isdisjoint(WIDER) or name in OWN_TENSORS or "out" in kwargs:
        return args, kwargs
    if name.startswith(("__i", "__set")) or name.endswith("_") and not name.endswith("__"):  # it writes to its first tensor
        return (args[0], *widened(args[1:])), widened(kwargs)
    return widened(args), widened(kwargs)


def _variance(name, args, kwargs):
    """What eps is added to in this normalisation, or nearly so."""
    x, axes = _samples(name, args, kwargs)
    return x.var(axes, unbiased=False) if name in CENTRED else x.square().mean(axes)


def _of_its_input(name, args, kwargs):
    """Whether mean and variance are those of the input, not running averages."""
    if name not in ("batch_norm", "instance_norm"):
        return True
    flag, default = ("training", False) if name == "batch_norm" else ("use_input_stats", True)
    return args[5] if len(args) > 5 else kwargs.get(flag, default)


def _without_constants(name, args, kwargs):
    """The input with 0 for whatever is constant, such as a channel that an activation before the layer left dead.

    With any eps it becomes 0, or nearly. Without one, rounding errors would be normalised.
    """
    x, axes = _samples(name, args, kwargs)
    variance, mean = torch.var_mean(x, axes, unbiased=False, keepdim=True)
    constant = variance <= CONSTANT * mean.square()
    if not constant.any():
        return args[0]
    return torch.where(constant, 0.0, args[0].reshape(x.shape)).reshape(args[0].shape)


def _samples(name, args, kwargs):
    """(the input without its gradient, in a shape where each normalisation is over `axes`, these axes)."""
    given = [*args, *(kwargs[key] for key in ("input", "normalized_shape", "num_groups") if key in kwargs)]
    x, more = given[0].detach(), given[1:]
    if name == "batch_norm":
        return x, [i for i in range(x.ndim) if i != 1]
    if name in ("group_norm", "instance_norm"):
        return x.reshape(len(x), more[0] if name == "group_norm" else x.shape[1], -1), [-1]
    return x.flatten(-len(more[0])) if name == "layer_norm" else x, [-1]
