"""Neuron programs up to algebra: a normal form, and matching it against a target's pattern.

Every value becomes a decision tree: inner nodes ask whether a polynomial is > 0 (or whether an opaque truth value holds), leaves
are polynomials over inputs, states and unknowns with numbers (arrays: one per neuron) as coefficients. Temporaries, the order of
statements, `v - s*v` against `select(s, 0, v)` and the like leave no trace. The user's parameters are bound to their numbers;
a pattern's stay unknowns, and matching solves for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from spikec.ir.neuron import Assign, Call, Expr, Num, Program, Var, substitute
from spikec.ir.types import Array

Monomial = tuple[str, ...]


class Opaque(str):
    """The atom of an operation that algebra does not look into; its text tells its operands, so equal ones are equal."""

    op: str
    args: tuple[Tree, ...]


@dataclass(frozen=True)
class Poly:
    """Sum of coefficient times product of atoms; the empty product is the constant term."""

    terms: Mapping[Monomial, Array]

    @staticmethod
    def of(value: Any, atom: str | None = None) -> Poly:
        """A constant, or value * atom."""
        coefficient = np.asarray(value, np.float64)
        if not coefficient.any() and not np.isnan(coefficient).any():
            return Poly({})
        return Poly({(atom,) if atom else (): coefficient})

    def add(self, other: Poly, sign: float = 1.0) -> Poly:
        """self + sign * other, without terms that cancel everywhere."""
        terms = dict(self.terms)
        for monomial, coefficient in other.terms.items():
            total = terms.get(monomial, np.float64(0)) + sign * coefficient
            if np.any(total):
                terms[monomial] = total
            else:
                terms.pop(monomial, None)
        return Poly(terms)

    def times(self, other: Poly) -> Poly:
        """The product."""
        result = Poly({})
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                result = result.add(Poly({tuple(sorted(left + right)): a * b}))
        return result

    def scaled(self, factor: Any) -> Poly:
        """Every coefficient times a number."""
        return Poly({m: c * factor for m, c in self.terms.items()})

    def constant(self) -> Array | None:
        """The value if there is no atom in it."""
        if not self.terms:
            return np.asarray(0.0)
        return self.terms.get(()) if len(self.terms) == 1 and () in self.terms else None

    def key(self) -> str:
        """Equal for equal polynomials."""
        parts = (f"{m}:{c.shape}:{c.tobytes().hex()}" for m, c in sorted(self.terms.items()))
        return ";".join(parts)


@dataclass(frozen=True)
class Condition:
    """`poly > 0`, or an opaque truth value where poly is None."""

    poly: Poly | None
    key: str
    opaque: Opaque | None = None


@dataclass(frozen=True)
class Branch:
    """yes where the condition holds, else no."""

    condition: Condition
    yes: Tree
    no: Tree


Tree = Poly | Branch


def _key(tree: Tree) -> str:
    if isinstance(tree, Poly):
        return tree.key()
    return f"[{tree.condition.key}?{_key(tree.yes)}|{_key(tree.no)}]"


def _branch(condition: Condition, yes: Tree, no: Tree) -> Tree:
    return yes if _key(yes) == _key(no) else Branch(condition, yes, no)


def _restrict(tree: Tree, key: str, truth: bool) -> Tree:
    """The tree where a condition is known."""
    if isinstance(tree, Poly):
        return tree
    if tree.condition.key == key:
        return _restrict(tree.yes if truth else tree.no, key, truth)
    return _branch(tree.condition, _restrict(tree.yes, key, truth), _restrict(tree.no, key, truth))


def _apply(operation: Callable[..., Tree], *trees: Tree) -> Tree:
    """An operation on leaves, lifted over all conditions."""
    for tree in trees:
        if isinstance(tree, Branch):
            condition = tree.condition
            yes = _apply(operation, *(_restrict(t, condition.key, True) for t in trees))
            no = _apply(operation, *(_restrict(t, condition.key, False) for t in trees))
            return _branch(condition, yes, no)
    return operation(*trees)


ONE, ZERO = Poly.of(1.0), Poly.of(0.0)


def _greater(a: Poly, b: Poly) -> Tree:
    difference = a.add(b, -1.0)
    value = difference.constant()
    if value is not None and value.ndim == 0:
        return ONE if value > 0 else ZERO
    return Branch(Condition(difference, f"{difference.key()}>0"), ONE, ZERO)


def _not(tree: Tree) -> Tree:
    return _apply(lambda p: ONE.add(p, -1.0), tree)


def _choose(condition: Tree, yes: Tree, no: Tree) -> Tree:
    if isinstance(condition, Poly):
        value = condition.constant()
        assert value is not None and value.ndim == 0, "a truth value is 0 or 1 once its conditions are known"
        return yes if value else no
    key = condition.condition.key
    return _branch(
        condition.condition,
        _choose(condition.yes, _restrict(yes, key, True), _restrict(no, key, True)),
        _choose(condition.no, _restrict(yes, key, False), _restrict(no, key, False)),
    )


def _opaque(op: str, *args: Tree) -> Tree:
    values = [arg.constant() if isinstance(arg, Poly) else None for arg in args]
    if op in _FOLDED and all(value is not None for value in values):
        return Poly.of(_FOLDED[op](*values))
    return Poly({(_atom(op, *args),): np.asarray(1.0)})


def _atom(op: str, *args: Tree) -> Opaque:
    atom = Opaque(f"{op}({','.join(_key(arg) for arg in args)})")
    atom.op, atom.args = op, args
    return atom


_FOLDED: dict[str, Callable[..., Any]] = {"exp": np.exp, "floor": np.floor, "round": np.rint, "rem": np.remainder}


def _divide(a: Poly, b: Poly) -> Tree:
    value = b.constant()
    if value is None or not np.all(value):
        return _opaque("/", a, b)
    return a.scaled(1.0 / value)


def _tree(expr: Expr, env: Mapping[str, Tree]) -> Tree:
    if isinstance(expr, Num):
        return Poly.of(float(expr.value))
    if isinstance(expr, Var):
        return env[expr.name]
    assert isinstance(expr, Call)
    args = [_tree(arg, env) for arg in expr.args]
    op = expr.op
    if op == "select":
        return _choose(args[0], args[1], args[2])
    simple: dict[str, Callable[..., Tree]] = {
        "+": lambda a, b: a.add(b),
        "-": lambda a, b: a.add(b, -1.0),
        "*": lambda a, b: a.times(b),
        "/": _divide,
        "neg": lambda a: a.scaled(-1.0),
        ">": _greater,
        "<": lambda a, b: _greater(b, a),
    }
    if op in simple:
        return _apply(simple[op], *args)
    if op == ">=":
        return _not(_apply(lambda a, b: _greater(b, a), *args))
    if op == "<=":
        return _not(_apply(_greater, *args))
    if op == "not":
        return _not(args[0])
    if op == "and":
        return _choose(args[0], args[1], ZERO)
    if op == "or":
        return _choose(args[0], ONE, args[1])
    if op == "min":
        return _choose(_apply(_greater, *args), args[1], args[0])
    if op == "max":
        return _choose(_apply(_greater, *args), args[0], args[1])
    if op == "abs":
        return _choose(_apply(_greater, ZERO, args[0]), _apply(lambda a: a.scaled(-1.0), args[0]), args[0])
    if op in ("==", "!="):
        equal = _atom("==", *args)
        yes, no = (ONE, ZERO) if op == "==" else (ZERO, ONE)
        return Branch(Condition(None, str(equal), equal), yes, no)
    return _opaque(op, *args)


@dataclass(frozen=True)
class NormalForm:
    """Next states and emissions of a program as trees over inputs, states and unbound parameters."""

    inputs: tuple[str, ...]
    states: tuple[str, ...]
    next_states: Mapping[str, Tree]
    emits: Mapping[str, Tree]


def normal_form(program: Program, params: Mapping[str, Any] | None = None) -> NormalForm:
    """`params` binds parameters to numbers; without it they stay atoms named after themselves."""
    env: dict[str, Tree] = {name: Poly.of(1.0, name) for name in (*program.inputs, *program.state_names, "t")}
    for name in program.params:
        env[name] = Poly.of(params[name]) if params is not None else Poly.of(1.0, name)
    for statement in program.body:
        env[statement.name] = _tree(statement.expr, env)
    return NormalForm(
        program.inputs,
        program.state_names,
        {name: env[name] for name in program.state_names},
        {emit.name: env[emit.name] for emit in program.emits},
    )


@dataclass(frozen=True)
class Match:
    """How a program is an instance of a pattern.

    params: the pattern's parameters as numbers; gains: by what each input must be multiplied first; states: pattern
    state -> the program's state (a pattern state that stays unused is absent).
    """

    params: Mapping[str, Array]
    gains: tuple[Array, ...]
    states: Mapping[str, str]


class _Mismatch(Exception):
    """Two trees cannot be made equal; says why, for the user."""


class _Solver:
    def __init__(self, unknowns: tuple[str, ...], atoms: Mapping[str, str]) -> None:
        self.unknowns = unknowns
        #: Program atom -> pattern atom.
        self.atoms = dict(atoms)
        self.bound: dict[str, Array] = {}
        self.equations: list[tuple[Mapping[Monomial, Array], Array, Monomial]] = []

    def split(self, poly: Poly) -> dict[Monomial, dict[Monomial, Array]]:
        """Pattern polynomial by monomial in inputs and states; the coefficients are polynomials in the unknowns."""
        table: dict[Monomial, dict[Monomial, Array]] = {}
        for monomial, coefficient in poly.terms.items():
            outer = tuple(atom for atom in monomial if atom not in self.unknowns)
            inner = tuple(atom for atom in monomial if atom in self.unknowns)
            table.setdefault(outer, {})[inner] = coefficient
        return table

    def translated(self, poly: Poly) -> dict[Monomial, Array]:
        return {tuple(sorted(self.atoms.get(a, f"?{a}") for a in m)): c for m, c in poly.terms.items()}

    def pair(self, pattern: Poly, poly: Poly) -> None:
        """Find for every opaque atom of the pattern the program's atom of the same operation, and compare their operands."""
        for own in _opaques(pattern):
            for other in _opaques(poly):
                if other.op == own.op and other not in self.atoms and own not in self.atoms.values():
                    self.atoms[other] = own
                    for left, right in zip(own.args, other.args, strict=True):
                        self.tree(left, right, own.op)

    def solve(self, pattern: Poly, poly: Poly, *, up_to_scale: bool = False) -> None:
        self.pair(pattern, poly)
        wanted, given = self.split(pattern), self.translated(poly)
        if up_to_scale:
            for monomial, inner in wanted.items():
                if set(inner) == {()} and monomial in given:
                    factor = inner[()] / np.where(given[monomial] == 0, np.nan, given[monomial])
                    if not np.all(factor > 0):
                        raise _Mismatch("compares with the opposite sign")
                    given = {m: c * factor for m, c in given.items()}
                    break
        for monomial in given:
            if monomial not in wanted:
                names = " * ".join(a.lstrip("?") for a in monomial) or "a constant"
                raise _Mismatch(f"has a term in {names} that the native neuron lacks")
        for monomial, inner in wanted.items():
            self.equations.append((inner, given.get(monomial, np.asarray(0.0)), monomial))

    def finish(self) -> None:
        """Solve the collected equations: what one binds may decide the next."""
        waiting = self.equations
        while waiting:
            left = [equation for equation in waiting if not self.coefficient(*equation)]
            if len(left) == len(waiting):
                raise _Mismatch("does not determine the native neuron's parameters")
            waiting = left

    def coefficient(self, inner: Mapping[Monomial, Array], value: Array, monomial: Monomial) -> bool:
        """Use one equation; False if it has too many unknowns yet."""
        known, open_ = np.asarray(0.0), []
        for unknowns, coefficient in inner.items():
            if all(name in self.bound for name in unknowns):
                known = known + coefficient * math.prod((self.bound[name] for name in unknowns), start=np.ones(()))
            else:
                open_.append((unknowns, coefficient))
        with np.errstate(invalid="ignore"):  # an infinite threshold is met again in the next equation
            rest = np.where(value == known, 0.0, value - known)
        if not open_:
            if not np.allclose(
                rest, 0.0, rtol=0.0, atol=1e-12 * max(1.0, float(np.max(np.abs(value), initial=0, where=np.isfinite(value))))
            ):
                names = " * ".join(monomial) or "the constant term"
                raise _Mismatch(f"{names} has another factor than in the native neuron")
            return True
        # Linear in one unknown that is left, once what is known is put in.
        left = [[name for name in unknowns if name not in self.bound] for unknowns, _ in open_]
        if len(left[0]) != 1 or any(names != left[0] for names in left):
            return False
        (unknown,) = left[0]
        others = [(math.prod((self.bound[name] for name in names if name != unknown), start=np.ones(())), c) for names, c in open_]
        factor = sum(value * coefficient for value, coefficient in others)
        if not np.all(factor):
            return False
        self.bound[unknown] = np.asarray(rest / factor)
        return True

    def tree(self, pattern: Tree, tree: Tree, what: str) -> None:
        if isinstance(pattern, Poly) and isinstance(tree, Poly):
            self.solve(pattern, tree)
        elif isinstance(pattern, Branch) and isinstance(tree, Branch):
            left, right = pattern.condition, tree.condition
            if left.poly is None or right.poly is None:
                if left.opaque is None or right.opaque is None or left.opaque.op != right.opaque.op:
                    raise _Mismatch(f"{what} depends on a condition that the native neuron lacks")
                for own, other in zip(left.opaque.args, right.opaque.args, strict=True):
                    self.tree(own, other, what)
            else:
                self.solve(left.poly, right.poly, up_to_scale=True)
            self.tree(pattern.yes, tree.yes, what)
            self.tree(pattern.no, tree.no, what)
        else:
            raise _Mismatch(f"{what} depends on other conditions than in the native neuron")


