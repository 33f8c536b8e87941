#!/usr/bin/env python3
"""How fast tokenizers are trained and text is encoded: tinylm beside other programs.

    cargo build --release
    pip install tokenizers sentencepiece tiktoken
    python3 bench/tokenizing.py --text my_corpus.txt

All train a byte-pair encoding of the same size on the same file and then encode its lines, with all
cores. The programs take turns: every round runs each of them once, so that whatever else the machine
does hits all alike. Shown are medians, in 10^6 bytes of text a second, and how many times as fast as
Hugging Face tokenizers each is in the same run.

What is timed:
  training   tinylm: the stage `train_tokenizer`, from its documents file to tokenizer.json and report;
             the others: their trainer on the text file. tiktoken has no trainer worth the name.
  encoding   a list of all lines to lists of ids, by a tokenizer that was just made (no caches filled):
             tinylm `encode_batch`, Hugging Face `encode_batch_fast`, SentencePiece `encode` and
             tiktoken `encode_ordinary_batch` with as many threads as cores.
Not timed: starting the programs and reading the text for encoding.

tinylm, Hugging Face tokenizers and tiktoken cut words as GPT-2 does, over bytes, and tiktoken is given
the vocabulary that Hugging Face learned. SentencePiece is the odd one out: over characters, and it
cuts at spaces alone, which is less work.

A program that is not installed is named with the command that installs it. Python 3.9 or newer.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time

from common import CORES, add_tinylm, check_tinylm

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def timed(work):
    """What `work` gives, and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


class Tinylm:
    name = "tinylm"

    def __init__(self, args):
        self.program, self.args = args.tinylm, args

    def round(self, text):
        """One training and one encoding: seconds of each, and how many tokens came out."""
        command = [self.program, "bench", "tokenize", "--text", self.args.text, "--format", "json"]
        command += ["--vocab-size", str(self.args.vocab_size), "--repeat", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"`{' '.join(command)}` failed:\n{done.stderr}")
        figures = json.loads(done.stdout)
        megabytes = figures["bytes"] / 1e6
        return (
            megabytes / figures["train_mb_per_s"],
            megabytes / figures["encode_mb_per_s"],
            figures["tokens"],
        )


class HuggingFace:
    name = "Hugging Face tokenizers"
    package = "tokenizers"
    vocabulary = None  # the last one learned, for tiktoken

    def __init__(self, args):
        import tokenizers

        self.library, self.args = tokenizers, args
        self.name += " " + tokenizers.__version__

    def round(self, text):
        levels = self.library.pre_tokenizers.ByteLevel
        tokenizer = self.library.Tokenizer(self.library.models.BPE())
        tokenizer.pre_tokenizer = levels(add_prefix_space=False)
        trainer = self.library.trainers.BpeTrainer(
            vocab_size=self.args.vocab_size,
            min_frequency=2,
            initial_alphabet=levels.alphabet(),
            show_progress=False,
        )
        _, train = timed(lambda: tokenizer.train([self.args.text], trainer))
        batch, encode = timed(lambda: tokenizer.encode_batch_fast(text, add_special_tokens=False))
        HuggingFace.vocabulary = tokenizer.get_vocab()
        return train, encode, sum(len(encoding) for encoding in batch)


class SentencePiece:
    name = "SentencePiece"
    package = "sentencepiece"

    def __init__(self, args):
        import sentencepiece

        self.library, self.args = sentencepiece, args
        self.name += " " + sentencepiece.__version__

    def round(self, text):
        model = io.BytesIO()

        def train():
            self.library.SentencePieceTrainer.train(
                input=self.args.text,
                model_writer=model,
                model_type="bpe",
                vocab_size=self.args.vocab_size,
                character_coverage=1.0,
                num_threads=CORES,
                max_sentence_length=1 << 30,  # leave no line out
                minloglevel=2,
            )

        _, seconds = timed(train)
        processor = self.library.SentencePieceProcessor(model_proto=model.getvalue())
        batch, encode = timed(lambda: processor.encode(text, out_type=int, num_threads=CORES))
        return seconds, encode, sum(len(ids) for ids in batch)


