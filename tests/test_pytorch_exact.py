"""Inside `Exact`, every eps is met wherever it stands, and its share of a variance is measured."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from torch.nn import functional as F  # noqa: E402

from minibn.pytorch.exact import Exact  # noqa: E402

X = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("call", [
    lambda eps: F.layer_norm(X, (3,), None, None, eps), lambda eps: F.layer_norm(X, (3,), eps=eps),
    lambda eps: F.rms_norm(X, (3,), None, eps), lambda eps: F.group_norm(X, 2, None, None, eps),
    lambda eps: F.batch_norm(X, None, None, None, None, True, 0.1, eps),
    lambda eps: F.instance_norm(X, None, None, None, None, True, 0.1, eps),
    lambda eps: torch.layer_norm(X, (3,), None, None, eps), lambda eps: torch.rms_norm(X, (3,), None, eps),
    lambda eps: torch.group_norm(X, 2, None, None, eps),
    lambda eps: torch.batch_norm(X, None, None, None, None, True, 0.1, eps, False),
    lambda eps: torch.instance_norm(X, None, None, None, None, True, 0.1, eps, False),
    lambda eps: F.normalize(X, 2.0, 1, eps), lambda eps: X / (X.var(-1, keepdim=True) + eps).sqrt()])
def test_an_eps_is_met_wherever_it_stands_and_taken_out_on_demand(call):
    usual = call(0.009)
    with Exact(tiny=False) as exact:
        assert torch.equal(call(0.009), usual)
    assert list(exact.seen) == [0.009]
    with Exact(tiny=True) as exact:
        assert torch.equal(call(0.009), call(1e-30))
    assert list(exact.seen) == [0.009]
    assert exact.share == 0.0  # of the model's own eps only


@pytest.mark.parametrize(("call", "eps"), [(lambda: F.normalize(X), 1e-12), (lambda: F.layer_norm(X, (3,)), 1e-5),
                                           (lambda: F.rms_norm(X, (3,)), 1e-7)])
def test_an_eps_that_is_not_given_is_torchs_default(call, eps):
    with Exact(tiny=False, floor=1e-7) as exact:
        call()
    assert list(exact.seen) == [eps]


@pytest.mark.parametrize(("call", "variance"), [
    (lambda x: F.layer_norm(x, (4, 3), eps=0.1), lambda x: x.var((1, 2), unbiased=False)),
    (lambda x: F.layer_norm(x, (3,), eps=0.1), lambda x: x.var(2, unbiased=False)),
    (lambda x: F.rms_norm(x, (3,), eps=0.1), lambda x: x.square().mean(2)),
    (lambda x: F.group_norm(x, 2, eps=0.1), lambda x: x.reshape(5, 2, 6).var(2, unbiased=False)),
    (lambda x: F.instance_norm(x, eps=0.1), lambda x: x.var(2, unbiased=False)),
    (lambda x: F.batch_norm(x, None, None, training=True, eps=0.1), lambda x: x.var((0, 2), unbiased=False))])
def test_the_share_of_eps_is_its_mean_over_all_that_are_normalised(call, variance):
    with Exact(tiny=False) as exact:
        call(X)
    assert exact.share == pytest.approx(float((0.1 / (variance(X) + 0.1)).mean()))


@pytest.mark.parametrize("cast", ["float", "half", "bfloat16"])
def test_casts_to_fewer_digits_are_casts_to_float64(cast):
    with Exact(tiny=False):
        assert torch.equal(getattr(X, cast)(), X)
