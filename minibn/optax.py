"""Decoupled weight decay removed from any optax chain: Theorem A as a `GradientTransformation`. Needs optax.

`minibn.equivalence.any_optimizer` has the theorem. Let u be what the chain computes from the
gradients, P the product of 1 - lr * weight_decay before this step, and P' the product after it. For
a scale-invariant loss, the weights w̃ = w / P follow

    u = chain(g̃ / P)        w̃' = w̃ - (lr / P') u

The chain may be anything. Its clipping, moments, signs, eps and state are those of the run with
weight decay.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

try:
    import jax
    import jax.numpy as jnp
    import optax
except ImportError as error:
    raise ImportError("minibn.optax needs optax, which brings JAX: pip install optax") from error

Number: TypeAlias = float | jax.Array | Callable[[Any], Any]


class State(NamedTuple):
    """The state of `without_weight_decay`.

    Attributes:
        scale: P; the weights of the run with weight decay are P times these.
        lost: what rounding has taken from P so far (Kahan's summation). Without it, P would not
            change in float32 if the decay is 1e-9 per step, since 1 - 1e-9 is 1.
        steps: their number so far.
        inner: the chain's state, which is that of the run with weight decay.
    """

    scale: jax.Array
    lost: jax.Array
    steps: jax.Array
    inner: Any


def without_weight_decay(inner: optax.GradientTransformation, learning_rate: Number, weight_decay: Number, *,
                         band: float = 2.0**32) -> optax.GradientTransformationExtraArgs:
    """A transformation that trains scale-invariant weights without weight decay as a chain with decoupled weight decay would.

    `without_weight_decay(optax.scale_by_adam(), lr, wd)` trains the network that
    `optax.adamw(lr, weight_decay=wd)` trains. The general rule: it replaces `optax.chain(inner,
    optax.add_decayed_weights(wd), optax.scale_by_learning_rate(lr))`. Put clipping and all else
    that comes before the decay into `inner`. Give weights that are not scale-invariant another
    transformation, by `optax.partition`. All weights of one set that is scale-invariant together
    need the same transformation.

    It works under `jit`, `vmap` and `optax.inject_hyperparams`, and its state is saved as any optax
    state.

    Args:
        inner: chain that computes the update from the gradients, without a learning rate. It is
            given the gradients divided by P and the weights times P: the gradients and weights of
            the run with weight decay.
        learning_rate: η, a number or a function of the step, as in optax.
        weight_decay: λ, a number or a function of the step.
        band: P keeps shrinking and the weights w / P keep growing. When P falls below 1/band, the
            weights are multiplied by a power of two that brings it back, at most by 1/2 per step if
            η λ is at most 1/2. Such a step rounds each weight once more. Use a smaller band where
            activations are in float16.

    Returns:
        GradientTransformation, whose `update` needs the parameters. Its state is a `State`.

    Raises:
        ValueError: band is not above 1. From `update`: there are no parameters; or η λ is not from
            0 to below 1. Inside `jit`, where no error can be raised, the updates are NaN in its
            place.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> lion = without_weight_decay(optax.scale_by_lion(), 0.1, 2.0)
        >>> w = jnp.array([1.0, 2.0])
        >>> updates, state = lion.update(jnp.array([0.3, -5.0]), lion.init(w), w)
        >>> updates, state.scale  # ±0.1 / 0.8, and 1 - 0.1 * 2
        (Array([-0.125,  0.125], dtype=float32), Array(0.8, dtype=float32))
    """
    if not isinstance(band, jax.core.Tracer) and not (isfinite(band) and band > 1):
        raise ValueError(f"band must be a finite number above 1, got {band}")
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> State:
        return State(jnp.ones(()), jnp.zeros(()), jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: State, params: Any = None, **extra: Any) -> tuple[Any, State]:
        if params is None:
            raise ValueError("without_weight_decay needs the parameters: call update(gradients, state, params)")
        lr, decay = (_at(value, state.steps, state.scale.dtype) for value in (learning_rate, weight_decay))
        gradients, weights = _times(1 / state.scale, updates), _times(state.scale, params)
        directions, inner_state = inner.update(gradients, state.inner, weights, **extra)
        after, lost = _shrunk(state.scale, state.lost, _checked(lr * decay))
        factor = jnp.where(after * band < 1, _power_of_two(after * band), 1)
        change = jax.tree.map(lambda w, u: ((factor - 1) * w - factor * (lr / after) * u).astype(u.dtype), params, directions)
        return change, State(after / factor, lost / factor, optax.safe_increment(state.steps), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def original_weights(params: Any, state: Any) -> Any:
    """The weights of the run with weight decay, P times `params`: for averages, exports, or to go back.

    Args:
        params: the converted weights.
        state: the optimizer's state, with one `State` somewhere in it.

    Raises:
        ValueError: there is not exactly one `State` in it.

    Example:
        >>> sign = without_weight_decay(optax.scale_by_sign(), 0.25, 1.0)
        >>> w = jnp.array([3.0])
        >>> change, state = sign.update(jnp.array([-1.0]), sign.init(w), w)
        >>> original_weights(w + change, state)  # 0.75 * 3 + 0.25
        Array([2.5], dtype=float32)
    """
    states = [one for one in jax.tree.leaves(state, is_leaf=lambda one: isinstance(one, State)) if isinstance(one, State)]
    if len(states) != 1:
        raise ValueError(f"original_weights needs a state with one minibn.optax.State in it, this one has {len(states)}; "
                         "give each group's weights and state on their own")
    return _times(states[0].scale, params)


def _at(number, step, dtype):
    """The number, or what the function gives at this step, in a dtype in which lr * weight_decay does not round more than P."""
    return jnp.asarray(number(step) if callable(number) else number, dtype)


def _times(factor, tree):
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), tree)


def _shrunk(scale, lost, shrink):
    """(P', what is lost) of P' = P - δ P, by Kahan's summation."""
    term = -shrink * scale - lost
    after = scale + term
    return after, (after - scale) - term


def _power_of_two(x):
    """The largest power of two that is not above x."""
    return jnp.ldexp(jnp.ones_like(x), jnp.frexp(x)[1] - 1)


def _checked(shrink):
    """η λ if that is from 0 to below 1, or NaN where it is not known yet whether it is."""
    valid = (shrink >= 0) & (shrink < 1)
    if not isinstance(shrink, jax.core.Tracer) and not valid:
        raise ValueError(f"lr * weight_decay must be from 0 to below 1, got {shrink}: the decay would carry the weights through "
                         "zero. Lower one of them")
    return jnp.where(valid, shrink, jnp.nan)
