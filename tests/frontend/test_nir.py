"""Every primitive of NIR by hand, random networks against a plain simulation, reading back what was written, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import LEAKY, dense, graph, leaky, sir, spikes, values

from spikec.diagnostics import CompileError
from spikec.frontend.nir import read_nir, write_nir
from spikec.frontend.nir.file import write_tree
from spikec.frontend.nir.graph import PRIMITIVES
from spikec.frontend.nir.neurons import Model, fold, model_of, program, unfold
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.neuron import Program
from spikec.ir.ops import Add, Constant, Gather, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ledger import Ledger

DT = 2.0**-10
A = np.array


def net(*nodes: Any, shape: Any = (1,), edges: Any = None, **more: Any) -> Any:
    """A NIR graph: an Input, the nodes in a row (or as `edges` say) under the names a, b, c, and an Output."""
    names = "abcdefgh"[: len(nodes)]
    table = {"in": nir.Input(A(shape)), **dict(zip(names, nodes, strict=True)), "out": nir.Output(None)}
    given_edges = edges or list(pairwise(["in", *names, "out"]))
    table["out"].output_type = {"output": None}
    made = nir.NIRGraph(table, [(str(a), str(b)) for a, b in given_edges], type_check=False, **more)
    made.nodes["out"] = nir.Output({"output": A(shape)})
    return made


def read(made: Any, **options: Any) -> Graph:
    """The graph of a net whose Output takes whatever shape comes."""
    tree = made.to_dict()
    tree["nodes"]["out"]["shape"] = None
    tree["nodes"]["out"] = {"type": "Output", "shape": shape_of(made, options)}
    return read_nir(As(tree), **options)[0]


class As:
    """A dictionary in the place of a nir.NIRGraph."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def to_dict(self) -> Any:
        return self.tree


def shape_of(made: Any, options: Any) -> Any:
    """The Output's shape: taken from the message that a wrong one gives, so that the nets need not state it."""
    tree = made.to_dict()
    tree["nodes"]["out"] = {"type": "Output", "shape": A([7, 7, 7, 7])}
    try:
        read_nir(As(tree), **options)
    except CompileError as error:
        text = str(error)
        if "what enters has shape (" in text:
            inside = text.partition("what enters has shape (")[2].partition(")")[0]
            return A([int(n) for n in inside.split(",") if n.strip()])
        raise
    raise AssertionError("no network ends in such a shape")


def run(made: Any, x: Any, **options: Any) -> Any:
    """(T, *shape) -> (T, *shape), in float64."""
    options.setdefault("dt", DT)
    found = read(made, **options)
    data = np.asarray(x, np.float64)[None]
    return interpret(found, {"in": data}).outputs["out"][0]


def column(*numbers: float) -> Any:
    return A(numbers, np.float64)[:, None]


def full(value: float, shape: Any = (1,)) -> Any:
    return np.full(shape, value)


# -------------------------------------------------------------------------------------------------------- each primitive


def test_input_to_output() -> None:
    assert run(net(), column(1, 0, 1)).ravel().tolist() == [1, 0, 1]


def test_affine_and_linear() -> None:
    weight, bias = A([[1.0, 2.0], [4.0, -1.0], [0.5, 0.0]]), A([0.25, 0.0, -1.0])
    x = A([[1, 0], [0, 1], [1, 1]])
    assert run(net(nir.Affine(weight, bias), shape=(2,)), x).tolist() == [[1.25, 4, -0.5], [2.25, -1, -1], [3.25, 3, -0.5]]
    assert run(net(nir.Linear(weight), shape=(2,)), x).tolist() == [[1, 4, 0.5], [2, -1, 0], [3, 3, 0.5]]


def test_scale() -> None:
    assert run(net(nir.Scale(A([2.0, -0.5])), shape=(2,)), A([[1, 1], [0, 1]])).tolist() == [[2, -0.5], [0, -0.5]]


def conv1d(weight: Any, bias: Any = None, stride: int = 1, padding: Any = 0, dilation: int = 1, groups: int = 1) -> Any:
    weight = A(weight, np.float64)
    return nir.Conv1d(None, weight, stride, padding, dilation, groups, np.zeros(len(weight)) if bias is None else A(bias))


def test_conv1d() -> None:
    x = A([[[1, 0, 1, 1, 0]]])
    assert run(net(conv1d([[[1, 2, 4]]]), shape=(1, 5)), x).tolist() == [[[5, 6, 3]]]
    assert run(net(conv1d([[[1, 2, 4]]], bias=[0.5], stride=2, padding=1), shape=(1, 5)), x).tolist() == [[[2.5, 6.5, 1.5]]]
    assert run(net(conv1d([[[1, 2]]], dilation=3), shape=(1, 5)), x).tolist() == [[[3, 0]]]


def test_conv_padding_by_name() -> None:
    x = A([[[1, 0, 1, 1, 0]]])
    odd, even = [[[1, 2, 4]]], [[[1, 2]]]
    assert run(net(conv1d(odd, padding="same"), shape=(1, 5)), x).tolist() == [[[2, 5, 6, 3, 1]]]
    assert run(net(conv1d(even, padding="same"), shape=(1, 5)), x).tolist() == [[[1, 2, 3, 1, 0]]]  # one zero on the right
    assert run(net(conv1d(odd, padding="valid"), shape=(1, 5)), x).tolist() == [[[5, 6, 3]]]


