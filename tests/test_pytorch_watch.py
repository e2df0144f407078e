"""What is compared, and how often, so that faults in a script are noticed, and nothing else is."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from minibn.pytorch import premise, watch  # noqa: E402


def test_a_weight_that_has_become_nan_has_not_been_changed_since():
    nan = torch.tensor([float("nan"), 1.0])
    assert watch.same(nan, nan.clone())
    assert not watch.same(nan, torch.tensor([1.0, 1.0]))
    weights = watch.Weights()
    weights.note([nan])
    weights.check([nan])


def test_products_of_float16_are_not_infinite():
    x = torch.full((1000,), 100.0, dtype=torch.float16)
    assert [float(number) for number in premise._products(x, x)] == pytest.approx([1e7, 1e7], rel=1e-6)


class Named(SimpleNamespace):
    __hash__ = object.__hash__


def test_parameters_that_wake_are_reason_to_look_at_the_next_gradient_and_no_later_one():
    model = torch.nn.Linear(2, 1, bias=False)
    asleep = premise.Asleep(SimpleNamespace(model=model, unknown=["weight"], gap=lambda name: 0.0))
    w = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    sets = [Named(members=[w], title="w", name="w")]
    for gradient in [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]:  # along w, across, along
        w.grad = torch.tensor(gradient)
        asleep.check(sets)
        model(torch.ones(2)).sum().backward()
    other = premise.Asleep(SimpleNamespace(model=model, unknown=["weight"], gap=lambda name: 0.0))
    model(torch.ones(2)).sum().backward()
    with pytest.raises(RuntimeError, match="had no effect on the batch of report.* take part now"):
        other.check(sets)


def test_when_parameters_wake_a_clipped_gradient_says_nothing_and_nor_does_what_the_report_saw():
    model = torch.nn.Linear(2, 1, bias=False)
    w = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    s = Named(members=[w], title="w", name="w")
    for gap, across, refused in ((0.0, True, False), (0.0, False, True), (0.05, False, False)):
        asleep = premise.Asleep(SimpleNamespace(model=model, unknown=["weight"], gap=lambda name, gap=gap: gap))
        model(torch.ones(2)).sum().backward()
        asleep.saw(s, w, torch.tensor([0.0, 1.0] if across else [0.2, 0.98]))
        w.grad = torch.tensor([0.3, 0.7])  # what the script made of it
        if refused:
            with pytest.raises(RuntimeError, match="take part now"):
                asleep.check([s])
        else:
            asleep.check([s])
