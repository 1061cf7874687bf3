"""The finished text: arrays as text or as a binary file, the source with its tables, the header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from spikec.backends.c.exprs import C_TYPES, literal
from spikec.backends.c.parts import API, KIND, WIDTH, Network, Port, event_room, width_of
from spikec.backends.c.plan import Halo, Layout, Stored
from spikec.backends.c.storage import Storage
from spikec.ir.ops import Ref
from spikec.ir.text import duration_text
from spikec.runtime.encoders import GOLDEN, mix

#: Arrays of at least so many elements go to a binary file if the numbers of a network would fill more text than that.
_LARGE: Final = 1024
_MUCH_TEXT: Final = 1 << 20
#: Bytes of constants in a network whose arrays may share their room.
_SMALL: Final = 1 << 14
#: Words of a binary file that are added up at a time.
_WORDS: Final = 1 << 20
#: Unsigned numbers may lie among signed ones of their size, which C may read as such.
_POOL: Final = {"uint16_t": "int16_t"}


class Assembly(Storage):
    """Source, header and data."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pools: list[tuple[str, str, list[str]]] = []  # C type, name and parts of an array of several

    binary = "weights.bin"  # the file of the large arrays
    marks = "SPK_ALIGNED"  # of an array as text

    def join(self) -> None:
        """Give arrays room behind them where it is read. In a small network those that need some lie in one array of their type:
        each is the room of the one before."""
        small = sum(array.nbytes for _, _, array in self.arrays) < _SMALL
        groups: dict[str, list[str]] = {}
        sizes = {name: array.size for name, _, array in self.arrays}
        for name, c_type, _ in self.arrays:
            if small and self.tails.get(name):
                groups.setdefault(_POOL.get(c_type, c_type), []).append(name)
        ends = {name: tail for name, tail in self.tails.items() if tail}
        for c_type, names in groups.items():
            # Arrays that need none may be the room of others.
            names += [name for name, other, _ in self.arrays if _POOL.get(other, other) == c_type and name not in names]
            names.sort(key=lambda name: -self.tails.get(name, 0))
            if len(names) < 2:
                continue
            behind, end = 0, 0
            for name in reversed(names):
                end = max(end, self.tails.get(name, 0) - behind)
                behind += sizes[name]
                ends.pop(name, None)
            ends[names[-1]] = end
            self.pools.append((c_type, self.name(f"{self.p}numbers_{c_type.removesuffix('_t')}"), names))
        self.arrays = [(name, c_type, np.pad(array, (0, ends.get(name, 0)))) for name, c_type, array in self.arrays]

    def data(self, embed: bool) -> tuple[str, bytes | None, str | None]:
        """The arrays: as text, or the large ones of a large network as a binary file and the source that links it."""
        text_size = sum(3 * a.size * max(1, a.itemsize // 2) for _, _, a in self.arrays)
        large = embed and text_size > _MUCH_TEXT
        texts, fields, blob = [], [], bytearray()
        pooled = {name for _, _, names in self.pools for name in names}
        contents = {
            name: array.view(np.int16) if c_type in _POOL else array for name, c_type, array in self.arrays if name in pooled
        }
        types = {name: c_type for name, c_type, _ in self.arrays}
        arrays = [item for item in self.arrays if item[0] not in pooled]
        for c_type, pool, names in self.pools:
            arrays.append((pool, c_type, np.concatenate([contents[name] for name in names])))
        for name, c_type, array in arrays:
            width = width_of(c_type)
            if large and array.size >= _LARGE:
                blob += bytes(-len(blob) % 64)
                fields.append((name, c_type, array.size, len(blob)))
                blob += np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
                assert array.itemsize == width
                continue
            kind = (
                next(k for k, v in C_TYPES.items() if v == c_type)
                if c_type in C_TYPES.values()
                else "i32"
                if c_type == "uint16_t"
                else "i64"
            )
            if c_type == "uint32_t":
                numbers = [f"{int(n)}u" for n in array]
            elif kind in ("f32", "f64", "i64"):
                numbers = [literal(n, kind) for n in array]
            else:
                numbers = [literal(n, "i32") for n in array.tolist()]
            rows = _rows(numbers or ["0"])
            texts.append(f"static const {c_type} {name}[{max(array.size, 1)}] {self.marks} = {{\n{rows}\n}};")
            at = 0
            for part in next((names for _, pool, names in self.pools if pool == name), ()):
                place = f"({name} + {at}u)"
                texts.append(f"#define {part} {place if types[part] == c_type else f'((const {types[part]} *){place})'}")
                at += contents[part].size
        if not fields:
            return "\n\n".join(texts), None, None
        blob += bytes(-len(blob) % 64)
        struct = [f"struct {self.p}weights {{"]
        struct += [f"  SPK_ALIGNED {c_type} {name}[{size}];" for name, c_type, size, _ in fields]
        struct += ["};", f"extern const struct {self.p}weights {self.p}weights;"]
        for name, _, _, at in fields:
            struct.append(f"typedef char {name}_check[offsetof(struct {self.p}weights, {name}) == {at} ? 1 : -1];")
        struct.append(f"typedef char {self.p}weights_check[sizeof(struct {self.p}weights) == {len(blob)} ? 1 : -1];")
        struct += [f"#define {name} {self.p}weights.{name}" for name, *_ in fields]
        note = f"/* Large arrays stand in {self.binary}, in this order, little-endian, each at a multiple of 64 bytes. */"
        linked = embedded("weights", self.p, len(blob))
        return "\n\n".join(["\n".join([note, *struct]), *texts]), bytes(blob), linked

    def view(
        self, member: str, size: int, kind: str, api: str, layout: Layout | None, shift: int, ring: int, halo: Halo | None = None
    ) -> str:
        """A row of the tables of views."""
        channels, space = layout or (0, 0)
        source = "SPK_FROM_U8" if kind == "u8" else API[kind]
        position = f"offsetof(struct {self.p}state, pos_{ring})" if ring > 1 else "0"
        base = f" + {halo.base * WIDTH[kind]}u" if halo else ""
        width, pitch = (halo.width, halo.pitch) if halo else (0, 0)
        return (
            f"{{offsetof(struct {self.p}state, {member}){base}, {position}, 0, {ring}u, {size}u, {channels}u, {space}u, "
            f"{width}u, {pitch}u, {source}, {API[api]}, {shift}}}"
        )

    def list_view(self, stored: Stored, api: str) -> str:
        """The same for a wire that is kept as a list of events; the ring's steps are as far apart as a list has room."""
        channels, space = stored.layout or (0, 0)
        position = f"offsetof(struct {self.p}state, pos_{stored.ring})" if stored.ring > 1 else "0"
        source = "SPK_FROM_LIST16" if stored.index == "uint16_t" else "SPK_FROM_LIST32"
        return (
            f"{{offsetof(struct {self.p}state, e_{stored.member}), {position}, offsetof(struct {self.p}state, n_{stored.member}), "
            f"{stored.ring}u, {stored.size}u, {channels}u, {space}u, 0u, {event_room(stored)}u, {source}, {API[api]}, 0}}"
        )

    def source(self, network: Network, data: str) -> str:
        """network.c."""
        p = self.p
        made = [member for member in self.ordered() if member.made]
        out = [
            f'#include "{header_name(p)}"',
            "",
            '#include "spk_core.h"',
            '#include "spk_int.h"' if self.integer else '#include "spk_float.h"\n#include "spk_int.h"',
            '#include "spk_vector.h"',
            "",
            f"typedef char {p}check_abi[SPK_ABI == 2 ? 1 : -1];",
            "",
            data,
            "",
            "/* The network's memory. Steps begin at 0; pos_N is where the current step lies in rings of N steps. */",
            f"struct {p}state {{",
            "  int32_t t;",
            *(f"  uint32_t pos_{ring};" for ring in sorted(self.rings)),
            f"  uint64_t count[{max(len(self.counters), 1)}];",
            *(f"  {'SPK_ALIGNED ' if m.aligned else ''}{m.c_type} {m.name}[{max(m.length, 1)}];" for m in self.ordered()),
            "};",
            *(f"enum {{ {p}at_{name} = {at} }}; /* where in {area} it lies */" for name, (area, at) in self.shared.items()),
            f"typedef char {p}check_size[sizeof(struct {p}state) + 63 <= {network.bytes} ? 1 : -1];",
            "",
            *(text + "\n" for text in self.functions),
            f"spk_status {p}step(spk_net *handle, const spk_in *in) {{",
            f"  struct {p}state *net = (struct {p}state *)(void *)handle;",
            *(["  spk_status status;"] if self.checks else []),
            *([] if not self.slots else [f"  uint32_t {', '.join(f'at_{r}_{d}' for r, d in sorted(self.slots))};"]),
            "  uint32_t i;",
            "  (void)i;",
            *([] if self.checks else ["  (void)in;"]),
            *self.checks,
        ]
        out.append("  if (net->t == INT32_MAX) { return SPK_E_STEPS; }" if self.uses_time else "")
        for ring in sorted(self.rings):
            out.append(f"  net->pos_{ring} = net->pos_{ring} + 1u == {ring}u ? 0 : net->pos_{ring} + 1u;")
        for ring, delay in sorted(self.slots):
            back = f"net->pos_{ring} >= {delay}u ? net->pos_{ring} - {delay}u : net->pos_{ring} + {ring - delay}u"
            out.append(f"  at_{ring}_{delay} = {back if delay else f'net->pos_{ring}'};")
        out += self.steps
        out += [
            "",
            "  if (net->t < INT32_MAX) { net->t++; }",
            "  return SPK_OK;",
            "}",
            "",
            f"void {p}reset(spk_net *handle) {{",
            f"  struct {p}state *net = (struct {p}state *)(void *)handle;",
            "  uint32_t i;",
            "  (void)i;",
            f"  memset(net, 0, {f'offsetof(struct {p}state, {made[0].name})' if made else 'sizeof *net'});",
            *(f"  net->pos_{ring} = {ring - 1}u;" for ring in sorted(self.rings)),
            *(f"  {line}" for line in self.initial),
            "}",
            "",
            *self.check(network),
            "",
            f"size_t {p}size(void) {{ return {network.bytes}u; }}",
            "",
            f"spk_status {p}init(void *memory, size_t bytes, spk_net **net) {{",
            "  if (memory == NULL || net == NULL || bytes < " + f"{network.bytes}u) {{ return SPK_E_MEMORY; }}",
            "  *net = (spk_net *)(void *)((unsigned char *)memory + (63u & (0u - (unsigned)((uintptr_t)memory & 63u))));",
            *([f"  {{ struct {p}state *state = (struct {p}state *)(void *)*net;"] if made else []),
            *(f"    {line}" for line in self.unpacks),
            *(["  }"] if made else []),
            f"  {p}reset(*net);",
            "  return SPK_OK;",
            "}",
            "",
        ]
        out += self.tables(network)
        return "\n".join(out) + "\n"

    def check(self, network: Network) -> list[str]:
        """The function that compares the linked weights with their sum."""
        p = self.p
        if network.binary is None:
            return [f"spk_status {p}check(void) {{ return SPK_OK; }}"]
        return [
            f"spk_status {p}check(void) {{",
            f"  const unsigned char *const bytes = (const unsigned char *)&{p}weights;",
            f"  return spk_sum(bytes, sizeof {p}weights / 8u) == 0x{checksum(network.binary):016x}u ? SPK_OK : SPK_E_WEIGHTS;",
            "}",
        ]

    def tables(self, network: Network) -> list[str]:
        """The tables at the end of network.c, and the functions that read through them."""
        p = self.p
        views = []
        for port in network.ports:
            stored = self.plan.read(Ref(*port.wire)).stored
            if stored.listed:
                views.append(self.list_view(stored, port.api))
            else:
                views.append(self.view(stored.member, stored.size, stored.kind, port.api, stored.layout, stored.shift, stored.ring))
        states = []
        for row, port in zip(self.states, network.states, strict=True):
            layout = self.plan.stored[row.node.name, ""].layout
            states.append(self.view(row.member, port.size, row.kind, port.api, layout, 0, 1, row.halo))
        out = []

        def table(c_type: str, name: str, rows: Sequence[str]) -> None:
            if rows:
                out.append(
                    f"static const {c_type} {p}{name}[{len(rows)}] = {{\n" + "\n".join(f"  {row}," for row in rows) + "\n};\n"
                )

        def rows(ports: Sequence[Port]) -> list[str]:
            return [f'{{"{q.name}", {q.size}u, {q.lag}u, {KIND[q.kind]}, {API[q.api]}}}' for q in ports]

        table("spk_port", "input_table", rows(network.inputs))
        table("spk_port", "port_table", rows(network.ports))
        table("spk_view", "port_view", views)
        table("spk_port", "state_table", rows(network.states))
        table("spk_view", "state_view", states)
        table("char *const", "counter_table", [f'"{name}"' for name in network.counters])

        def reader(name: str, what: str, count: int, ok: str, arguments: str) -> None:
            body = (
                f"  if ({what} >= {count}u) {{ return SPK_E_PORT; }}\n{ok}\n  return SPK_OK;"
                if count
                else (
                    "  "
                    + " ".join(f"(void){a.split()[-1].lstrip('*')};" for a in ["*net", what, *arguments.split(", ")])
                    + "\n  return SPK_E_PORT;"
                )
            )
            out.append(f"spk_status {p}{name}(const spk_net *net, uint32_t {what}, {arguments}) {{\n{body}\n}}\n")

        reader("read", "port", len(network.ports), f"  spk_view_read({p}port_view + port, net, values);", "void *values")
        reader(
            "read_events", "port", len(network.ports),
            f"  *count = spk_view_events({p}port_view + port, net, index);", "uint32_t *index, uint32_t *count",
        )  # fmt: skip
        reader("read_state", "state", len(network.states), f"  spk_view_read({p}state_view + state, net, values);", "void *values")
        reader(
            "read_counter", "counter", len(network.counters),
            f"  *value = ((const struct {p}state *)(const void *)net)->count[counter];", "uint64_t *value",
        )  # fmt: skip
        ref = {key: f"{p}{key}_table" if n else "NULL" for key, n in (
            ("input", len(network.inputs)), ("port", len(network.ports)),
            ("state", len(network.states)), ("counter", len(network.counters)),
        )}  # fmt: skip
        out.append(
            f"const spk_model {p}network = {{\n  SPK_ABI, {len(network.inputs)}u, {network.outputs}u, {len(network.ports)}u, "
            f'{len(network.states)}u, {len(network.counters)}u, "{self.graph.name}",\n'
            f"  {ref['input']}, {ref['port']}, {ref['state']}, {ref['counter']},\n"
            f"  {p}check, {p}size, {p}init, {p}reset, {p}step, {p}read, {p}read_events, {p}read_state, {p}read_counter,\n}};"
        )
        return out

    def header(self, network: Network) -> str:
        """network.h."""
        p, graph = self.p, self.graph
        big = p.upper()
        dt = "" if graph.dt is None else f", {duration_text(graph.dt)} a step"
        lines = [
            f"/* {header_name(p)} - the network '{graph.name}'{dt}. Written by spikec; the interface is explained in spk.h. */",
            f"#ifndef {big}NETWORK_H",
            f"#define {big}NETWORK_H",
            "",
            '#include "spk.h"',
            "",
            f"#define {big}BYTES {network.bytes}u /* for {p}init, whatever the alignment */",
            f"#define {big}INPUTS {max(len(network.inputs), 1)}",
            f"#define {big}STEP_US {_microseconds(graph.dt)}u /* a step; 0: not known, or no whole number */",
            "",
        ]
        for what, ports in (
            ("INPUT", network.inputs),
            ("OUTPUT", network.ports[: network.outputs]),
            ("PORT", network.ports[network.outputs :]),
            ("STATE", network.states),
        ):
            base = network.outputs if what == "PORT" else 0
            for number, port in enumerate(ports):
                label = self.name(f"{big}{what}_{port.name.upper().replace('.', '_')}")
                lines.append(f"#define {label} {base + number}u /* {port.size} x {port.api}, {port.kind}, lag {port.lag} */")
        if p != "spk_":
            lines += [
                "",
                f"size_t {p}offline_size(void);",
                f"int {p}offline_tiles(void);",
                f"spk_status {p}offline(void *memory, size_t bytes, uint32_t samples, uint32_t steps, const spk_in *in, "
                "const spk_whole *out);",
                f"spk_status {p}check(void);",
                f"size_t {p}size(void);",
                f"spk_status {p}init(void *memory, size_t bytes, spk_net **net);",
                f"void {p}reset(spk_net *net);",
                f"spk_status {p}step(spk_net *net, const spk_in *in);",
                f"spk_status {p}read(const spk_net *net, uint32_t port, void *values);",
                f"spk_status {p}read_events(const spk_net *net, uint32_t port, uint32_t *index, uint32_t *count);",
                f"spk_status {p}read_state(const spk_net *net, uint32_t state, void *values);",
                f"spk_status {p}read_counter(const spk_net *net, uint32_t counter, uint64_t *value);",
                f"extern const spk_model {p}network;",
            ]
        return "\n".join([*lines, "", "#endif"]) + "\n"


def embedded(file: str, prefix: str, size: int) -> str:
    """The source that links a binary file, FILE.bin, as the struct PREFIXweights."""
    first, last = (_PAGES_FIRST, _PAGES_LAST) if size >= MANY_PAGES else ("", "")
    text = _WEIGHTS.replace("@first@", first).replace("@last@", last)
    return text.replace("@file@", file).replace("@prefix@", prefix).replace("@bytes@", str(size))


def checksum(data: bytes) -> int:
    """spk_sum of spk_core.h: the sum of mix(word i + (i + 1) G) modulo 2^64, with SplitMix64's G and mix; any one word that is
    another gives another sum."""
    total = 0
    for begin in range(0, len(data) // 8, _WORDS):
        words = np.frombuffer(data, "<u8", min(_WORDS, len(data) // 8 - begin), begin * 8)
        number = np.arange(begin + 1, begin + 1 + len(words), dtype=np.uint64)
        total += int(mix(words + number * np.uint64(GOLDEN)).sum(dtype=np.uint64))
    return total & ((1 << 64) - 1)


def _rows(numbers: Sequence[str], width: int = 118) -> str:
    lines, line = [], " "
    for number in numbers:
        if len(line) + len(number) + 2 > width:
            lines.append(line)
            line = " "
        line += f" {number},"
    return "\n".join([*lines, line])


def _microseconds(dt: float | None) -> int:
    micro = round((dt or 0) * 1e6)
    return micro if dt and abs(dt * 1e6 - micro) < 1e-6 * micro else 0


def header_name(prefix: str) -> str:
    """The file of a network's declarations."""
    return "network.h" if prefix == "spk_" else f"{prefix}network.h"


#: Weights of so many bytes lie in more small pages than a processor remembers the addresses of.
MANY_PAGES: Final = 8 << 20
_WEIGHTS: Final = """/* @file@.c - links @file@.bin. `make EMBED=array` does without the assembler's .incbin. */
@first@#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__)
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "@file@.bin is little-endian"
#endif
#endif

#if defined(SPK_EMBED_ARRAY)
#include "@file@_array.h"
typedef char @prefix@weights_size[sizeof @prefix@weights == @bytes@u ? 1 : -1];
#elif defined(__APPLE__)
__asm__(".const\\n.balign 64\\n.globl _@prefix@weights\\n_@prefix@weights:\\n.incbin \\"@file@.bin\\"\\n.text\\n");
#else
/* Where the file has not the size that network.c reckons with the assembler stops (clang's takes a file that is too short, and
 * fills it up); spk_check looks at what is in it. */
#if defined(__clang__)
#define SPK_WHOLE ".org @prefix@weights + @bytes@\\n"
#else
#define SPK_WHOLE ".if . - @prefix@weights - @bytes@\\n.error \\"@file@.bin has not @bytes@ bytes\\"\\n.endif\\n"
#endif
__asm__(".section .rodata\\n.balign 64\\n.globl @prefix@weights\\n@prefix@weights:\\n.incbin \\"@file@.bin\\"\\n"
        SPK_WHOLE ".text\\n");
#endif

typedef int @prefix@weights_are_linked;
@last@"""
_PAGES_FIRST: Final = '#define _GNU_SOURCE\n#include "pages.h"\n\n'
_PAGES_LAST: Final = """
#if defined(PAGES_MOVED)
#if !defined(SPK_EMBED_ARRAY)
extern const unsigned char @prefix@weights[];
#endif
__attribute__((constructor)) static void @prefix@weights_pages(void) { pages_move(@prefix@weights, @bytes@u); }
#endif
"""