def test_conv2d_equals_torch() -> None:
    import torch

    rng = np.random.default_rng(3)
    x = rng.integers(0, 2, (2, 4, 7, 6))
    for stride, padding, dilation, groups in [
        ((2, 1), (1, 2), (1, 1), 1),
        ((1, 1), (0, 0), (2, 1), 2),
        ((1, 1), "same", (1, 1), 4),
    ]:
        weight, bias = rng.integers(-4, 4, (8, 4 // groups, 2, 3)) / 4, rng.integers(-4, 4, 8) / 4
        node = nir.Conv2d(None, weight, stride, padding, dilation, groups, bias)
        expected = torch.nn.functional.conv2d(
            torch.tensor(x, dtype=torch.float64), torch.tensor(weight), torch.tensor(bias), stride, padding, dilation, groups
        )
        assert np.array_equal(run(net(node, shape=(4, 7, 6)), x), expected.numpy())


def test_pools() -> None:
    x = A([[[[1, 1, 0], [0, 1, 1], [1, 1, 1]]]])
    two, one, none = A([2, 2]), A([1, 1]), A([0, 0])
    assert run(net(nir.SumPool2d(two, one, none), shape=(1, 3, 3)), x).tolist() == [[[[3, 3], [3, 4]]]]
    assert run(net(nir.AvgPool2d(two, two, one), shape=(1, 3, 3)), x).tolist() == [[[[0.25, 0.25], [0.25, 1.0]]]]
    _, notes = read_nir(As(shaped(net(nir.AvgPool2d(two, two, one), shape=(1, 3, 3)), (1, 2, 2))))
    assert "'a' counts its padding in the average" in notes


def shaped(made: Any, shape: Any) -> Any:
    """The dictionary of a net with that Output."""
    tree = made.to_dict()
    tree["nodes"]["out"]["shape"] = A(shape)
    return tree


@pytest.mark.parametrize(
    ("start", "end", "shape"), [(0, -1, (24,)), (1, -1, (2, 12)), (0, 1, (6, 4)), (1, 1, (2, 3, 4)), (-2, -1, (2, 12))]
)
def test_flatten(start: int, end: int, shape: Any) -> None:
    x = np.arange(24).reshape(1, 2, 3, 4) % 2
    found = run(net(nir.Flatten(None, start, end), shape=(2, 3, 4)), x)
    assert found.shape == (1, *shape)
    assert np.array_equal(found.ravel(), x.ravel())


def test_i_adds_r_times_its_input() -> None:
    x = column(1, 1, 0, 1)
    assert run(net(nir.I(full(0.5))), x).ravel().tolist() == [0.5, 1, 1, 1.5]
    assert (run(net(nir.I(full(0.5))), x, integrator="seconds") / DT).ravel().tolist() == [0.5, 1, 1, 1.5]


def test_if() -> None:
    node = nir.IF(full(0.5), full(1.0), full(0.25))
    x = column(1, 1, 1, 1, 1, 1, 1)
    # v: .5, 1 (not above 1), 1.5 spike -> .25, .75, 1.25 spike -> .25, .75, 1.25 spike
    assert run(net(node), x).ravel().tolist() == [0, 0, 1, 0, 1, 0, 1]
    # at the threshold already: .5, 1 spike -> .25, .75, 1.25 spike
    assert run(net(node), x, compare=">=").ravel().tolist() == [0, 1, 0, 1, 0, 1, 0]
    # to zero: .5, 1, 1.5 spike, .5, 1, 1.5 spike
    assert run(net(node), x, reset="zero").ravel().tolist() == [0, 0, 1, 0, 0, 1, 0]
    # less by .75: .5, 1, 1.5 spike -> .75, 1.25 spike -> .5, 1, 1.5 spike -> .75, 1.25 spike
    assert run(net(node), x, reset="subtract").ravel().tolist() == [0, 0, 1, 1, 0, 1, 1]


def test_li_rests_at_v_leak() -> None:
    node = nir.LI(full(2 * DT), full(4.0), full(1.0))
    # v += 1/2 ((1 - v) + 4 x)
    assert run(net(node), column(0, 1, 0, 0)).ravel().tolist() == [0.5, 2.75, 1.875, 1.4375]
    assert run(net(node), column(0, 1, 0, 0), initial="v_leak").ravel().tolist() == [1, 3, 2, 1.5]
    for scheme in ("euler", "exponential", "exact"):
        assert run(net(node), np.zeros((200, 1)), scheme=scheme)[-1, 0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("scheme", "decay", "enter"),
    [("euler", 0.5, 0.5), ("exponential", np.exp(-0.5), 0.5), ("exact", np.exp(-0.5), -np.expm1(-0.5))],
)
def test_schemes(scheme: str, decay: float, enter: float) -> None:
    found = run(net(nir.LI(full(2 * DT), full(4.0), full(0.0))), column(1, 0, 0), scheme=scheme).ravel()
    assert found == pytest.approx([4 * enter, 4 * enter * decay, 4 * enter * decay**2], rel=1e-7)


def test_lif() -> None:
    node = nir.LIF(full(2 * DT), full(2.0), full(0.5), full(1.0), full(-0.25))
    # v += 1/2 ((.5 - v) + 2 x): 1.25 spike -> -.25, 1.125 spike -> -.25, .125, 1.3125 spike
    assert run(net(node), column(1, 1, 0, 1)).ravel().tolist() == [1, 1, 0, 1]


def cuba(kind: str, **more: Any) -> Any:
    node = {"tau_syn": full(2 * DT), "tau_mem": full(4 * DT), "r": full(4.0), "v_leak": full(0.0), "w_in": full(2.0), **more}
    return getattr(nir, kind)(**node)


def test_cuba_li_with_this_or_the_last_current() -> None:
    # i += 1/2 (2 x - i); v += 1/4 (4 i - v)
    assert run(net(cuba("CubaLI")), column(1, 0, 0)).ravel().tolist() == [1, 1.25, 1.1875]
    assert run(net(cuba("CubaLI")), column(1, 0, 0), current="old").ravel().tolist() == [0, 1, 1.25]


def test_cuba_lif() -> None:
    node = cuba("CubaLIF", v_threshold=full(1.125), v_reset=full(0.0))
    # v: 1, 1.25 spike -> 0, i .25: .25
    assert run(net(node), column(1, 0, 0)).ravel().tolist() == [0, 1, 0]
    assert run(net(node), column(1, 0, 0), current="old").ravel().tolist() == [0, 0, 1]


def test_threshold() -> None:
    made = net(nir.Scale(full(0.5)), nir.Threshold(full(0.5)))
    assert run(made, column(0, 1, 2), input_kind="value").ravel().tolist() == [0, 0, 1]
    assert run(made, column(0, 1, 2), input_kind="value", compare=">=").ravel().tolist() == [0, 1, 1]


def test_delay_in_seconds_becomes_steps() -> None:
    assert run(net(nir.Delay(full(2 * DT))), column(1, 0, 1, 1)).ravel().tolist() == [0, 0, 1, 0]
    assert run(net(nir.Delay(full(0.0))), column(1, 0, 1, 1)).ravel().tolist() == [1, 0, 1, 1]
    x = np.eye(4)[:, [0, 0, 0]]
    assert run(net(nir.Delay(A([2.0, 0.0, 1.0]) * DT), shape=(3,)), x).T.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    found = read(net(nir.Delay(A([2.0, 0.0, 1.0]) * DT), shape=(3,)), dt=DT)
    assert found.type_of(found.output("out")).kind == "spike"


def test_delay_between_steps_is_refused_or_rounded() -> None:
    made = net(nir.Delay(full(1.4 * DT)))
    with pytest.raises(CompileError) as error:
        run(made, column(1))
    assert str(error.value) == (
        "nir.NIRGraph (a): error[SPK306]: the delay 0.00136719 s is not a whole number of steps of 976.5625us\n"
        "  fix: choose a dt that divides it, or round_delays=True"
    )
    assert run(made, column(1, 0, 0), round_delays=True).ravel().tolist() == [0, 1, 0]
    ledger = Ledger()
    read_nir(As(shaped(made, (1,))), dt=DT, round_delays=True, ledger=ledger)
    (entry,) = (e for e in ledger if e.kind == "approximation")
    assert (entry.pass_name, entry.node, entry.what, entry.asked) == ("nir", "a", "delay rounded to whole steps", "round_delays")
    assert entry.largest == pytest.approx(0.4)


def test_every_primitive_is_tried_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for name in PRIMITIVES:
        assert f"nir.{name}(" in text or f'cuba("{name}"' in text, name
        assert hasattr(nir, name)


# ------------------------------------------------------------------------------------------------------------ structure


def test_edges_add_up_and_their_order_does_not_matter() -> None:
    nodes = [nir.Scale(full(w)) for w in (1.0, 2.0, 4.0)]
    edges = [("in", "a"), ("in", "b"), ("in", "c"), ("a", "out"), ("b", "out"), ("c", "out"), ("in", "out")]
    found = read(net(*nodes, edges=edges))
    assert interpret(found, {"in": np.ones((1, 1, 1))}).outputs["out"].item() == 8
    assert read(net(*nodes, edges=edges[::-1])) == found


def test_names_with_dots_digits_and_the_rest() -> None:
    strange = ["1.lif", "10", "2", "é b", "a.b", "a_b"]
    table = {"in": nir.Input(A([1])), **{name: nir.Scale(full(2.0)) for name in strange}, "out.v": nir.Output(A([1]))}
    chain = ["in", *strange, "out.v"]
    found, _ = read_nir(nir.NIRGraph(table, list(pairwise(chain))))
    assert [node.name for node in found.nodes] == ["in", "1_lif", "10", "2", "_b", "a_b", "a_b_2"]
    assert [node.loc.path for node in found.nodes if node.loc] == ["in", "1.lif", "10", "2", "_b", "a.b", "a_b"]
    assert found.outputs[0][0] == "out.v"
    verify(found)


def lif(theta: float = 1.0, size: int = 1) -> Any:
    return nir.LIF(*(full(n, (size,)) for n in (2 * DT, 2.0, 0.0, theta, 0.0)))


def test_recurrent_spikes_arrive_a_step_later() -> None:
    edges = [("in", "a"), ("a", "b"), ("b", "a"), ("a", "out")]
    rec = nir.Affine(A([[2.0]]), A([0.5]))
    found, notes = read_nir(As(shaped(net(lif(), rec, edges=edges), (1,))), dt=DT)
    assert found["b"].inputs == (Ref("a", delay=1),)
    assert [ref.delay for ref in found["a_sum"].inputs] == [0, 0]
    assert "recurrent=feedback: read one step later: a -> b" in notes
    # the bias of the recurrent weights counts from step 0 on: v = .5 v + x + .5 + 2 s[t-1]
    x = column(0, 1, 0, 0, 0)
    assert run(net(lif(), rec, edges=edges), x).ravel().tolist() == [0, 1, 1, 1, 1]


def test_a_loop_over_two_layers_gets_one_delay() -> None:
    edges = [("in", "a"), ("a", "b"), ("b", "c"), ("c", "out"), ("c", "d"), ("d", "a")]
    nodes = [lif(), nir.Linear(A([[2.0]])), lif(), nir.Linear(A([[1.0]]))]
    found, _ = read_nir(As(shaped(net(*nodes, edges=edges), (1,))), dt=DT)
    assert (found["b"].inputs[0].delay, found["d"].inputs[0].delay) == (0, 1)
    found, notes = read_nir(As(shaped(net(*nodes, edges=edges), (1,))), dt=DT, recurrent="spikes")
    assert (found["b"].inputs[0].delay, found["d"].inputs[0].delay) == (1, 1)
    assert "recurrent=spikes: read one step later: a -> b, c -> d" in notes


def test_a_loop_with_a_delay_gets_no_further_one() -> None:
    edges = [("in", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("a", "out")]
    found, notes = read_nir(As(shaped(net(lif(), nir.Delay(full(3 * DT)), nir.Linear(A([[1.0]])), edges=edges), (1,))), dt=DT)
    assert [ref.delay for node in found.nodes for ref in node.inputs if ref.delay] == [3]
    assert not any("recurrent" in note for note in notes)


def test_a_neuron_may_feed_itself_and_a_shared_layer_may_lead_on() -> None:
    found, _ = read_nir(As(shaped(net(lif(), edges=[("in", "a"), ("a", "a"), ("a", "out")]), (1,))), dt=DT)
    assert [str(ref) for ref in found["a_sum"].inputs] == ["%a[t-1]", "%in"]
    edges = [("in", "a"), ("a", "b"), ("b", "a"), ("b", "out")]
    found, _ = read_nir(As(shaped(net(lif(), nir.Linear(A([[1.0]])), edges=edges), (1,))), dt=DT)
    assert [str(ref) for ref in found["a_sum"].inputs] == ["%b[t-1]", "%in"]


def inner(kind: Any = nir.NIRGraph) -> Any:
    rec = {"input": nir.Input(A([1])), "lif": lif(), "rec": nir.Linear(A([[2.0]])), "output": nir.Output(A([1]))}
    return kind(rec, [("input", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")], type_check=False)


def test_nested_graphs_are_flattened() -> None:
    made = net(
        nir.Scale(full(1.5)), inner(), nir.Scale(full(0.5)), edges=[("in", "a"), ("in", "b"), ("a", "b"), ("b", "c"), ("c", "out")]
    )
    found = read(made, dt=DT)
    assert [node.name for node in found.nodes] == ["in", "a", "b_rec", "b_lif_sum", "b_lif", "c"]
    assert [str(ref) for ref in found["b_lif_sum"].inputs] == ["%a", "%b_rec", "%in"]
    assert found["b_rec"].inputs == (Ref("b_lif", delay=1),)
    outer = net(
        nir.NIRGraph(
            {"i": nir.Input(A([1])), "sub": inner(), "o": nir.Output(A([1]))}, [("i", "sub"), ("sub", "o")], type_check=False
        )
    )
    assert [node.name for node in read(outer, dt=DT).neurons] == ["a_sub_lif"]


def test_a_shape_that_a_nested_graph_states_is_checked() -> None:
    wrong = inner()
    wrong.nodes["input"] = nir.Input(A([3]))
    with pytest.raises(CompileError) as error:
        read(net(wrong), dt=DT)
    assert str(error.value) == "nir.NIRGraph (a.input): error[SPK309]: 'in' gives shape (1,), but (3,) is declared here"


def test_ends_without_input_and_output_get_one() -> None:
    found, notes = read_nir(As({"type": "NIRGraph", "nodes": {"w": nir.Linear(A([[1.0, 2.0]])).to_dict()}, "edges": []}))
    assert str(found.inputs[0].type.shape) == "(2,)" and found.outputs == (("output_w", Ref("w")),)
    assert "ends of the graph without Input or Output got one, as in the nir package: input_w, output_w" in notes


def test_parameters_are_broadcast() -> None:
    shape = (2, 3, 4)
    x = np.ones((1, *shape))
    for scale in (full(2.0, (1,)), full(2.0, ()), A([1.0, 2.0]), A([1.0, 2.0]).reshape(2, 1, 1), A([1.0, 2.0]).reshape(1, 2, 1, 1)):
        found = run(net(nir.Scale(scale), shape=shape), x)
        expected = np.broadcast_to(scale.reshape(-1, 1, 1), shape)
        assert np.array_equal(found[0], expected)
    every = np.arange(24.0).reshape(shape)
    assert np.array_equal(run(net(nir.Scale(every), shape=shape), x)[0], every)
    per_row = np.arange(3.0).reshape(1, 3, 1)
    assert np.array_equal(run(net(nir.Scale(per_row), shape=shape), x)[0], np.broadcast_to(per_row, shape))


def test_equal_parameters_become_scalars_and_channels() -> None:
    shape = (2, 2, 3)
    theta = np.broadcast_to(A([1.0, 2.0]).reshape(2, 1, 1), shape)
    node = nir.IF(np.ones(shape, np.float32), theta.astype(np.float32), np.zeros(shape, np.float32))
    (found,) = read(net(node, shape=shape)).neurons
    assert (found.params["gain"].shape, found.params["theta"].tolist()) == ((), [1, 2])


def test_dt_from_the_metadata() -> None:
    made = net(lif(), metadata={"dt": 0.25})
    found, notes = read_nir(As(shaped(made, (1,))))
    assert found.dt == 0.25 and "dt = 0.25s, from the metadata of the graph" in notes
    found, notes = read_nir(As(shaped(made, (1,))), dt=0.5)
    assert found.dt == 0.5 and "dt = 0.5s, as asked" in notes
    made.nodes["a"].metadata = {"dt": 0.125}
    with pytest.raises(CompileError, match=r"several dt: 0\.25s from the metadata of the graph, 125ms from the metadata of 'a'"):
        read_nir(As(shaped(made, (1,))))


def test_conventions_are_recorded() -> None:
    ledger = Ledger()
    _, notes = read_nir(As(shaped(net(lif()), (1,))), dt=DT, ledger=ledger)
    assert notes == [
        "dt = 976.5625us, as asked",
        "scheme=euler: forward Euler: a state keeps 1 - dt/tau, its input enters with dt/tau",
        "compare=>: a neuron spikes above its threshold",
        "reset=v_reset: a spike sets v to v_reset in the same step",
        "input_kind=spike: inputs are spikes, 0 or 1",
    ]
    assert [(e.pass_name, e.kind, e.what) for e in ledger] == [("nir", "convention", note) for note in notes]


def test_a_step_longer_than_tau_is_told() -> None:
    _, notes = read_nir(As(shaped(net(nir.LI(full(DT / 2), full(1.0), full(0.0))), (1,))), dt=DT)
    assert "'a' is stepped with dt > tau: decay is -1, so its state swings" in notes


def test_whole_numbers_and_half_precision_are_numbers() -> None:
    node = nir.IF(A([1], np.int64), A([2], np.float16), A([0], np.int8))
    assert run(net(node), column(1, 1, 1)).ravel().tolist() == [0, 0, 1]
    (found,) = read(net(node)).neurons
    assert {array.dtype for array in found.params.values()} == {np.dtype(np.float32)}


def test_a_file_and_its_object_are_the_same(tmp_path: Path) -> None:
    made = nir.NIRGraph({"in": nir.Input(A([1])), "1": lif(), "out": nir.Output(A([1]))}, [("in", "1"), ("1", "out")])
    nir.write(tmp_path / "x.nir", made)
    one, two = read_nir(tmp_path / "x.nir", dt=DT)[0], read_nir(made, dt=DT)[0]
    assert str(one).replace("x.nir", "").replace("@x", "") == str(two).replace("nir.NIRGraph", "").replace("@nir ", " ")


# ------------------------------------------------------------------------------------------- random networks, simulated


def simulate(
    made: Any, late: set[tuple[str, str]], x: Any, compare: str, reset: str, current: str, integrator: str
) -> dict[str, Any]:
    """NIR's equations with forward Euler, one node after the other, one step after the other."""
    states: dict[str, dict[str, Any]] = {name: {} for name in made.nodes}
    past: list[dict[str, Any]] = []
    above = {">": np.greater, ">=": np.greater_equal}[compare]
    shapes = {name: node.output_type["output"] for name, node in made.nodes.items()}

    def value(name: str, now: dict[str, Any], t: int) -> Any:
        if name in now:
            return now[name]
        node, kind = made.nodes[name], type(made.nodes[name]).__name__
        if kind == "Input":
            now[name] = x[t]
            return x[t]
        total: Any = 0.0
        for a, b in made.edges:
            if b != name or kind == "Delay":
                continue
            if (a, b) in late:
                total = total + (past[-1][a] if past else np.zeros(shapes[a]))
            else:
                total = total + value(a, now, t)
        now[name] = compute(name, node, kind, total, now, t)
        return now[name]

    def compute(name: str, node: Any, kind: str, total: Any, now: dict[str, Any], t: int) -> Any:
        state = states[name]
        v = state.get("v", 0.0)
        if kind == "Delay":
            (source,) = (a for a, b in made.edges if b == name)
            steps = np.rint(node.delay / DT).astype(int)
            frames = [frame[source] for frame in past] + (
                [value(source, now, t)] if not steps.all() else [np.zeros(node.delay.shape)]
            )
            return A([frames[t - d][i] if t >= d else 0.0 for i, d in enumerate(steps)])
        if kind in ("Linear", "Affine"):
            return node.weight @ total + (node.bias if kind == "Affine" else 0.0)
        if kind == "Scale":
            return node.scale * total
        if kind == "Output":
            return total
        if kind == "Threshold":
            return above(total, node.threshold).astype(float)
        if kind in ("I", "IF"):
            v = v + node.r * total * (DT if integrator == "seconds" else 1.0)
        elif kind in ("LI", "LIF"):
            v = v + DT / node.tau * ((node.v_leak - v) + node.r * total)
        else:
            before = state.get("i", 0.0)
            state["i"] = before + DT / node.tau_syn * (node.w_in * total - before)
            v = v + DT / node.tau_mem * ((node.v_leak - v) + node.r * (state["i"] if current == "new" else before))
        if kind in ("I", "LI", "CubaLI"):
            state["v"] = v
            return v
        s = above(v, node.v_threshold)
        lower = v - (node.v_threshold - node.v_reset) if reset == "subtract" else node.v_reset if reset == "v_reset" else 0.0
        state["v"] = np.where(s, lower, v)
        return s.astype(float)

    for t in range(len(x)):
        now: dict[str, Any] = {}
        for name in made.nodes:
            value(name, now, t)
        past.append(now)
    return {name: A([frame[name] for frame in past]) for name in made.nodes}


@st.composite
def networks(draw: Callable[..., Any]) -> Any:
    """Two or three layers with recurrent, feedback and skip edges; every number dyadic."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def numbers(choices: Any, size: int) -> Any:
        per = draw(st.booleans())
        return rng.choice(choices, size) if per else np.full(size, rng.choice(choices))

    def neuron(kind: str, n: int) -> Any:
        tau, r, leak = [2 * DT, 4 * DT], [0.5, 1.0, 2.0, 4.0], [0.0, 0.0, 0.5]
        spiking = {"v_threshold": numbers([0.25, 0.5, 1.0], n), "v_reset": numbers([0.0, 0.0, -0.25, 0.125], n)}
        if kind == "Threshold":
            return nir.Threshold(numbers([0.0, 0.5, 1.0], n))
        if kind in ("I", "IF"):
            return nir.I(numbers(r, n)) if kind == "I" else nir.IF(numbers(r, n), **spiking)
        if kind in ("LI", "LIF"):
            base = {"tau": numbers(tau, n), "r": numbers(r, n), "v_leak": numbers(leak, n)}
        else:
            base = {"tau_syn": numbers(tau, n), "tau_mem": numbers(tau, n), "r": numbers(r, n), "v_leak": numbers(leak, n)}
            base["w_in"] = numbers([0.5, 1.0, 2.0], n)
        return getattr(nir, kind)(**base, **(spiking if kind.endswith("IF") else {}))

    def weights(out: int, into: int) -> Any:
        weight = rng.integers(-8, 9, (out, into)) / 4
        return nir.Affine(weight, rng.integers(-2, 3, out) / 4) if draw(st.booleans()) else nir.Linear(weight)

    sizes = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 4)))]
    nodes: dict[str, Any] = {"in.0": nir.Input(A([sizes[0]]))}
    edges: list[tuple[str, str]] = []
    late: set[tuple[str, str]] = set()
    last, looped = "in.0", False
    layers: list[tuple[str, int]] = []
    for index, n in enumerate(sizes[1:], start=1):
        spiking = index < len(sizes) - 1 or draw(st.booleans())
        kind = draw(st.sampled_from(["IF", "LIF", "CubaLIF", "Threshold"] if spiking else ["I", "LI", "CubaLI"]))
        w, cell = f"w{index}", f"{kind}.{index}"
        nodes[w], nodes[cell] = weights(n, sizes[index - 1]), neuron(kind, n)
        if draw(st.booleans()):
            nodes[f"d{index}"] = nir.Delay(rng.integers(0, 4, sizes[index - 1]) * DT)
            edges += [(last, f"d{index}"), (f"d{index}", w)]
        else:
            edges.append((last, w))
        edges.append((w, cell))
        extra = draw(st.sampled_from(["", "self", "back", "skip", "direct"])) if kind != "Threshold" else ""
        if extra == "self" or (extra == "back" and layers and spiking):
            target, size = (cell, n) if extra == "self" else layers[-1]
            nodes[f"r{index}"] = weights(size, n)
            edges += [(cell, f"r{index}"), (f"r{index}", target)]
            delayed = [nodes[name] for a, name in edges if a == target and name.startswith("d")]
            if extra == "self" or not delayed or delayed[0].delay.min() == 0:
                late.add((cell, f"r{index}"))
            looped = looped or extra == "back"
        elif extra == "direct":
            edges.append((cell, cell))
            late.add((cell, cell))
        elif extra == "skip" and not looped and index > 1:
            nodes[f"s{index}"] = weights(n, sizes[0])
            edges += [("in.0", f"s{index}"), (f"s{index}", cell)]
            looped = True
        layers.append((cell, n))
        last = cell
    nodes["out"] = nir.Output(A([sizes[-1]]))
    edges.append((last, "out"))
    rng.shuffle(edges)
    made = nir.NIRGraph(nodes, [(str(a), str(b)) for a, b in edges], type_check=False)
    # A membrane that feeds itself gains up to 8 bits a step; float64 has 53.
    steps = 5 if any(type(nodes[a]).__name__ in ("I", "LI", "CubaLI") for a, _ in late) else 10
    x = (rng.random((steps, sizes[0])) < 0.6).astype(float)
    return made, late, x


CONVENTIONS = {
    "compare": st.sampled_from([">", ">="]),
    "reset": st.sampled_from(["v_reset", "zero", "subtract"]),
    "current": st.sampled_from(["new", "old"]),
    "integrator": st.sampled_from(["step", "seconds"]),
}


@settings(max_examples=150, deadline=None)
@given(networks(), st.fixed_dictionaries(CONVENTIONS))
def test_random_networks_equal_a_plain_simulation(case: Any, conventions: Any) -> None:
    made, late, x = case
    expected = simulate(made, late, x, **conventions)
    found, _ = read_nir(made, dt=DT, **conventions)
    # All numbers are exact in float64; the input is made so, and every sum after it.
    wide = verify(found.with_nodes(widened(node) for node in found.nodes))
    names = {node.loc.path: node.name for node in wide.nodes if node.loc and not isinstance(node, (Add, Gather))}
    paths = [path for path in made.nodes if type(made.nodes[path]).__name__ not in ("Output", "Delay")]
    result = interpret(wide, {"in_0": x[None]}, record=[names[path] for path in paths])
    for path in paths:
        assert np.array_equal(result.records[names[path]][0], expected[path]), path
    assert np.array_equal(result.outputs["out"][0], expected["out"])


def widened(node: Any) -> Any:
    from dataclasses import replace

    return replace(node, type=replace(node.type, dtype="f64")) if node.op == "input" else node


# ----------------------------------------------------------------------------------------------------------- write, read


@settings(max_examples=100, deadline=None)
@given(networks(), st.fixed_dictionaries({**CONVENTIONS, "scheme": st.sampled_from(["euler", "exponential", "exact"])}), st.data())
def test_reading_what_was_written_gives_the_same_text(case: Any, conventions: Any, data: Any) -> None:
    import tempfile

    made, _, _ = case
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    for node in made.nodes.values():  # numbers that round
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and key != "delay":
                wild = (value * rng.uniform(0.5, 20 if key.startswith("tau") else 1.5, value.shape)).astype(dtype)
                setattr(node, key, wild)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):
            (Path(folder) / name).mkdir()
        theirs, ours = Path(folder) / "one" / "x.nir", Path(folder) / "two" / "x.nir"
        nir.write(theirs, made)
        first, _ = read_nir(theirs, dt=DT, **conventions)
        ledger = Ledger()
        write_nir(first, ours, ledger=ledger)
        assert [entry.text() for entry in ledger] == []
        again, _ = read_nir(ours)
        assert str(again) == str(first)
        assert again == first
        content = ours.read_bytes()
        write_nir(again, ours)
        assert ours.read_bytes() == content
        nir.read(ours, type_check=False)


def written(made: Graph, tmp_path: Path, **options: Any) -> Graph:
    write_nir(made, tmp_path / "g.nir", **options)
    return read_nir(tmp_path / "g.nir")[0]


def same_function(one: Graph, two: Graph, shape: Any, name: str = "in") -> None:
    x = (np.random.default_rng(1).random((2, 20, *shape)) < 0.5).astype(np.float32)
    left, right = interpret(one, {name: x}).outputs, interpret(two, {name: x}).outputs
    assert left.keys() == right.keys()
    for key in left:
        assert np.array_equal(left[key], right[key])


def test_every_operation_that_nir_has_is_written(tmp_path: Path) -> None:
    made = sir(
        """
  %in = input : spike<2x6x6>
  %c = conv(%in) weight=@w padding=(1, 1) : value<2x6x6>
  %n = neuron @leaky(%c) beta=0.5 theta=[0.5, 1.0] : spike<2x6x6>, v: value<2x6x6>
  %p = pool(%n) mode=average kernel=(2, 2) stride=(2, 2) padding=(0, 0) : graded<2x3x3>
  %s = scale(%p) factor=2.0 : graded<2x3x3>
  %f = reshape(%s[t-2]) shape=(18,) : graded<18>
  %d = sparse(%f) weight=[0.5, -1.0, 2.0] indices=i32[1, 4, 17] indptr=i32[0, 2, 3] fan_in=18 : value<2>
  %a = add(%d, %d, %d[t-1]) : value<2>
  output %a
  output second = %f""".replace("@w", "f32[[[[1.0]], [[2.0]]], [[[0.5]], [[-1.0]]]]").replace("padding=(1, 1)", "", 1),
        programs=LEAKY.text(),
    )
    again = written(made, tmp_path, dt=1e-3)
    assert [name for name, _ in again.outputs] == ["a", "second"]
    same_function(made, again, (2, 6, 6))


def test_a_delay_per_source_is_written_and_one_per_synapse_refused(tmp_path: Path) -> None:
    late = A([[0, 3], [0, 3]], np.int32)
    made = graph(spikes((2,)), dense("d", "in", A([[1, 2], [3, 4]], np.float32), delay=late), dt=DT)
    same_function(made, written(made, tmp_path), (2,))
    (tmp_path / "g.nir").unlink()
    made = graph(spikes((2,)), dense("d", "in", A([[1, 2], [3, 4]], np.float32), delay=A([[0, 3], [1, 3]], np.int32)), dt=DT)
    assert refused(made, tmp_path) == "error[SPK202]: %d: has a delay per synapse; NIR has delays per source only"


FOREIGN = {
    "lif, decay applied to the sum": "v = beta * (v + x)\n s = v > theta\n v = select(s, 0, v)",
    "lif, reset by a product": "v = beta * v + x\n s = v > theta\n v = v - s * v",
    "lif by subtraction": "v = x + v * beta\n s = theta < v\n v = v - s * theta",
    "lif, at the threshold": "v = beta * v + (1 - beta) * x\n s = v >= theta\n v = select(s, 0, v)",
    "lif with a bias": "v = beta * v + x + 0.25\n s = v > theta\n v = select(s, -0.5, v)",
    "integrate and fire": "v = v + x * beta\n s = v > theta\n v = select(s, 0, v)",
    "cuba": "i = 0.25 * i + x\n v = beta * v + 2 * i\n s = v > theta\n v = select(s, 0, v)",
    "cuba with the old current": "v = beta * v + i\n i = 0.25 * i + x\n s = v > theta\n v = select(s, 0, v)",
    "a threshold": "s = x > theta + beta",
}


def foreign(body: str, emits: str = "s") -> Program:
    states = ", ".join(f"{name} = 0" for name in ("i", "v") if f"{name} =" in body)
    head = f"neuron @other(x) params(beta, theta){f' state({states})' if states else ''}"
    return parse_program(f"{head} {{\n{body}\nemit {emits}\n}}")


def population(found: Program, size: int = 3) -> Neuron:
    params = {"beta": A([0.5, 0.25, 0.75], np.float32)[:size], "theta": A(0.5, np.float32)}
    return Neuron(name="n", inputs=(Ref("d"),), program=found, params={k: params[k] for k in found.params})


@pytest.mark.parametrize("name", FOREIGN)
def test_neurons_of_other_origin_are_matched(name: str, tmp_path: Path) -> None:
    ledger = Ledger()
    weights = A([[1.0, -0.5], [0.5, 1.0], [0.25, 0.5]], np.float32)
    made = graph(spikes((2,)), dense("d", "in", weights), population(foreign(FOREIGN[name])), dt=DT)
    again = written(made, tmp_path, ledger=ledger)
    same_function(made, again, (2,))
    kind = {"in": "IF", "cu": "CubaLIF", "a ": "Threshold"}.get(name[:2], "LIF")
    assert [e.text() for e in ledger] == [f"nir: exact: %n: @other is NIR's {kind}"]


def test_readouts_of_other_origin_are_matched(tmp_path: Path) -> None:
    for body, kind in [("v = beta * v + x", "LI"), ("v = v + x * theta", "I"), ("i = 0.5 * i + x\n v = beta * v + i", "CubaLI")]:
        program_ = foreign(body, "v")
        made = graph(spikes((2,)), dense("d", "in", np.ones((3, 2), np.float32)), population(program_), dt=DT)
        again = written(made, tmp_path)
        (node,) = again.neurons
        assert node.program.name.startswith(f"nir_{kind.lower()}")
        same_function(made, again, (2,))


def test_rounding_of_a_written_neuron_is_told(tmp_path: Path) -> None:
    ledger = Ledger()
    made = graph(spikes((2,)), dense("d", "in", np.ones((1, 2), np.float32)), leaky("n", "d", 0.3, 0.1), dt=1e-3)
    read_back = written(made, tmp_path, ledger=ledger)
    moved = [e for e in ledger if e.kind == "approximation"]
    assert all(e.largest < 1e-7 for e in moved)
    assert read_back.neurons[0].params["decay"] == pytest.approx(0.3, abs=1e-7)


def refused(made: Graph, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(CompileError) as error:
        write_nir(made, tmp_path / "g.nir", **options)
    assert not (tmp_path / "g.nir").exists()
    return str(error.value)


def test_what_nir_cannot_say_is_refused_all_at_once(tmp_path: Path) -> None:
    one = A([[1.0]], np.float32)
    delayed = foreign("r = v > theta\n v = beta * v + x - r * theta\n s = v > theta")
    nodes = [
        spikes((1,)),
        dense("d", "in", one),
        population(delayed, 1),
        Constant(name="k", value=A([1.0], np.float32)),
        Scale(name="o", inputs=(Ref("in"),), factor=A(1.0, np.float32), offset=A(1.0, np.float32)),
        Gather(name="g", inputs=(Ref("in"),), indices=A([0, 0])),
        Reshape(name="r", inputs=(Ref("in"),), shape=(1, 1)),
        leaky("port", "d"),
    ]
    made = graph(*nodes, out=["n", "k", "o", "g", "r", ("v", Ref("port", "v"))], dt=DT)
    text = refused(made, tmp_path)
    lines = {line.partition(": %")[2].partition(":")[0]: line for line in text.splitlines() if "%" in line}
    assert lines["k"] == "error[SPK202]: %k: NIR has no operation 'constant'"
    assert lines["o"] == "error[SPK202]: %o: adds an offset, which NIR's Scale does not"
    assert lines["g"] == "error[SPK202]: %g: NIR cannot select or permute elements"
    assert lines["r"] == "error[SPK202]: %r: NIR can merge axes, but not make (1, 1) of (1,)"
    assert lines["port"] == "error[SPK202]: %port: is read at its port 'v', which NIR cannot say"
    assert lines["n"].startswith("error[SPK201]: %n: NIR has no neuron that computes @other (")


def test_what_else_is_refused_when_writing(tmp_path: Path) -> None:
    weight = A([[1.0]], np.float32)
    base = [spikes((1,)), dense("d", "in", weight), leaky("n", "d")]
    wide = [spikes((1, 2, 2)), Pool(name="p", inputs=(Ref("in"),), mode="max", kernel=(2, 2))]
    growing = [spikes((1,)), dense("d", "in", weight), leaky("n", "d", beta=1.5)]
    two = parse_program("neuron @two(x, y) state(v = 0) {\n v = v + x - y\n emit v\n}")
    several = [*base[:2], Neuron(name="n", inputs=(Ref("d"), Ref("d")), program=two)]
    late = [*base[:2], Scale(name="n", inputs=(Ref("d", delay=1, init=A([[1.0]])),), factor=A(1.0))]
    fixed = sir("%in = input : spike<1>\n%d = dense(%in) weight=i8[[1]] : value<1>\noutput %d", level="fixed")
    cases: list[tuple[Graph, dict[str, Any], str]] = [
        (
            graph(*base),
            {},
            "error[SPK001]: %n: tau of NIR is in seconds, and the graph does not say how long a step is\n  fix: give dt",
        ),
        (graph(*base, dt=DT), {"dt": 1.0}, "error[SPK001]: dt is 1 s, but the graph's own is 0.000976562 s\n  fix: leave dt out"),
        (graph(*base), {"dt": -1.0}, "error[SPK001]: dt must be a positive number of seconds, not -1.0"),
        (
            graph(*base),
            {"scheme": "midpoint"},
            "error[SPK001]: scheme is 'midpoint'\n  fix: choose one of euler, exponential, exact",
        ),
        (graph(*wide), {}, "error[SPK202]: %p: NIR has no max pool over 2 axis of space"),
        (graph(*growing, dt=DT), {}, "error[SPK201]: %n: a decay of 1.5 belongs to no time constant (scheme euler)"),
        (graph(*several), {}, "error[SPK201]: %n: has 2 inputs; NIR's neurons have one, a sum"),
        (graph(*late), {}, "error[SPK202]: %d: is read with values from before step 0, which NIR cannot say"),
        (
            fixed,
            {},
            "error[SPK202]: NIR holds real numbers; this graph is at the fixed level\n  fix: write the graph before quantization",
        ),
    ]
    for made, options, expected in cases:
        assert refused(made, tmp_path, **options) == expected
    with pytest.raises(CompileError, match=r"nowhere/g.nir: cannot be written \(No such file or directory\)"):
        write_nir(graph(*base, dt=DT), tmp_path / "nowhere" / "g.nir")


def test_an_initial_membrane_is_written_only_as_v_leak(tmp_path: Path) -> None:
    made = read(net(nir.LI(full(2 * DT), full(4.0), full(1.0))), dt=DT, initial="v_leak", name="g")
    assert written(made, tmp_path).neurons[0].init == made.neurons[0].init == {"v": A(1.0)}
    begun = {"init": {"v": A([0.5], np.float32)}}
    some = graph(spikes((1,)), dense("d", "in", A([[1.0]], np.float32)), leaky("n", "d", **begun), dt=DT)
    summed = parse_program("neuron @sum(x) state(v = 0) {\n v = v + x\n emit v\n}")
    other = graph(spikes((1,)), Neuron(name="n", inputs=(Ref("in"),), program=summed, **begun))
    (tmp_path / "g.nir").unlink()
    assert refused(some, tmp_path) == "error[SPK201]: %n: its membrane begins neither at 0 nor where it rests, which NIR cannot say"
    assert refused(other, tmp_path) == "error[SPK201]: %n: its membrane does not begin at 0, which NIR's I does"


def test_a_contradiction_with_the_file_is_refused(tmp_path: Path) -> None:
    made = read(net(lif()), dt=DT, name="g", reset="subtract")
    write_nir(made, tmp_path / "g.nir")
    with pytest.raises(CompileError) as error:
        read_nir(tmp_path / "g.nir", reset="zero")
    assert str(error.value) == (
        "g.nir (a): error[SPK001]: reset is 'zero', but the file says of itself that it was written with 'subtract'\n  fix: leave reset out"
    )
    assert read_nir(tmp_path / "g.nir", reset="subtract")[0] == read_nir(tmp_path / "g.nir")[0]


def test_models_are_known_by_their_programs() -> None:
    for model in (
        Model("CubaLIF", "exact", True, ">=", "subtract", True, "old"),
        Model("LI"),
        Model("I"),
        Model("LIF", nonzero=True),
        Model("LIF", "exponential", True),
        Model("Threshold", compare=">="),
    ):
        assert model_of(program(model)) == model
    assert model_of(parse_program("neuron @nir_lif(x) state(v = 0) {\n v = v + x\n emit v\n}")) is None
    assert model_of(parse_program("neuron @lif(x) state(v = 0) {\n v = v + x\n emit v\n}")) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]), st.sampled_from(["euler", "exponential", "exact"]))
def test_numbers_survive_unfold_and_fold(seed: int, dtype: Any, scheme: str) -> None:
    rng = np.random.default_rng(seed)
    dt, n = 1e-3, 200
    fields = {
        "tau": dt * 10 ** rng.uniform(-0.5, 5, n),
        "r": rng.normal(size=n) * 10 ** rng.uniform(-3, 3, n),
        "v_leak": rng.normal(size=n),
    }
    fields["v_leak"][::3] = 0
    fields = {key: value.astype(dtype) for key, value in fields.items()}
    numbers = {key: value.astype(dtype) for key, value in fold("LI", fields, dt, scheme, "step").items()}
    tau, found, exact = unfold(numbers["decay"], {"r": (numbers["gain"], False), "v_leak": (numbers["rest"], True)}, {}, dt, scheme)
    again = fold("LI", {"tau": tau, **found}, dt, scheme, "step")
    assert exact
    assert all(np.array_equal(again[key].astype(dtype), numbers[key]) for key in numbers)


# ---------------------------------------------------------------------------------------------------------- bad input


def tree(**nodes: Any) -> dict[str, Any]:
    """in -> a -> out, with `a` and further nodes as given; `edges` may be given too."""
    edges = nodes.pop("edges", [("in", "a"), ("a", "out")])
    base = {"in": {"type": "Input", "shape": A([2])}, "out": {"type": "Output", "shape": A([2])}}
    table = np.empty((len(edges), 2), dtype=object)
    for index, edge in enumerate(edges):
        table[index] = edge
    return {"type": "NIRGraph", "nodes": {**base, **nodes}, "edges": table}


def prim(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


TWO = full(1.0, (2,))
LIF = prim("LIF", tau=TWO, r=TWO, v_leak=0 * TWO, v_threshold=TWO, v_reset=0 * TWO)
CONV = prim("Conv1d", weight=np.ones((1, 1, 4)), stride=1, padding="same", dilation=3, groups=1, bias=np.zeros(1))
IN3 = prim("Input", shape=A([1, 8]))


@pytest.mark.parametrize(
    ("given_tree", "options", "expected"),
    [
        (tree(a=LIF), {}, "x.nir (a): error[SPK001]: 'a' (LIF) is in seconds, and the file does not say how long a step is\n  fix: give dt, the seconds of one step, as the network was trained (command line: --dt 1ms)"),
        (tree(a=LIF), {"dt": 0.0}, "error[SPK001]: dt must be a positive number of seconds, not 0.0"),
        (tree(a=LIF), {"dt": 1.0, "scheme": "rk4"}, "error[SPK001]: scheme is 'rk4'\n  fix: choose one of euler, exponential, exact"),
        (tree(a=prim("LIFF")), {}, "x.nir (a): error[SPK101]: the primitive 'LIFF' is not one of NIR 1.0.8\n  fix: did you mean 'LIF'?"),
        (tree(a=prim("Linear")), {}, "x.nir (a): error[SPK003]: the Linear lacks 'weight'"),
        (tree(a={**LIF, "refractory": TWO}), {"dt": 1.0}, "x.nir (a): error[SPK101]: the LIF has a field 'refractory', which NIR 1.0.8 does not define\n  fix: choose one of metadata, r, tau, v_leak, v_reset, v_threshold"),
        (tree(a=LIF, edges=[("in", "b"), ("a", "out")]), {}, "x.nir: error[SPK003]: the edge 'in' -> 'b' names a node 'b' that does not exist\n  fix: the nodes are a, in, out"),
        (tree(a=LIF, edges=[("in", "a"), ("in", "a"), ("a", "out")]), {}, "x.nir: error[SPK003]: the edge 'in' -> 'a' is listed twice; whether it counts once or twice is not defined\n  fix: list it once"),
        (tree(a=LIF, edges=[("in", "a"), ("a", "in"), ("a", "out")]), {}, "x.nir (in): error[SPK003]: an edge from 'a' enters an Input"),
        (tree(a=LIF, edges=[("in", "a"), ("a", "out"), ("out", "a")]), {}, "x.nir (out): error[SPK003]: an edge to 'a' leaves an Output"),
        (tree(a=LIF, edges=[("in", "a")]), {}, "x.nir (out): error[SPK003]: no edge enters this Output"),
        (tree(a={**LIF, "tau": 0 * TWO}), {"dt": 1.0}, "x.nir (a): error[SPK003]: tau is 0 s; a time constant is greater than 0"),
        (tree(a={**LIF, "r": A([1.0, np.nan])}), {"dt": 1.0}, "x.nir (a): error[SPK305]: r holds nan (1 of 2)"),
        (tree(a={**LIF, "r": "one"}), {"dt": 1.0}, "x.nir (a): error[SPK003]: r holds <U3, not numbers"),
        (tree(a={**LIF, "r": A([1j, 1])}), {"dt": 1.0}, "x.nir (a): error[SPK003]: r holds complex128, not numbers"),
        (tree(a={**LIF, "r": np.ones(3)}), {"dt": 1.0}, "x.nir (a): error[SPK309]: r has shape (3,), which does not fit what enters, (2,)"),
        (tree(a=prim("Linear", weight=np.ones((2, 3)))), {}, "x.nir (a): error[SPK309]: weight takes 3 numbers, but shape (2,) enters"),
        (tree(a=prim("Linear", weight=np.ones((2, 2, 2)))), {}, "x.nir (a): error[SPK309]: weight has shape (2, 2, 2), not two axes (out, in)"),
        (tree(a=prim("Affine", weight=np.ones((2, 2)), bias=np.ones(3))), {}, "x.nir (a): error[SPK309]: bias has shape (3,), not (2,)"),
        (tree(a=prim("Linear", weight=np.ones((3, 2)))), {}, "x.nir (out): error[SPK309]: what enters has shape (3,), but (2,) is declared here"),
        (tree(a=prim("Delay", delay=-TWO)), {"dt": 1.0}, "x.nir (a): error[SPK306]: the delay -1.0 s is negative"),
        (tree(a=prim("Flatten", start_dim=1, end_dim=-1)), {}, "x.nir (a): error[SPK309]: start_dim is 1, but shape (2,) enters (batch is not counted)"),
        (tree(a=prim("SumPool2d", kernel_size=2, stride=2, padding=0)), {}, "x.nir (a): error[SPK309]: shape (2,) enters, not (channels, y, x)"),
        (tree(a=CONV, **{"in": IN3}), {}, "x.nir (a): error[SPK102]: padding 'same' of a kernel of 4 with dilation 3 differs between the sides\n  fix: write numbers"),
        (tree(a={**CONV, "stride": 2}, **{"in": IN3}), {}, "x.nir (a): error[SPK102]: padding 'same' with a stride of (2,) is not defined\n  fix: write numbers"),
        (tree(a={**CONV, "padding": "full"}, **{"in": IN3}), {}, "x.nir (a): error[SPK003]: padding is 'full'\n  fix: write numbers, 'same' or 'valid'"),
        (tree(a={**CONV, "input_shape": 9}, **{"in": IN3}), {}, "x.nir (a): error[SPK309]: input_shape is (9,), but (8,) enters"),
        (tree(a={**CONV, "stride": 1.5}, **{"in": IN3}), {}, "x.nir (a): error[SPK003]: stride is not a list of whole numbers"),
        (tree(a=prim("Scale", scale=np.ones(2)), **{"in": prim("Input", shape=A([2, 2]))}), {}, "x.nir (a): error[SPK309]: scale of shape (2,) could run along the first or the last axis of (2, 2)\n  fix: write it with shape (2, 1)"),
        (tree(a=prim("Scale", scale=TWO), b=prim("Scale", scale=TWO), edges=[("in", "a"), ("a", "b"), ("b", "a"), ("b", "out")]), {}, "x.nir: error[SPK307]: a cycle without a neuron or a delay: a -> b -> a"),
        (tree(a=LIF, b=LIF, edges=[("in", "a"), ("in", "b"), ("a", "b"), ("b", "a"), ("b", "out")]), {"dt": 1.0}, "x.nir (a): error[SPK307]: the cycle a -> b -> a can be entered at several places, so that NIR leaves open which edge is a step late\n  fix: put a Delay into the file, or choose recurrent='spikes': every edge from a spiking neuron within a cycle"),
        (tree(a={"type": "NIRGraph", "nodes": {"i": prim("Input", shape=A([2])), "j": prim("Input", shape=A([2])), "s": prim("Scale", scale=TWO), "o": prim("Output", shape=A([2]))}, "edges": [("i", "s"), ("j", "s"), ("s", "o")]}), {}, "x.nir (a): error[SPK102]: the nested graph needs one Input, not 2 ('i', 'j'): an edge to or from it does not say which\n  fix: move its nodes into the outer graph"),
        ({"type": "NIRGraph", "nodes": {}, "edges": []}, {}, "x.nir: error[SPK003]: the graph has no nodes"),
        (tree(a={"shape": TWO}), {}, "x.nir (a): error[SPK003]: the node has no type"),
        ({**tree(a=LIF), "edges": A([1, 2, 3])}, {}, "x.nir: error[SPK003]: the edges are not pairs of names"),
        (LIF, {}, "x.nir: error[SPK003]: holds LIF, not a NIRGraph\n  fix: write it as a graph with Input and Output"),
    ],
)  # fmt: skip
def test_bad_graphs(given_tree: Any, options: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    write_tree(given_tree, path)
    with pytest.raises(CompileError) as error:
        read_nir(path, **options)
    assert str(error.value) == expected


def test_a_cycle_with_two_entries_can_be_read_on_request() -> None:
    edges = [("in", "a"), ("in", "b"), ("a", "b"), ("b", "a"), ("b", "out")]
    found, _ = read_nir(As(tree(a=LIF, b=LIF, edges=edges)), dt=1.0, recurrent="spikes")
    assert [str(ref) for name in "ab" for ref in found[f"{name}_sum"].inputs] == ["%b[t-1]", "%in", "%a[t-1]", "%in"]


def test_all_problems_of_the_structure_at_once() -> None:
    with pytest.raises(CompileError) as error:
        read_nir(As(tree(a=prim("LIFF"), b=prim("Linear"), edges=[("in", "c"), ("a", "out")])))
    assert [d.code for d in error.value.diagnostics] == ["SPK101", "SPK003", "SPK003"]


JUNK: list[Any] = [
    None,
    "",
    "same",
    b"\xff",
    -1,
    0,
    2.5,
    np.nan,
    True,
    A([]),
    np.zeros((0, 3)),
    A([[1, 2], [3, 4]]),
    np.ones((2, 1, 1, 1)),
    A(["a", "b"]),
    A([b"a", None], dtype=object),
    A([1 + 1j]),
    {},
    {"type": "Input"},
    [1, "a"],
    np.datetime64(1, "s"),
    A([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
]


@settings(max_examples=300, deadline=None)
@given(networks(), st.data())
def test_junk_in_any_field_is_a_compile_error_or_read(case: Any, data: Any) -> None:
    given_tree = case[0].to_dict()
    places = [given_tree, *given_tree["nodes"].values()]
    for _ in range(data.draw(st.integers(1, 3))):
        node = data.draw(st.sampled_from(places))
        key = data.draw(st.sampled_from([*node, "metadata", "extra"]))
        node[key] = data.draw(st.sampled_from(JUNK))
        if key == "metadata":
            name = data.draw(
                st.sampled_from(["dt", *(f"spikec_{n}" for n in ("scheme", "reset", "dtype", "name", "recurrent", "input_kind"))])
            )
            node[key] = {name: data.draw(st.sampled_from(JUNK))}
    try:
        read_nir(As(given_tree), dt=data.draw(st.sampled_from([DT, None])))
    except CompileError as error:
        assert str(error)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as error:
        read_nir(tmp_path / "x.nir")
    assert str(error.value) == f"error[SPK002]: {tmp_path}/x.nir: no such file"


def test_not_hdf5_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CompileError) as error:
        read_nir(path)
    assert str(error.value) == f"error[SPK003]: {path}: not a readable HDF5 file (file signature not found)"
    nir.write(
        path,
        nir.NIRGraph(
            {"in": nir.Input(A([200])), "a": nir.Linear(np.random.rand(200, 200)), "out": nir.Output(A([200]))},
            [("in", "a"), ("a", "out")],
        ),
    )
    whole = path.read_bytes()
    read_nir(path)
    for size in (0, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CompileError) as error:
            read_nir(path)
        assert error.value.code == "SPK003"


def test_a_hole_in_a_file_is_an_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    nir.write(
        path, nir.NIRGraph({"in": nir.Input(A([2])), "a": lif(size=2), "out": nir.Output(A([2]))}, [("in", "a"), ("a", "out")])
    )
    whole = path.read_bytes()
    codes = set()
    for at in range(0, len(whole), 128):
        path.write_bytes(whole[:at] + bytes(128) + whole[at + 128 :])
        try:
            read_nir(path, dt=DT)
        except CompileError as error:
            codes |= {item.code for item in error.diagnostics}
    assert "SPK003" in codes


def test_other_hdf5_files(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(CompileError) as error:
        read_nir(path)
    assert str(error.value) == f"error[SPK003]: {path}: an HDF5 file, but not a NIR graph: it has no group 'node'"
    with h5py.File(path, "w") as file:
        file.attrs["__type__"] = "NIRGraphData"
    with pytest.raises(CompileError) as error:
        read_nir(path)
    assert str(error.value) == f"error[SPK003]: {path}: holds recorded data (NIRGraphData), not a graph"


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    write_tree(tree(a=prim("Scale", scale=TWO)), path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["scale"] = TWO
    with h5py.File(path, "r+") as file:
        del file["node/nodes/a/scale"]
        file["node/nodes/a/scale"] = h5py.ExternalLink("other.h5", "scale")
    with pytest.raises(CompileError) as error:
        read_nir(path)
    assert str(error.value) == "x.nir: error[SPK003]: 'nodes/a/scale' is a link; spikec reads what the file itself holds"


def test_datasets_stored_elsewhere_or_nowhere_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    (tmp_path / "raw").write_bytes(TWO.tobytes())
    layout = h5py.VirtualLayout((2,), np.float64)
    cases: list[tuple[Any, str]] = [
        (
            {"shape": (2,), "dtype": "f8", "external": [(str(tmp_path / "raw"), 0, 16)]},
            "is stored in another file; spikec reads what the file itself holds",
        ),
        (layout, "is stored in another file; spikec reads what the file itself holds"),
        (
            {"shape": (1 << 40,), "dtype": "f8", "chunks": (1024,)},
            "is damaged (it would have 8796093022208 bytes, and 0 are stored)",
        ),
    ]
    for how, message in cases:
        write_tree(tree(a=prim("Scale", scale=TWO)), path)
        with h5py.File(path, "r+") as file:
            group = file["node/nodes/a"]
            del group["scale"]
            if how is layout:
                group.create_virtual_dataset("scale", layout)
            else:
                group.create_dataset("scale", **how)
        with pytest.raises(CompileError) as error:
            read_nir(path)
        assert str(error.value) == f"x.nir: error[SPK003]: 'nodes/a/scale' {message}"


def test_without_h5py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import spikec.frontend.nir.file as module

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(CompileError) as error:
        read_nir(tmp_path / "x.nir")
    assert str(error.value) == "error[SPK009]: NIR files need h5py, which is not installed\n  fix: pip install 'spikec[nir]'"
    monkeypatch.undo()
    made = graph(spikes((1,)), values((1,), "b"), out=["in", "b"])
    assert [node.type.kind for node in written(made, tmp_path).inputs] == ["value", "spike"]


def test_sparse_and_shared_operands(tmp_path: Path) -> None:
    layer = Sparse(
        name="s", inputs=(Ref("in"),), weight=A([1.0, 2.0]), indices=A([0, 0]), indptr=A([0, 2]), fan_in=2, bias=A([0.5])
    )
    made = graph(spikes((2,)), layer, Add(name="t", inputs=(Ref("s"), Ref("s"))))
    ledger = Ledger()
    same_function(made, written(made, tmp_path, ledger=ledger), (2,))
    assert [e.text() for e in ledger] == ["nir: exact: %s: written as a dense layer"]
