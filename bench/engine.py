#!/usr/bin/env python3
"""tinylm's engine beside DVC, Snakemake and make: the same pipelines, run in turn.

    python3 bench/engine.py [--tinylm PATH] [--peers DIR] [--repeat N] [--small]

What is measured, each as a whole process from start to end:

    10-stage chain    first run, and a run in which all is up to date (no-op)
    300-stage chain   the same
    10,000 stages     a plan: a tree in which stage i reads the output of stage (i - 1) / 2

A stage is `cp INPUT OUTPUT`. tinylm would see that a copy of a copy is the same action and run it
once, so each of its stages also has a variable of its own; every tool runs every stage.
Each tool does what it does by default but for what makes the comparison fair:

    tinylm      run; plan
    DVC         repro, in `dvc init --no-scm`, analytics and the check for updates off; its plan is `status`
    Snakemake   --cores 2 --quiet all; its plan is `--dry-run`
    make        -j2; its plan is `--dry-run`

The tools take turns within each repeat (interleaved), so that a slow minute of the machine hits all
of them. First runs begin in a fresh folder. Of the slow peers, some measurements are repeated less:
as soon as one call took longer than --patience seconds it is not repeated, and the table says how
many measurements stand behind each median. A call that takes longer than --limit seconds is stopped
and shown as "> LIMIT"; one that fails is shown as failed, with its message below the table.

Prints Markdown: the machine, the versions, a table of medians and ratios to tinylm.
Peers that are not there are listed with the way to get them. Needs nothing beyond Python 3.9.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import CORES, add_tinylm, check_tinylm

HOW_TO_GET = {"DVC": "pip install dvc", "Snakemake": "pip install snakemake", "make": "apt install make"}


# -- pipelines: `parents[i]` is the stage that stage i reads, or None for the source -------------


def chain(stages):
    return [None if i == 0 else i - 1 for i in range(stages)]


def tree(stages):
    return [None if i == 0 else (i - 1) // 2 for i in range(stages)]


def write_tinylm(folder, parents):
    lines = ["name: p", "stages:"]
    for i, parent in enumerate(parents):
        source = "in.txt" if parent is None else f"s{parent}"
        lines += [
            f"  s{i}:",
            "    kind: command",
            f"    inputs: {{ a: {source} }}",
            "    outputs: { b: file }",
            f"    params: {{ command: [cp, '${{inputs.a}}', '${{outputs.b}}'], env: {{ N: '{i}' }} }}",
        ]
    (folder / "pipelines").mkdir()
    write_lines(folder / "pipelines/p.yaml", lines)


def write_dvc(folder, parents):
    lines = ["stages:"]
    for i, parent in enumerate(parents):
        source = "in.txt" if parent is None else f"f{parent}.txt"
        lines += [f"  s{i}:", f"    cmd: cp {source} f{i}.txt", f"    deps: [{source}]", f"    outs: [f{i}.txt]"]
    write_lines(folder / "dvc.yaml", lines)


def write_snakemake(folder, parents):
    lines = ["rule all:", "    input: " + ", ".join(f'"f{i}.txt"' for i in leaves(parents))]
    for i, parent in enumerate(parents):
        source = "in.txt" if parent is None else f"f{parent}.txt"
        lines += [
            f"rule s{i}:",
            f'    input: "{source}"',
            f'    output: "f{i}.txt"',
            '    shell: "cp {input} {output}"',
        ]
    write_lines(folder / "Snakefile", lines)


def write_make(folder, parents):
    lines = ["all: " + " ".join(f"f{i}.txt" for i in leaves(parents))]
    for i, parent in enumerate(parents):
        source = "in.txt" if parent is None else f"f{parent}.txt"
        lines += [f"f{i}.txt: {source}", "\tcp $< $@"]
    write_lines(folder / "Makefile", lines)


def leaves(parents):
    """The stages that no other reads: whoever asks for these asks for all."""
    read = set(parents)
    return [i for i in range(len(parents)) if i not in read]


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n")


# -- tools ---------------------------------------------------------------------------------------


class Tool:
    fine = (0,)  # the exit codes that are no failure

    def __init__(self, name, program, write, run, plan, prepare=None, version=("--version",)):
        self.name, self.program, self.write = name, program, write
        self.run, self.plan, self.prepare, self.version = run, plan, prepare, version

    def set_up(self, folder, parents):
        """A fresh project in `folder`."""
        (folder / "in.txt").write_text("one line\n")
        self.write(folder, parents)
        for arguments in self.prepare or []:
            call(self, arguments, folder, limit=600)

    def version_text(self):
        out = subprocess.run([self.program, *self.version], capture_output=True, text=True, check=True).stdout
        return out.strip().splitlines()[0].split()[-1]


def tools(arguments):
    """The tools that are here, and the names of those that are not."""
    found, missing = [], []
    tinylm = str(Path(arguments.tinylm).resolve())
    found.append(Tool("tinylm", tinylm, write_tinylm, ["run", "p"], ["plan", "p"]))
    no_calls_home = [["init", "--no-scm", "-q"], ["config", "core.analytics", "false"], ["config", "core.check_update", "false"]]
    peers = [
        ("DVC", "dvc", write_dvc, ["repro", "-q"], ["status", "-q"], no_calls_home),
        ("Snakemake", "snakemake", write_snakemake, ["--cores", "2", "--quiet", "all"], ["--cores", "2", "--quiet", "all", "--dry-run"], None),
        ("make", "make", write_make, ["-j2", "-s"], ["-s", "--dry-run"], None),
    ]
    for name, program, write, run, plan, prepare in peers:
        path = find(program, arguments.peers)
        if path:
            found.append(Tool(name, path, write, run, plan, prepare))
            if name == "DVC":
                found[-1].fine = (0, 1)  # `status -q` says with 1 that there is something to do
        else:
            missing.append(name)
    return found, missing


def find(program, folder):
    if folder:
        own = shutil.which(program, path=str(Path(folder).resolve()))
        if own:
            return own
    return shutil.which(program)


# -- measuring -----------------------------------------------------------------------------------


class Slow(Exception):
    """A call was stopped at the limit."""


class Failed(Exception):
    """A call ended with an error: it has no time, and the table says so."""


def call(tool, arguments, folder, limit):
    """Seconds that the tool took."""
    environment = {**os.environ, "PATH": f"{Path(tool.program).parent}{os.pathsep}{os.environ['PATH']}"}
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            [tool.program, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Slow from None
    seconds = time.perf_counter() - begun
    if done.returncode not in tool.fine or (done.returncode and done.stderr.strip()):
        command = f"{tool.name} {' '.join(arguments)}"
        raise Failed(f"`{command}` failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return seconds


class Times:
    """Of one tool in one row of the table."""

    def __init__(self):
        self.seconds, self.over, self.failed = [], None, None

    def text(self):
        if self.failed:
            return "failed"
        if self.over:
            return f"> {self.over} s"
        return f"{spelled(statistics.median(self.seconds))} ({len(self.seconds)})"

    def ratio(self, base):
        if self.failed or base.failed or base.over:
            return ""
        mine = self.over or statistics.median(self.seconds)
        return f"{'> ' if self.over else ''}{mine / statistics.median(base.seconds):.3g} x"


def spelled(seconds):
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def measure(found, arguments, one):
    """`one(tool)` for each tool in turn, `--repeat` times over; tool name -> Times."""
    times = {tool.name: Times() for tool in found}
    for _ in range(arguments.repeat):
        for tool in found:
            mine = times[tool.name]
            if mine.failed or mine.over or any(s > arguments.patience for s in mine.seconds):
                continue
            try:
                mine.seconds.append(one(tool))
            except Slow:
                mine.over = arguments.limit
            except Failed as failure:
                mine.failed = str(failure)
    return times


def first_runs(found, parents, arguments, work):
    def one(tool):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            tool.set_up(Path(folder), parents)
            return call(tool, tool.run, folder, arguments.limit)

    return measure(found, arguments, one)


def noop_runs(found, parents, arguments, work):
    folders = {}
    for tool in found:
        folder = Path(tempfile.mkdtemp(dir=work))
        folders[tool.name] = folder
        tool.set_up(folder, parents)
        call(tool, tool.run, folder, limit=3600)
    # Nothing may be too fresh for a tool to trust a file's time of change.
    time.sleep(1)
    for tool in found:
        call(tool, tool.run, folders[tool.name], limit=3600)
    return measure(found, arguments, lambda tool: call(tool, tool.run, folders[tool.name], arguments.limit))


def plans(found, parents, arguments, work):
    folders = {tool.name: Path(tempfile.mkdtemp(dir=work)) for tool in found}
    for tool in found:
        tool.set_up(folders[tool.name], parents)
    return measure(found, arguments, lambda tool: call(tool, tool.plan, folders[tool.name], arguments.limit))


# -- report --------------------------------------------------------------------------------------


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_row(label, found, times, notes):
    notes += [f"{label}: {t.failed}" for t in times.values() if t.failed]
    cells = [times[found[0].name].text()]
    for tool in found[1:]:
        cells += [times[tool.name].text(), times[tool.name].ratio(times[found[0].name])]
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tinylm(parser)
    parser.add_argument("--peers", metavar="DIR", help="a folder with peers' programs, such as VENV/bin")
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="measurements of each (default 7)")
    parser.add_argument("--patience", type=float, default=20, metavar="S", help="longer calls are not repeated")
    parser.add_argument("--limit", type=float, default=300, metavar="S", help="longer calls are stopped")
    parser.add_argument("--small", action="store_true", help="10, 30 and 100 stages, to see that all works")
    arguments = parser.parse_args()
    check_tinylm(arguments)
    short, long, wide = (10, 30, 100) if arguments.small else (10, 300, 10_000)

    found, missing = tools(arguments)
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"Machine: {CORES} cores, {cpu_model()}, {platform.system()} {platform.release()}{load}.\n")
    print("Tools: " + ", ".join(f"{t.name} {t.version_text()}" for t in found) + ".")
    for name in missing:
        print(f"{name}: not installed ({HOW_TO_GET[name]}, then --peers DIR where it is not on PATH)")
    print("\nMedians (number of measurements), and how many times tinylm's time that is.\n")
    heads = [found[0].name] + [head for t in found[1:] for head in (t.name, "ratio")]
    print("| | " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * len(heads), flush=True)
    notes = []
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as work:
        rows = [
            (f"no-op run, chain of {short}", noop_runs, chain(short)),
            (f"first run, chain of {short}", first_runs, chain(short)),
            (f"no-op run, chain of {long}", noop_runs, chain(long)),
            (f"first run, chain of {long}", first_runs, chain(long)),
            (f"plan, tree of {wide:,}", plans, tree(wide)),
        ]
        for label, how, parents in rows:
            print_row(label, found, how(found, parents, arguments, work), notes)
    for note in notes:
        print(f"\n{note}")


if __name__ == "__main__":
    main()
