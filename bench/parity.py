#!/usr/bin/env python3
"""Whether transformers and llama.cpp compute what tinylm computes, on models trained here.

    cargo build --release
    python3 bench/parity.py
    python3 bench/parity.py --stories ../shared/data/model_stories260K

One small model of each type (gpt2, llama, also with a tokenizer of SentencePiece's kind, qwen3) is pretrained and fine-tuned on text made from the templates in
`data/`, exported with `tinylm export`, and loaded:

- by transformers (`AutoModelForCausalLM`, `AutoTokenizer`): the log-probabilities of all ids at every place of some
  texts, greedy continuations, ids of odd texts, and the rendered chat template;
- by llama.cpp (PyPI `xllamacpp`: its server, f32 keys and values, no flash attention) from GGUF files in f32, Q8_0 and
  Q4_K: ids of the odd texts, greedy continuations beside tinylm's on the same file (and, where the texts part, how far
  apart the two ids are), the 20 most probable ids of each place, and the rendered chat template.

`--stories` names a folder with `stories260K.bin`, `tok512.bin`, `golden.json` and `expected_greedy_200steps.txt`
(a model of karpathy/tinyllamas with what llama2.c says with it); then that is imported and compared, too.

The Python packages are installed from PyPI into a folder of the user's cache the first time; where PyPI is out of
reach, that is said and nothing is compared. The exit code is 1 where a figure misses its bar. Python 3.9 or newer.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from common import add_tinylm, check_tinylm

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["torch", "transformers", "xllamacpp"]
# SentencePiece does not cut words, ours does: contractions and `▁` itself may differ, and the export says so.
LEAST_IDS = {"llama-spm": 0.98}
SHAPE = {"d_model": 256, "n_layer": 2, "n_head": 4, "d_ff": 512, "seq_len": 128, "vocab_size": 1024}
LLAMA = {
    "position": "rotary", "norm": "rms_norm", "norm_bias": False, "activation": "silu", "gated": True,
    "attn_bias": False, "mlp_bias": False, "tied": True, "n_kv_head": 2, "dropout": 0,
}  # fmt: skip
TYPES = {
    "gpt2": ({}, "byte_bpe"),
    "llama": ({**LLAMA, "tied": False}, "byte_bpe"),
    "llama-spm": (LLAMA, "sentencepiece_bpe"),
    "qwen3": ({**LLAMA, "qk_norm": True}, "byte_bpe"),
}
PROMPTS = [
    "Once upon a time", "The little fox", "In the morning the", "She said that", "My friend and I", "One day, a cat",
    "The doctor told", "We went to the", "Pada suatu hari", "There was a",
]  # fmt: skip
CHAT = [
    {"role": "system", "content": "You are a kind assistant."},
    {"role": "user", "content": "Hello! How are you?"},
    {"role": "assistant", "content": "I am fine."},
    {"role": "user", "content": "What is your name?"},
]
NEW = 40


class Rows:
    """The table, and whether each bar was met."""

    def __init__(self):
        self.rows, self.missed = {}, 0

    def add(self, what, column, shown, met=True):
        self.rows.setdefault(what, {})[column] = shown if met else f"**{shown}**"
        self.missed += not met

    def share(self, what, column, hits, total, least=1.0):
        self.add(what, column, f"{hits} of {total}", hits >= least * total)

    def print(self, columns):
        print("\n| | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
        for what, row in self.rows.items():
            print(f"| {what} | " + " | ".join(row.get(column, "") for column in columns) + " |")


def tell(text):
    print(text, file=sys.stderr, flush=True)


def python_with_packages(given, packages=PACKAGES, folder="parity-venv", pip=None):
    """A Python that has the packages: the one named, this one, or a virtual environment made for it. `pip` has the names of
    what is to be installed, where they are others."""
    has = lambda python: subprocess.run([python, "-c", f"import {', '.join(packages)}"], capture_output=True).returncode == 0
    for python in [given] if given else [sys.executable]:
        if has(python):
            return python
    if given:
        sys.exit(f"{given} lacks one of {', '.join(packages)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinylm" / folder
    python = str(cache / "bin" / "python")
    if not has(python):
        tell(f"installing {', '.join(packages)} into {cache}")
        venv.create(cache, with_pip=True, clear=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--retries", "1", *(pip or packages)], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"skipped: {', '.join(packages)} can't be installed from PyPI\n{done.stderr.strip()[-500:]}")
            sys.exit(0)
    return python


class Project:
    def __init__(self, folder, tinylm):
        self.folder, self.tinylm = Path(folder), str(Path(tinylm).resolve())

    def run(self, *args, **options):
        done = subprocess.run([self.tinylm, *map(str, args)], cwd=self.folder, capture_output=True, text=True, **options)
        if done.returncode != 0:
            sys.exit(f"failed: tinylm {' '.join(map(str, args))}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout

    def score(self, model, text, top=0):
        """The scored tokens of a text."""
        (self.folder / "text.txt").write_bytes(text.encode())
        return json.loads(self.run("score", "--model", model, "--file", "text.txt", "--top", top, "--format", "json"))

    def greedy(self, model, prompt, new=NEW):
        args = ["--prompt", prompt, "--strategy", "greedy", "--max-new-tokens", new, "--format", "json"]
        return json.loads(self.run("generate", "--model", model, *args))


def pipeline(steps):
    stages = {
        "synth": {
            "kind": "synthesize", "inputs": {"templates": str(ROOT / "data/templates/*.yaml")},
            "params": {"documents": 2000, "conversations": 1000},
        }
    }  # fmt: skip
    for algorithm in sorted({algorithm for _, algorithm in TYPES.values()}):
        stages[f"tokenizer_{algorithm}"] = {
            "kind": "train_tokenizer", "inputs": {"docs": "synth", "chats": "synth"},
            "params": {"algorithm": algorithm, "vocab_size": SHAPE["vocab_size"]},
        }  # fmt: skip
        stages[f"shards_{algorithm}"] = {"kind": "shard", "inputs": {"docs": "synth", "tokenizer": f"tokenizer_{algorithm}"}}
    for name, (params, algorithm) in TYPES.items():
        tokenizer = f"tokenizer_{algorithm}"
        stages[f"{name}_base"] = {
            "kind": "pretrain", "inputs": {"shards": f"shards_{algorithm}", "tokenizer": tokenizer},
            "params": {"preset": "tinylm-1.5m", **SHAPE, **params, "steps": steps, "eval_every": steps},
        }  # fmt: skip
        stages[name] = {
            "kind": "finetune", "inputs": {"model": f"{name}_base", "tokenizer": tokenizer, "chats": "synth"},
            "params": {"steps": steps // 2, "eval_every": steps},
        }  # fmt: skip
    return {"stages": stages}


def odd_texts():
    texts = json.loads((ROOT / "tests/fixtures/odd_texts.json").read_text())
    return [text for text in texts if text]


def top_difference(ours, theirs):
    """The largest difference of log-probabilities of ids that both name."""
    theirs = dict(theirs)
    return max((abs(p - theirs[id]) for id, p in ours if id in theirs), default=math.inf)


def gap_at_difference(ours, theirs):
    """How much more probable llama.cpp finds its own id than ours where greedy continuations first differ."""
    for own, place in zip(ours, theirs):
        if own != place["id"]:
            found = {top["id"]: top["logprob"] for top in place["top_logprobs"]}
            return found[place["id"]] - found.get(own, -math.inf)
    return 0.0


def difference_from_itself(server, ids, places):
    """How far llama.cpp's log-probabilities of a text that it wrote are from those that it gives when it reads as much of the
    text at once: how exact equality with it can be."""
    difference, read = 0.0, list(ids)
    for place in places:
        again = server.complete(read, 1, 20)["completion_probabilities"][0]
        tops = [[(top["id"], top["logprob"]) for top in found["top_logprobs"]] for found in (place, again)]
        difference = max(difference, top_difference(*tops))
        read.append(place["id"])
    return difference


def beside_transformers(rows, column, facts, python):
    done = subprocess.run([python, __file__, "--transformers"], input=json.dumps(facts), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"transformers failed:\n{done.stderr[-3000:]}")
    theirs = json.loads(done.stdout.splitlines()[-1])
    rows.add("transformers: type", column, theirs["class"])
    rows.share("transformers: ids of odd texts", column, theirs["ids"], len(facts["texts"]))
    rows.add("transformers: max difference of log-probabilities", column, f"{theirs['difference']:.1e}", theirs["difference"] <= 1e-4)
    rows.share("transformers: greedy continuations", column, theirs["greedy"], len(facts["greedy"]))
    return theirs["chat"], theirs["answer"]


def transformers_side():
    """Reads what tinylm found, and compares: in a process of its own, which has the packages."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(facts["folder"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(facts["folder"])
    encode = lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    same = sum(encode(text) == ids for text, ids in facts["texts"])
    difference = 0.0
    with torch.inference_mode():
        for ids, scored in facts["scores"]:
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            for place, tops in enumerate(scored):
                for id, p in tops:
                    difference = max(difference, abs(p - logprobs[place][id].item()))
        continued = lambda ids, new: model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=new, pad_token_id=0, attention_mask=torch.ones(1, len(ids)).long()
        )[0][len(ids):].tolist()  # fmt: skip
        greedy = sum(until(continued(ids, NEW), tokenizer.eos_token_id) == new for ids, new in facts["greedy"])
        chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(CHAT[-1:], add_generation_prompt=True, return_dict=False)
        answer = tokenizer.decode(continued(list(ids), NEW), skip_special_tokens=True)
    print(json.dumps({
        "class": type(model).__name__, "ids": same, "difference": difference, "greedy": greedy, "chat": chat, "answer": answer,
    }))  # fmt: skip


