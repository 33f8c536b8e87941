#!/usr/bin/env python3
"""What quantization costs: bits per byte and bytes, by type and method, and how many greedy texts stay the same.

    cargo build --release
    python3 bench/quantization.py --corpus books.txt
    python3 bench/quantization.py --corpus books.txt --preset small --steps 800 --types q4_k q6_k
    python3 bench/quantization.py --corpus books.txt --model mine=FOLDER other=FOLDER
    python3 bench/quantization.py --chat

1. The text is ingested, a byte-level BPE is trained on it and its token shards are made, with documents held
   out; a model of each `--preset` is trained for `--steps`. Or those in the folders of `--model` are taken.
2. The stage `quantize` stores each in every one of `--types`, rounded and by GPTQ. Bits per byte are those of
   `--eval-tokens` tokens of held-out documents, before and after.
3. The f32 model and those of `--texts` continue 100 beginnings of paragraphs of the text greedily, by 40 tokens;
   counted are those whose text is the same.

With `--chat` the models are those of `pipelines/quantize.yaml`, which is run first, and the texts their answers to
100 questions of its conversations.

Stages are run by `tinylm run` in a temporary project folder. In the folder that `--project` names, what was finished
is kept, and the same call goes on from there. `--json` prints every measurement instead of the tables. Python 3.9 or newer.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from common import add_project, add_tinylm, check_tinylm, in_project, parse_project
from distill import RECIPE
from recipes import tell

ROOT = Path(__file__).resolve().parent.parent
TYPES = ["q8_0", "q6_k", "q5_0", "q4_k", "q4_1", "q4_0"]
METHODS = ["round", "gptq"]
# As trained by AdamW, and by the recipe of stages/muon.yaml.
ADAMW = {"learning_rate": 0.004, "schedule": "cosine", "warmup_steps": 50}
PROMPTS, TOKENS = 100, 40


def trained(args):
    """The stages of models that are trained here, by preset."""
    texts = {"shards": "shards", "tokenizer": "tokenizer"}
    bpe = {"algorithm": "byte_bpe", "vocab_size": args.vocab_size}
    found = {
        "tokenizer": {"kind": "train_tokenizer", "inputs": {"docs": "docs"}, "params": bpe},
        "shards": {
            "kind": "shard", "inputs": {"docs": "docs", "tokenizer": "tokenizer"},
            "params": {"validation_fraction": args.validation_fraction},
        },
    }  # fmt: skip
    for preset in args.preset:
        recipe = RECIPE if preset.startswith(("modern", "record")) else ADAMW
        params = {"preset": preset, "vocab_size": args.vocab_size, "steps": args.steps, **recipe}
        found[slug(preset)] = {"kind": "pretrain", "inputs": texts, "params": params}
    return found


def given(folder):
    """The stage of a model that is there."""
    copy = "mkdir -p ${outputs.model} && cp inputs/files/* ${outputs.model}/"
    files = f"{os.path.abspath(folder)}/*"
    params = {"command": ["sh", "-c", copy]}
    return {"kind": "command", "inputs": {"files": files}, "outputs": {"model": "model"}, "params": params}


def stages(args):
    """The pipeline's."""
    found = {"docs": {"kind": "ingest", "inputs": {"files": [os.path.abspath(path) for path in args.corpus]}}}
    found.update({slug(name): given(folder) for name, folder in args.model.items()} if args.model else trained(args))
    for name in args.names:
        for ty in args.types:
            for method in METHODS:
                found[stage(name, ty, method)] = {
                    "kind": "quantize", "inputs": {"model": slug(name), "docs": "docs"},
                    "params": {"type": ty, "method": method, "eval_tokens": args.eval_tokens},
                }  # fmt: skip
    return found


def slug(preset):
    return preset.replace(".", "-")


def stage(preset, ty, method):
    return f"{slug(preset)}-{ty}-{method}"


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def told(folder, pipeline, name):
    return json.loads((folder / f"artifacts/{pipeline}/{name}/model/quantization.json").read_text())


def figures(report, what):
    """Of a `quantization.json`: types but that asked for, bytes, and bits per byte of documents or chats."""
    quality, others = report[what], sorted({t["type"] for t in report["tensors"]} - {report["type"]})
    bits = {when: quality[when]["bits_per_byte"] for when in ("before", "after")}
    return {
        "types": others, "disk": report["bytes_on_disk"], "memory": report["bytes_in_memory"], "bits": bits,
        "increase": quality["loss_increase"],
    }  # fmt: skip


