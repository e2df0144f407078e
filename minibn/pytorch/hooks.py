"""Weight decay removed from, or added to, a live torch optimizer: the one line of a training script."""

import math
from collections.abc import Iterable, Sequence

import torch

from minibn.equivalence import streams
from minibn.optim import Step
from minibn.pytorch import copies, premise
from minibn.pytorch.averages import FIT, Averages
from minibn.pytorch.conversion import Conversion
from minibn.pytorch.parts import Set
from minibn.pytorch.recognise import rule_of, settings
from minibn.pytorch.reporting import Report
from minibn.pytorch.rules import Delta
from minibn.pytorch.sets import decays, is_mixed, listed, sets_of
from minibn.pytorch.warned import warn

Optimizer = torch.optim.Optimizer
MIXED = ("error", "skip", "move")


def remove_weight_decay(optimizer: Optimizer | Sequence[Optimizer], found: Report | Iterable, *, mixed: str = "error",
                        decay: str | Delta | None = None, averages: bool = True, band: float | None = 2.0**8) -> Conversion:
    """From its next step on, `optimizer` trains without weight decay the network that it would have trained with it.

    Call it once, after the optimizer was made, or in the middle of training. Below, the *script's*
    weights are those of the run with weight decay, and the *held* weights are those that the model
    holds from now on. The held weights are 1/P times as large as the script's. The loss is the same,
    exactly if the eps of the normalisations is negligible, such as 1e-30 (see `report`). So is what
    the network computes, unless the loss itself normalises its output.

    `p.grad` stays the script's own gradient, up to rounding. So clipping, accumulation,
    `torch.amp.GradScaler`, closures, DDP, any scheduler and logs of gradients need no change.
    BatchNorm's running averages, and all other buffers that average over batches, are converted along
    with the weights. So evaluation during training is right, too. Torch's `AveragedModel` (EMA, SWA)
    averages the script's weights. Other averages, exports and logs of norms find these inside `with
    handle.original():`.

    Which optimizers: `torch.optim.SGD` with L2 decay and any momentum; and every optimizer with
    *decoupled* decay: AdamW, Adam, NAdam and RAdam with decoupled_weight_decay=True, Muon,
    Adafactor by name, any other class after a measurement on a clone of the optimizer. Decay that
    is added to the gradient of an adaptive method cannot be removed.

    A checkpoint holds the held weights and P. Call this function in every script that goes on from
    such a checkpoint, before or after `optimizer.load_state_dict`. Call `handle.remove()` before
    saving to get an ordinary checkpoint. A checkpoint from before the conversion may be loaded as
    well. To set weights, momentum or running averages by hand, do so inside `with
    handle.original():`; elsewhere weights and momentum that were set are noticed and refused, as are
    another optimizer for the same weights, and param groups that are rearranged. What reads the sizes
    of weights by hand must do so inside as well, since nothing can notice that.

    Args:
        optimizer: a torch optimizer, or several in a list if weights that are scale-invariant
            together are in different ones.
        found: `report(model, loss_fn)`. Or an iterable of Parameters, of lists of Parameters that
            are scale-invariant together, or of param groups (`optimizer.param_groups[:1]`). Then
            nothing is checked before the first step, and running averages are not converted.
        mixed: what to do with weights that are scale-invariant only together and are decayed
            differently. "error": refuse. "skip": do not convert them. "move": convert them. The
            scale of the set then follows the member with the strongest decay. The other members
            grow, so that the ratios between the members stay those of the script.
        decay: by which fraction the optimizer's decay shrinks the weights in a step: "lr*wd", "wd",
            or a function f(param group, step) that returns it. "l2" for a subclass of SGD that
            steps as SGD does. None: find out.
        averages: whether running averages are converted along with the weights. If so, γ and β
            before a layer that has a bias and is followed by BatchNorm are not converted: the
            running mean would be a sum of two different powers of P.
        band: the held weights grow to at most `band` times the script's. Then they are scaled back
            by a power of two. In float16 (largest number 65504) leave room for the activations.
            None: never scale back.

    Returns:
        Conversion, a handle: `.remove()` goes back, `.scales` are the P, `.check(loss_fn)` tries
            the conversion on copies.

    Raises:
        TypeError: the optimizer's weight decay cannot be removed; the message says why.
        ValueError: the optimizer is converted already, no or unknown parameters, members of a set
            that are decayed differently, a param group without a conversion, or a model whose
            running averages cannot be carried along. Also at a step, where its numbers have no
            conversion; nothing is changed then.
        RuntimeError: at a step: some members of a set have no gradient, or weights or gradients
            were replaced by hand. At the first step, and some later ones, also if the
            gradient is not orthogonal to the weights, as that of scale-invariant weights is.
    """
    if mixed not in MIXED:
        raise ValueError(f"mixed must be one of {MIXED}, got {mixed!r}")
    streams.remove_weight_decay((), band=band)  # raises if band is not one
    return _convert(optimizer, found, "removed", 0.0, mixed, decay, averages, band)


def add_weight_decay(optimizer: Optimizer | Sequence[Optimizer], weight_decay: float, found: Report | Iterable, *,
                     decay: str | Delta | None = None, averages: bool = True) -> Conversion:
    """From its next step on, `optimizer` trains with `weight_decay` the network that it would have trained without any.

    The inverse of `remove_weight_decay`, for scripts with an exponential schedule. It keeps their
    weights at an ordinary size. Arguments, limits and errors are those of `remove_weight_decay`.
    Here P is the factor by which the held weights are smaller than the script's.
    """
    Step(0.0, weight_decay=weight_decay)
    return _convert(optimizer, found, "added", float(weight_decay), "error", decay, averages, None)


