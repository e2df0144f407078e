"""Optimisers of one's own are converted too if their weight decay is decoupled; all else is refused, with the reason."""

from itertools import repeat

import numpy as np
import pytest
from optimizer_runs import KINDS, Sphere, assert_close
from own_optimizers import AnyStep, Cautious, CoupledAdam, CoupledSign, Decoupled, InsideRatio, OutsideRatio

from minibn import nn
from minibn.equivalence import decayed, undecayed
from minibn.optim import AdamStep, Lion, LionStep, Step


def test_an_optimiser_of_ones_own_is_converted_too():
    steps = [AnyStep(0.1, 0.1 + 0.01 * t) for t in range(100)]
    usual, converted = Sphere(lambda p: Decoupled(p, steps), 0), Sphere(lambda p: undecayed(Decoupled(p, steps)), 0)
    for _ in steps:
        usual.step()
        converted.step()
    assert_close(converted.weight() * converted.optimizer.scale, usual.weight())


@pytest.mark.parametrize(("make", "message"), [
    (CoupledAdam, r"CoupledAdam adds weight decay to its gradients \(L2\): .*cannot be removed. Use decoupled"),
    (CoupledSign, "weight decay of CoupledSign does not multiply all weights by .*cannot be removed. Use decoupled decay"),
    (InsideRatio, "the update of InsideRatio depends on the weights, .*inside the ratio cannot be removed"),
    (OutsideRatio, r"the update of OutsideRatio depends .*Decay outside it can: train .* lr / \(1 - lr \* weight_decay\)"),
    (Cautious, "weight decay of Cautious does not multiply all weights .*of some entries alone, cannot be removed")])
def test_decay_that_is_not_decoupled_is_refused(make, message):
    run = Sphere(lambda p: undecayed(make(p, [AnyStep(0.1), AnyStep(0.1, 0.1)])), 0)
    run.step()  # without decay there is nothing to refuse
    before = run.weight()
    with pytest.raises(ValueError, match=message):
        run.step()
    np.testing.assert_array_equal(run.weight(), before)


def test_what_has_no_conversion():
    def first_step(kind, step, **options):
        return Sphere(lambda p: undecayed(KINDS[kind][0](p, [step]), **options), 0).step()

    with pytest.raises(ValueError, match=r"step 0 cannot be converted: .* by 0.*lr \* weight_decay must be below 1"):
        first_step("adamw", AdamStep(2.0, weight_decay=0.5))
    with pytest.raises(ValueError, match="weight_decay=0.1.* that is L2 decay.*remove_weight_decay.*schedules.decoupled"):
        first_step("sgd", Step(0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="band must be a finite number above 1"):
        first_step("lion", LionStep(0.1), band=1.0)
    with pytest.raises(TypeError, match=r"converted already: use its add\(\)"):
        undecayed(undecayed(Lion([nn.Parameter(np.ones(2))], [])))
    with pytest.raises(ValueError, match="weight_decay=-1"):
        decayed(Lion([nn.Parameter(np.ones(2))], []), -1)
    run = Sphere(lambda p: undecayed(Lion(p, repeat(LionStep(1.0, weight_decay=0.9))), band=None), 0)

    def long_run():
        for _ in range(400):
            run.step()
            for p in run.parameters:
                p.data = np.ones_like(p.data)  # they would overflow too

    with pytest.raises(OverflowError, match=r"left float range; use band=2.0\*\*32"):
        long_run()
    with pytest.raises(RuntimeError, match="the schedule ended after 0 steps"):
        undecayed(Lion([nn.Parameter(np.ones(2))], [])).step()
