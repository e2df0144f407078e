"""AdamW as stock Adam of optax and PyTorch: under the functions of the converted schedule it is the same run."""

import numpy as np
import pytest

from minibn import equivalence, export, nn, schedules
from minibn.optim import AdamStep, AdamW


def adamw(length):
    """Warm-up and cosine, with betas and eps that change too; P ends near 0.1."""
    warm = schedules.warmup(20, schedules.cosine(1e-2, length))
    return [AdamStep(s.lr, 0.9 - 0.1 * (t % 3), 0.99 - 0.02 * (t % 5), 1e-8 * 10 ** (t % 4), 2.0 + t % 2)
            for t, s in zip(range(length), warm, strict=False)]


def sphere_run(length, update):
    """The direction of weights w after `length` steps `w = update(t, w, gradient)`, on ξ_t · w / |w|."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(8)
    for t in range(length):
        xi, norm = rng.standard_normal(8), np.linalg.norm(w)
        w = update(t, w, (xi - xi @ w / norm**2 * w) / norm)
    return w / np.linalg.norm(w)


def ours(steps):
    """What minibn's own AdamW makes of them."""
    parameter = nn.Parameter(np.zeros(8))
    optimizer = AdamW([parameter], steps)

    def update(t, w, gradient):
        parameter.data, parameter.grad = w, gradient
        optimizer.step()
        return parameter.data

    return sphere_run(len(steps), update)


def in_optax(functions, length):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    with jax.enable_x64(True):
        make = optax.inject_hyperparams(optax.adam)(
            functions["lr"], b1=functions["beta1"], b2=functions["beta2"], eps=functions["eps"])
        state, one = [make.init(np.zeros(8))], jax.jit(make.update)

        def update(t, w, gradient):
            change, state[0] = one(gradient, state[0], w)
            return w + np.asarray(change)

        return sphere_run(length, update)


def in_torch(functions, length):
    torch = pytest.importorskip("torch")

    class AdamSchedule(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            lr, beta1, beta2, eps = (functions[name](self.last_epoch) for name in ("lr", "beta1", "beta2", "eps"))
            for group in self.optimizer.param_groups:
                group.update(betas=(beta1, beta2), eps=eps)
            return [lr for _ in self.optimizer.param_groups]

    parameter = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter])
    scheduler = AdamSchedule(optimizer)

    def update(t, w, gradient):
        parameter.data, parameter.grad = torch.tensor(w), torch.tensor(gradient)
        optimizer.step()
        scheduler.step()
        return parameter.detach().numpy().copy()

    return sphere_run(length, update)


@pytest.mark.parametrize("elsewhere", [in_optax, in_torch])
def test_stock_adam_under_the_functions_is_adamw(elsewhere):
    steps = adamw(200)
    assert 0.05 < equivalence.scale_after(steps, 200) < 0.15
    functions = export.number_functions(equivalence.adam_without_decay(steps), 200)
    assert list(functions) == ["lr", "beta1", "beta2", "eps"]
    np.testing.assert_allclose(elsewhere(functions, 200), ours(steps), rtol=0, atol=1e-12)
    for name in functions:  # with one of them as it was, it is another run
        unchanged = {**functions, name: export.number_functions(steps, 200)[name]}
        assert np.abs(elsewhere(unchanged, 200) - ours(steps)).max() > 1e-8, name
