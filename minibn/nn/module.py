"""Parameter and Module: what every layer is made of.

There is no automatic differentiation. `forward` keeps what `backward` needs. `backward` adds to
each `Parameter.grad` and returns the gradient with respect to the input. A breakpoint on either
shows the equation of its docstring at work.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from minibn import arguments, backend, kernels
from minibn.backend import Array, Namespace, array_namespace, is_floating
from minibn.degree import Degree

Self = TypeVar("Self", bound="Module")  # typing has it since Python 3.11


class Parameter:
    """A trainable array `data` and the gradient `grad` of the loss with respect to it (same shape, starts at 0).

    Raises:
        TypeError: `data` is no array, or `grad` is set to None, as in PyTorch.
    """

    def __init__(self, data: Array) -> None:
        arguments.array("data", data)
        self.data = data
        self.zero_grad()

    @property
    def grad(self) -> Array:
        """The gradient."""
        return self._grad

    @grad.setter
    def grad(self, grad: Array) -> None:
        if grad is None:
            raise TypeError("grad must be an array, to which backward adds; zero_grad() sets it to zero")
        self._grad = grad

    def zero_grad(self) -> None:
        """Set the gradient to zero."""
        self.grad = array_namespace(self.data).zeros_like(self.data)

    def __repr__(self):
        return f"Parameter(shape={tuple(self.data.shape)}, dtype={backend.dtype_name(self.data)})"


class Module:
    """A function with parameters, and its derivative.

    Subclasses define `forward(x)` and `backward(dy)`, and set parameters and submodules as
    attributes: these are found in the order of assignment. `buffers` names the attributes that are
    arrays but not trained.
    """

    buffers: tuple[str, ...] = ()
    training = True
    _kept: Any = None  # (shape, dtype and library of the output, what `forward` kept, copies of it inside `plain()`)

    def forward(self, x: Array) -> Array:
        """The module's output for input `x`; keeps what `backward` needs."""
        raise TypeError(f"{type(self).__name__} must define forward(x)")

    def backward(self, dy: Array) -> Array:
        """Given `dy`, the loss's gradient in the output: add to every `Parameter.grad`, and return the gradient in the input.

        Each `backward` belongs to the one `forward` before it, and uses up what that call kept.
        """
        raise TypeError(f"{type(self).__name__} must define backward(dy)")

    def degree(self, x: Degree) -> Degree:
        """How the output scales with the parameters if the input scales as `x` says: see `minibn.degree`."""
        raise TypeError(f"{type(self).__name__} must define degree(x), so that its rescalings can be found: see minibn.degree")

    def __call__(self, x: Array) -> Array:
        """`forward(x)`; if x is a PyTorch tensor, its history is left out.

        Raises:
            TypeError: x is a list, a masked array or another thing that is not a plain array.
        """
        arguments.array("x", x)
        return self.forward(backend.detach(x))

    def children(self) -> list[tuple[str, "Module"]]:
        """(name, module) of each direct submodule."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(dotted name, module) of this module (name "") and all below it, parents first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(_dotted(prefix, name))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, Parameter) of all parameters, in the order in which the modules were given.

        A parameter that two modules share, such as `Unembedding` and `Embedding`, comes once, under
        its first name.

        Raises:
            ValueError: one module stands at two places; `backward` keeps one input per module.
        """
        places: dict[int, str] = {}
        yielded: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    full = _dotted(path, name)
                    if places.setdefault(id(module), path) != path:
                        raise ValueError(f"{full} and {_dotted(places[id(module)], name)} are the same Parameter, of one module: "
                                         "a module can stand at one place of a network only; make two")
                    if id(value) not in yielded:
                        yielded.add(id(value))
                        yield full, value

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of `named_parameters`."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """(dotted name, array) of all buffers: arrays that belong to the state but are not trained."""
        for path, module in self.named_modules():
            for name in module.buffers:
                yield _dotted(path, name), getattr(module, name)

    def arrays(self) -> Iterator[Array]:
        """The array of every parameter, then of every buffer: `next(module.arrays(), None)` tells where the module is."""
        for parameter in self.parameters():
            yield parameter.data
        for _, value in self.named_buffers():
            yield value

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self: Self, mode: bool = True) -> Self:
        """Use batch statistics (`mode=True`) or running ones (`mode=False`) in BatchNorm; returns self."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """`train(False)`."""
        return self.train(False)

    def to(self: Self, xp: str | Namespace | None = None, dtype: str | None = None, device: Any = None) -> Self:
        """Move every parameter and buffer to another array library, dtype (a name) or device; returns self.

        Gradients are set to zero, and optimisers must be made after the move. An argument that is
        None leaves that property as it is.

        Args:
            xp: "numpy", "cupy" or "torch", then with its default device (`backend.library`), or an
                array namespace.

        Raises:
            BackendError: that library cannot be used here.
            ValueError: a dtype other than "float32" and "float64".
        """
        dtype = None if dtype is None else arguments.dtype(dtype)
        if isinstance(xp, str):
            xp, default = backend.library(xp)
            device = default if device is None else device
        for _, module in self.named_modules():
            module._kept = None
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    value.data = backend.convert(value.data, xp, dtype, device)
                    value.zero_grad()
                elif name in module.buffers:
                    setattr(module, name, backend.convert(value, xp, dtype, device))
        return self

    def state_dict(self) -> dict[str, Array]:
        """{dotted name: copy of the array} of all parameters and buffers."""
        state = {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())
        return {name: backend.asarray(value, value) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the arrays of `state`, as `state_dict` made it, into this module.

        Arrays may come from any array library; they take the dtype and device of what they replace.
        Nothing is changed unless all of it fits.

        Raises:
            TypeError: `state` is no dict of arrays of real numbers.
            ValueError: names are missing or unknown, or a shape differs.
        """
        own = self.state_dict()
        arguments.of_kind("state", state, Mapping, "a dict of arrays, as from state_dict()")
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(f"state does not fit {type(self).__name__}: missing {missing}, unknown {unknown}")
        for name, value in own.items():
            arguments.real_array(f"state[{name!r}]", state[name])
            if tuple(value.shape) != tuple(state[name].shape):
                raise ValueError(f"{name} must have shape {tuple(value.shape)}, got {tuple(state[name].shape)}")
        for name, parameter in self.named_parameters():
            parameter.data = backend.asarray(state[name], parameter.data)
        modules = dict(self.named_modules())
        for full, value in list(self.named_buffers()):
            path, _, name = full.rpartition(".")
            setattr(modules[path], name, backend.asarray(state[full], value))

    def keep(self, y: Array, *values: Any) -> Array:
        """Remember `values`, and the shape and dtype of y, for `backward`; return y. The last line of `forward`.

        The arrays are kept, not copied: do not change them in place before `backward` has run.
        Inside `minibn.plain()` such a change is noticed.
        """
        self._kept = (tuple(y.shape), y.dtype, arguments.library_of(y)), values, _copies(values) if kernels.is_plain() else None
        return y

    def kept(self, dy: Array) -> tuple:
        """Return what `forward` kept, once, after dy has been checked against the output. The first line of `backward`.

        Raises:
            RuntimeError: there was no `forward` before this `backward`, or (inside
                `minibn.plain()`) an array that `forward` kept was changed.
            ValueError: dy has another shape than the output.
            TypeError: dy has another dtype than the output.
        """
        if self._kept is None:
            raise RuntimeError(f"{self}.backward was called before forward: every backward needs a forward of its own "
                               "(and a module can stand at one place of a network only)")
        (shape, dtype, library), values, copies = self._kept
        arguments.same_library(f"{self}.backward", "output", library, "dy", dy)
        if tuple(dy.shape) != shape:
            raise ValueError(f"{self}.backward needs dy of the output's shape {shape}, got {tuple(dy.shape)}")
        if dy.dtype != dtype:
            raise TypeError(f"{self}.backward needs dy of dtype {str(dtype).rsplit('.', 1)[-1]}, got {backend.dtype_name(dy)}")
        if copies is not None and not all(map(_same, _copies(values), copies)):
            raise RuntimeError(f"{self}.backward: an array that forward kept was changed in place since; its gradient would "
                               "be wrong. Change a copy instead")
        self._kept = None
        return values

    def _check_input(self, x, shape, like=None):
        """Raise unless `x` has a shape such as ("N", "H", "W", 16), where names stand for any
        number above 0,
        and the dtype of the array `like`."""
        given = tuple(x.shape)
        fits = len(given) == len(shape) and all(
            n > 0 if isinstance(want, str) else n == want for n, want in zip(given, shape, strict=True))
        if not fits:
            wanted = ", ".join(str(n) for n in shape)
            raise ValueError(f"{self} needs input of shape ({wanted}), got {given}; images are channels last "
                             "and no axis may be empty")
        self._check_floating(x)
        if like is not None:
            arguments.same_library(f"{self}", "parameters", arguments.library_of(like), "its input", x)
        if like is not None and x.dtype != like.dtype:
            raise TypeError(f"{self} has {backend.dtype_name(like)} parameters but its input is "
                            f"{backend.dtype_name(x)}; convert the input, or the module with .to(dtype=...)")

    def _check_floating(self, x):
        """Raise TypeError unless `x` holds floating-point numbers: integers would wrap around, and have no gradient."""
        if not is_floating(x):
            raise TypeError(f"{self} needs an input of floating dtype, got {backend.dtype_name(x)}")

    def __repr__(self):
        return f"{type(self).__name__}()"


def _dotted(path, name):
    return f"{path}.{name}" if path else name


def _copies(values):
    """Copies of the arrays among `values`."""
    return [backend.asarray(value, value) for value in values if hasattr(value, "dtype")]


def _same(x, y):
    return bool(array_namespace(x).all((x == y) | (x != x)))  # NaN is not equal to itself
