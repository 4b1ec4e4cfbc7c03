"""torch modules as steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline import (
    as_step,
    compile_once,
    composite,
    dumps,
    fingerprint_of,
    loads,
    pipeline,
    torch_step,
)
from somatize_worker.pipeline.adapters import adapt
from somatize_worker.pipeline.torch_adapter import TorchFilter, fit_together

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3))
WEIGHTS = np.array([[1.0], [-2.0], [0.5]])
Y = X @ WEIGHTS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.linear(x))


class WithLoss(Net):
    """Brings its own loss and optimizer, as methods."""

    def loss_fn(self, prediction, y):
        return ((prediction - y) ** 2).mean()

    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithObjects(nn.Module):
    """Brings a loss module and an optimizer object."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.loss_fn = nn.MSELoss()
        self.optimizer = torch.optim.SGD(self.linear.parameters(), lr=0.1)

    def forward(self, x):
        return self.linear(x)


def sent(step: Any) -> Any:
    """The filter as a worker gets it."""
    return loads(dumps(step.filter if hasattr(step, "filter") else adapt(step)))


def regression(**options: Any) -> Any:
    options = {"epochs": 60, "lr": 0.05, "device": "cpu", **options}
    return torch_step(nn.Linear(3, 1), loss_fn=nn.MSELoss(), **options)


def error(step: Any, state: Any, y: Any = Y) -> float:
    return float(np.mean((step.forward(X, state).reshape(y.shape) - y) ** 2))


def test_inference_takes_and_gives_arrays():
    net = Net()
    step = sent(net)
    assert step._kind == "stateless"
    out = step.forward(X)
    assert type(out) is np.ndarray
    assert (out.shape, out.dtype) == ((64, 1), np.float32)
    with torch.no_grad():
        expected = net.linear(torch.tensor(X, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-5)  # dropout does nothing in evaluation
    assert net.training


def test_dtypes_follow_the_parameters_and_integers_stay():
    assert sent(nn.Linear(3, 1).double()).forward(X.astype("f4")).dtype == np.float64
    assert sent(nn.Embedding(5, 2)).forward(np.array([0, 4])).shape == (2, 2)
    assert sent(nn.ReLU()).forward(X).dtype == np.float64  # no parameters: as it came
    half = sent(nn.Linear(3, 1).bfloat16()).forward(X)
    assert half.dtype == np.float32  # numpy has no bfloat16
    with pytest.raises(InvalidPipeline, match="a torch module takes numbers"):
        sent(nn.ReLU()).forward(np.array(["a"]))


def test_read_only_reversed_and_foreign_arrays_are_taken_without_a_warning():
    frozen = X.astype("f4")
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = sent(nn.ReLU())
        for x in (frozen, X[::-1], X.astype(">f8"), X.T, np.float64(1.0), np.zeros((0, 3)), [[1.0, -2.0]]):
            np.testing.assert_array_equal(step.forward(x), np.maximum(np.asarray(x, dtype=np.asarray(x).dtype), 0))
    assert not frozen.flags.writeable


def test_structures_of_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return {"sum": x["a"] + x["b"][0], "parts": [x["a"], (x["b"][1], "text")]}

    out = sent(Two()).forward({"a": np.ones(2), "b": [np.ones(2), np.zeros(2)]})
    np.testing.assert_array_equal(out["sum"], [2, 2])
    assert out["parts"][1][1] == "text"
    assert type(out["parts"][0]) is np.ndarray


def test_training_learns_and_leaves_the_module_alone():
    step = regression()
    before = copy.deepcopy(step.filter.module.state_dict())
    state = sent(step).fit(X, Y)
    assert {name: (type(value), value.shape) for name, value in state.items()} == {
        "weight": (np.ndarray, (1, 3)),
        "bias": (np.ndarray, (1,)),
    }
    worker = sent(step)
    assert error(worker, state) < 0.01 < error(worker, None)
    step.filter.fit(X, Y)
    after = step.filter.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_can_be_repeated():
    step = regression(epochs=2)
    one, two = sent(step).fit(X, Y), sent(step).fit(X, Y)
    np.testing.assert_array_equal(one["weight"], two["weight"])
    three = torch_step(step.filter.module, loss_fn=nn.MSELoss(), epochs=2, lr=0.05, seed=1, device="cpu")
    assert not np.array_equal(one["weight"], sent(three).fit(X, Y)["weight"])


def test_targets_without_the_last_axis_do_not_broadcast():
    step = sent(regression())
    assert error(step, step.fit(X, Y[:, 0]), Y[:, 0]) < 0.01


def test_classification_takes_integer_labels():
    labels = (X[:, 0] > 0).astype("i4")
    step = sent(torch_step(nn.Linear(3, 2), loss_fn=nn.CrossEntropyLoss(), epochs=40, lr=0.1, device="cpu"))
    state = step.fit(X, labels)
    assert np.mean(step.forward(X, state).argmax(axis=1) == labels) > 0.95


@pytest.mark.parametrize("make", [WithLoss, WithObjects])
def test_modules_with_their_own_loss_and_optimizer(make: Callable[[], Any]):
    module = make()
    step = sent(module)
    assert step._kind == "trainable"
    state = step.fit(X, Y)
    assert error(step, state) < error(step, None)


def test_optimizers_are_made_from_parameters():
    step = sent(regression(optimizer=torch.optim.SGD))
    assert error(step, step.fit(X, Y)) < error(step, None)
    with pytest.raises(InvalidPipeline, match="bound to parameters of this process"):
        regression(optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0))
    with pytest.raises(InvalidPipeline, match="an optimizer but no loss"):
        torch_step(nn.Linear(3, 1), optimizer=torch.optim.SGD)
    with pytest.raises(InvalidPipeline, match=r"give an instance: MSELoss\(\)"):
        torch_step(nn.Linear(3, 1), loss_fn=nn.MSELoss)
    with pytest.raises(InvalidPipeline, match="takes a torch.nn.Module object"):
        torch_step(nn.Linear)


