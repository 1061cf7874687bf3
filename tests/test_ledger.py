"""The ledger: entries in order, as text and as plain data, and what --strict makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nets import F, dense

from spikec.diagnostics import CODES, CompileError, Diagnostic, Loc
from spikec.ledger import Ledger


def filled() -> Ledger:
    ledger = Ledger()
    ledger.pass_name = "quantize"
    node = dense("fc1", "in", np.ones((1, 1), F), loc=Loc("model.py", 31, "net.fc1"))
    ledger.record(node, "exact", "the bias moves")
    ledger.record(node, "approximation", "weights to multiples of 0.5", changed=3, total=8, largest=0.25)
    ledger.record("", "approximation", "all of it", asked="--bits 4")
    ledger.record("l1", "convention", "measured", measured={"spikes before": 12.0, "spikes after": np.float64(13)})
    return ledger


def test_text() -> None:
    assert [e.text() for e in filled()] == [
        "quantize: exact: %fc1: the bias moves",
        "quantize: approximation: %fc1: weights to multiples of 0.5 (3 of 8, at most 0.25)",
        "quantize: approximation: all of it",
        "quantize: convention: %l1: measured; spikes before 12; spikes after 13",
    ]
    assert len(filled()) == 4


def test_plain_data() -> None:
    rows = json.loads(json.dumps(filled().as_json()))
    assert rows[1] == {
        "pass": "quantize", "node": "fc1", "kind": "approximation", "what": "weights to multiples of 0.5", "changed": 3, "total": 8,
        "largest": 0.25, "asked": "", "loc": {"file": "model.py", "line": 31, "path": "net.fc1"}, "measured": {},
    }  # fmt: skip
    assert rows[3]["measured"] == {"spikes before": 12.0, "spikes after": 13.0} and rows[3]["loc"] is None


def test_strict_refuses_what_was_not_asked_for() -> None:
    with pytest.raises(CompileError) as caught:
        filled().strict()
    assert str(caught.value) == "model.py:31 (net.fc1): error[SPK207]: quantize: %fc1: weights to multiples of 0.5"
    fine = Ledger()
    fine.record("", "approximation", "rounded", asked="--bits 4")
    fine.record("x", "exact", "moved")
    fine.strict()


def test_diagnostics() -> None:
    one = Diagnostic("SPK203", "too large", Loc("m.py"), ("because",), "make it smaller", "warning")
    assert str(one) == "m.py: warning[SPK203]: too large\n  note: because\n  fix: make it smaller"
    assert one.as_json() == {
        "code": "SPK203", "severity": "warning", "message": "too large", "loc": {"file": "m.py", "line": 0, "path": ""}, "notes": ["because"], "fix": "make it smaller",
    }  # fmt: skip
    assert [str(Loc("m.py", 3)), str(Loc("m.py", 3, "net")), str(Loc("m.py", 0, "net"))] == ["m.py:3", "m.py:3 (net)", "m.py (net)"]
    error = CompileError.many([one, Diagnostic("SPK001", "b")])
    assert error.code == "SPK203" and str(error) == f"{one}\nerror[SPK001]: b" and len(error.diagnostics) == 2
    with pytest.raises(ValueError, match="unknown diagnostic code"):
        Diagnostic("SPK999", "no")
    with pytest.raises(ValueError, match="at least one"):
        CompileError.many([])
    assert all(code.startswith("SPK") and len(code) == 6 and text for code, text in CODES.items())
