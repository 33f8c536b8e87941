#!/usr/bin/env python3
"""Which recipe makes the best model in the same seconds: architectures, optimizers, schedules, rates.

    cargo build --release
    python3 bench/recipes.py --corpus books.txt --preset tinylm-1.5m record-1.5m modern-1.5m
    python3 bench/recipes.py --corpus books.txt --recipe low learning_rate=0.002 --recipe high learning_rate=0.006
    python3 bench/recipes.py --corpus books.txt --preset record-1.5m --old PROGRAM learning_rate=0.004

A recipe is a name and params of the stage `pretrain`: `--preset P` is the recipe `preset: P` with all
defaults, `--recipe NAME PARAM=VALUE ...` one with params of its own, `--recipes FILE` reads many from a
map of names to params (JSON, or YAML where Python has PyYAML). With `--old` another build of tinylm comes
first, with the params named behind it.

1. The text is ingested, a byte-level BPE is trained on it and its token shards are made, with documents
   held out.
2. Every recipe trains for a few steps in each of `--rounds`, in turns. The first recipe takes `--steps`
   steps; every other as many as fit the same seconds, by the median of its ratio to the first within a
   round. Only steps count: no validation, no starting of programs.
3. Every recipe trains with each of `--seeds` and is measured on all held-out documents. The seed decides
   the weights at the start, dropout and the order of the data, not what is held out.

All of it runs through `tinylm run`, in a temporary project folder. In the folder that `--project` names,
what was finished is kept, and the same call goes on from there. Progress is told on stderr. `--json` prints
every measurement instead of the table. Python 3.9 or newer.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from common import add_project, add_tinylm, in_project, parse_project

OLD = "old"
COMPUTED = ["steps", "epochs"]  # of these the script decides


class Contender:
    """A recipe, the program that trains it, and what was measured."""

    def __init__(self, name, params, program):
        self.name, self.params, self.program = name, {"preset": "tinylm-1.5m", **params}, program
        self.slug = re.sub(r"[^A-Za-z0-9_-]", "-", name)
        self.step_ms, self.tokens_per_s = [], []
        self.steps, self.runs = None, []

    def bits(self):
        return [run["bits_per_byte"] for run in self.runs]

    def figures(self):
        return {
            "recipe": self.name,
            "params": self.params,
            "program": self.program,
            "parameters": self.runs[0]["parameters"],
            "step_ms": self.step_ms,
            "tokens_per_s": self.tokens_per_s,
            "steps": self.steps,
            "bits_per_byte": {"mean": statistics.mean(self.bits()), "spread": spread(self.bits())},
            "runs": self.runs,
        }


def spread(values):
    """The sample standard deviation; of one value there is none."""
    return statistics.stdev(values) if len(values) > 1 else None


# -- recipes from the command line ------------------------------------------------------------------


def assignments(words):
    """`PARAM=VALUE` words as a dict; values are read as JSON where they are JSON, or else as text."""
    params = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            sys.exit(f"expected PARAM=VALUE, found `{word}`")
        if name in params:
            sys.exit(f"`{name}` is given twice: {' '.join(words)}")
        try:
            params[name] = json.loads(text)
        except json.JSONDecodeError:
            params[name] = text
    return params


def from_file(path):
    """Name -> params."""
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".json"):
        recipes = json.loads(text)
    else:
        try:
            import yaml
        except ImportError:
            sys.exit(f"{path}: this Python reads no YAML: pip install pyyaml, or write the recipes as JSON (FILE.json)")
        recipes = yaml.safe_load(text)
    if not isinstance(recipes, dict) or not all(isinstance(params, dict) for params in recipes.values()):
        sys.exit(f"{path}: expected a map of names to maps of params, such as {{\"low\": {{\"learning_rate\": 0.002}}}}")
    return {str(name): params for name, params in recipes.items()}


def contenders(args):
    """In the order of the table; the first one's time is what all get."""
    given = []
    if args.old:
        given.append((OLD, assignments(args.old[1:]), str(Path(args.old[0]).resolve())))
    program = str(Path(args.tinylm).resolve())
    given += [(name, {"preset": name}, program) for name in args.preset]
    given += [(name, assignments(words), program) for name, *words in args.recipe]
    for path in args.recipes:
        given += [(name, params, program) for name, params in from_file(path).items()]
    if not given:
        sys.exit("no recipe: name some with --preset, --recipe or --recipes")
    found = [Contender(*one) for one in given]
    slugs = [one.slug for one in found]
    for one in found:
        if slugs.count(one.slug) > 1:
            sys.exit(f"two recipes are called `{one.name}` (names differ by letters, digits, `_` or `-`)")
        for param in COMPUTED:
            if param in one.params:
                sys.exit(f"`{one.name}` has `{param}`, which follows from --steps and the time of a step")
    return found


