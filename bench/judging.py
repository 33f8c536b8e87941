#!/usr/bin/env python3
"""Whether numpy and transformers come to the figures, intervals and p-values that tinylm judges models by.

    cargo build --release
    python3 bench/judging.py
    python3 bench/judging.py --texts stories.txt --pairs ../shared/data/eval_blimp/blimp_mini_100.tsv

Two small recipes (the widths of `--widths`) are pretrained with each of `--seeds`, in one pipeline with a matrix, on text
made from the templates in `data/` and on `--texts`. All are evaluated on what was held out, with a stated context and
stride, and on minimal pairs: a few hundred made here (a noun and its verb, both in the plural or not), or those of
`--pairs`, a TSV like BLiMP's. `tinylm compare --format json` then compares the models and, grouped, the recipes. Checked
is, from `items.parquet` of each report:

- numpy, the same draws: every figure, interval, difference, p-value (also Holm's, and of the permutations of members),
  to 1e-6;
- numpy, a generator and draws of its own (20,000 resamples and permutations): bounds of intervals and p-values are apart
  by no more than 4.5 standard errors of so many draws;
- transformers, on the exported models of the first seed: bits per byte with that context and stride to 1e-4, of all documents together;
  and the pairs, one sentence after the other in a plain loop: every score the same.

The Python packages are installed from PyPI into a folder of the user's cache the first time; where PyPI is out of reach,
that is said and nothing is compared. The exit code is 1 where a figure misses its bar. Python 3.9 or newer.
"""

import argparse
import csv
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import add_tinylm, check_tinylm
from parity import Project, Rows, python_with_packages, tell

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["numpy", "pyarrow", "torch", "transformers"]
SHAPE = {
    "preset": "tinylm-1.5m", "n_layer": 2, "n_head": 2, "seq_len": 128, "vocab_size": 1024, "batch_size": 8, "dropout": 0,
}  # fmt: skip
DRAWS = 20_000
# Beyond this many standard errors two estimates of the same are not: a chance of 1 in 100,000 for one, and there are
# about a hundred.
ERRORS = 4.5


def pipeline(args):
    inputs = {"docs": ["synth", *(["texts"] if args.texts else [])]}
    variant = {"width": args.widths, "seed": args.seeds}
    stages = {
        "synth": {
            "kind": "synthesize", "inputs": {"templates": str(ROOT / "data/templates/*.yaml")},
            "params": {"documents": 1500, "conversations": 0},
        },
        "tokenizer": {"kind": "train_tokenizer", "inputs": inputs, "params": {"vocab_size": SHAPE["vocab_size"]}},
        "shards": {"kind": "shard", "inputs": {**inputs, "tokenizer": "tokenizer"}, "params": {"validation_fraction": 0.1}},
        "model": {
            "kind": "pretrain", "inputs": {"shards": "shards", "tokenizer": "tokenizer"}, "matrix": variant, "seed": "${matrix.seed}",
            "params": {**SHAPE, "d_model": "${matrix.width}", "d_ff": 256, "steps": args.steps, "eval_every": args.steps},
        },
        "eval": {
            "kind": "eval", "inputs": {"model": "model", "tokenizer": "tokenizer", **inputs, "pairs": str(pairs_file(args))},
            "params": {"context": args.context, "stride": args.stride, "max_tokens": args.max_tokens},
        },
    }  # fmt: skip
    if args.texts:
        stages["texts"] = {"kind": "ingest", "inputs": {"files": [str(path.resolve()) for path in args.texts]}}
    return {"stages": stages}


def pairs_file(args):
    return args.pairs.resolve() if args.pairs else Path(args.folder) / "pairs.tsv"


def write_pairs(path):
    """Minimal pairs of one paradigm: the verb agrees with its noun."""
    nouns = ["cat", "dog", "bird", "girl", "boy", "doctor", "teacher", "farmer", "king", "child of the baker"]
    verbs = ["like", "want", "see", "help", "know"]
    ends = ["the river", "a story", "the old house", "her friend"]
    with open(path, "w", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["uid", "pair_id", "good", "bad"])
        for number, (noun, verb, end) in enumerate(itertools.product(nouns, verbs, ends)):
            one, many = f"The {noun} {verb}s {end}.", f"The {noun} {verb} {end}."
            rows.writerow(["agreement", number, one, many])


def variants(args):
    """The values of the matrix in the names of stages, in tinylm's order: seeds within widths by their names."""
    return [f"seed={seed},width={width}" for seed in args.seeds for width in args.widths]


