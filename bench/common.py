"""What the scripts beside this one share."""

import os
import pathlib
import subprocess
import sys

PRESETS = {  # vocabulary, width, layers, heads, length, batch of a training step
    "tinylm-1.5m": (5000, 128, 3, 4, 128, 16),
    "small": (5000, 256, 4, 4, 256, 16),
    "medium": (10200, 512, 6, 8, 256, 8),
    "slm": (50257, 384, 6, 6, 128, 8),
}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def add_tinylm(parser):
    """`--tinylm`: by default what `cargo build --release` made."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parent.parent / "target"))
    parser.add_argument("--tinylm", default=str(target / "release" / "tinylm"), help="the program")


def check_tinylm(args):
    if not os.path.isfile(args.tinylm):
        sys.exit(f"there is no {args.tinylm}: cargo build --release, or name it with --tinylm")


def check_pytorch(args):
    if subprocess.run([args.python, "-c", "import torch"], capture_output=True).returncode != 0:
        sys.exit(f"{args.python} has no PyTorch: pip install torch triton, or name another with --python")