def paragraphs(path):
    """The first words of paragraphs from all over a text, a prompt each."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n\n")
    lines = [words for line in lines if len(words := line.split()) >= 12]
    some = lines[:: max(1, len(lines) // PROMPTS)][:PROMPTS]
    return [" ".join(words[:6]) for words in some]


def continued(args, model, prompts):
    """The greedy text behind each prompt."""
    texts = []
    for prompt in prompts:
        command = [args.tinylm, "generate", "--model", str(model), "--prompt", prompt, "--strategy", "greedy"]
        texts.append(run([*command, "--max-new-tokens", str(TOKENS)], "."))
    return texts


def questions(args):
    """Messages that begin conversations of the pipeline, from all over them."""
    sql = "SELECT messages FROM conversations"
    rows = run([args.tinylm, "query", "quantize:synth.chats", sql, "--format", "json"], ROOT).splitlines()
    first = (json.loads(row)["messages"] for row in rows)
    found = dict.fromkeys(m["content"] for messages in first for m in messages[:2] if m["role"] == "user")
    found = [text for text in found if "\n" not in text]
    return found[:: max(1, len(found) // PROMPTS)][:PROMPTS]


def answered(args, model, prompts):
    """The greedy answer to each question, as the first of a conversation."""
    command = [args.tinylm, "chat", "--model", model, "--strategy", "greedy", "--max-new-tokens", str(TOKENS)]
    said = "".join(f"{prompt}\n/reset\n" for prompt in prompts)
    done = subprocess.run([*command, "--format", "json"], cwd=ROOT, input=said, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(answers) != len(prompts):
        sys.exit(f"{' '.join(command)}: {len(answers)} answers to {len(prompts)} questions\n{done.stderr}")
    return [answer["assistant"] for answer in answers]


def same(texts, before):
    return sum(a == b for a, b in zip(texts, before))


def table(rows, what):
    print(f"\n| {what} | bits per byte | loss | on disk | in memory | same texts |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, f in rows:
        other = f" ({', '.join(f['types'])} too)" if f["types"] else ""
        texts = f"{f['same']} of {f['prompts']}" if "same" in f else ""
        print(
            f"| {name}{other} | {f['bits']['after']:.4f} | {100 * f['increase']:+.2f} % | {f['disk']['after']:,} "
            f"| {f['memory']['after']:,} | {texts} |"
        )


def chat(args):
    tell("running pipelines/quantize.yaml")
    run([args.tinylm, "run", "quantize"], ROOT)
    prompts = questions(args)
    before, rows = answered(args, "quantize:chat", prompts), []
    for name in ("q8", "q4", "q4_rounded"):
        found = figures(told(ROOT, "quantize", name), "chats")
        found.update(same=same(answered(args, f"quantize:{name}", prompts), before), prompts=len(prompts))
        rows.append((name, found))
    return {"quantize": rows}


def compare(folder, args):
    (folder / "pipelines").mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    (folder / "pipelines/quantization.yaml").write_text(json.dumps({"stages": stages(args)}, indent=2) + "\n")
    tell("training and quantizing")
    run([args.tinylm, "run", "quantization"], folder)
    all_rows, prompts = {}, paragraphs(args.corpus[0])
    for preset in args.names:
        rows, artifacts = [], folder / "artifacts/quantization"
        before = continued(args, artifacts / slug(preset) / "model", prompts)
        for ty in args.types:
            for method in METHODS:
                name = stage(preset, ty, method)
                found = figures(told(folder, "quantization", name), "documents")
                if ty in args.texts:
                    texts = continued(args, artifacts / name / "model", prompts)
                    found.update(same=same(texts, before), prompts=len(prompts))
                rows.append((f"{ty}, {method}", found))
                tell(f"{name:30} {100 * found['increase']:+.2f} %")
        all_rows[preset] = rows
    show(args, all_rows, "documents")


def show(args, all_rows, what):
    if args.json:
        return print(json.dumps({name: dict(rows) for name, rows in all_rows.items()}, indent=1))
    for name, rows in all_rows.items():
        _, first = rows[0]
        print(
            f"\n`{name}`: {first['bits']['before']:.4f} bits per byte of held-out {what} in f32, "
            f"{first['disk']['before']:,} bytes on disk, {first['memory']['before']:,} in memory"
        )
        table(rows, name)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", metavar="PATH", help="text: files")
    parser.add_argument("--chat", action="store_true", help="quantize.yaml's models and their answers")
    parser.add_argument("--preset", nargs="+", default=["modern-1.5m", "tinylm-1.5m"], help="architectures")
    parser.add_argument("--model", nargs="+", metavar="NAME=FOLDER", help="models that are there, instead of presets")
    parser.add_argument("--types", nargs="+", default=TYPES, metavar="TYPE", help=f"default {' '.join(TYPES)}")
    parser.add_argument("--texts", nargs="*", default=["q8_0", "q4_0"], metavar="TYPE", help="whose texts are compared")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="of training (default 1500)")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="of the tokenizer (default 4096)")
    parser.add_argument("--eval-tokens", type=int, default=100_000, metavar="N", help="default 100,000")
    add_project(parser)
    add_tinylm(parser)
    args = parse_project(parser, ["steps", "vocab_size", "eval_tokens"])
    if not args.chat and not args.corpus:
        parser.error("--corpus or --chat is needed")
    args.tinylm = str(Path(args.tinylm).resolve())
    args.model = dict(one.split("=", 1) for one in args.model or [])
    args.names = list(args.model) or args.preset
    return args


if __name__ == "__main__":
    arguments_ = arguments()
    if arguments_.chat:
        check_tinylm(arguments_)
        show(arguments_, chat(arguments_), "conversations")
    else:
        in_project("quantization", arguments_, compare)
