#!/usr/bin/env python3
"""How much of the gap between a student and its teacher distillation closes, in equal steps.

    cargo build --release
    python3 bench/distill.py --corpus books.txt
    python3 bench/distill.py --corpus books.txt --try hot temperature=2 --try all share=1 --seeds 1
    python3 bench/distill.py --corpus books.txt --try asked top_k=0

1. The text is ingested, a byte-level BPE is trained on it and its token shards are made, with documents
   held out.
2. The teacher is trained once, and the student alone with each of `--seeds`.
3. With every `--try NAME PARAM=VALUE ...`, params of the stage `distill`, the student is distilled with each
   seed for the same steps. Where `top_k` is above 0 (16 if not given), what the teacher expects is computed once
   for all seeds by the stage `teach`; with `top_k=0` the teacher is asked for every batch.

A seed decides the weights at the start and the order of the data. The loss is that of all held-out windows, the
same for all models. The share of the gap is (alone - student) / (alone - teacher).

All of it is one pipeline, run by `tinylm run` in a temporary project folder. In the folder that `--project`
names, what was finished is kept, and the same call goes on from there. Progress is told on stderr. `--json`
prints every measurement instead of the table. Python 3.9 or newer.
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
from recipes import assignments, tell

# stages/muon.yaml
RECIPE = {
    "optimizer": "muon", "learning_rate": 0.012, "muon_learning_rate": 0.02, "beta2": 0.995,
    "schedule": "wsd", "warmup_steps": 50, "weight_decay": 0,
}  # fmt: skip
# 4.5 and 0.3 million parameters with a vocabulary of 2,048.
TEACHER = {"preset": "modern-small", "n_layer": 5, "seq_len": 128}
STUDENT = {"preset": "modern-1.5m", "d_model": 64, "n_layer": 3, "n_head": 2, "d_ff": 192, "seq_len": 128}


class Attempt:
    """Params of `distill`, and what came of them by seed."""

    def __init__(self, name, params):
        self.name, self.params = name, params
        self.slug = re.sub(r"[^A-Za-z0-9_-]", "-", name)
        self.runs = []

    def taught(self):
        """The params of `teach` before it, or None where the teacher itself is asked."""
        top_k = self.params.get("top_k", 16)
        return {"top_k": top_k, "temperature": self.params.get("temperature", 1)} if top_k else None

    def own(self):
        """Those of `distill`; what logits fix is left away."""
        fixed = ("top_k", "temperature") if self.taught() else ()
        return {name: value for name, value in self.params.items() if name not in fixed}

    def gaps(self):
        return [run["gap_closed"] for run in self.runs]


def attempts(args):
    given = args.attempts or [["default"]]
    found = [Attempt(name, assignments(words)) for name, *words in given]
    slugs = [one.slug for one in found]
    for one in found:
        if slugs.count(one.slug) > 1:
            sys.exit(f"two attempts are called `{one.name}` (names differ by letters, digits, `_` or `-`)")
    return found


def stages(found, args):
    """The pipeline's."""
    texts = {"shards": "shards", "tokenizer": "tokenizer"}
    vocab_size = {"vocab_size": args.vocab_size}
    all_stages = {
        "docs": {"kind": "ingest", "inputs": {"files": [os.path.abspath(path) for path in args.corpus]}},
        "tokenizer": {
            "kind": "train_tokenizer", "inputs": {"docs": "docs"}, "params": {"algorithm": "byte_bpe", **vocab_size},
        },
        "shards": {
            "kind": "shard", "inputs": {"docs": "docs", "tokenizer": "tokenizer"},
            "params": {"validation_fraction": args.validation_fraction},
        },
        "teacher": {
            "kind": "pretrain", "inputs": texts,
            "params": {**TEACHER, **RECIPE, **vocab_size, "steps": args.teacher_steps, "eval_every": 500},
        },
    }  # fmt: skip
    student = {**STUDENT, **RECIPE, "steps": args.steps, "eval_every": 500}
    for seed in args.seeds:
        params = {**student, **vocab_size}
        all_stages[f"alone_{seed}"] = {"kind": "pretrain", "seed": seed, "inputs": texts, "params": params}
    for one in found:
        source = {"teacher": "teacher"}
        if one.taught():
            name = f"taught_{one.taught()['top_k']}_{one.taught()['temperature']}".replace(".", "-")
            source = {"logits": name}
            inputs = {"teacher": "teacher", **texts}
            all_stages[name] = {"kind": "teach", "inputs": inputs, "params": one.taught()}
        for seed in args.seeds:
            all_stages[f"{one.slug}_{seed}"] = {
                "kind": "distill", "seed": seed,
                "inputs": {**source, **texts, "baseline": f"alone_{seed}"},
                "params": {**student, **one.own()},
            }  # fmt: skip
    return all_stages


