"""Sequential and Residual: modules made of modules."""

from collections.abc import Iterator

from minibn import kernels
from minibn.backend import Array
from minibn.degree import Degree
from minibn.nn.module import Module


class Sequential(Module):
    """One module after another: `y = f_n(… f_2(f_1(x)))`.

    Args:
        *modules: named "0", "1", … as in PyTorch.
        **named: further modules under names of their own,
            `Sequential(conv=Conv2d(…), norm=BatchNorm(…))`.

    Raises:
        TypeError: an argument is not a Module.
        ValueError: a name is the number of another module, is empty, or has a dot.
    """

    def __init__(self, *modules: Module, **named: Module) -> None:
        numbered = {str(i): module for i, module in enumerate(modules)}
        for name in named:
            if name in numbered or not name or "." in name:
                raise ValueError(f"Sequential: {name!r} cannot be the name of a module, since "
                                 f"{'one of the others has it' if name in numbered else 'names have no dots and are not empty'}")
        self._modules = {**numbered, **named}
        _check_modules("Sequential", self._modules)

    def children(self) -> list[tuple[str, Module]]:
        return list(self._modules.items())

    def __getitem__(self, name: str | int) -> Module:
        """The submodule of this name or number."""
        return self._modules[str(name)]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __len__(self) -> int:
        return len(self._modules)

    def forward(self, x: Array) -> Array:
        """Each module's output is the next one's input."""
        for module in self:
            x = module(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Each module's input gradient is the output gradient of the one before it."""
        for module in reversed(list(self)):
            dy = module.backward(dy)
        return dy

    def degree(self, x: Degree) -> Degree:
        """The degree is passed through each module in turn."""
        for module in self:
            x = module.degree(x)
        return x

    def __repr__(self):
        return f"Sequential({', '.join(f'{name}={module}' for name, module in self._modules.items())})"


class Residual(Module):
    """`y = branch(x) + shortcut(x)`, the shortcut being x itself if None (He et al., 2015).

    Backward: `dx = branch.backward(dy) + shortcut.backward(dy)`.

    Raises:
        TypeError: an argument is not a Module.
        ValueError: branch and shortcut give different shapes.
    """

    def __init__(self, branch: Module, shortcut: Module | None = None) -> None:
        _check_modules("Residual", {"branch": branch} if shortcut is None else {"branch": branch, "shortcut": shortcut})
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Array) -> Array:
        """branch(x) + shortcut(x)."""
        y = self.branch(x)
        z = x if self.shortcut is None else self.shortcut(x)
        if y.shape != z.shape:
            raise ValueError(f"Residual adds its branch's {tuple(y.shape)} to its shortcut's {tuple(z.shape)}: give it a "
                             "shortcut, such as a 1 x 1 Conv2d, that makes them equal")
        return kernels.of(y).add(y, z)

    def backward(self, dy: Array) -> Array:
        """The sum of the input gradients of both paths."""
        dx = self.branch.backward(dy)
        return kernels.of(dx).add(dx, dy if self.shortcut is None else self.shortcut.backward(dy))

    def degree(self, x: Degree) -> Degree:
        """Both paths must have the same degree."""
        return self.branch.degree(x).joined(x if self.shortcut is None else self.shortcut.degree(x), self)

    def __repr__(self):
        return f"Residual({self.branch}, shortcut={self.shortcut})"


def _check_modules(owner, modules):
    for name, module in modules.items():
        if not isinstance(module, Module):
            raise TypeError(f"{owner} takes modules, got {module!r} as {name!r}")
