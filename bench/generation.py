#!/usr/bin/env python3
"""How fast text is generated and prompts are read: tinylm beside llama.cpp on the same weights, and PyTorch.

    cargo build --release
    pip install xllamacpp torch
    python3 bench/generation.py --rounds 5
    python3 bench/generation.py --model artifacts/two_stage/base/model --quantize q8_0 q4_k

Without `--model`, a pipeline makes a model of GPT-2's architecture and a preset's shape that holds 1,024 tokens,
trained for a step: what a token costs does not depend on what was learned. `tinylm export --format gguf` writes
it for llama.cpp (the Python package `xllamacpp`), in f32 and in each type that `--quantize` names.

Each decodes greedily, one sequence at a time with a KV cache, behind a prompt of random tokens:

    tokens/s    of 64 new tokens behind 64, the first not counted
    prompt/s    tokens of a prompt of 512 until the first token is chosen

llama.cpp says these itself (`timings`), on whichever of one thread and all of them is faster; its KV cache is f16, as
it comes. PyTorch runs a GPT-2 of the same shape with random weights, eager, f32, under `inference_mode`, keys and
values in tensors made beforehand.

The programs take turns, each a process of its own a round; a round's figure is the median over ten repetitions.
Starting the programs is not in it. Peers that are not installed are left away. Python 3.9 or newer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import CORES, PRESETS, add_tinylm, check_tinylm

SEQ_LEN = 1024
PROMPT, NEW = 64, 64
LONG_PROMPT = 512
REPEAT = 10


# -- what is measured in a process of its own -----------------------------------------------------


def of_llama_cpp(file, threads, vocab):
    """Tokens a second, by llama.cpp's own clock."""
    import random

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = params.n_batch = params.n_ubatch = PROMPT + NEW + LONG_PROMPT
    params.n_parallel, params.verbosity = 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    draw = random.Random(1)

    def timings(prompt, new):
        ids = [draw.randrange(vocab) for _ in range(prompt)]
        asked = {"prompt": ids, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return server.handle_completions(asked)["timings"]

    generated = [timings(PROMPT, NEW)["predicted_per_second"] for _ in range(REPEAT + 1)]
    read = [timings(LONG_PROMPT, 1)["prompt_per_second"] for _ in range(REPEAT + 1)]
    print_rates(generated[1:], read[1:])


def of_pytorch(preset, threads):
    """Tokens a second of PyTorch, eager."""
    import time

    import torch
    from torch.nn import functional as F

    vocab, width, layers, heads = (PRESETS[preset][key] for key in ["vocab", "width", "layers", "heads"])
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    new = lambda *shape: torch.randn(*shape) * 0.02
    wte, wpe = new(vocab, width), new(SEQ_LEN, width)
    one, zero = torch.ones(width), torch.zeros(width)
    blocks = [
        {"qkv": new(3 * width, width), "proj": new(width, width), "up": new(4 * width, width), "down": new(width, 4 * width)}
        for _ in range(layers)
    ]
    size = width // heads

    def step(ids, start, cache):
        t = len(ids)
        x = wte[ids] + wpe[start : start + t]
        for block, (keys, values) in zip(blocks, cache):
            qkv = F.linear(F.layer_norm(x, (width,), one, zero), block["qkv"])
            q, k, v = (y.view(t, heads, size).transpose(0, 1) for y in qkv.split(width, 1))
            keys[:, start : start + t], values[:, start : start + t] = k, v
            seen = start + t
            y = F.scaled_dot_product_attention(q, keys[:, :seen], values[:, :seen], is_causal=t > 1)
            x = x + F.linear(y.transpose(0, 1).reshape(t, width), block["proj"])
            hidden = F.gelu(F.linear(F.layer_norm(x, (width,), one, zero), block["up"]), approximate="tanh")
            x = x + F.linear(hidden, block["down"])
        return F.linear(F.layer_norm(x[-1], (width,), one, zero), wte)

    def timed(prompt, new):
        """Seconds to the first token, and from there for each."""
        cache = [(torch.zeros(heads, SEQ_LEN, size), torch.zeros(heads, SEQ_LEN, size)) for _ in blocks]
        ids = torch.randint(vocab, (prompt,))
        begun = time.perf_counter()
        token = step(ids, 0, cache).argmax()
        first = time.perf_counter()
        for at in range(prompt, prompt + new - 1):
            token = step(token.view(1), at, cache).argmax()
        return first - begun, (time.perf_counter() - first) / max(new - 1, 1)

    with torch.inference_mode():
        generated = [1 / timed(PROMPT, NEW)[1] for _ in range(REPEAT + 1)]
        read = [LONG_PROMPT / timed(LONG_PROMPT, 1)[0] for _ in range(REPEAT + 1)]
    print_rates(generated[1:], read[1:])


def print_rates(generated, read):
    rates = {"tokens_per_s": statistics.median(generated), "prompt_tokens_per_s": statistics.median(read)}
    print(json.dumps(rates))


# -- the rounds -----------------------------------------------------------------------------------


def made_model(folder, args):
    """A model of the preset's shape, and how many tokens its tokenizer has."""
    data = Path(__file__).resolve().parent.parent / "data"
    texts = {"docs": ["docs", "synth"], "tokenizer": "tokenizer"}
    stages = {
        "docs": {"kind": "ingest", "inputs": {"files": str(data / "corpus/*.txt")}},
        "synth": {
            "kind": "synthesize", "inputs": {"templates": str(data / "templates/*.yaml")},
            "params": {"documents": 3000, "conversations": 1},
        },
        "tokenizer": {
            "kind": "train_tokenizer", "inputs": {"docs": ["docs", "synth"]},
            "params": {"algorithm": "byte_bpe", "vocab_size": PRESETS[args.preset]["vocab"]},
        },
        "shards": {"kind": "shard", "inputs": texts},
        "base": {
            "kind": "pretrain", "inputs": {"shards": "shards", "tokenizer": "tokenizer"},
            "params": {
                "preset": args.preset, "seq_len": SEQ_LEN, "vocab_size": PRESETS[args.preset]["vocab"], "steps": 1,
                "batch_size": 1, "warmup_steps": 0,
            },
        },
    }  # fmt: skip
    (folder / "pipelines").mkdir()
    pipeline = {"name": "speed", "seed": 1, "stages": stages}
    (folder / "pipelines/speed.yaml").write_text(json.dumps(pipeline))
    call([args.tinylm, "run", "speed"], folder)
    return str(folder / "artifacts/speed/base/model")


def call(command, folder=None):
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}\n{done.stderr or done.stdout}")
    return done.stdout