# -- tinylm -----------------------------------------------------------------------------------------


class Project:
    """A folder with a pipeline for each recipe. Another build of tinylm gets a folder of its own."""

    def __init__(self, folder, args):
        self.folder, self.args = folder, args

    def of(self, contender):
        return self.folder / (OLD if contender.name == OLD else "new")

    def write(self, contender, pipeline, **params):
        """The pipeline that trains the recipe with these params in addition."""
        args = self.args
        held_out = {"validation_fraction": args.validation_fraction}
        bpe = {"algorithm": "byte_bpe", "vocab_size": args.vocab_size}
        stages = {
            "docs": {"kind": "ingest", "inputs": {"files": [os.path.abspath(path) for path in args.corpus]}},
            "tokenizer": {"kind": "train_tokenizer", "inputs": {"docs": "docs"}, "params": bpe},
            "shards": {"kind": "shard", "inputs": {"docs": "docs", "tokenizer": "tokenizer"}, "params": held_out},
            "model": {
                "kind": "pretrain",
                "inputs": {"shards": "shards", "tokenizer": "tokenizer"},
                "params": {**contender.params, **params},
            },
            "report": {
                "kind": "eval",
                "inputs": {"model": "model", "tokenizer": "tokenizer", "docs": "docs"},
                "params": {**held_out, "max_tokens": 1 << 40, "completions": 1},
            },
        }
        path = self.of(contender) / "pipelines" / f"{pipeline}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        path.write_text(json.dumps({"stages": stages}, indent=2) + "\n")

    def run(self, contender, pipeline, *arguments):
        """Runs the pipeline and gives its events."""
        command = [contender.program, "run", pipeline, "--format", "json", *arguments]
        done = subprocess.run(command, cwd=self.of(contender), capture_output=True, text=True)
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0:
            told = [event["error"] for event in events if event.get("error")] + done.stderr.strip().splitlines()[-20:]
            told = "\n".join(map(str, told))
            sys.exit(f"recipe `{contender.name}` failed: {' '.join(command)} in {self.of(contender)}\n{told}")
        return events

    def artifact(self, contender, pipeline, name):
        return self.of(contender) / "artifacts" / pipeline / name


def timed(project, contender, steps):
    """One short training: milliseconds of a step, tokens a second."""
    pipeline = f"time-{contender.slug}"
    project.write(contender, pipeline, steps=steps, eval_every=0, eval_rows=1, sample_every=0)
    events = project.run(contender, pipeline, "model", "--force", "model")
    [rate] = [event["value"] for event in events if event.get("name") == "tokens_per_s" and event["stage"] == "model"]
    metrics = project.artifact(contender, pipeline, "model/model/metrics.jsonl").read_text().splitlines()
    last = json.loads(metrics[-1])
    return 1e3 * last["tokens"] / last["step"] / rate, rate


def measure_times(project, found, args):
    """Fills in the times of steps, and how many steps fit the first one's seconds."""
    for number in range(args.rounds):
        # There and back, so that a machine that gets slower or faster favours nobody.
        for contender in found if number % 2 == 0 else reversed(found):
            step_ms, rate = timed(project, contender, args.timed_steps)
            contender.step_ms.append(step_ms)
            contender.tokens_per_s.append(rate)
            tell(f"round {number + 1}: {contender.name:24} {step_ms:8.2f} ms a step {rate:10,.0f} tokens/s")


def share_seconds(found, steps):
    """How many steps of each recipe fit the seconds of the first one's `steps`."""
    first = found[0]
    for contender in found:
        ratios = sorted(base / own for base, own in zip(first.step_ms, contender.step_ms))
        contender.steps = max(1, int(steps * statistics.median(ratios)))
        if contender is not first:
            tell(
                f"{contender.name}: {statistics.median(ratios):.3f} times the speed of {first.name} "
                f"({ratios[0]:.3f} to {ratios[-1]:.3f} by rounds): {contender.steps:,} steps"
            )
        if ratios[-1] > 1.1 * ratios[0]:
            tell("  the rounds differ by more than 10 %: other programs are busy. More --rounds give a surer median")


def budget(found, args):
    """Seconds of the steps of a run."""
    return args.steps * statistics.median(found[0].step_ms) / 1e3


def train(project, contender, seed):
    """One whole training and what the model scores on the held-out documents."""
    pipeline = f"train-{contender.slug}"
    project.write(contender, pipeline, steps=contender.steps)
    events = project.run(contender, pipeline, "report", "--seed", str(seed))
    report = json.loads(project.artifact(contender, pipeline, "report/report/report.json").read_text())
    keys = ["bits_per_byte", "loss", "parameters", "bytes", "tokens"]
    [model] = [event for event in events if event["event"] == "stage_finished" and event["stage"] == "model"]
    contender.runs.append({"seed": seed, **{key: report[key] for key in keys}, "seconds": model["seconds"]})
    took = "kept from before" if model["status"] == "cached" else f"trained in {model['seconds']:.0f} s"
    tell(f"seed {seed}: {contender.name:24} {report['bits_per_byte']:.4f} bits per byte, {took}")