def through_table(rows, column, folder, python, continued):
    """Why gpt2's log-probabilities differ more: llama.cpp reads GELU from a table of 16-bit floats (`ggml_vec_gelu_f32`).
    With that table in transformers they come near; with GELU as it is defined they differ as tinylm's do."""
    facts = json.dumps({"folder": str(folder), "continued": continued})
    done = subprocess.run([python, __file__, "--table"], input=facts, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"transformers failed:\n{done.stderr[-3000:]}")
    for activation, (mean, most) in json.loads(done.stdout.splitlines()[-1]).items():
        rows.add(f"llama.cpp f32 beside transformers, {activation}: mean and max difference", column, f"{mean:.1e}, {most:.1e}")


def table_side():
    """Reads what llama.cpp found, and compares with transformers: in a process of its own, which has the packages."""
    import torch
    from transformers import AutoModelForCausalLM

    facts = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(facts["folder"], dtype=torch.float32).eval()
    exact = model.transformer.h[0].mlp.act

    class Table(torch.nn.Module):
        def forward(self, x):
            rounded = exact(x.half().float()).half().float()
            return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, rounded))

    found = {}
    for activation, function in {"GELU as defined": exact, "GELU from a table of 16 bits": Table()}.items():
        for block in model.transformer.h:
            block.mlp.act = function
        apart = []
        for ids, places in facts["continued"]:
            with torch.inference_mode():
                logits = model(torch.tensor([ids + [place["id"] for place in places]])).logits[0]
            for row, place in zip(logits.double().log_softmax(-1)[len(ids) - 1:], places):
                apart.append(max(abs(row[top["id"]].item() - top["logprob"]) for top in place["top_logprobs"]))
        found[activation] = [sum(apart) / len(apart), max(apart)]
    print(json.dumps(found))