# -- in a process of its own, which has the packages ------------------------------------------------


def numpy_side(facts):
    """(largest differences by what was compared, largest distance in standard errors)."""
    import numpy as np

    reports = {name: items(path) for name, path in facts["items"].items()}
    worst, errors = {}, {}
    for comparison in facts["comparisons"]:
        for figure in comparison["figures"]:
            check = FigureCheck(np, comparison, figure, reports)
            for what, difference in check.same_draws():
                worst[what] = max(worst.get(what, 0.0), float(difference))
            for what, distance in check.own_draws():
                errors[what] = max(errors.get(what, 0.0), float(distance))
    return worst, errors


def items(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


NUMERATORS = {
    "bits_per_byte": lambda item: item["nats"] / math.log(2), "loss": lambda item: item["nats"],
    "top1_accuracy": lambda item: item["top1"], "top5_accuracy": lambda item: item["top5"],
    "accuracy_per_byte": lambda item: item["score_per_byte"],
}  # fmt: skip
DENOMINATORS = {
    "bits_per_byte": lambda item: item["bytes"], "loss": lambda item: item["tokens"],
    "top1_accuracy": lambda item: item["tokens"], "top5_accuracy": lambda item: item["tokens"],
}  # fmt: skip


class FigureCheck:
    """One figure of a comparison, computed anew."""

    def __init__(self, np, comparison, figure, reports):
        self.np, self.comparison, self.figure = np, comparison, figure
        kind = figure["figure"].split(".")[-1]
        numerator = NUMERATORS.get(kind, lambda item: item["score"])
        denominator = DENOMINATORS.get(kind, lambda item: 1)
        members = [[keyed(reports[m["name"]], figure["task"]) for m in row["members"]] for row in figure["rows"]]
        flat = list(itertools.chain(*members))
        keys = [key for key in flat[0] if all(key in other for other in flat)]
        assert len(keys) == figure["items"], (figure["figure"], len(keys), figure["items"])
        # [entry][member, item]
        self.numerators = [np.array([[numerator(m[key]) for key in keys] for m in entry], dtype=float) for entry in members]
        self.denominators = np.array([denominator(flat[0][key]) for key in keys], dtype=float)
        names = [row["name"] for row in figure["rows"]]
        self.base = names.index(comparison["baseline"])
        self.others = [names.index(d["name"]) for d in figure["differences"]]

    def values(self, drawn=None):
        """Of each entry the members' figures: [member] or, of items drawn, [member, resample]."""
        if drawn is None:
            return [n.sum(1) / self.denominators.sum() for n in self.numerators]
        below = self.denominators[drawn].sum(1)
        return [self.np.stack([member[drawn].sum(1) for member in n]) / below for n in self.numerators]

    def resampled(self, drawn, drawn_members):
        """[entry][resample]"""
        chosen = zip(self.values(drawn), drawn_members)
        return [self.np.take_along_axis(values.T, members, 1).mean(1) for values, members in chosen]

    def item_differences(self, entry):
        return self.numerators[entry].mean(0) - self.numerators[self.base].mean(0)

    def p_values(self, signs):
        """Of each difference; `signs` gives parts of all permutations."""
        lists = self.np.stack([self.item_differences(e) for e in self.others], 1)
        least = abs(lists.sum(0)) - 1e-10 * abs(lists).sum(0)
        count, total = 0, 0
        for part in signs:
            count, total = count + (abs(part @ lists) >= least).sum(0), total + len(part)
        return (1 + count) / (1 + total)

    def same_draws(self):
        np, figure, n = self.np, self.figure, len(self.denominators)
        seed, resamples = self.comparison["seed"], self.comparison["resamples"]
        mean = [values.mean() for values in self.values()]
        parts = list(chunks(resamples, n))
        members = [draws(np, stream(np, seed + 1 + e), 0, resamples, len(m)) for e, m in enumerate(self.numerators)]
        drawn = [self.resampled(draws(np, seed, first, count, n), [m[first:first + count] for m in members]) for first, count in parts]
        drawn = [np.concatenate(entry) for entry in zip(*drawn)]
        for row, value, entry in zip(figure["rows"], mean, drawn):
            yield "figures", abs(row["value"] - value)
            yield "intervals", apart(np, row["interval"], entry)
        if not self.others:
            return
        permutations = self.comparison["permutations"]
        p = self.p_values(signs(np, seed, first, count, n) for first, count in chunks(permutations, n))
        corrected = holm(list(p))
        for found, entry, p, p_holm in zip(figure["differences"], self.others, p, corrected):
            yield "differences", abs(found["value"] - (mean[entry] - mean[self.base]))
            yield "intervals of differences", apart(np, found["interval"], drawn[entry] - drawn[self.base])
            yield "p", abs(found["p"] - p)
            yield "p (Holm)", abs(found["p_holm"] - p_holm)
            exact = exact_p(self.values()[entry], self.values()[self.base])
            assert (exact is None) == (found["p_members"] is None), found
            if exact is not None:
                yield "p (members)", abs(found["p_members"] - exact)

    def own_draws(self):
        """The same by numpy's own generator: how many standard errors apart."""
        np, figure, n = self.np, self.figure, len(self.denominators)
        own = np.random.default_rng(2026)
        parts = []
        for _, count in chunks(DRAWS, n):
            items = own.integers(0, n, (count, n))
            parts.append(self.resampled(items, [own.integers(0, len(m), (count, len(m))) for m in self.numerators]))
        drawn = [np.concatenate(entry) for entry in zip(*parts)]
        resamples = self.comparison["resamples"]
        # A figure that counts right answers moves in steps.
        step = 1 / self.denominators.sum() if "accuracy" in figure["figure"] or "rate" in figure["figure"] else 0.0
        for row, entry in zip(figure["rows"], drawn):
            yield "intervals", distance(np, row["interval"], entry, resamples, step)
        if not self.others:
            return
        permutations = self.comparison["permutations"]
        p = self.p_values(2.0 * own.integers(0, 2, (count, n)) - 1 for _, count in chunks(DRAWS, n))
        for found, entry, p in zip(figure["differences"], self.others, p):
            yield "intervals of differences", distance(np, found["interval"], drawn[entry] - drawn[self.base], resamples, step)
            pooled = (found["p"] * permutations + p * DRAWS) / (permutations + DRAWS)
            error = math.sqrt(pooled * (1 - pooled) * (1 / permutations + 1 / DRAWS))
            yield "p", max(0.0, abs(found["p"] - p) - 1 / permutations) / max(error, 1e-12)


def keyed(rows, task):
    """Items by id and how many before them have the same."""
    seen, found = {}, {}
    for item in rows:
        if item["task"] == task:
            seen[item["id"]] = seen.get(item["id"], 0) + 1
            found[item["id"], seen[item["id"]]] = item
    return found


def chunks(total, n):
    """(first, count) of parts that fit into memory."""
    size = max(1, 4_000_000 // n)
    return [(first, min(size, total - first)) for first in range(0, total, size)]


def split_mix(np, seed, first, count):
    """Outputs of SplitMix64 from number `first`, of the stream of `seed`."""
    word = np.uint64
    with np.errstate(over="ignore"):
        z = word(seed) + (np.arange(first, first + count, dtype=word) + word(1)) * word(0x9E3779B97F4A7C15)
        z = (z ^ (z >> word(30))) * word(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> word(27))) * word(0x94D049BB133111EB)
    return z ^ (z >> word(31))


def stream(np, seed):
    return int(split_mix(np, seed, 0, 1)[0])


def draws(np, seed, first, count, n):
    """The items of resamples `first` and so on: [resample, draw]"""
    uniform = (split_mix(np, seed, first * n, count * n) >> np.uint64(11)).astype(float) * 2.0**-53
    return (uniform * n).astype(int).reshape(count, n)


def signs(np, seed, first, count, n):
    """The signs of permutations: [permutation, item]"""
    return np.where(split_mix(np, seed, first * n, count * n) >> np.uint64(63) == 1, -1.0, 1.0).reshape(count, n)


def apart(np, interval, drawn):
    if interval is None:
        return 0.0 if len(drawn) == 0 else math.inf
    return abs(np.quantile(drawn, [0.025, 0.975]) - np.array(interval)).max()


def distance(np, interval, drawn, resamples, step):
    """How many standard errors the bounds are from the quantiles of `drawn`: sqrt(q (1 - q) / draws) over the density
    there, which the values of the percent around it tell."""
    worst = 0.0
    for bound, q in zip(interval, [0.025, 0.975]):
        low, at, high = np.quantile(drawn, [q - 0.01, q, q + 0.01])
        error = math.sqrt(q * (1 - q) * (1 / resamples + 1 / len(drawn))) * (high - low) / 0.02
        off = max(0.0, abs(bound - at) - step)
        worst = max(worst, off / error if off > 1e-12 else 0.0)
    return worst


def holm(p):
    order, most, corrected = sorted(range(len(p)), key=lambda i: p[i]), 0.0, [0.0] * len(p)
    for rank, i in enumerate(order):
        most = max(most, min(1.0, p[i] * (len(p) - rank)))
        corrected[i] = most
    return corrected


def exact_p(a, b):
    if len(a) < 2 or len(b) < 2:
        return None
    both, found = list(a) + list(b), abs(sum(a) / len(a) - sum(b) / len(b))
    ways = [sum(chosen) for chosen in itertools.combinations(both, len(a))]
    as_large = [abs(s / len(a) - (sum(both) - s) / len(b)) >= found - 1e-10 * sum(map(abs, both)) for s in ways]
    return sum(as_large) / len(ways)


def transformers_side(facts):
    """Of each model: (bits per byte, scores of pairs that differ, the largest difference of nats), by transformers."""
    import pyarrow.parquet
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = {}
    for path in facts["documents"]:
        for row in pyarrow.parquet.read_table(path, columns=["id", "text"]).to_pylist():
            texts[row["id"]] = row["text"]
    with open(facts["pairs"], newline="") as file:
        pairs = {f"{row['uid']}/{row['pair_id']}": row for row in csv.DictReader(file, delimiter="\t")}
    results = {}
    for name, folder in facts["models"].items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        reader = Reader(torch, model, tokenizer, facts["context"], facts["stride"])
        rows = items(facts["items"][name])
        documents = [item for item in rows if item["task"] == "documents"]
        nats = sum(reader.nats(texts[item["id"]], end=True) for item in documents)
        bits = nats / math.log(2) / sum(len(texts[item["id"]].encode()) for item in documents)
        others, off = 0, 0.0
        judged = [item for item in rows if item["task"] == "pairs"]
        assert len(judged) == len(pairs), (len(judged), len(pairs))
        hits = 0.0
        for item in judged:
            pair = pairs[item["id"]]
            margin = reader.nats(pair["bad"], end=False) - reader.nats(pair["good"], end=False)
            score = 0.5 if margin == 0 else float(margin > 0)
            hits += score
            others += score != item["score"]
            off = max(off, abs(margin - item["nats"]))
        results[name] = {
            "documents": len(documents), "bits_per_byte": bits, "pairs": len(judged), "accuracy": hits / len(judged),
            "other_scores": others, "nats_apart": off,
        }  # fmt: skip
        tell(f"transformers: {name}: {bits:.6f} bits per byte, {hits / len(judged):.4f} of pairs")
    return results


class Reader:
    """Scores texts in windows of `context` tokens that begin `stride` apart, each token once."""

    def __init__(self, torch, model, tokenizer, context, stride):
        self.torch, self.model, self.tokenizer, self.context, self.stride = torch, model, tokenizer, context, stride

    def nats(self, text, end):
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        ids = [self.tokenizer.bos_token_id, *ids, *([self.tokenizer.eos_token_id] if end else [])]
        total, start, scored = 0.0, 0, 1
        with self.torch.inference_mode():
            while scored < len(ids):
                read = ids[start:start + self.context]
                logprobs = self.model(self.torch.tensor([read])).logits[0].double().log_softmax(-1)
                last = min(start + self.context, len(ids) - 1)
                places = self.torch.arange(scored, last + 1)
                total -= logprobs[places - 1 - start, self.torch.tensor(ids)[places]].sum().item()
                start, scored = start + self.stride, last + 1
        return total


# -- the comparison ---------------------------------------------------------------------------------


def beside(python, what, facts):
    """What the side called `what` found, in a process that has the packages."""
    done = subprocess.run([python, __file__, "--side", what], input=json.dumps(facts), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{what} failed")
    return json.loads(done.stdout.splitlines()[-1])


def compare(project, *more):
    return json.loads(project.run("compare", "judging:eval", *more, "--format", "json"))


def judge(rows, project, args, python):
    reports = {f"judging:eval@{variant}": project.folder / f"artifacts/judging/eval@{variant}/report" for variant in variants(args)}
    facts = {"items": {name: str(folder / "items.parquet") for name, folder in reports.items()}}
    tell("tinylm compare")
    comparisons = [compare(project), compare(project, "--group-by", "width"), compare(project, "--group-by", "seed", "--seed", 7)]
    tell("numpy")
    worst, errors = beside(python, "numpy", {**facts, "comparisons": comparisons})
    for what, difference in worst.items():
        rows.add(f"numpy, the same draws: {what}", "apart", f"{difference:.1e}", difference <= 1e-6)
    for what, distance in errors.items():
        rows.add(f"numpy, draws of its own: {what}", "apart", f"{distance:.2f} standard errors", distance <= ERRORS)
    models = {}
    for variant, name in zip(variants(args), reports):
        if not variant.startswith(f"seed={args.seeds[0]},"):
            continue
        folder = project.folder / f"hf-{variant}"
        shutil.rmtree(folder, ignore_errors=True)
        project.run("export", "--model", f"judging:model@{variant}", "--format", "hf", "-o", folder)
        models[name] = str(folder)
    tell("transformers")
    stages = ["synth", *(["texts"] if args.texts else [])]
    documents = [str(path) for stage in stages for path in (project.folder / f"artifacts/judging/{stage}").rglob("documents.parquet")]
    facts |= {"models": models, "documents": documents, "pairs": str(pairs_file(args)), "context": args.context, "stride": args.stride}
    found = beside(python, "transformers", facts)
    beside_reports(rows, reports, found)


def beside_reports(rows, reports, found):
    bits, accuracy = 0.0, 0.0
    for name, theirs in found.items():
        report = json.loads((reports[name] / "report.json").read_text())
        bits = max(bits, abs(report["bits_per_byte"] - theirs["bits_per_byte"]))
        accuracy = max(accuracy, abs(report["pairs"]["accuracy"] - theirs["accuracy"]))
    one = next(iter(found.values()))
    scores, nats = sum(f["other_scores"] for f in found.values()), max(f["nats_apart"] for f in found.values())
    rows.add(f"transformers: bits per byte of {one['documents']} documents", "apart", f"{bits:.1e}", bits <= 1e-4)
    rows.add(f"transformers: accuracy of {one['pairs']} pairs", "apart", f"{accuracy:.1e}", accuracy <= 1e-9)
    rows.add("transformers: pairs with another score", "apart", f"{scores} of {one['pairs'] * len(found)}", scores == 0)
    rows.add("transformers: nats between the sentences of a pair", "apart", f"{nats:.1e}", nats <= 1e-2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 48], metavar="N", help="the recipes (default 32 48)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default 1 2 3")
    parser.add_argument("--steps", type=int, default=150, help="of training (default 150)")
    parser.add_argument("--texts", type=Path, nargs="+", metavar="FILE", help="further text to train and evaluate on")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="minimal pairs: a TSV with uid, pair_id, good, bad")
    parser.add_argument("--context", type=int, default=96, help="tokens that a model reads before a scored one (default 96)")
    parser.add_argument("--stride", type=int, default=32, help="tokens from one window to the next (default 32)")
    parser.add_argument("--max-tokens", type=int, default=40_000, help="scored at most (default 40000)")
    parser.add_argument("--python", help="a Python that has the packages")
    parser.add_argument("--project", help="keep everything in this folder")
    parser.add_argument("--side", choices=["numpy", "transformers"], help=argparse.SUPPRESS)
    add_tinylm(parser)
    args = parser.parse_args()
    if args.side:
        side = {"numpy": numpy_side, "transformers": transformers_side}[args.side]
        return print(json.dumps(side(json.load(sys.stdin))))
    check_tinylm(args)
    python = python_with_packages(args.python, PACKAGES, "judging-venv")
    with tempfile.TemporaryDirectory(prefix="judging-") as folder:
        project = Project(Path(args.project or folder).resolve(), args.tinylm)
        args.folder = project.folder
        (project.folder / "pipelines").mkdir(parents=True, exist_ok=True)
        write_pairs(project.folder / "pairs.tsv")
        # JSON is YAML.
        (project.folder / "pipelines/judging.yaml").write_text(json.dumps(pipeline(args), indent=1))
        tell(f"training {len(args.widths) * len(args.seeds)} models and evaluating them")
        project.run("run", "judging")
        print(project.run("compare", "judging:eval", "--group-by", "width"))
        rows = Rows()
        judge(rows, project, args, python)
        rows.print(["apart"])
        if rows.missed:
            sys.exit(f"{rows.missed} figures miss their bar")


if __name__ == "__main__":
    main()
