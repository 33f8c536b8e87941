#!/usr/bin/env python3
"""How fast text is generated: tinylm beside PyTorch, eager, both with a KV cache.

    cargo build --release
    pip install torch
    python3 bench/generation.py --preset tinylm-1.5m --rounds 5

Both decode greedily behind a prompt of 64 random tokens up to the model's full length, one sequence at
a time, with random weights of the same GPT-2 shape, f32. PyTorch writes keys and values into tensors
made beforehand, under `inference_mode`, on whichever of one thread and all of them is faster.

The programs take turns, each a process of its own a round; a round's figure is the median over ten
generations. Starting the programs is not in it. Python 3.9 or newer.
"""

import argparse
import json
import statistics
import subprocess
import sys

from common import CORES, PRESETS, add_tinylm, check_pytorch, check_tinylm

PROMPT = 64


def pytorch(preset, threads):
    """One process's measurement: tokens a second after the first, and the first token's time."""
    import time

    import torch
    from torch.nn import functional as F

    vocab, width, layers, heads, length = (PRESETS[preset][key] for key in ["vocab", "width", "layers", "heads", "length"])
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    new = lambda *shape: torch.randn(*shape) * 0.02
    wte, wpe = new(vocab, width), new(length, width)
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

    first, each = [], []
    with torch.inference_mode():
        for _ in range(11):
            cache = [(torch.zeros(heads, length, size), torch.zeros(heads, length, size)) for _ in blocks]
            ids = torch.randint(vocab, (PROMPT,))
            begun = time.perf_counter()
            token = step(ids, 0, cache).argmax()
            first.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            for at in range(PROMPT, length - 1):
                token = step(token.view(1), at, cache).argmax()
            each.append((time.perf_counter() - begun) / (length - 1 - PROMPT))
    rate, wait = 1 / statistics.median(each[1:]), statistics.median(first[1:])
    print(json.dumps({"tokens_per_s": rate, "first_token_ms": 1e3 * wait}))


def contenders(args):
    own = [args.tinylm, "bench", "generate", "--preset", args.preset, "--format", "json"]
    yield "tinylm f32", own
    yield "tinylm bf16", [*own, "--dtype", "bf16"]
    for threads in sorted({1, CORES}):
        own = [args.python, __file__, "--threads", str(threads), "--preset", args.preset]
        yield f"PyTorch eager f32, {threads} thread{'s' if threads > 1 else ''}", own


def main():
    parser = argparse.ArgumentParser(description="Generation by tinylm and PyTorch, side by side.")
    gpt2 = [name for name, shape in PRESETS.items() if shape["arch"] == "gpt2"]
    parser.add_argument("--preset", choices=gpt2, default="tinylm-1.5m")
    parser.add_argument("--rounds", type=int, default=5)
    add_tinylm(parser)
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        return pytorch(args.preset, args.threads)
    check_tinylm(args)
    check_pytorch(args)
    found = {name: [] for name, _ in contenders(args)}
    for _ in range(args.rounds):
        for name, command in contenders(args):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"failed: {' '.join(command)}\n{done.stderr}")
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"\n`{args.preset}`, {args.rounds} rounds, {CORES} cores\n")
    print("| | tok/s | first token of 64, ms | tinylm is |\n| --- | ---: | ---: | ---: |")
    middle = lambda name, key: statistics.median(figure[key] for figure in found[name])
    own = middle("tinylm f32", "tokens_per_s")
    for name in found:
        rate, first = middle(name, "tokens_per_s"), middle(name, "first_token_ms")
        ratio = "" if name.startswith("tinylm") else f"{own / rate:.1f} x"
        print(f"| {name} | {rate:,.0f} | {first:.2f} | {ratio} |")


if __name__ == "__main__":
    main()
