"""What learning preferences changes, over seeds: runs the pipeline `preferences` with each and prints a line.

    python3 bench/preferences.py
    python3 bench/preferences.py --seeds 1 2 3 --set stages.preferred.params.nll_weight=0
    python3 bench/preferences.py --set vars.preferences=PAIRS.jsonl      # without the questions

Accuracy, its sign test and the margin are those of pairs whose prompts were held out (preference.json). "complete"
counts the answers to questions that are not among the pairs, asked in other words there, which begin as a complete
answer does, before and after; the bits per byte, before and after, are those of held-out chats.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

from common import add_tinylm, check_tinylm

ROOT = pathlib.Path(__file__).parent.parent
PAIRS = ROOT / "data/preferences/english.jsonl"
# Ways to ask one thing, and how its complete answer begins.
QUESTIONS = [
    (["What is the opposite of {}?", "Do you know the opposite of {}?"], "The opposite of"),
    (["What is the capital of {}?", "Which city is the capital of {}?"], "The capital of"),
    (["I am {}. What can I do?", "What can I do when I am {}?", "I feel {}."], "I am sorry that you feel"),
    (["It is {} today. What should I wear?", "What should I wear when it is {}?"], "When it is"),
]


def unseen():
    """Questions that are not among the prompts, which ask the same in other words: how their answers begin."""
    prompts = {json.loads(line)["prompt"] for line in PAIRS.read_text().splitlines()}
    found = {}
    for ways, beginning in QUESTIONS:
        patterns = [re.compile(re.escape(way).replace(r"\{\}", "(.+)")) for way in ways]
        things = {match[1] for prompt in prompts for pattern in patterns if (match := pattern.fullmatch(prompt))}
        found.update({way.format(thing): beginning for way in ways for thing in sorted(things)})
    return {question: beginning for question, beginning in found.items() if question not in prompts}


def run(args, seed, questions):
    sets = [f"seed={seed}", f"vars.questions={json.dumps(list(questions))}", *args.set]
    command = [args.tinylm, "run", "preferences", *(part for one in sets for part in ("--set", one))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr or done.stdout)


def read(stage, port, file):
    return (ROOT / "artifacts/preferences" / stage / port / file).read_text()


def complete(stage, questions):
    answers = [json.loads(line) for line in read(stage, "report", "samples.jsonl").splitlines()]
    answers = [a for a in answers if a["prompt"] in questions]
    return sum(a["text"].strip().startswith(questions[a["prompt"]]) for a in answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tinylm(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="as of `tinylm run`")
    args = parser.parse_args()
    check_tinylm(args)
    questions = unseen()
    print(f"| seed | accuracy (95 %) | p | margin | complete, of {len(questions)} | bits per byte |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in args.seeds:
        run(args, seed, questions)
        held_out = json.loads(read("preferred", "model", "preference.json"))["held_out"]
        low, high = (100 * bound for bound in held_out["accuracy_interval"])
        bits = [json.loads(read(s, "report", "report.json"))["chats"]["bits_per_byte"] for s in ("before", "after")]
        counts = [complete(stage, questions) for stage in ("before", "after")]
        print(
            f"| {seed} | {100 * held_out['accuracy']:.1f} % ({low:.1f} to {high:.1f}) of {held_out['pairs']} pairs, "
            f"{held_out['prompts']} prompts | {held_out['p_value']:.1e} | {held_out['margin']:.2f} | "
            f"{counts[0]} -> {counts[1]} | {bits[0]:.3f} -> {bits[1]:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
