"""Which names are public, and a page of the reference for each module that has some.

A public name is in the `__all__` of a module of `MODULES`; where a module has none, it is what the module itself defines. Each
name is documented once: under the module that defines it if that is one of these, or else under the first that has it. `write`
makes the pages.
"""

import importlib
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType

GROUPS = {
    "The theorem": ["minibn.equivalence", "minibn.schedules", "minibn.export", "minibn.monitor"],
    "Networks and training": ["minibn.nn", "minibn.models", "minibn.optim", "minibn.training", "minibn.data"],
    "Which weights": ["minibn.invariance", "minibn.degree"],
    "Other libraries": ["minibn.pytorch", "minibn.optax", "minibn.backend"],
    "Experiments": ["minibn.experiment", "minibn.sweep", "minibn.processes", "minibn.plots", "minibn.tables",
                    "minibn.paper.headline", "minibn.paper.section3", "minibn.paper.section4",
                    "minibn.training.checkpoint", "minibn.explore"],
    "Under the layers": ["minibn.kernels", "minibn.kernels.reference", "minibn.testing"],
}
# Modules that no one outside the package calls, and earlier import paths of modules that have moved.
INTERNAL = {"minibn.flags", "minibn.files", "minibn.jsonable", "minibn.progress", "minibn.__main__", "minibn.commands",
            "minibn.arguments", "minibn.fields", "minibn.optimizer_numbers", "minibn.sweep_file", "minibn.kernels.cpu",
            "minibn.kernels.device"}
MOVED = {"minibn.checkpoint", "minibn.cifar10", "minibn.convergence", "minibn.headline", "minibn.history", "minibn.toy"}
COMMON = {"grad", "data", "step", "loss", "random", "weight", "bias", "scale", "load", "save", "run", "norm", "read",
          "of", "size", "keep", "steps", "last", "lookahead", "update"}  # in backticks, mostly not the public name spelled so

MISSING = "This site was built without a library that the module needs: install its extra, and build the site again."
ROOT = Path(__file__).resolve().parent.parent.parent


def module(name):
    """The module, or None if it does not exist or needs a library that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@cache
def modules():
    """{name: module} of those that can be imported, in the order of the reference."""
    found = {name: module(name) for names in GROUPS.values() for name in names}
    return {name: loaded for name, loaded in found.items() if loaded is not None}


@cache
def documented():
    """{(module name, name): object}, each object once, under its own module or else the first that has it."""
    found, seen = {}, set()
    for module_name, loaded in modules().items():
        for name in public(loaded):
            value = getattr(loaded, name)
            home = getattr(value, "__module__", module_name)
            elsewhere = home != module_name and home in modules() and name in public(modules()[home])
            ours = str(home).split(".")[0] == "minibn" and not isinstance(value, ModuleType)
            if ours and not elsewhere and (home, name) not in seen:
                found[module_name, name] = value
                seen.add((home, name))
    return found


def public(loaded):
    """The public names of a module."""
    own = [name for name, value in vars(loaded).items() if not name.startswith("_")
           and (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == loaded.__name__]
    return list(getattr(loaded, "__all__", own))


def resolve(text, scope):
    """The full name of what `text`, in backticks within the documentation of the module `scope`, refers to; or None."""
    head = text.split("(")[0]
    found = [name for name in targets() if name == head or name.endswith(f".{head}")]
    if head in COMMON:
        return None
    near = [name for name in found if name.rpartition(".")[0] == scope]
    near += [name for name in found if name.startswith(f"{scope}.")]
    return near[0] if near else found[0] if len(found) == 1 else None


@cache
def targets():
    """Full names of all that the reference has an anchor for: modules, their files, names, and methods of classes."""
    names = [f"{module_name}.{name}" for module_name, name in documented()]
    files = {getattr(value, "__module__", None) or name for (name, _), value in documented().items()} - set(names)
    methods = [f"{module_name}.{name}.{member}" for (module_name, name), value in documented().items()
               if inspect.isclass(value) for member, method in vars(value).items()
               if not member.startswith("_") and callable(method) and getattr(method, "__doc__", "")]
    return [*names, *modules(), *sorted(file for file in files if file.startswith("minibn.") and file not in modules()), *methods]


def write(folder):
    """The reference's pages, one `MODULE.rst` per module, into `folder`; a page whose text is the same is left alone."""
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.rst": page(name, loaded) for name, loaded in modules().items()}
    exist = [name for names in GROUPS.values() for name in names if find(name)]
    pages |= {f"{name}.rst": f"{heading(name, '=')}\n{MISSING}\n" for name in exist if name not in modules()}
    pages["index.rst"] = index(exist)
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def find(name):
    """Whether there is a module of this name, importable or not."""
    return Path(ROOT, *name.split(".")).is_dir() or Path(ROOT, *name.split(".")).with_suffix(".py").exists()


def index(names):
    """The first page of the reference: the modules in their groups."""
    parts = [heading("Reference", "="), "Every public name, from its docstring. ``[source]`` beside a name shows the code.\n"]
    for group, members in GROUPS.items():
        entries = "\n".join(f"   {name}" for name in members if name in names)
        parts.append(f"{heading(group, '-')}\n.. toctree::\n   :maxdepth: 2\n\n{entries}\n")
    return "\n".join(parts)


def page(name, loaded):
    """The reST page of one module: its docstring, then its names, those of each file under that file's docstring."""
    names = [key for key in documented() if key[0] == name]
    files = {}
    for key in names:
        files.setdefault(getattr(documented()[key], "__module__", name), []).append(key[1])
    for theirs in files.values():
        theirs.sort(key=lambda each: line(documented()[name, each]))
    parts = [heading(name, "="), f".. automodule:: {name}\n   :no-members:\n"]
    parts += [entry(name, each) for each in files.pop(name, [])]
    order = {file: inspect.getdoc(loaded).find(f"`{file.rpartition('.')[2]}`") % 10**6 for file in files}  # as told there
    for file, theirs in sorted(files.items(), key=lambda item: order[item[0]]):
        if file.startswith(f"{name}."):
            short = file.removeprefix(f"{name}.")
            index = "   :no-index:\n" if short in theirs else ""  # a function of the same name has the better claim to it
            parts += [heading(short, "-"), f".. automodule:: {file}\n   :no-members:\n{index}"]
        parts += [entry(name, each) for each in theirs]
    return "\n".join(parts)


def line(value):
    """Where a class or function begins in its file; data come first."""
    return inspect.getsourcelines(value)[1] if inspect.isclass(value) or inspect.isfunction(value) else 0


def entry(module_name, name):
    value = documented()[module_name, name]
    full = f"{module_name}.{name}"
    if inspect.isclass(value):
        ours = any(base.__module__.startswith("minibn") and base.__name__[0] != "_" for base in value.__bases__)
        return f".. autoclass:: {full}\n   :members:\n" + ("   :show-inheritance:\n" if ours else "")
    if inspect.isfunction(value):
        return f".. autofunction:: {full}\n"
    if isinstance(value, (dict, list, tuple, set, str, int, float)):  # its own docstring would be that of its type
        return f".. py:data:: {name}\n   :module: {module_name}\n   :type: {type(value).__name__}\n"
    return f".. autodata:: {full}\n"


def heading(text, line):
    return f"{text}\n{line * len(text)}\n"