def until(ids, end):
    return ids[: ids.index(end)] if end in ids else ids


def beside_llama_cpp(rows, column, project, name, python, texts, bos, begin, chat, target):
    from llama_cpp import Server

    for quantize in ["f32", "q8_0", "q4_k"]:
        path = project.folder / f"{name}-{quantize}.gguf"
        project.run("export", "--model", target, "--format", "gguf", *([] if quantize == "f32" else ["--quantize", quantize]), "-o", path, "--force")
        with Server(python, path, SHAPE["seq_len"]) as server:
            rows.share(f"llama.cpp {quantize}: ids of odd texts", column, sum(server.ids(text) == ids for text, ids in texts), len(texts), LEAST_IDS.get(name, 1.0))
            same, difference, gap, itself, continued = 0, 0.0, 0.0, 0.0, []
            for prompt in PROMPTS:
                ours = project.greedy(path, prompt)
                ids = bos + [token["id"] for token in project.score(path, prompt)["tokens"]]
                theirs = server.complete(ids, NEW, 20)
                same += ours["text"] == theirs["content"]
                gap = max(gap, gap_at_difference(ours["tokens"], theirs["completion_probabilities"]))
                continued.append((ids, theirs["completion_probabilities"]))
                itself = max(itself, difference_from_itself(server, *continued[-1]))
                if quantize == "f32":
                    places = project.score(path, prompt + theirs["content"], 20)["tokens"][len(ids) - len(bos):]
                    for place, found in zip(places, theirs["completion_probabilities"]):
                        if place["id"] != found["id"]:
                            break  # the text was divided into other tokens than it was generated in
                        difference = max(difference, top_difference(place["top"], [(t["id"], t["logprob"]) for t in found["top_logprobs"]]))
            rows.share(f"llama.cpp {quantize}: greedy continuations", column, same, len(PROMPTS), 1.0 if quantize == "f32" else 0.5)
            rows.add(f"llama.cpp {quantize} beside itself, other batches: max difference of the top 20", column, f"{itself:.1e}")
            if quantize != "f32":
                rows.add(f"llama.cpp {quantize}: log-probabilities apart where they part", column, f"{gap:.3f}", gap <= 0.1)
            if quantize == "f32":
                rows.add("llama.cpp f32: max difference of the top 20 log-probabilities", column, f"{difference:.1e}", difference <= 1e-2)
                if name == "gpt2":
                    through_table(rows, column, project.folder / f"{name}-hf", python, continued)
                rendered = begin + server.render(CHAT)
                rows.add("chat template: transformers and llama.cpp render the same", column, str(rendered == chat), rendered == chat)