def check_same_text(found):
    """Different builds might hold out different text, and then their figures must not be compared."""
    scored = {(contender.name, run["bytes"]) for contender in found for run in contender.runs}
    if len({size for _, size in scored}) > 1:
        named = ", ".join(f"{name}: {size:,} bytes" for name, size in sorted(scored))
        sys.exit(f"the recipes were not scored on the same text: {named}")


# -- what was measured before ------------------------------------------------------------------------


def known_times(path, found, args):
    """Takes the times of steps that the same call measured before; whether there were any."""
    if not path.exists():
        return False
    saved = json.loads(path.read_text())
    if saved["call"] != call(found, args):
        return False
    for contender, (step_ms, rates) in zip(found, saved["times"]):
        contender.step_ms, contender.tokens_per_s = step_ms, rates
    tell(f"the times of steps are those of {path}; remove it to measure them again")
    return True


def save_times(path, found, args):
    times = [(contender.step_ms, contender.tokens_per_s) for contender in found]
    path.write_text(json.dumps({"call": call(found, args), "times": times}, indent=1) + "\n")


def call(found, args):
    """All that the times depend on."""
    programs = [(c.name, c.params, c.program, os.stat(c.program).st_mtime_ns) for c in found]
    return json.loads(json.dumps([programs, args.corpus, args.vocab_size, args.rounds, args.timed_steps]))


# -- report ------------------------------------------------------------------------------------------


def tell(text):
    print(text, file=sys.stderr, flush=True)


def table(found, args):
    seconds = budget(found, args)
    runs = f"{len(args.seeds)} seed{'s' if len(args.seeds) > 1 else ''}"
    scored = f"{found[0].runs[0]['bytes']:,} held-out bytes"
    print(f"\nAs many steps as fit {seconds:.3g} s, {runs}, vocabulary {args.vocab_size:,}, {scored}\n")
    print("| recipe | parameters | ms a step | steps | bits per byte | least to most | to the first |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    base = statistics.mean(found[0].bits())
    for contender in found:
        bits = contender.bits()
        middle, deviation = statistics.mean(bits), spread(bits)
        mean = f"{middle:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
        against = "" if contender is found[0] else f"{middle - base:+.4f}"
        print(
            f"| {contender.name} | {contender.runs[0]['parameters']:,} | {statistics.median(contender.step_ms):.1f} "
            f"| {contender.steps:,} | {mean} | {min(bits):.4f} to {max(bits):.4f} | {against} |"
        )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, metavar="PATH", help="text: files, folders or globs")
    parser.add_argument("--preset", nargs="+", default=[], metavar="P", help="presets, each a recipe")
    parser.add_argument(
        "--recipe", nargs="+", action="append", default=[], metavar=("NAME", "PARAM=VALUE"),
        help="a recipe with params of `pretrain`; may be repeated",
    )  # fmt: skip
    parser.add_argument("--recipes", nargs="+", default=[], metavar="FILE", help="JSON or YAML: name -> params")
    parser.add_argument(
        "--old", nargs="+", metavar=("PROGRAM", "PARAM=VALUE"), help="another build of tinylm and its recipe, which comes first",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=5500, metavar="N", help="steps of the first recipe (default 5500)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each step time (default 5)")
    parser.add_argument("--timed-steps", type=int, default=100, metavar="N", help="steps of one of them (default 100)")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="of the tokenizer (default 4096)")
    add_project(parser)
    add_tinylm(parser)
    return parse_project(parser, ["steps", "rounds", "timed_steps"])


def compare(folder, args):
    found = contenders(args)
    for contender in found:
        if not os.path.isfile(contender.program):
            sys.exit(f"there is no {contender.program}")
    folder.mkdir(parents=True, exist_ok=True)
    project, times = Project(folder, args), folder / "times.json"
    if not known_times(times, found, args):
        measure_times(project, found, args)
        save_times(times, found, args)
    share_seconds(found, args.steps)
    seconds = budget(found, args)
    count = len(found) * len(args.seeds)
    tell(f"{count} runs of {seconds:.3g} s: about {count * seconds / 60:.0f} minutes, and the evaluations")
    for seed in args.seeds:
        for contender in found:
            train(project, contender, seed)
    check_same_text(found)
    if args.json:
        print(json.dumps({"seconds": seconds, "recipes": [contender.figures() for contender in found]}, indent=1))
    else:
        table(found, args)


if __name__ == "__main__":
    in_project("recipes", arguments(), compare)