class Tiktoken:
    name = "tiktoken"
    package = "tiktoken"

    def __init__(self, args):
        import tiktoken

        self.library = tiktoken
        self.name += " " + tiktoken.__version__

    def round(self, text):
        if HuggingFace.vocabulary is None:
            return None, None, None  # nobody learned a vocabulary for it
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        ranks = {
            bytes(byte_of[symbol] for symbol in token): rank
            for token, rank in HuggingFace.vocabulary.items()
        }
        encoding = self.library.Encoding(
            "bench", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={}
        )
        batch, encode = timed(lambda: encoding.encode_ordinary_batch(text, num_threads=CORES))
        return None, encode, sum(len(ids) for ids in batch)


def byte_symbols():
    """The character that stands for each byte in byte-level vocabularies, as GPT-2 has them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    symbols = {byte: chr(byte) for byte in plain}
    symbols |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def programs(args):
    """Those that are installed, and a line for each that is not."""
    found, missing = [Tinylm(args)], []
    for program in (HuggingFace, SentencePiece, Tiktoken):
        try:
            found.append(program(args))
        except ImportError:
            missing.append(f"{program.name} is not installed: pip install {program.package}")
    if not any(isinstance(program, HuggingFace) for program in found):
        missing.append("without Hugging Face tokenizers there are no ratios, and tiktoken has no vocabulary")
    return found, missing


@contextlib.contextmanager
def quiet():
    """SentencePiece writes what it does to stderr, from C++."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def measure(found, text, rounds):
    """For each program, the (training, encoding, tokens) of every round, the programs taking turns."""
    results = {program.name: [] for program in found}
    for number in range(1, rounds + 1):
        for program in found:
            print(f"round {number} of {rounds}: {program.name}", file=sys.stderr)
            hush = quiet() if isinstance(program, SentencePiece) else contextlib.nullcontext()
            with hush:
                results[program.name].append(program.round(text))
    return results


def rate(results, column, megabytes):
    """The median rate of a column; None when the program does not do that."""
    seconds = [result[column] for result in results]
    return None if None in seconds else megabytes / statistics.median(seconds)


def table(results, megabytes):
    """The figures as a Markdown table."""
    base = next((name for name in results if name.startswith(HuggingFace.name)), None)
    rates = {name: [rate(rounds, i, megabytes) for i in (0, 1)] for name, rounds in results.items()}
    lines = [
        "| program | training MB/s | x HF | encoding MB/s | x HF | tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rounds in results.items():
        cells = [name]
        for i in (0, 1):
            own = rates[name][i]
            theirs = rates[base][i] if base else None
            cells.append("-" if own is None else f"{own:.1f}")
            cells.append("-" if own is None or theirs is None else f"{own / theirs:.2f}")
        tokens = rounds[-1][2]
        cells.append("-" if tokens is None else f"{tokens:,}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", required=True, help="the text to train on and to encode, in UTF-8")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    add_tinylm(parser)
    args = parser.parse_args()
    if not os.path.isfile(args.text):
        parser.error(f"--text: there is no file `{args.text}`")
    check_tinylm(args)
    if args.rounds < 1:
        parser.error(f"--rounds: {args.rounds} is too few")
    return args


def main():
    args = arguments()
    with open(args.text, encoding="utf-8", newline="\n") as file:
        text = list(file)
    megabytes = os.path.getsize(args.text) / 1e6
    found, missing = programs(args)
    results = measure(found, text, args.rounds)
    print(
        f"{megabytes:.2f} MB in {len(text):,} lines, vocabulary {args.vocab_size:,}, {CORES} cores, "
        f"median of {args.rounds} rounds\n"
    )
    print(table(results, megabytes))
    for line in missing:
        print(f"\n{line}")


if __name__ == "__main__":
    main()