def run(folder, args):
    command = [str(Path(args.tinylm).resolve()), "run", "distill", "--jobs", str(args.threads), "--format", "json"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    events = []
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        events.append(event)
        if event.get("event") == "stage_finished":
            took = "kept from before" if event["status"] == "cached" else f"{event.get('seconds') or 0:.0f} s"
            tell(f"{event['stage']:24} {took}")
    if process.wait() != 0:
        told = [str(event["error"]) for event in events if event.get("error")]
        sys.exit(f"{' '.join(command)} in {folder} failed\n" + "\n".join(told))
    return events


def measure(folder, found, args, events):
    seconds = {event["stage"]: event.get("seconds") for event in events if event.get("event") == "stage_finished"}
    memory = {event["stage"]: event["value"] for event in events if event.get("name") == "peak_memory"}
    for one in found:
        for seed in args.seeds:
            stage = f"{one.slug}_{seed}"
            report = json.loads((folder / f"artifacts/distill/{stage}/model/distillation.json").read_text())
            one.runs.append({"seed": seed, "seconds": seconds.get(stage), "peak_mib": memory.get(stage), **report})


def table(found, args):
    first = found[0].runs[0]
    teacher, alone = first["teacher"], [run["alone"]["loss"] for run in found[0].runs]
    print(
        f"\nTeacher {first['teachers'][0]['parameters']:,} parameters, {args.teacher_steps:,} steps: {teacher['loss']:.4f} nats "
        f"a token, {teacher['bits_per_byte']:.4f} bits per byte of {teacher['tokens']:,} held-out tokens\n"
        f"Student {first['student']['parameters']:,} parameters, {args.steps:,} steps, alone: "
        f"{statistics.mean(alone):.4f}; seeds {' '.join(map(str, args.seeds))}\n"
    )
    print("| distilled with | loss | bits per byte | better than alone | share of the gap closed |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for one in found:
        losses = [run["student"]["loss"] for run in one.runs]
        bits = [run["student"]["bits_per_byte"] for run in one.runs]
        better = sum(run["student"]["loss"] < run["alone"]["loss"] for run in one.runs)
        gaps = ["none" if gap is None else f"{100 * gap:.0f} %" for gap in one.gaps()]
        params = ", ".join(f"{name} {value}" for name, value in one.params.items()) or "defaults"
        print(
            f"| {one.name}: {params} | {statistics.mean(losses):.4f} | {statistics.mean(bits):.4f} "
            f"| {better} of {len(one.runs)} | {', '.join(gaps)} |"
        )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, metavar="PATH", help="text: files, folders or globs")
    parser.add_argument(
        "--try", dest="attempts", nargs="+", action="append", default=[], metavar=("NAME", "PARAM=VALUE"),
        help="params of `distill`; may be repeated (default: the stage's own)",
    )  # fmt: skip
    parser.add_argument("--teacher-steps", type=int, default=2000, metavar="N", help="default 2000")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of the student (default 1000)")
    parser.add_argument("--vocab-size", type=int, default=2048, metavar="N", help="of the tokenizer (default 2048)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    add_project(parser)
    add_tinylm(parser)
    return parse_project(parser, ["teacher_steps", "steps", "threads"])


def compare(folder, args):
    found = attempts(args)
    (folder / "pipelines").mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    pipeline = {"stages": stages(found, args)}
    (folder / "pipelines/distill.yaml").write_text(json.dumps(pipeline, indent=2) + "\n")
    measure(folder, found, args, run(folder, args))
    if args.json:
        figures = [{"name": one.name, "params": one.params, "runs": one.runs} for one in found]
        print(json.dumps({"steps": args.steps, "teacher_steps": args.teacher_steps, "attempts": figures}, indent=1))
    else:
        table(found, args)


if __name__ == "__main__":
    in_project("distill", arguments(), compare)