def test_fit_says_what_is_missing():
    with pytest.raises(InvalidPipeline, match="pass y to fit"):
        sent(regression()).fit(X)
    with pytest.raises(InvalidPipeline, match=r"Linear cannot be trained: give torch_step\(module, loss_fn="):
        sent(nn.Linear(3, 1)).fit(X, Y)


def test_states_are_exchanged_and_checked():
    step = sent(regression(epochs=1))
    state = step.fit(X, Y)
    other = {"weight": np.zeros((1, 3), "f4"), "bias": np.ones(1, "f4")}
    assert step.forward(X, other).tolist() == [[1.0]] * 64
    np.testing.assert_allclose(step.forward(X, state), X.astype("f4") @ state["weight"].T + state["bias"], rtol=1e-4)
    own = sent(step).forward(X)
    np.testing.assert_array_equal(step.forward(X, None), own)  # no state again: the module's own weights
    step.load_state_dict(other)
    assert step.state_dict()["bias"] == 1.0
    assert step.forward(X).tolist() == [[1.0]] * 64
    with pytest.raises(InvalidPipeline, match="the state does not fit Linear"):
        step.forward(X, {"weight": np.zeros((2, 2))})


def test_tensors_go_out_as_tensors_and_carry_gradients():
    step = sent(regression()).train()
    out = step.forward(torch.tensor(X, dtype=torch.float32))
    out.sum().backward()
    gradients = {name: parameter.grad for name, parameter in step.named_parameters()}
    assert gradients["bias"].tolist() == [64.0]
    step.optimizer().step()
    step.train(False)
    assert not step.forward(torch.tensor(X, dtype=torch.float32)).requires_grad


def test_a_composite_passes_tensors_and_trains_as_one():
    torch.manual_seed(0)
    encoder, head = nn.Sequential(nn.Linear(3, 8), nn.Tanh()), nn.Linear(8, 1)
    built = composite(encoder, torch_step(head, loss_fn=nn.MSELoss(), epochs=80, lr=0.02, device="cpu"))
    compiled = compile_once(built)
    assert compiled.plan == {"Composite": {"node_ids": ["Sequential", "Linear"]}}
    assert compiled.trainable == ("Sequential", "Linear")
    first, last = (loads(one.pickle) for one in compiled.filters)
    assert torch.is_tensor(first.forward(X))
    assert not first.forward(X).requires_grad
    assert type(last.forward(first.forward(X))) is np.ndarray
    target = np.tanh(Y)
    states = last.fit_together([first, last], X, target)
    assert not np.array_equal(states[0]["0.weight"], encoder[0].weight.detach().numpy())

    def loss(states: Any) -> float:
        return float(np.mean((last.forward(first.forward(X, states[0]), states[1]) - target) ** 2))

    assert loss(states) < loss([None, None]) / 10


def test_a_composite_with_other_steps_hands_them_arrays():
    compiled = compile_once(composite(nn.Linear(3, 2), lambda x: x * 2, nn.Linear(2, 1)))
    linear = loads(compiled.filters[0].pickle)
    assert type(linear.forward(X)) is np.ndarray
    assert compiled.trainable == ()
    scaled = compile_once(composite(lambda x: x, regression()))
    assert loads(scaled.filters[1].pickle).fit_together is None
    with pytest.raises(InvalidPipeline, match="only torch modules can be trained together; not lambda"):
        fit_together([adapt(lambda x: x), regression().filter], X, Y)


def test_modules_that_are_filters_themselves_stay_as_they_are():
    class Own(nn.Module):
        def fit(self, x, y=None):
            return 1

        def forward(self, x, state=None):
            return x

    own = Own()
    assert adapt(own) is own
    assert isinstance(adapt(nn.ReLU()), TorchFilter)


def test_operators_and_names():
    built = nn.Linear(3, 2) >> as_step(Net()).on("gpu") >> nn.ReLU()
    assert repr(built) == "<Chain Linear → Net@gpu → ReLU>"
    assert compile_once(pipeline(nn.ReLU(), nn.ReLU())).node_ids == ("ReLU", "ReLU_2")


def test_fingerprints_count_weights_options_and_code():
    torch.manual_seed(0)
    net = Net()
    same = fingerprint_of(adapt(net))
    assert same == fingerprint_of(adapt(copy.deepcopy(net))) == fingerprint_of(sent(net))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.linear.bias += 1
    assert fingerprint_of(adapt(other)) != same
    made = [fingerprint_of(torch_step(net, loss_fn=nn.MSELoss(), lr=lr).filter) for lr in (0.1, 0.2)]
    assert len({same, *made}) == 3


def test_a_used_filter_pickles_without_what_it_keeps_ready():
    step = regression().filter
    before = len(dumps(step))
    step.forward(X)
    assert len(dumps(step)) == before
    worker = sent(step)
    worker.forward(X)
    assert worker._live is worker.module  # the weights are there once
    worker.forward(X, step.fit(X, Y))
    assert worker._live is not worker.module