def _opaques(poly: Poly) -> Iterator[Opaque]:
    for monomial in poly.terms:
        yield from (atom for atom in monomial if isinstance(atom, Opaque))


def _gains(form: NormalForm) -> tuple[Array, ...]:
    """The factor with which each input enters the states, from the first state that it enters alone."""
    gains = []
    for name in form.inputs:
        found = np.asarray(1.0)
        for tree in form.next_states.values():
            leaves = [leaf.terms[(name,)] for leaf in _leaves(tree) if (name,) in leaf.terms]
            if leaves:
                found = leaves[0]
                break
        gains.append(found)
    return tuple(gains)


def _leaves(tree: Tree) -> Iterator[Poly]:
    if isinstance(tree, Poly):
        yield tree
    else:
        yield from _leaves(tree.yes)
        yield from _leaves(tree.no)
        if tree.condition.poly is not None:
            yield tree.condition.poly


def match(program: Program, params: Mapping[str, Any], pattern: Program) -> Match | str:
    """The program as an instance of the pattern, or why it is none.

    Only the first emission has to agree; further emissions are the caller's business.
    """
    form, wanted = normal_form(program, params), normal_form(pattern)
    if len(form.inputs) != len(wanted.inputs):
        return f"it has {len(form.inputs)} inputs; the native neuron has {len(wanted.inputs)}"
    if len(form.states) > len(wanted.states):
        return f"it has {len(form.states)} states; the native neuron has {len(wanted.states)}"
    gains = _gains(form)
    if any(not np.all(np.isfinite(g)) or not np.all(g) for g in gains):
        return "an input has no effect on some of the neurons"
    scaled = normal_form(_rescaled(program), {**params, **{f"gain_{n}": 1.0 / g for n, g in zip(form.inputs, gains, strict=True)}})
    reasons = []
    for chosen in permutations(wanted.states, len(form.states)):
        atoms = {"t": "t", **dict(zip(form.states, chosen, strict=True)), **dict(zip(form.inputs, wanted.inputs, strict=True))}
        solver = _Solver(pattern.params, atoms)
        try:
            first = next(iter(wanted.emits)), next(iter(scaled.emits))
            for own, native in zip(form.states, chosen, strict=True):
                solver.tree(wanted.next_states[native], scaled.next_states[own], f"state {own}")
            solver.tree(wanted.emits[first[0]], scaled.emits[first[1]], f"the emitted {first[1]}")
            solver.finish()
        except _Mismatch as mismatch:
            reasons.append(str(mismatch))
            continue
        missing = [name for name in pattern.params if name not in solver.bound]
        if missing:
            reasons.append(f"leaves the native parameter {missing[0]} open")
            continue
        return Match(solver.bound, gains, {native: own for own, native in zip(form.states, chosen, strict=True)})
    return reasons[-1] if reasons else "it does not match"


def _rescaled(program: Program) -> Program:
    """The program with every input x replaced by gain_x * x, which `match` uses with the inverse gains."""
    swap = {name: Call("*", (Var(f"gain_{name}"), Var(name))) for name in program.inputs}
    body = tuple(Assign(s.name, substitute(s.expr, swap)) for s in program.body)
    params = (*program.params, *(f"gain_{name}" for name in program.inputs))
    return Program(program.name, program.inputs, params, program.states, body, program.emits)


def same_state(program: Program, params: Mapping[str, Any], emit: str) -> str | None:
    """The state whose value at the end of the step an emission is; None if it is none."""
    form = normal_form(program, params)
    wanted = _key(form.emits[emit])
    return next((name for name, tree in form.next_states.items() if _key(tree) == wanted), None)
