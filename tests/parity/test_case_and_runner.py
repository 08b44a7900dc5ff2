"""A driver sees the authors' tensors as leaves of the graph, and the runner skips nothing."""

import json

import pytest
import torch
from torch import nn

from repertory import parity

VECTOR = {
    "system": "toy",
    "kind": "linear",
    "origin": "authors",
    "config": {},
    "parameters": {"fc.weight": [3, 4], "fc.bias": [3], "bn.running_mean": [3], "bn.running_var": [3]},
    "inputs": {"x": {"shape": [5, 4]}},
    "outputs": {},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, x):
        return self.norm(self.linear(x))


def from_authors(state):
    return {
        "linear.weight": state["fc.weight"],
        "linear.bias": state["fc.bias"],
        "norm.running_mean": state["bn.running_mean"],
        "norm.running_var": state["bn.running_var"],
    }


def reference(case, training):
    """The same network by hand, straight on the authors' leaves."""
    y = case.inputs["x"] @ case.state["fc.weight"].T + case.state["fc.bias"]
    mean, var = case.state["bn.running_mean"], case.state["bn.running_var"]
    if training:
        mean, var = y.mean(0), y.var(0, unbiased=False)
    return (y - mean) / (var + 1e-5).sqrt()


def with_outputs(outputs, **changes):
    return VECTOR | {"outputs": {name: parity.summarise(value) for name, value in outputs.items()}} | changes


def recorded(training=True):
    case = parity.Case(VECTOR)
    y = reference(case, training)
    wanted = [case.state["fc.weight"], case.inputs["x"]]
    grads = torch.autograd.grad((y**3).sum(), wanted)
    return with_outputs({"out": y, "grad:fc.weight": grads[0], "grad:x": grads[1]})


def driver(case):
    run = case.bind(Net().train(), from_authors)
    y = run(case.input("x"))
    return {"out": y} | case.gradients((y**3).sum())


def test_gradients_reach_the_authors_tensors_and_the_inputs():
    report = parity.run_vector(recorded(), "toy", {"linear": driver})
    assert report.passed, report.outputs
    assert {output.name for output in report.outputs} == {"out", "grad:fc.weight", "grad:x"}


def test_a_wrong_value_is_a_mismatch():
    vector = json.loads(json.dumps(recorded()))
    vector["outputs"]["grad:x"]["samples"][3] += 0.1
    report = parity.run_vector(vector, "toy", {"linear": driver})
    assert not report.passed
    assert [output.name for output in report.outputs if output.problem] == ["grad:x"]


def test_a_tolerance_of_the_vector_replaces_the_ordinary_one():
    vector = json.loads(json.dumps(recorded()))
    vector["outputs"]["grad:x"]["samples"][3] += 0.001 * vector["outputs"]["grad:x"]["std"]
    assert not parity.run_vector(vector, "toy", {"linear": driver}).passed
    vector["config"] = {"rtol": {"grad:*": 0.01}}
    assert parity.run_vector(vector, "toy", {"linear": driver}).passed


def test_an_output_the_driver_does_not_know_is_a_mismatch():
    vector = recorded()
    vector["outputs"]["attention"] = vector["outputs"]["out"]
    report = parity.run_vector(vector, "toy", {"linear": driver})
    assert not report.passed
    assert "does not know" in next(o.problem for o in report.outputs if o.name == "attention")


def test_a_vector_without_outputs_proves_nothing():
    assert not parity.run_vector(VECTOR, "toy", {"linear": lambda case: {}}).passed


def test_a_failing_driver_is_a_mismatch_of_its_vector():
    def broken(case):
        raise RuntimeError("no such layer")

    report = parity.run_vector(recorded(), "toy", {"linear": broken})
    assert not report.passed
    assert "no such layer" in report.outputs[0].problem


def test_running_statistics_move_between_training_forwards_but_not_in_the_authors_state():
    case = parity.Case(VECTOR)
    net = Net().train()
    run = case.bind(net, from_authors)
    before = case.state["bn.running_mean"].clone()
    run(case.input("x"))
    first = run.tensors["norm.running_mean"].clone()
    run(case.input("x"))
    assert not torch.equal(first, before)
    assert not torch.equal(run.tensors["norm.running_mean"], first)
    assert torch.equal(case.state["bn.running_mean"], before)


def test_conversion_is_strict():
    state = parity.reference_state(VECTOR)
    converted = from_authors(state)
    parity.check_conversion(Net(), converted)
    with pytest.raises(ValueError, match=r"missing linear\.bias"):
        parity.check_conversion(Net(), {k: v for k, v in converted.items() if k != "linear.bias"})
    with pytest.raises(ValueError, match=r"unexpected extra\.weight"):
        parity.check_conversion(Net(), converted | {"extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"linear\.bias is \(4,\)"):
        parity.check_conversion(Net(), converted | {"linear.bias": torch.zeros(4)})
    parity.check_conversion(Net(), converted | {"norm.num_batches_tracked": torch.tensor(3)})


def test_inputs_are_found_by_role_and_by_prefix():
    by_role = VECTOR | {"config": {"input_roles": {"image": "x"}}}
    assert parity.Case(by_role).input("image").shape == (5, 4)
    by_prefix = VECTOR | {"config": {"input_prefix": "p_"}, "inputs": {"p_x": {"shape": [2]}}}
    assert parity.Case(by_prefix).input("x").shape == (2,)


def test_gradients_stand_at_the_value_fed_unless_the_vector_says_draw():
    config = {"inputs_transform": {"x": {"scale": 3.0}}}
    vector = VECTOR | {"config": config, "outputs": {"grad:x": {}}}
    case = parity.Case(vector)
    assert case.gradients(case.input("x").sum())["grad:x"].unique().tolist() == [1.0]
    case = parity.Case(vector | {"config": config | {"grad_at": "draw"}})
    assert case.gradients(case.input("x").sum())["grad:x"].unique().tolist() == [3.0]


@pytest.mark.parametrize(
    ("text", "what"), [("{", "not a parity vector"), ('{"system": "a"}', "lacks kind"), ("[]", "lacks")]
)
def test_a_file_that_is_no_vector_is_named(tmp_path, text, what):
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=what):
        parity.load(path)


def test_a_missing_vector_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        parity.load(tmp_path / "absent.json")
