"""What all optimisers share: checked step objects, parameters, a schedule, one update per `step()`, and how to resume.

A *schedule* is any iterable of step objects (`Step` for SGD, `AdamStep` for AdamW, …): a generator,
a list, an `itertools.islice` of either. It need not know how long training is. A conversion
(`minibn.equivalence`) is a generator that reads one schedule and yields another.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from minibn import arguments, backend, kernels
from minibn.backend import Array, array_namespace

if TYPE_CHECKING:
    from minibn.nn import Parameter


class StepNumbers:
    """Base class of step objects: frozen dataclasses that hold the numbers of one update.

    Every field is made a Python float, since NumPy's numbers would change the dtype of the weights,
    and is checked.

    Subclasses have the fields `lr` and `weight_decay`, and set

    - `limits`: {field: (low, high)}. A number must lie between the two. 0 itself is allowed, other
      limits are not.
    - `degree`: k, the degree of the update in the gradients. Gradients c times as large make the
      update c^k times as large. k is 1 for SGD, and 0 for methods that divide by the size of their
      gradients.
    """

    __slots__ = ()
    limits: ClassVar[Mapping[str, tuple[float, float]]]
    degree: ClassVar[int]
    lr: Any
    weight_decay: Any

    @property
    def shrink(self) -> float:
        """The δ of this step. Decoupled weight decay multiplies the weights by 1 - δ."""
        return self.lr * self.weight_decay

    def __post_init__(self) -> None:
        for name, (low, high) in self.limits.items():
            value = getattr(self, name)
            if type(value) is not float:
                value = arguments.number(f"{type(self).__name__}: {name}", value)
                object.__setattr__(self, name, value)
            if not (low < value < high or value == low == 0):  # NaN is in no range
                raise ValueError(f"{type(self).__name__} needs {low} {'<=' if low == 0 else '<'} {name} < {high}; "
                                 f"got {name}={value}")


S = TypeVar("S", bound=StepNumbers)
A_SCHEDULE = "an iterable of step objects, such as minibn.schedules.constant(0.1)"


def steps_of(schedule: Iterable[Any], kind: type[S]) -> Iterator[S]:
    """The steps of a schedule, of which each must be a `kind`.

    Raises:
        TypeError: the schedule is no iterable; or at a step that is something else.
    """
    given = arguments.iterable("a schedule", schedule, A_SCHEDULE)

    def checked():
        for t, step in enumerate(given):
            if not isinstance(step, kind):
                raise TypeError(f"step {t} of the schedule must be of the class {kind.__name__}, got {arguments.short(step)} of "
                                f"type {type(step).__name__}")
            yield step

    return checked()


class Optimizer(Generic[S]):
    """Base class of optimisers: update `parameters` with one step object of `schedule` per `step()`.

    Subclasses set

    - `step_type`: the class of their step objects.
    - `entries`: names of the state arrays, such as ("velocity",). Each becomes an attribute, a list
      with one array per parameter, which starts at zero.
    - `update`: the equation, for one parameter.
    - `elementwise`: whether `update` computes each number from the numbers at its place only. Then
      many parameters may be given to it as one long array.

    Args:
        parameters: list of `nn.Parameter`, as from `module.parameters()`.
        schedule: iterable of step objects; one is drawn for each update. Give each optimiser a
            schedule of its own: a generator can be read only once.

    Attributes:
        parameters, schedule: as given.
        steps: number of updates so far.
        last: the step object of the latest update, or None.

    Raises:
        ValueError: there is no parameter, or the same one twice.
        TypeError: weights are not floating-point numbers, or an argument is not what it should be.
    """

    step_type: ClassVar[type[StepNumbers]]
    entries: ClassVar[tuple[str, ...]]
    elementwise: ClassVar[bool] = True
    scale: float = 1.0  # P: the weights of the ordinary run are P times these. See `equivalence.undecayed`

    def __init__(self, parameters: Iterable["Parameter"], schedule: Iterable[S]) -> None:
        name = type(self).__name__
        needed = "a list of nn.Parameter, as from module.parameters()"
        self.parameters: list[Parameter] = list(arguments.iterable(f"{name}: parameters", parameters, needed))
        self.schedule: Iterator[S] = iter(arguments.iterable(f"{name}: schedule", schedule, A_SCHEDULE))
        self.steps = 0
        self.last: S | None = None
        if not self.parameters:
            raise ValueError(f"{name} needs at least one parameter")
        places: dict[int, int] = {}
        for i, parameter in enumerate(self.parameters):
            if not hasattr(parameter, "grad"):
                raise TypeError(f"{name}: parameters must be {needed}; item {i} is {arguments.short(parameter)} of type "
                                f"{type(parameter).__name__}")
            first = places.setdefault(id(parameter), i)
            if first != i:
                raise ValueError(f"{name}: parameters {first} and {i} are the same {parameter}, which would be updated "
                                 "twice per step. Give each parameter once")
            if not backend.is_floating(parameter.data):
                raise TypeError(f"{name} trains floating-point weights; parameter {i} is {parameter}. "
                                "Convert its data to float32 or float64")
        for entry in self.entries:
            setattr(self, entry, [array_namespace(p.data).zeros_like(p.data) for p in self.parameters])

    def update(self, step: S, weight: Array, gradient: Array, *state: Array) -> tuple[Array, ...]:
        """One parameter's update, pure: (new weight, new state arrays…), the state in the order of `entries`."""
        raise TypeError(f"{type(self).__name__} must define update(step, weight, gradient, *state)")

    def step(self) -> S:
        """Update every parameter with the schedule's next step object, and return this object.

        Raises:
            RuntimeError: the schedule has ended.
            TypeError: a gradient has another dtype than its weights, or the step object is of
                another optimiser.
            ValueError: a gradient has another shape than its weights.
        """
        step = self.draw()
        self.apply(step, [parameter.grad for parameter in self.parameters])
        return step

    def draw(self) -> S:
        """The schedule's next step object."""
        name, kind = type(self).__name__, self.step_type.__name__
        step = next(self.schedule, None)
        if step is None:
            raise RuntimeError(f"the schedule ended after {self.steps} steps; train for fewer steps or give {name} a longer one")
        if not isinstance(step, self.step_type):
            raise TypeError(f"{name} needs a schedule of {kind}; step {self.steps} is {step}")
        return step

    def apply(self, step: S, gradients: Sequence[Array]) -> None:
        """Update every parameter with the given step object and gradients, one array per parameter."""
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            self._check(i, parameter.data, gradient)
        states = [getattr(self, entry) for entry in self.entries]
        weights = [parameter.data for parameter in self.parameters]
        each = kernels.of(weights[0]).each if self.elementwise else kernels.reference.each
        weights, *states = each(partial(self.update, step), weights, gradients, *states)
        for parameter, weight in zip(self.parameters, weights, strict=True):
            parameter.data = weight
        for entry, arrays in zip(self.entries, states, strict=True):
            setattr(self, entry, arrays)
        self.steps += 1
        self.last = step

    def as_taken(self, steps: Iterable[S]) -> Iterable[S]:
        """What `last` is after each of `steps`, the schedule's first steps: the step itself, except in a converted optimiser."""
        return steps

    def _check(self, i: int, weight: Array, gradient: Array) -> None:
        if gradient.dtype != weight.dtype:
            raise TypeError(f"{type(self).__name__}: the gradient of parameter {i} is {backend.dtype_name(gradient)}, its "
                            f"weights are {backend.dtype_name(weight)}. Compute the gradient in the dtype of the weights")
        if tuple(gradient.shape) != tuple(weight.shape):
            raise ValueError(f"{type(self).__name__}: the gradient of parameter {i} has the shape {tuple(gradient.shape)}, "
                             f"its weights have {tuple(weight.shape)}")

    def is_where_its_parameters_are(self) -> bool:
        """Whether the state arrays are in the library and on the device of the parameters, which may have moved since."""
        return all(backend.move(array, parameter.data) is array for entry in self.entries
                   for parameter, array in zip(self.parameters, getattr(self, entry), strict=True))

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to zero."""
        weights = [parameter.data for parameter in self.parameters]
        for parameter, zeros in zip(self.parameters, kernels.of(weights[0]).zeros_like(weights), strict=True):
            parameter.grad = zeros

    def arrays(self) -> dict[str, Array]:
        """{"ENTRY/i": state array of parameter i} for each name ENTRY in `entries`; the arrays themselves, not copies."""
        return {f"{entry}/{i}": array for entry in self.entries for i, array in enumerate(getattr(self, entry))}

    def state_dict(self) -> dict[str, Any]:
        """A flat dict of all that training needs to go on: numbers, and copies of arrays.

        {"steps": number of updates so far, "ENTRY/i": state array of parameter i}, the names as in
        `arrays`.
        """
        return {"steps": self.steps, **{name: backend.asarray(array, array) for name, array in self.arrays().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. The schedule, which must be fresh, is read up to the same step.

        Args:
            state: as from `state_dict`. A list of arrays under the bare name of an entry is
                accepted, too.

        Raises:
            RuntimeError: this optimiser has already taken steps.
            TypeError: `state` is no dict of arrays.
            ValueError: names or shapes in `state` are not those of this optimiser, or the schedule
                is too short.
        """
        name = type(self).__name__
        arguments.of_kind("state", state, Mapping, "a dict of arrays, as from state_dict()")
        if self.steps:
            raise RuntimeError(f"load_state_dict needs a fresh {name} with a fresh schedule; this one has taken "
                               f"{self.steps} steps")
        flat = {key: value for key, value in state.items() if key not in self.entries}
        for entry in set(self.entries) & state.keys():
            flat |= {f"{entry}/{i}": array for i, array in enumerate(state[entry])}
        wanted = {"steps": 0, **self.arrays()}
        if flat.keys() != wanted.keys():
            raise ValueError(f"the state has {_listed(flat)}; {name} with {len(self.parameters)} parameters needs "
                             f"{_listed(wanted)}")
        steps = arguments.whole("the state's steps", flat["steps"], 0)
        for key in self.arrays():
            arguments.real_array(f"the state's {key}", flat[key])
        found = {key: tuple(flat[key].shape) for key in flat if key != "steps"}
        needed = {key: tuple(wanted[key].shape) for key in found}
        for key in found:
            if found[key] != needed[key]:
                raise ValueError(f"the state's {key} has the shape {found[key]}; {name} needs {needed[key]}")
        drawn = sum(1 for _ in islice(self.schedule, steps))
        if drawn < steps:
            raise ValueError(f"the schedule has {drawn} steps, but the state was saved after {steps}")
        for entry in self.entries:
            own = getattr(self, entry)
            setattr(self, entry, [backend.asarray(flat[f"{entry}/{i}"], array) for i, array in enumerate(own)])
        self.steps = steps


def _listed(state):
    return ", ".join(sorted(state)) or "nothing"


ANY_NUMBER, NOT_NEGATIVE, FRACTION = (-inf, inf), (0, inf), (0, 1)  # limits that several step objects use
