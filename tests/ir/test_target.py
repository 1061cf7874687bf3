"""Target files: what comes with spikec is consistent, and a wrong file is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from spikec.diagnostics import CompileError
from spikec.ir.neuron import Program
from spikec.ir.text import parse_program
from spikec.pipeline import PASSES
from spikec.target import load_target, parse_target, target_names

HEAD = 'name = "x"\ndescription = "d"\nbackend = "c"\npasses = ["canonicalise"]\nlevel = "float"\n'


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_consistent(name: str) -> None:
    target = load_target(name)
    assert target.name == name and target.description and target.level in ("float", "fixed", "placed")
    assert set(target.passes) <= set(PASSES)
    for number in target.numbers.values():
        assert number.source and number.status in ("measured", "published", "estimated", "chosen")
    for neuron in target.neurons:
        fixed = parse_program(neuron.fixed)
        assert all(state.dtype for state in fixed.states)
        assert set(neuron.late) | set(neuron.late.values()) <= set(fixed.params)
        if neuron.bias_synapse:
            assert {neuron.bias_synapse[k] for k in ("mantissa", "exponent", "memory")} <= set(fixed.params)
            assert neuron.bias_synapse["state"] in fixed.state_names
        implementation = neuron.implementation
        assert set(implementation["arguments"].values()) | set(implementation.get("one", ())) <= set(fixed.params)
        assert set(implementation["states"]) | set(implementation.get("begins", ())) <= set(fixed.state_names)
        assert set(implementation.get("inputs", fixed.inputs)) == set(fixed.inputs)
        assert set(implementation.get("divided", ())) <= set(implementation["arguments"])
        found = target.native(fixed)
        assert found is neuron or (found and found.name == neuron.name and found.pattern != neuron.pattern)
        if not neuron.pattern:
            continue
        pattern = parse_program(neuron.pattern)
        assert set(neuron.rules) == set(fixed.params), "every fixed parameter has its rule"
        assert {rule.split()[1] for rule in neuron.rules.values()} == set(pattern.params), (
            "and every parameter of the pattern is used"
        )
        assert fixed.inputs == pattern.inputs and fixed.state_names == pattern.state_names
        assert [e.name for e in fixed.emits] == [e.name for e in pattern.emits]


def test_targets_by_name() -> None:
    assert {"loihi2", "rpi", "rpi3", "rpi4", "rpi5", "rpi-armv7", "cortex-m4", "cortex-m7", "host", "reference"} <= set(
        target_names()
    )
    target = load_target("loihi2")
    assert target.integer("max_delay") == 62 and target.number("synapse_hop") == 1
    assert target.has("sum_max") and not target.has("colour")
    with pytest.raises(KeyError):
        target.number("colour")


def test_native_programs_may_show_their_states() -> None:
    target = load_target("loihi2")
    lif = parse_program(target.neurons[0].fixed)
    assert target.native(lif) is target.neurons[0] and target.native(lif.renamed("other")) is target.neurons[0]
    shown = Program(
        "p", lif.inputs, lif.params, lif.states, lif.body, (*lif.emits, parse_program("neuron @p(v) { emit v }").emits[0])
    )
    assert target.native(shown) is target.neurons[0]
    assert target.native(Program("p", lif.inputs, lif.params, lif.states, lif.body[:-1], lif.emits)) is None


@pytest.mark.parametrize("name", ["loihi3", "Loihi2", "", "..", "a/b", "missing.toml", "../targets/loihi2"])
def test_unknown_targets(name: str) -> None:
    with pytest.raises(CompileError) as caught:
        load_target(name)
    assert str(caught.value) == (
        f"error[SPK004]: unknown target '{name}'\n  fix: choose one of {', '.join(target_names())}, or a .toml file"
    )


def test_a_target_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD)
    assert load_target(str(path)).passes == ("canonicalise",)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CompileError, match=r"SPK012.*mine\.toml: "):
        load_target(str(path))


BAD = {
    "= 3": "Invalid statement (at line 1, column 1)",
    'name = "x"': "the key 'description' is missing",
    HEAD + "colour = 3": "unknown key 'colour' in the target",
    HEAD + "[numbers]\nhop = { value = 1, colour = 2 }": "unknown key 'colour' in numbers.hop",
    HEAD + '[numbers]\nhop = { unit = "s" }': "numbers.hop has no value",
    HEAD + "[numbers]\nhop = { value = true }": "numbers.hop has no value",
    HEAD
    + "[numbers]\nhop = { value = 1 }": "numbers.hop needs a source and a status out of measured, published, estimated, chosen",
    HEAD
    + '[numbers]\nhop = { value = 1, source = "s", status = "guessed" }': "numbers.hop needs a source and a status out of measured, published, estimated, chosen",
    HEAD + "[numbers]\nhop = 3": "numbers.hop must be a table",
    HEAD + "numbers = 3": "numbers must be a table",
    HEAD + "compiler = 3": "compiler must be a table",
    HEAD + "[compiler]\ncolour = 3": "unknown key 'colour' in compiler",
    HEAD + "[compiler]\nflags = 3": "compiler.flags must be plain text: letters, digits, spaces and _+=.,/-",
    HEAD + '[compiler]\nflags = "-O2 $(shell id)"': "compiler.flags must be plain text: letters, digits, spaces and _+=.,/-",
    HEAD + '[compiler]\nsystem = "dos"': "compiler.system must be one of linux, none",
    HEAD + "neuron = 3": "neuron must be a list of tables",
    HEAD + "[[neuron]]\ncolour = 3": "unknown key 'colour' in neuron",
    HEAD + '[[neuron]]\nname = "n"': "a neuron lacks the key 'fixed'",
    HEAD.replace('["canonicalise"]', '"canonicalise"'): "passes must be a list of names",
    HEAD.replace('"c"', "3"): "backend must be text",
    HEAD.replace('"float"', '"high"'): "level must be one of float, fixed, placed",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files(text: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_target(text, "mine.toml")
    assert str(caught.value) == f"error[SPK012]: mine.toml: {BAD[text]}"
