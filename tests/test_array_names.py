"""Every name of an array library that the code uses is in all of them, and only `minibn.backend` imports one."""

import ast
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from minibn import backend

PACKAGE = Path(backend.__file__).parent
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "pytorch"]  # which is about one library


def names_of_the_namespace(source):
    """Every NAME in `xp.NAME` and `array_namespace(…).NAME`, with dots where there are several."""
    def base(node):
        return (isinstance(node, ast.Name) and node.id == "xp") or (
            isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "array_namespace")

    for node in ast.walk(ast.parse(source)):
        chain_, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain_.append(inner.attr)
            inner = inner.value
        if chain_ and base(inner):
            yield ".".join(reversed(chain_))


def test_the_walk_over_the_source_finds_names():
    source = "xp.linalg.qr(x); array_namespace(x, y).exp(xp.pi); z = backend.array_namespace(z).sin(1); np.cos(x); xp(1).tan"
    assert set(names_of_the_namespace(source)) == {"linalg.qr", "linalg", "exp", "pi", "sin"}
    assert len({name for path in SOURCES for name in names_of_the_namespace(path.read_text(encoding="utf-8"))}) > 30


@pytest.mark.parametrize("namespace", ["array_api_strict", "array_api_compat.numpy", "array_api_compat.torch",
                                       "array_api_compat.cupy"])
def test_every_name_exists_everywhere(namespace):
    """CuPy's names can be looked up without a GPU."""
    pytest.importorskip(namespace.removeprefix("array_api_compat."))
    xp = importlib.import_module(namespace)
    for path in SOURCES:
        for name in names_of_the_namespace(path.read_text(encoding="utf-8")):
            found = xp
            for part in name.split("."):
                found = getattr(found, part, None)
            assert found is not None, f"{path.name} uses xp.{name}"


def test_the_cupy_that_was_looked_at_is_that_of_the_extras():
    pytest.importorskip("cupy")
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    extras = [Requirement(setup["options.extras_require"][extra].strip()) for extra in ("cuda12", "cuda13")]
    assert importlib.import_module("cupy").__version__ in extras[0].specifier & extras[1].specifier
    assert all("<" in str(extra.specifier) for extra in extras)
    assert all(extra.extras == {"ctk"} for extra in extras)  # CUDA's libraries, for machines that have only the driver
    lines = (PACKAGE.parent / ".ci" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (in_ci,) = (Requirement(line) for line in lines if line.startswith("cupy"))
    assert (in_ci.specifier, in_ci.extras) == (extras[0].specifier, set())  # names only: no gigabytes


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name not in ("backend.py", "optax.py")],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_backend_names_a_library(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert not imported & {"array_api_compat", "array_api_strict", "array_api_extra", "cupy", "torch", "jax", "tensorflow", "mlx"}


def test_import_is_light():
    late = ("matplotlib", "array_api_compat.numpy", "torch", "cupy", "dask")
    code = f"import sys, minibn; print(*[m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
