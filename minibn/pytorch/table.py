"""A report as a table: each set, its share of all parameters, and what `remove_weight_decay` will do with it."""

import os
from collections.abc import Iterable

import torch

from minibn.pytorch.exact import TINY_EPS
from minibn.pytorch.recognise import rule_of
from minibn.pytorch.reporting import Report
from minibn.pytorch.scales import EXACT
from minibn.pytorch.sets import decays, is_mixed, sets_of

NOT_SEEN = ("report cannot see a normalisation that computes in float32 in compiled code, or whose eps is a tensor, and "
            "nothing is invariant where input and output embeddings are tied")


def table(found: Report) -> str:
    sizes = {name: p.numel() for name, p in found.model.named_parameters()}
    total = sum(sizes.values())
    verdict = _verdicts(found) if found.optimizer is not None else {}
    rows = [("set", "parameters", "of all", "gap", *(("lr*wd", "converted") if verdict else ()))]
    for i, (group, gap) in enumerate(zip(found.groups, found.gaps, strict=True), 1):
        rows.append((str(i), brief(group), _percent(group, sizes, total), f"{gap:.0e}", *verdict.get(group, ())))
    blank = ("", "") if verdict else ("",)
    for group, reason in found.refused.items():
        rows.append(("-", brief(group), _percent(group, sizes, total), *blank, f"no: {reason}"))
    covered = {name for group in [*found.groups, *found.refused] for name in group}
    rest = [name for name in sizes if name not in covered and name not in found.unknown]
    for name in found.unknown:
        rows.append(("?", name, _percent([name], sizes, total), *blank, "no: no effect on this batch, unknown"))
    if rest:
        rows.append(("-", brief(rest), _percent(rest, sizes, total), *blank, "no: not scale-invariant"))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_summary(found, sizes, total, verdict), *found.hints])


def brief(names: Iterable[str]) -> str:
    """"blocks.0.attn.{q, k}.weight", at most some 60 characters of it."""
    names = list(names)
    if len(names) == 1:
        return names[0]
    head = os.path.commonprefix(names)
    head = head[: head.rfind(".") + 1]
    text = head + "{" + ", ".join(name[len(head):] for name in names) + "}"
    if len(text) <= 60 or len(names) == 2:
        return text
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _verdicts(found):
    """{set: (lr*wd, whether it is converted)}."""
    optimizers = [found.optimizer] if isinstance(found.optimizer, torch.optim.Optimizer) else list(found.optimizer)
    verdicts = {}
    try:
        rules = {o: rule_of(o, "removed") for o in optimizers}
        sets = sets_of(optimizers, found)
    except (TypeError, ValueError) as error:
        return dict.fromkeys(found.groups, ("", f"no: {str(error).split(':')[0]}"))
    kept = {name for group in found.sets(True) for name in group}
    for s in sets:
        numbers = ", ".join(f"{d:.1e}" for d in dict.fromkeys(decays(s, rules)))
        if is_mixed(s, rules):
            verdicts[s.name] = numbers, 'no: decays differ; mixed="move" moves them'
        else:
            verdicts[s.name] = numbers, "yes" if set(s.name) <= kept else "no: left as they are, see below"
    return verdicts


def _percent(names, sizes, total):
    return f"{sum(sizes[name] for name in names) / total:.1%}"


def _summary(found, sizes, total, verdict):
    names = [name for group in found.groups for name in group]
    if not names:
        yield "no parameter was found to be scale-invariant"
        yield NOT_SEEN
    else:
        yield (f"{len(found.groups)} scale-invariant set{'s' * (len(found.groups) > 1)} with {len(names)} of {len(sizes)} "
               f"parameters, {_percent(names, sizes, total)} of all numbers")
        refused = sum(converted.startswith("no") for _, converted in verdict.values())
        if refused:
            yield f"{len(found.groups) - refused} of these will be converted; the reasons for the others are in the table"
        converts, exact = refused < len(found.groups), max(found.gaps) <= EXACT
        if converts and exact:
            yield "weight decay can be removed from them exactly"
        elif converts:
            yield ("weight decay can be removed from them approximately: the gaps come from the normalisations' eps, here "
                   f"up to {found.eps:g}; with eps = {TINY_EPS:g} it is exact. With all sets doubled, the loss changes by "
                   f"{found.change[0]:.0e} and its gradient by {found.change[1]:.0e} of itself")
    if found.unknown:
        yield (f"{len(found.unknown)} parameters have no effect on this batch, so nothing is known of them, and sets that "
               "they may belong to are not converted: give a batch that uses them, or requires_grad_(False) if they never "
               "take part")
    carried = [name for name, parts in found.carried.degrees.items() if parts]
    if carried:
        yield f"{len(carried)} running averages are carried along"
