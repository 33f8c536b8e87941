#!/usr/bin/env python3
"""How fast a training step is: tinylm beside PyTorch, eager and compiled, f32, bf16 and bf16_tile.

    cargo build --release
    pip install torch triton
    python3 bench/training.py --preset tinylm-1.5m --rounds 3

Both train the same shape on tokens drawn at random, GPT-2's with dropout 0.1 or Qwen3's without (the
`modern-` presets): forward, cross-entropy, backward, clipping of the gradient's norm to 1, AdamW. PyTorch
gets what makes it fast (torch_models.py): fused attention (`scaled_dot_product_attention`), projections of
one input in one product, fused AdamW, memory that glibc keeps instead of giving it back (the MALLOC_
variables below; without them it is several times slower), as many threads as cores, and autocast to
bfloat16, which stands beside tinylm's bf16 and its bf16_tile.
`compile` is `torch.compile` with its default back end. `--old PROGRAM` sets another build of tinylm beside
this one.

The programs take turns: every round runs each of them once, as a process of its own, so that whatever
else the machine does hits all alike. A round's figure is the median over the steps of that process after
some that warm it up; shown is the median over the rounds, and how many times as fast tinylm is as the
fastest of PyTorch's of the same numbers, in the same rounds. Beside it stands what PyTorch's product of
two 2048 x 2048 matrices reaches in the same rounds, and the share of it that a step of tinylm's does.

A program that is not installed is named with the command that installs it. Python 3.9 or newer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from common import CORES, PRESETS, add_tinylm, check_pytorch, check_tinylm

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def pytorch(preset, dtype, compiled, steps, batch, accumulate):
    """One process's measurement: tokens a second of the median step, and the most memory that it took."""
    import resource
    import time

    import torch

    from torch_models import build

    shape = PRESETS[preset]
    batch, length, vocab = batch or shape["batch"], shape["length"], shape["vocab"]
    torch.manual_seed(1)
    torch.set_num_threads(CORES)
    model = build(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    run = torch.compile(model) if compiled else model
    ids = torch.randint(vocab, (batch, length))
    targets = torch.randint(vocab, (batch, length))
    seconds = []
    for _ in range(steps + 3):
        begun = time.perf_counter()
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "f32"):
                loss = run(ids, targets) / accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    params = sum(parameter.numel() for parameter in model.parameters())
    step = statistics.median(seconds[3:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = accumulate * batch * length / step
    print(json.dumps({"tokens_per_s": speed, "step_ms": 1e3 * step, "peak_rss_mib": peak, "params": params}))


def product(dtype):
    """What PyTorch's matrix product (MKL's or oneDNN's) reaches here, in 10^9 operations a second: the median of many."""
    import time

    import torch

    size = 2048
    a, b = (torch.randn(size, size, dtype=getattr(torch, {"f32": "float32"}.get(dtype, "bfloat16"))) for _ in "ab")
    seconds = []
    for _ in range(40):
        begun = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"gflops": 2 * size**3 / statistics.median(seconds[5:]) / 1e9}))


def contenders(args):
    shape, steps = PRESETS[args.preset], str(args.steps)
    size = ["--batch", str(args.batch or shape["batch"]), "--accumulate", str(args.accumulate)]
    common = ["bench", "train", "--preset", args.preset, *size, "--steps", steps]
    common += ["--dropout", str(shape["dropout"]), "--format", "json"]
    if shape["arch"] != "gpt2":
        common += ["--optimizer", "adamw"]  # as PyTorch's; the preset's own may be another
    for dtype in ["f32", *(dtype for dtype in args.dtypes if dtype != "f32")]:
        yield f"tinylm {dtype}", [args.tinylm, *common, "--dtype", dtype]
        if args.old:
            yield f"old tinylm {dtype}", [args.old, *common, "--dtype", dtype]
    yield "peak f32", [args.python, __file__, "--one", "product", "--dtype", "f32"]
    for dtype in [] if args.no_peers else args.dtypes:
        for how in args.torch:
            own = [args.python, __file__, "--one", how, "--dtype", dtype]
            yield f"PyTorch {how} {dtype}", [*own, "--preset", args.preset, "--steps", steps, *size]