def judge(rows, project, name, python):
    target = f"parity:{name}"
    tell(f"{name}: tinylm")
    folder = project.folder / f"{name}-hf"
    shutil.rmtree(folder, ignore_errors=True)
    project.run("export", "--model", target, "--format", "hf", "-o", folder)
    config = json.loads((folder / "config.json").read_text())
    bos = [config["bos_token_id"]]
    ids = lambda text: [token["id"] for token in project.score(target, text)["tokens"]]
    texts = [(text, ids(text)) for text in odd_texts()]
    scores, greedy = [], []
    for prompt in PROMPTS:
        found = project.greedy(target, prompt)
        scored = project.score(target, prompt + found["text"], SHAPE["vocab_size"])["tokens"]
        scores.append((bos + [token["id"] for token in scored], [token["top"] for token in scored]))
        greedy.append((bos + ids(prompt), found["tokens"]))
    facts = {"folder": str(folder), "texts": texts, "scores": scores, "greedy": greedy}
    tell(f"{name}: transformers")
    chat, answer = beside_transformers(rows, name, facts, python)
    lines = project.run("chat", "--model", target, "--strategy", "greedy", "--max-new-tokens", NEW, "--format", "json", input=CHAT[-1]["content"] + "\n")
    own = json.loads(lines.splitlines()[0])["assistant"]
    rows.add("transformers: the answer in a chat", name, str(own == answer), own == answer)
    tell(f"{name}: llama.cpp")
    begin = json.loads((folder / "tokenizer_config.json").read_text())["bos_token"]
    beside_llama_cpp(rows, name, project, name, python, texts, bos, begin, chat, target)


def stories(rows, project, folder):
    """llama2.c's own model, against what llama2.c and its authors' figures say."""
    column, golden = "stories260K", json.loads((folder / "golden.json").read_text())
    shutil.rmtree(project.folder / "stories", ignore_errors=True)
    project.run("import", folder / "stories260K.bin", "--tokenizer", folder / "tok512.bin", "-o", "stories")
    expected = (folder / "expected_greedy_200steps.txt").read_text()
    text = project.run("generate", "--model", "stories", "--prompt", "", "--strategy", "greedy", "--max-new-tokens", 200)
    same = text.strip() == expected.strip()
    rows.add("llama2.c: greedy text of 200 steps", column, str(same), same)
    ids = lambda text: [token["id"] for token in project.score("stories", text)["tokens"]]
    cases = golden["encode"]
    rows.share("llama2.c: ids", column, sum(ids(case["text"]) == case["ids_with_bos_and_dummy_prefix"][1:] for case in cases), len(cases))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), help="default: all")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining (default 600), and half of them of fine-tuning")
    parser.add_argument("--stories", type=Path, metavar="DIR", help="a folder with stories260K and its golden values")
    parser.add_argument("--python", help="a Python that has the packages")
    parser.add_argument("--project", help="keep everything in this folder")
    parser.add_argument("--transformers", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help=argparse.SUPPRESS)
    add_tinylm(parser)
    args = parser.parse_args()
    if args.transformers:
        return transformers_side()
    if args.table:
        return table_side()
    check_tinylm(args)
    python = python_with_packages(args.python)
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        project = Project(Path(args.project or folder).resolve(), args.tinylm)
        (project.folder / "pipelines").mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        (project.folder / "pipelines/parity.yaml").write_text(json.dumps(pipeline(args.steps), indent=1))
        tell("training")
        project.run("run", "parity", *args.types)
        rows = Rows()
        for name in args.types:
            judge(rows, project, name, python)
        columns = list(args.types)
        if args.stories:
            stories(rows, project, args.stories.resolve())
            columns.append("stories260K")
        rows.print(columns)
        if rows.missed:
            sys.exit(f"{rows.missed} figures miss their bar")


if __name__ == "__main__":
    main()
