"""What the scripts beside this one share."""

import os
import pathlib
import subprocess
import sys
import tempfile


def gpt2(vocab, width, layers, heads, length, batch):
    """A preset of GPT-2's architecture; `batch` is that of the training step measured."""
    return {
        "arch": "gpt2", "vocab": vocab, "width": width, "layers": layers, "heads": heads, "kv_heads": heads,
        "mlp": 4 * width, "length": length, "batch": batch, "dropout": 0.1,
        "gelu": "tanh",
    }  # fmt: skip


def qwen3(vocab, width, layers, heads, kv_heads, mlp, length, batch):
    """A preset of Qwen3's architecture: RMSNorm, rotary positions, QK-norm, SwiGLU, no biases, tied head."""
    return {
        "arch": "qwen3", "vocab": vocab, "width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads,
        "mlp": mlp, "length": length, "batch": batch, "dropout": 0.0,
    }  # fmt: skip


PRESETS = {
    "tinylm-1.5m": gpt2(5000, 128, 3, 4, 128, 16),
    "small": gpt2(5000, 256, 4, 4, 256, 16),
    "medium": gpt2(10200, 512, 6, 8, 256, 8),
    "slm": gpt2(50257, 384, 6, 6, 128, 8),
    "slm-50m-tied": {**gpt2(50257, 384, 6, 6, 128, 32), "gelu": "none"},
    "modern-1.5m": qwen3(4096, 128, 3, 4, 4, 448, 128, 16),
    "modern-small": qwen3(5000, 256, 4, 4, 4, 704, 256, 16),
    "modern-medium": qwen3(10200, 512, 6, 8, 8, 1376, 256, 8),
}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def add_tinylm(parser):
    """`--tinylm`: by default what `cargo build --release` made."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parent.parent / "target"))
    parser.add_argument("--tinylm", default=str(target / "release" / "tinylm"), help="the program")


def add_project(parser):
    """What a comparison over seeds has: `--seeds`, `--validation-fraction`, `--project`, `--json`."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default 1 2 3")
    parser.add_argument("--validation-fraction", type=float, default=0.05, metavar="F", help="held out (default 0.05)")
    parser.add_argument("--project", metavar="DIR", help="keep all results here, and go on from what is there")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON instead of the table")


def parse_project(parser, counts):
    """The arguments, of which those called `counts` are 1 or more."""
    args = parser.parse_args()
    for name in counts:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: expected 1 or more")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {' '.join(map(str, args.seeds))}: a seed is given twice")
    return args


def in_project(name, args, compare):
    """Compares in the folder that `--project` names, or in one that goes afterwards."""
    check_tinylm(args)
    if args.project:
        return compare(pathlib.Path(args.project).resolve(), args)
    with tempfile.TemporaryDirectory(prefix=f"{name}-bench-") as folder:
        compare(pathlib.Path(folder).resolve(), args)


def check_tinylm(args):
    if not os.path.isfile(args.tinylm):
        sys.exit(f"there is no {args.tinylm}: cargo build --release, or name it with --tinylm")


def check_pytorch(args):
    if subprocess.run([args.python, "-c", "import torch"], capture_output=True).returncode != 0:
        sys.exit(f"{args.python} has no PyTorch: pip install torch triton, or name another with --python")