def effective_lr(optimizer: Optimizer, groups: Iterable | None = None, *, power: int | None = None) -> list[float]:
    """`η / |w|**power` of each param group, for logging. With the same `groups`, a conversion does not change this number.

    η is the script's own learning rate, and w the script's own weights.

    Args:
        groups: which parameters make up w, as in `remove_weight_decay`. None: the converted
            parameters of a param group, or all if none is converted.
        power: None: 2 for SGD, whose updates shrink as 1/|w|, and 1 for other optimizers, whose
            updates do not.

    Returns:
        a float for each param group; infinite where the weights are zero, or none are chosen.
    """
    conversion: Conversion | None = vars(optimizer).get("_minibn")
    chosen = None if groups is None else {p for together in listed(groups) for p in together}
    power = power or (2 if isinstance(optimizer, torch.optim.SGD) else 1)
    if conversion:
        conversion._undo_broken_step()
    rates = []
    for group in optimizer.param_groups:
        converted = conversion.members(group) if conversion else []
        weights = (converted or group["params"]) if chosen is None else [p for p in group["params"] if p in chosen]
        ratio = {p: conversion.ratio(p) for p in converted} if conversion else {}
        norm = math.hypot(*(ratio.get(p, 1.0) * float(torch.linalg.vector_norm(p.detach())) for p in weights))
        rates.append(float(group["lr"]) / norm**power if norm else math.inf)
    return rates


def _convert(optimizer, found, form, weight_decay, mixed, decay, averages, band):
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) or not isinstance(optimizer, Sequence) else list(optimizer)
    if not optimizers:
        raise ValueError("the list of optimizers is empty: give the optimizer, or all of them")
    rules = {o: rule_of(o, form, weight_decay, decay) for o in optimizers}
    if any(vars(o).get("_minibn") for o in optimizers):
        raise ValueError("this optimizer is converted already; call .remove() of its handle first, or give all "
                         "parameters at once")
    measured = isinstance(found, Report)
    sets = sets_of(optimizers, found, measured and averages)
    if any(copies.handle_of(p) is not None for s in sets for p in s.members):
        raise ValueError("some of these parameters are converted already, for another optimizer: call .remove() of that handle "
                         "first, which brings the script's weights back")
    used = {part.optimizer for s in sets for part in s.parts}
    rules = {o: rule for o, rule in rules.items() if o in used}
    for s in sets:
        for part in s.parts:
            rules[part.optimizer].check(part.group)
    kept = [s for s in sets if mixed == "move" or not is_mixed(s, rules)]
    if mixed == "error" and len(kept) < len(sets):
        raise ValueError(_mixed([s for s in sets if s not in kept], rules))
    if not kept:
        raise ValueError("there is nothing to convert: the members of every set are decayed differently, and mixed=\"skip\" "
                         "leaves such sets out. mixed=\"move\" converts them")
    carrying = _averages(found, sets, kept) if measured and averages else None
    if not measured and averages:
        warn("parameters were given without a report, so it is not known that they are scale-invariant; and if the "
             "model has BatchNorm, its running averages are not carried along, and evaluation needs "
             "torch.optim.swa_utils.update_bn first. Give report(model, loss_fn), or averages=False if that is meant")
    along = premise.Along({s: found.gap(s.name) if measured else None for s in kept if not s.free.issuperset(s.members)})
    return Conversion(rules, kept, form, band, mixed == "move", carrying, found if measured else None, along)


def _averages(found: Report, sets: list[Set], kept: list[Set]) -> Averages:
    if found.carried.unfit:
        raise ValueError(f"the running averages {found.carried.unfit[:4]} follow no power of the converted weights' scale, "
                         "so they cannot be carried along: with averages=False call torch.optim.swa_utils.update_bn before "
                         "each evaluation")
    if (found.carried.evaluation or 0.0) > FIT:
        raise ValueError("in evaluation mode, converted weights would give another loss: the model keeps something of its "
                         "batches outside its buffers, which cannot be carried along, or has a buffer that no forward pass "
                         "updates (momentum=0). Keep it in a buffer, with register_buffer; or with averages=False call "
                         "torch.optim.swa_utils.update_bn before each evaluation")
    number = {s.name: i for i, s in enumerate(kept)}
    names = found.carried.sets
    degrees = {buffer: [(number[names[i]], k) for i, k in parts if names[i] in number]
               for buffer, parts in found.carried.degrees.items()}
    return Averages(found.model, {buffer: parts for buffer, parts in degrees.items() if parts})


def _mixed(sets, rules):
    lines = []
    for s in sets[:4]:
        parts = "; ".join(f"{len(part.members)} of {len(s.members)} with {settings(part.group)}" for part in s.parts)
        lines.append(f"{s.name}: {parts}, lr x weight decay {', '.join(f'{d:.3g}' for d in decays(s, rules))}")
    return (f"{len(sets)} sets of weights are scale-invariant only together, but their members are decayed differently:\n  "
            + "\n  ".join(lines) + "\nGive them the same lr and weight_decay, or leave such sets out with mixed=\"skip\", "
                                   "or convert them with mixed=\"move\": the decay of the most decayed members is removed, "
                                   "and the others grow along, so that the ratios stay the script's")