def measure(command):
    """What one process printed, or None with the reason on stderr."""
    done = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        tail = "\n".join(done.stderr.strip().splitlines()[-6:])
        print(f"failed: {' '.join(command)}\n{tail}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def main():
    parser = argparse.ArgumentParser(description="Training steps of tinylm and PyTorch, side by side.")
    parser.add_argument("--preset", choices=PRESETS, default="tinylm-1.5m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps of a process that count")
    parser.add_argument("--batch", type=int, help="sequences of a batch (default: the preset's of common.py)")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches of an update (default 1)")
    parser.add_argument("--torch", nargs="+", choices=["eager", "compile"], default=["eager", "compile"])
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16", "bf16_tile"], default=["f32"])
    add_tinylm(parser)
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--old", metavar="PROGRAM", help="another build of tinylm")
    parser.add_argument("--no-peers", action="store_true", help="only tinylm, and the machine's peak")
    parser.add_argument("--one", choices=["eager", "compile", "product"], help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one == "product":
        return product(args.dtype)
    if args.one:
        return pytorch(args.preset, args.dtype, args.one == "compile", args.steps, args.batch, args.accumulate)
    check_tinylm(args)
    if args.old and not os.path.isfile(args.old):
        sys.exit(f"there is no {args.old}")
    check_pytorch(args)
    found = {name: [] for name, _ in contenders(args)}
    for number in range(args.rounds):
        for name, command in contenders(args):
            figures = measure(command)
            if figures is None:
                continue
            found[name].append(figures)
            check_same_model(found)
            what = " ".join(f"{key} {value:,.0f}" for key, value in figures.items() if key in ["tokens_per_s", "gflops"])
            print(f"round {number + 1}: {name:22} {what}", file=sys.stderr)
    middle = lambda name, key: statistics.median(f[key] for f in found[name])
    trained = [name for name, f in found.items() if f and "tokens_per_s" in f[0]]
    keys = ["tokens_per_s", "step_ms", "peak_rss_mib"]
    table(args, {name: [middle(name, key) for key in keys] for name in trained})
    if found["tinylm f32"] and found["peak f32"]:
        own, peak = middle("tinylm f32", "gflops"), middle("peak f32", "gflops")
        print(f"\nProducts of a step: {own:.0f} GFLOP/s, {100 * own / peak:.0f} % of the {peak:.0f} of PyTorch's large product")


def check_same_model(found):
    """Speeds of models of different sizes are no comparison."""
    sizes = {name: figures[0]["params"] for name, figures in found.items() if figures and "params" in figures[0]}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name}: {size:,}" for name, size in sizes.items())
        sys.exit(f"the models differ in their parameters ({named}): bring bench/common.py up to date")


def table(args, medians):
    """`medians`: tokens a second, milliseconds of a step and MiB of each."""
    batches = f", {args.accumulate} batches a step" if args.accumulate > 1 else ""
    print(f"\n`{args.preset}`, {args.rounds} rounds of {args.steps} steps{batches}, {CORES} cores\n")
    print("| | tok/s | ms a step | peak MiB | tinylm is |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (rate, step, peak) in medians.items():
        own = medians.get(f"tinylm {name.split()[-1]}")
        ratio = "" if own is None or name.startswith("tinylm") else f"{own[0] / rate:.2f} x"
        print(f"| {name} | {rate:,.0f} | {step:,.0f} | {peak:,.0f} | {ratio} |")
    for dtype in args.dtypes:
        peers = [m[0] for name, m in medians.items() if name.startswith("PyTorch") and name.endswith(dtype)]
        own = medians.get(f"tinylm {dtype}")
        if peers and own:
            print(f"\n{dtype}: {own[0] / max(peers):.2f} times the fastest of PyTorch's")


if __name__ == "__main__":
    main()
