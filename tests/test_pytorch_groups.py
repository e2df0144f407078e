"""What an optimizer finds in its param groups during a converted step, and what is there afterwards."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import Script, loss_of, measured, network, remove  # noqa: E402

from minibn.pytorch import remove_weight_decay  # noqa: E402


class Counting(torch.optim.Optimizer):
    """It counts its steps in the param group, and notes the names that it finds there."""

    def __init__(self, parameters, lr=0.02, weight_decay=0.5):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "k": 0})
        self.seen = {}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["k"] += 1
            self.seen |= zip(group["param_names"], group["params"], strict=True)
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] / group["k"] * p.grad.sign())


@pytest.mark.parametrize("split", [False, True])
def test_a_count_in_the_param_group_goes_on_and_names_go_with_their_parameters(split):
    """Also where all parameters of a group are converted."""
    model = network()
    named = [list(model.named_parameters())]
    if split:
        named = [[(name, p) for name, p in named[0] if (p.ndim == 4) == conv] for conv in (True, False)]
    optimizer = Counting([{"params": group} for group in named])
    remove_weight_decay(optimizer, measured(1e-30).of(model), decay="lr*wd")
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert [group["k"] for group in optimizer.param_groups] == [3] * len(named)
    assert optimizer.seen == dict(model.named_parameters())


def test_an_optimizer_that_has_none_of_the_converted_weights_is_left_alone():
    script = Script()
    head = torch.optim.AdamW(script.model[8].parameters())
    script.group["params"] = script.group["params"][:-2]
    handle = remove(script.model, [script.optimizer, head])
    assert handle.optimizers == [script.optimizer]
