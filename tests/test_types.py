"""Every public name of the package says what it takes and gives; that it says the truth is checked by mypy."""

import inspect
import pkgutil
from importlib import import_module
from importlib.util import find_spec

import pytest

import minibn

NEEDS = {"minibn.pytorch": "torch", "minibn.optax": "optax", "minibn.explore.app": "marimo"}
MODULES = [info.name for info in pkgutil.walk_packages(minibn.__path__, "minibn.", onerror=lambda name: None)
           if all(find_spec(other) or not info.name.startswith(name) for name, other in NEEDS.items())]
SPECIAL = ("__init__", "__call__", "__getitem__", "__iter__", "__len__")


def functions(module):
    """(dotted name, function) of all that a module, or a public class in it, defines under a public name."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        members = {n: v for base in reversed(value.__mro__) for n, v in vars(base).items()} if inspect.isclass(value) else {}
        for path, member in {name: value, **{f"{name}.{inner}": v for inner, v in members.items()}}.items():
            *_, last = path.split(".")
            function = unwrapped(member)
            if function and function.__module__.startswith("minibn") and (not last.startswith("_") or last in SPECIAL):
                yield path, function


def unwrapped(value):
    """The function inside a property, class method and the like; None if there is none."""
    for attribute in ("fget", "func", "__func__"):  # of property, cached_property, classmethod and staticmethod
        value = getattr(value, attribute, value)
    return value if inspect.isfunction(value) else None


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_says_what_it_takes_and_gives(name):
    missing = []
    for function_name, function in functions(import_module(name)):
        signature = inspect.signature(function)
        taken = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        missing += [f"{function_name}({p.name})" for p in taken if p.annotation is p.empty]
        missing += [f"{function_name} ->"] if signature.return_annotation is signature.empty else []
    assert not missing


def test_the_walk_finds_what_the_package_defines():
    found = {f"{name}.{function}" for name in MODULES for function, _ in functions(import_module(name))}
    assert found >= {"minibn.nn.conv.Conv2d.__init__", "minibn.nn.norm.BatchNorm.forward",
                     "minibn.training.history.History.read_csv",
                     "minibn.invariance.static.Symmetries.groups", "minibn.experiment.Experiment.steps",
                     "minibn.kernels.threads.threads",
                     "minibn.equivalence.streams.remove_weight_decay", "minibn.__main__.main"}


def test_type_checkers_of_other_projects_see_the_hints():
    """PEP 561: a package without the file `py.typed` counts as untyped."""
    assert pkgutil.get_data("minibn", "py.typed") == b""
