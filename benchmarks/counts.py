"""`make bench-counts`: instructions an inference of the emitted C, against a stored baseline.

    python benchmarks/counts.py [--write] [--only W1,W2] [--machines sse2,avx2,aarch64]

x86 is counted by valgrind's callgrind, AArch64 by QEMU with a plugin of thirty lines (`benchmarks/c/instructions.c`): the
difference between a program that runs the samples twice and one that runs them once, so that start-up does not count.
Counts hardly vary from run to run, but they depend on the compiler: a baseline belongs to a version of gcc.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import run, workloads

BASELINE = Path(__file__).with_name("counts.json")
#: Compiler, flags as the emitted Makefile has them, and how a count is taken.
MACHINES = {
    "sse2": ("gcc", ["-O3"], "callgrind"),
    "avx2": ("gcc", ["-O3", "-mavx2", "-mfma", "-mbmi2", "-mpopcnt"], "callgrind"),
    "aarch64": ("aarch64-linux-gnu-gcc", ["-O3", "-march=armv8-a", "-static"], "qemu"),
}
COMMON = ["-std=c99", "-ffp-contract=off", "-fno-loop-unroll-and-jam"]
#: Samples that are counted; a thousand steps of W4 under an emulator take minutes.
SAMPLES = {"W1": 2, "W2": 1, "W3": 2}
TOLERANCE = 0.02


def version(compiler: str) -> str:
    """The compiler's name and version, on which counts depend."""
    text = subprocess.run([compiler, "-dumpfullversion"], check=True, capture_output=True, text=True).stdout
    return f"{compiler} {text.strip()}"


def plugin() -> Path:
    """The compiled plugin."""
    target = run.BUILD / "instructions.so"
    source = Path(__file__).with_name("c") / "instructions.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    return target


def executed(tool: str, program: list[str]) -> int:
    """Instructions of one run of a program."""
    if tool == "qemu":
        command = ["qemu-aarch64", "-plugin", str(plugin()), "-d", "plugin", *program]
    else:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"(?:instructions |Collected : )(\d+)", done.stderr)
    if not found:
        raise SystemExit(f"{command[0]} printed no count: {done.stderr[-300:]}")
    return int(found[1])


def count(name: str, machine: str, folder: Path, data: Path) -> int:
    """Instructions an inference."""
    compiler, flags, tool = MACHINES[machine]
    sources = [p.name for p in sorted(folder.glob("*.c")) if p.name in ("network.c", "weights.c", "harness.c")]
    target = run.BUILD / f"{name}_{machine}_counts"
    subprocess.run([compiler, *COMMON, *flags, "-o", str(target), *sources], check=True, cwd=folder)
    samples = SAMPLES[name]
    once, twice = (executed(tool, [str(target), str(data), rounds, str(samples)]) for rounds in ("1", "2"))
    return (twice - once) // samples


def measure(names: list[str], machines: list[str]) -> dict[str, dict[str, int]]:
    """Counts by machine and workload."""
    run.BUILD.mkdir(parents=True, exist_ok=True)
    result: dict[str, dict[str, int]] = {machine: {} for machine in machines}
    for name in names:
        work = workloads.WORKLOADS[name]()
        folder, *_ = run.emit(work)
        for machine in machines:
            result[machine][name] = count(name, machine, folder, run.events(work))
    return result


def main() -> int:
    """Print counts and baseline; status 1 if one is off by more than the tolerance."""
    parser = argparse.ArgumentParser(description="instructions an inference, against the stored baseline")
    parser.add_argument("--write", action="store_true", help="store what was counted as the baseline")
    parser.add_argument("--only", default=",".join(SAMPLES))
    parser.add_argument("--machines", default=",".join(MACHINES))
    options = parser.parse_args()
    workloads.ensure_data()
    machines = options.machines.split(",")
    found = measure(options.only.split(","), machines)
    stored = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    status = 0
    print("machine  net   instructions     baseline   change")
    for machine, counts in found.items():
        compiler = version(MACHINES[machine][0])
        before = stored.get(machine, {})
        comparable = before.get("compiler") == compiler
        for name, value in counts.items():
            old = before.get(name) if comparable else None
            change = f"{100 * (value / old - 1):+7.2f} %" if old else f"none for {compiler}"
            status |= int(old is not None and abs(value / old - 1) > TOLERANCE)
            print(f"{machine:8} {name} {value:14,} {old or 0:12,}  {change}")
        stored[machine] = {
            "compiler": compiler,
            **({k: v for k, v in before.items() if k in SAMPLES} if comparable else {}),
            **counts,
        }
    if options.write:
        BASELINE.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