def rates_of(command):
    return json.loads(call(command).strip().splitlines()[-1])


def of_tinylm(args, model, quantized):
    """A round of tinylm's: two processes, for the short and the long prompt."""
    own = [args.tinylm, "bench", "generate", "--model", model, "--repeat", str(REPEAT), "--format", "json"]
    own += ["--quantize", quantized] if quantized else []
    found = json.loads(call([*own, "--prompt", str(PROMPT), "--new", str(NEW)]))
    read = json.loads(call([*own, "--prompt", str(LONG_PROMPT), "--new", "2"]))
    rates = {"tokens_per_s": found["tokens_per_s"], "prompt_tokens_per_s": read["prompt_tokens_per_s"]}
    return {**rates, "mib": found["weight_bytes"] / 2**20}


def contenders(args, model, folder):
    """What to call for each a round; names that begin alike are variants, of which the fastest counts."""
    has = lambda package: subprocess.run([args.python, "-c", f"import {package}"], capture_output=True).returncode == 0
    peers = {"xllamacpp": has("xllamacpp"), "torch": has("torch") and not args.model}
    vocab = len(json.loads((Path(model) / "tokenizer.json").read_text())["model"]["vocab"]) if peers["xllamacpp"] else 0
    found = {}
    for quantized in [None, *args.quantize]:
        name = quantized or "f32"
        found[f"tinylm {name}"] = [lambda quantized=quantized: of_tinylm(args, model, quantized)]
        if not peers["xllamacpp"]:
            continue
        file = folder / f"{name}.gguf"
        command = [args.tinylm, "export", "--model", model, "--format", "gguf", "--output", str(file)]
        call([*command, "--quantize", quantized] if quantized else command)
        own = [args.python, __file__, "--gguf", str(file), "--vocab", str(vocab)]
        found[f"llama.cpp {name}"] = on_threads(own)
    if peers["torch"]:
        found["PyTorch eager f32"] = on_threads([args.python, __file__, "--preset", args.preset])
    missing = [package for package, there in peers.items() if not there]
    if missing:
        print(f"left away: {', '.join(missing)} (pip install, or name another --python)", file=sys.stderr)
    return found


def on_threads(command):
    counts = sorted({1, CORES})
    return [lambda n=n: rates_of([*command, "--threads", str(n)]) for n in counts]


def measure(args, folder):
    model = args.model or made_model(folder, args)
    if not os.path.isdir(model):
        sys.exit(f"{model} is no folder of a model")
    all_rounds = contenders(args, model, folder)
    found = {name: [[] for _ in variants] for name, variants in all_rounds.items()}
    for _ in range(args.rounds):
        for name, variants in all_rounds.items():
            for rates, variant in zip(found[name], variants):
                rates.append(variant())
    return found


def table(found, args):
    median = lambda rounds, key: statistics.median(rates[key] for rates in rounds)
    best = lambda name, key: max(median(rounds, key) for rounds in found[name])
    print(f"\n`{args.model or args.preset}`, {args.rounds} rounds, {CORES} cores\n")
    print("| | weights, MiB | tokens/s | tinylm is | prompt/s | tinylm is |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in found:
        own = "tinylm " + name.rsplit(" ", 1)[1]
        row = [f"{found[name][0][0]['mib']:.2f}" if "mib" in found[name][0][0] else ""]
        for key in ["tokens_per_s", "prompt_tokens_per_s"]:
            rate = best(name, key)
            row += [f"{rate:,.0f}", "" if name == own else f"{best(own, key) / rate:.1f} x"]
        print(f"| {name} | {' | '.join(row)} |")


def arguments():
    parser = argparse.ArgumentParser(description="Generation by tinylm, llama.cpp and PyTorch, side by side.")
    gpt2 = [name for name, shape in PRESETS.items() if shape["arch"] == "gpt2"]
    parser.add_argument("--model", metavar="FOLDER", help="a model's folder (default: one of the preset's shape)")
    parser.add_argument("--preset", choices=gpt2, default="tinylm-1.5m")
    parser.add_argument("--quantize", nargs="*", default=["q8_0", "q4_0"], metavar="TYPE", help="default q8_0 q4_0")
    parser.add_argument("--rounds", type=int, default=5)
    add_tinylm(parser)
    parser.add_argument("--python", default=sys.executable, help="a Python that has xllamacpp and PyTorch")
    for hidden in ["--threads", "--vocab"]:
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    if args.gguf:
        return of_llama_cpp(args.gguf, args.threads, args.vocab)
    if args.threads:
        return of_pytorch(args.preset, args.threads)
    check_tinylm(args)
    args.tinylm = os.path.abspath(args.tinylm)
    with tempfile.TemporaryDirectory(prefix="generation-bench-") as folder:
        table(measure(args, Path(folder).resolve()), args)


if __name__ == "__main__":
    main()
