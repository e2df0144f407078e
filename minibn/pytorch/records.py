"""Where a conversion stands, kept in the optimizer's param groups as plain numbers, so that `state_dict` saves it."""

from collections.abc import Sequence
from typing import Any

from minibn.equivalence.streams import Frame
from minibn.pytorch.parts import Part, Set

KEY = "minibn"


def read(sets: Sequence[Set], form: str) -> None:
    """Set frames and steps from the param groups; the identity where these come from a run that was not converted.

    Raises:
        ValueError: the state is of a run that was converted in another way.
    """
    for parts in _by_group(sets):
        record = parts[0].group.get(KEY) or _record(form, [Part(p.optimizer, p.index, p.places, p.members) for p in parts])
        places = [part.places for part in parts]
        if (record["form"], record["params"]) != (form, places):
            raise ValueError(f"the optimizer's state is of a run with weight decay {record['form']} for parameters "
                             f"{record['params']} of a param group; now it is to be {form} for {places}. Convert as in the run "
                             "that was saved")
        for i, part in enumerate(parts):
            part.frame, part.steps = Frame(*(record[name][i] for name in Frame._fields)), record["steps"][i]


def write(sets: Sequence[Set], form: str) -> None:
    for parts in _by_group(sets):
        parts[0].group[KEY] = _record(form, parts)


def erase(sets: Sequence[Set]) -> None:
    for parts in _by_group(sets):
        parts[0].group.pop(KEY, None)


def _record(form: str, parts: list[Part]) -> dict[str, Any]:
    """One number per part, in each list."""
    frames = {name: [getattr(part.frame, name) for part in parts] for name in Frame._fields}
    return {"form": form, "params": [part.places for part in parts], "steps": [part.steps for part in parts], **frames}


def _by_group(sets):
    groups: dict[tuple[int, int], list[Part]] = {}
    for s in sets:
        for part in s.parts:
            groups.setdefault((id(part.optimizer), part.index), []).append(part)
    return groups.values()
