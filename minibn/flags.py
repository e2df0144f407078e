"""Flags of the command line, with their checks: a flag that has no effect beside the others is refused.

A flag may say `when` it acts: {other flag: values of it}. `Parser.parse` refuses it where it would
not, and any flag that is given twice. What depends on the data, such as a warm-up that is shorter
than a step, is refused by `Experiment`; `Parser.in_flags` rewrites an error message of the library
in terms of flags.
"""

import argparse
import math
import re
from argparse import Namespace
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from minibn import __version__, tables


class _Any:
    """Every value but None, which stands for a flag that is not given."""

    def __contains__(self, value):
        return value is not None


class _NotZero:
    """Every number but 0. None, which stands for a default, is one too."""

    def __contains__(self, value):
        return value != 0


WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
OBJECT = re.compile(r"(\b[A-Z]\w*\([^()]*\))")
GIVEN: Container = _Any()
NOT_GIVEN: Container = (None,)
NOT_ZERO: Container = _NotZero()


class _Once(argparse.Action):
    """Store a value, once, and note by which flag."""

    def __init__(self, option_strings, dest, *, when, needs, **options):
        super().__init__(option_strings, dest, **options)
        self.when, self.needs = when, needs

    def __call__(self, parser, namespace, values, option_string=None):
        earlier = namespace.given.setdefault(self.dest, option_string)
        if hasattr(namespace, "seen") and self.dest in namespace.seen:
            parser.error(f"{option_string} is given twice; give it once" if earlier == option_string else
                         f"{earlier} and {option_string} contradict each other; give one of them")
        namespace.seen.add(self.dest)
        if self.nargs == 0:
            values = len(self.option_strings) == 1 or option_string == self.option_strings[0]
        setattr(namespace, self.dest, values)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` for flags that are added by `flag`.

    Args:
        name: the command.
        text: what it does.
        epilog: text below the flags.
        words: {what the library calls it: flag}, for `in_flags`, where that is not the flag's own
            name.
    """

    def __init__(self, name: str, text: str | None, epilog: str | None = None, words: Mapping[str, str] | None = None) -> None:
        super().__init__(prog=name, description=text, epilog=epilog, formatter_class=_Help,
                         allow_abbrev=False)  # of `sweep`, --seed 3 would be --seeds 3
        self.flags: list[_Once] = []
        self.words = dict(words or {})
        self.add_argument("--version", action="version", version=f"minibn {__version__}", help="show the version and stop")

    def flag(self, name: str, help: str, *, default: Any = None, kind: Callable[[str], Any] | None = None, several: bool = False,
             yes: bool = False, either: bool = False, choices: Sequence | None = None, metavar: str | None = None,
             when: Mapping[str, Container] | None = None, needs: Mapping[Any, str] | None = None) -> None:
        """Add a flag.

        Args:
            name: such as "--weight-decay".
            default, kind, choices, metavar: as argparse has them; `kind` is its `type`.
            several: whether it takes several values.
            yes: it takes no value, and makes False True.
            either: it takes no value, and has a second form that begins with "--no-".
            when: {other flag: the values of it with which this one acts}.
            needs: {value of this flag: the flag that must be given with it}.
        """
        names = [name, f"--no-{name[2:]}"] if either else [name]
        nargs: str | int | None = 0 if yes or either else "+" if several else None
        dest = name[2:].replace("-", "_")
        action = self.add_argument(*names, action=_Once, dest=dest, help=help, nargs=nargs, type=kind or str,
                                   default=False if yes else default, choices=choices, metavar=metavar,
                                   when=when or {}, needs=needs or {})
        assert isinstance(action, _Once)
        self.flags.append(action)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """{flag: value} of all flags. Exits with status 2 at a flag that is wrong, missing or without effect."""
        found = vars(self.parse_args(list(arguments), Namespace(given={}, seen=set())))
        given, _ = found.pop("given"), found.pop("seen")
        for flag in self.flags:
            if flag.dest not in given:
                continue
            for other, acts in flag.when.items():
                for value in found[other] if isinstance(found[other], list) else [found[other]]:
                    if value not in acts:
                        self.error(f"{given[flag.dest]} has no effect {self._with(other, value)}; {self._advice(other, acts)}")
            for value in found[flag.dest] if isinstance(found[flag.dest], list) else [found[flag.dest]]:
                if value == "":
                    self.error(f"{given[flag.dest]} is empty; give a value, or leave it out")
                if flag.needs.get(value, flag.dest) not in given:
                    self.error(f"{given[flag.dest]} {value} needs --{flag.needs[value]}")
        return found

    def in_flags(self, message: str) -> str:
        """An error message of the library with flags in place of arguments: "checksum=False" is "--no-checksum".

        Objects in it, such as `Step(lr=0.1)`, stay as they are.
        """
        return "".join(part if i % 2 else self._in_flags(part) for i, part in enumerate(OBJECT.split(message)))

    def _in_flags(self, message):
        names = {flag.dest: flag.option_strings for flag in self.flags}
        for word, (flag, *no) in {**names, **{word: [flag] for word, flag in self.words.items()}}.items():
            message = re.sub(rf"(?<![\w.-]){word}=True\b", flag, message)
            message = re.sub(rf"(?<![\w.-]){word}=False\b", no[0] if no else f"no {flag}", message)
            message = re.sub(rf"(?<![\w.-]){word}=(['\"]?)([^\s,;:)'\"]+)\1", rf"{flag} \2", message)
            message = re.sub(rf"(^|[:;*] ){word}(?= must )", rf"\1{flag}", message)
            message = re.sub(rf"\b(needs|takes no|give|with) {word}(?= '|[.;,]|$)", rf"\1 {flag}", message)
        return re.sub(r"^\w+: (?=--)", "", message)  # the name of a function

    def _with(self, other, value):
        flag = next((flag for flag in self.flags if flag.dest == other), None)
        if flag is None:  # an argument without a flag
            return f"with {value}"
        if value is None:
            return f"without {flag.option_strings[0]}"
        return f"with {flag.option_strings[0]}{'' if flag.nargs == 0 else f' {value}'}"

    def _advice(self, other, acts):
        name = "--" + other.replace("_", "-") if any(flag.dest == other for flag in self.flags) else ""
        if acts is GIVEN:
            return f"give {name} too, or leave it out"
        if acts is NOT_ZERO:
            return f"give a {name} above 0, or leave it out"
        return "leave one of them out" if acts is NOT_GIVEN else f"it is for {f'{name} '.lstrip()}{', '.join(map(str, acts))}"


def number(kind: type, low: float, high: float = math.inf, *, below: float = math.inf) -> Callable[[str], Any]:
    """A parser of numbers for argparse: from `low` to `high`, and below `below`."""

    def parse(text):
        try:
            value = kind(tables.number(text)) if kind is float else int(text) if WHOLE.fullmatch(text) else None
        except ValueError:
            value = None
        if value is None or not low <= value <= high or not value < below or value == math.inf:
            limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
            limits += "" if below == math.inf else f" and below {below}"
            raise argparse.ArgumentTypeError(f"needs {'a whole' if kind is int else 'a'} number {limits}, got {text!r}")
        return value

    return parse


def place(instead: str) -> Callable[[str], str]:
    """A parser of names of files and folders for argparse. It refuses "-", and advises what to do `instead`."""

    def parse(text):
        if text == "-":
            raise argparse.ArgumentTypeError(f"'-' does not stand for standard output; {instead}, or give ./- if it is a name")
        return text

    return parse
