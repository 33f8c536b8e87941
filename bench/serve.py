#!/usr/bin/env python3
"""Whether `tinylm serve` does what OpenAI's clients, a crowd and an attacker expect of it, seen from outside.

    cargo build --release
    python3 bench/serve.py --pairs ../shared/data/eval_blimp/blimp_mini_100.tsv

Small models are trained in one pipeline on text made from the templates in `data/`, and `tinylm serve` is started beside
them. Checked is:

- the `openai` client, unchanged: chat and completions, streamed and not, usage, logprobs and echo, n, seed, stop,
  logit_bias, models, and the exception of each refusal;
- `lm-eval`'s `local-completions` on `--pairs` (a TSV like BLiMP's; else some hundred made here): the accuracy of
  tinylm's own `eval`, pair by pair;
- `--clients` streaming clients for `--seconds`: no error, each client's share of the tokens, memory, and tokens per
  second beside one client alone;
- a client that goes away frees its place; the first token of a chat turn with its history read before and not; twenty
  models within a limit of memory; a model that is replaced, and then damaged, on disk while it is read;
- `--malformed` malformed requests, half of them bytes over HTTP and half mutated JSON for each endpoint: no status is
  5xx, and the server then answers as before; 500 connections at once, and one that sends a byte a second.

The Python packages are installed from PyPI into a folder of the user's cache the first time; where PyPI is out of reach,
that is said and nothing is checked. The exit code is 1 where a figure misses its bar. Linux, Python 3.9 or newer.
"""

import argparse
import asyncio
import collections
import csv
import http.client
import json
import os
import random
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import add_tinylm, check_tinylm
from judging import write_pairs
from parity import Project, Rows, python_with_packages, tell

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["openai", "lm_eval", "aiohttp", "tenacity", "transformers"]
# What pip calls them, where that is another name.
PIP = ["openai", "lm-eval[api]", "transformers"]
SHAPE = {"preset": "tinylm-1.5m", "seq_len": 256, "vocab_size": 1024, "batch_size": 8, "dropout": 0}
MODEL = "serving:chat"
LONG = "serving:long"
MANY = 20
GREEDY = {"temperature": 0, "max_tokens": 24}
# The special tokens of tinylm's own tokenizers: without them no text ends before its `max_tokens`.
NO_END = {"logit_bias": {str(id): -100 for id in range(7)}}
PROMPT = "Once upon a time"


def pipeline(args):
    data = {"docs": "synth", "tokenizer": "tokenizer"}
    one = {"steps": 1, "eval_every": 1}
    stages = {
        "synth": {
            "kind": "synthesize", "inputs": {"templates": str(ROOT / "data/templates/*.yaml")},
            "params": {"documents": 1500, "conversations": 500},
        },
        "tokenizer": {
            "kind": "train_tokenizer", "inputs": {"docs": "synth", "chats": "synth"}, "params": {"vocab_size": SHAPE["vocab_size"]},
        },
        "shards": {"kind": "shard", "inputs": data},
        "base": {
            "kind": "pretrain", "inputs": {"shards": "shards", "tokenizer": "tokenizer"},
            "params": {**SHAPE, "steps": args.steps, "eval_every": args.steps},
        },
        "chat": {
            "kind": "finetune", "inputs": {"model": "base", "tokenizer": "tokenizer", "chats": "synth"},
            "params": {"steps": args.steps // 2, "eval_every": args.steps},
        },
        "eval": {
            "kind": "eval", "inputs": {"model": "base", "tokenizer": "tokenizer", "pairs": str(args.pairs)},
            "params": {"context": SHAPE["seq_len"]},
        },
        "long": {
            "kind": "pretrain", "inputs": {"shards": "shards", "tokenizer": "tokenizer"},
            "params": {**SHAPE, **one, "preset": "small", "seq_len": 2048, "batch_size": 1},
        },
        "many": {
            "kind": "pretrain", "inputs": {"shards": "shards", "tokenizer": "tokenizer"},
            "matrix": {"seed": list(range(1, MANY + 1))}, "seed": "${matrix.seed}", "params": {**SHAPE, **one},
        },
    }  # fmt: skip
    return {"stages": stages}


# -- the server, and plain HTTP ------------------------------------------------------------------------


class Server:
    """`tinylm serve` in a folder, until the block is left."""

    def __init__(self, project, *args):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self.log = open(project.folder / "serve.log", "ab")
        command = [project.tinylm, "serve", "--port", str(self.port), *map(str, args)]
        self.process = subprocess.Popen(command, cwd=project.folder, stdout=self.log, stderr=self.log)

    def __enter__(self):
        until = time.monotonic() + 30
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        sys.exit(f"tinylm serve does not answer:\n{Path(self.log.name).read_text()[-2000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def ask(self, method, path, body=None, timeout=60):
        """(status, JSON or text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = {"body": json.dumps(body), "headers": {"Content-Type": "application/json"}} if body is not None else {}
        connection.request(method, path, **sent)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def complete(self, model, **more):
        status, found = self.ask("POST", "/v1/completions", {"model": model, "prompt": PROMPT, **GREEDY, **more})
        if status != 200:
            raise RuntimeError(f"{status}: {found}")
        return found["choices"][0]["text"]

    def alive(self):
        return self.process.poll() is None

    def resident(self):
        """MiB that the process has in memory: (now, at most so far)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        of = lambda name: next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
        return of("VmRSS:"), of("VmHWM:")

    def metrics(self):
        """Sums of Prometheus' samples by name."""
        found = collections.Counter()
        for line in self.ask("GET", "/metrics")[1].splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found[name.split("{")[0]] += float(value)
        return found


# -- in a process of its own, which has the packages ---------------------------------------------------


def openai_side(facts):
    """What failed of the calls, each named, and how many there were."""
    import openai

    client = openai.OpenAI(base_url=f"{facts['base']}/v1", api_key="unused", max_retries=0)
    model, checks = facts["model"], []
    hello = [{"role": "user", "content": "Hello, who are you?"}]
    given = lambda more: {name: value for name, value in more.items() if value is not None}
    chat = lambda **more: client.chat.completions.create(**given({"model": model, "messages": hello, **GREEDY, **more}))
    complete = lambda **more: client.completions.create(**given({"model": model, "prompt": PROMPT, **GREEDY, **more}))

    def check(name):
        def run(body):
            try:
                body()
                checks.append([name, None])
            except Exception as error:
                checks.append([name, f"{type(error).__name__}: {error}"[:300]])

        return run

    def refused(kind, call, param=None):
        try:
            call()
        except kind as error:
            assert param is None or error.param == param, f"param {error.param}, not {param}"
            return error
        raise AssertionError("it was not refused")

    @check("models.list, models.retrieve")
    def _():
        ids = [entry.id for entry in client.models.list()]
        assert model in ids, ids
        assert client.models.retrieve(model).object == "model"

    @check("chat: usage adds up, the same twice")
    def _():
        one, two = chat(), chat()
        assert one.choices[0].message.role == "assistant" and one.choices[0].message.content == two.choices[0].message.content
        assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens
        assert one.choices[0].finish_reason in ("stop", "length") and one.object == "chat.completion"

    @check("chat, streamed with include_usage: the text of the whole answer")
    def _():
        whole, text, usage, reasons = chat(), "", None, []
        for chunk in chat(stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
        assert usage.completion_tokens == whole.usage.completion_tokens and reasons == [whole.choices[0].finish_reason]

    @check("chat with logprobs and top_logprobs")
    def _():
        found = chat(logprobs=True, top_logprobs=3)
        content = found.choices[0].logprobs.content
        assert len(content) >= found.usage.completion_tokens > 0
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 1e-6 for token in content)
        # Greedy: each token is the most probable one.
        assert all(abs(token.logprob - token.top_logprobs[0].logprob) < 1e-6 for token in content)

    @check("completions with echo and logprobs: the prompt's tokens, and the new ones")
    def _():
        found = complete(echo=True, logprobs=2)
        logprobs = found.choices[0].logprobs
        assert found.choices[0].text.startswith(PROMPT), found.choices[0].text
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
        assert len(logprobs.tokens) >= found.usage.completion_tokens
        assert all(p is None or p <= 1e-6 for p in logprobs.token_logprobs)

    @check("completions, streamed: the text of the whole answer")
    def _():
        whole = complete().choices[0].text
        parts = [choice.text for chunk in complete(stream=True) for choice in chunk.choices]
        assert "".join(parts) == whole

    @check("completions of several prompts, of token ids, n, seed")
    def _():
        two = complete(prompt=[PROMPT, "The dog"])
        assert [choice.index for choice in two.choices] == [0, 1] and two.choices[0].text == complete().choices[0].text
        ids = facts["ids"]
        assert complete(prompt=ids).choices[0].text == complete().choices[0].text
        drawn = lambda seed: [c.text for c in complete(n=3, seed=seed, temperature=1.0).choices]
        assert drawn(1) == drawn(1) and drawn(1) != drawn(2) and len(set(drawn(1))) > 1

    @check("stop, max_tokens, logit_bias, penalties")
    def _():
        text = complete(**NO_END).choices[0].text
        stop = text[5:7]
        cut = complete(stop=[stop], **NO_END).choices[0]
        assert cut.text == text[: text.index(stop)] and cut.finish_reason == "stop", (cut, text)
        short = complete(max_tokens=1)
        assert short.usage.completion_tokens == 1 and short.choices[0].finish_reason == "length"
        banned = complete(logit_bias={str(facts["first"]): -100}, max_tokens=1, logprobs=1)
        assert banned.choices[0].text != short.choices[0].text, banned
        # So many tokens repeat some.
        long = lambda **more: complete(max_tokens=120, **NO_END, **more).choices[0].text
        assert long(frequency_penalty=2.0, presence_penalty=2.0) != long(), long()

    @check("max_completion_tokens, top_p, user and other fields without effect")
    def _():
        found = chat(max_tokens=None, max_completion_tokens=2, top_p=0.9, user="somebody")
        assert found.usage.completion_tokens <= 2

    @check("a refusal is the client's own exception")
    def _():
        refused(openai.NotFoundError, lambda: chat(model="no-such-model"))
        refused(openai.BadRequestError, lambda: chat(temperature=-1), "temperature")
        refused(openai.BadRequestError, lambda: chat(n=1000), "n")
        refused(openai.BadRequestError, lambda: chat(messages=[]), "messages")
        refused(openai.BadRequestError, lambda: chat(response_format={"type": "json_object"}), "response_format")
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        refused(openai.BadRequestError, lambda: chat(tools=[tool]), "tools")
        refused(openai.BadRequestError, lambda: complete(suffix="x"), "suffix")
        refused(openai.BadRequestError, lambda: complete(extra_body={"no_such_field": 1}), "no_such_field")
        refused(openai.NotFoundError, lambda: client.embeddings.create(model=model, input="x"))

    @check("an asynchronous client, and a stream that is left")
    def _():
        async def go():
            other = openai.AsyncOpenAI(base_url=f"{facts['base']}/v1", api_key="unused", max_retries=0)
            calls = [other.completions.create(model=model, prompt=PROMPT, **GREEDY) for _ in range(8)]
            texts = {found.choices[0].text for found in await asyncio.gather(*calls)}
            assert texts == {complete().choices[0].text}, texts
            stream = await other.completions.create(model=model, prompt=PROMPT, max_tokens=500, stream=True)
            async for _ in stream:
                break
            await stream.close()

        asyncio.run(go())

    return checks


def lm_eval_side(facts):
    """The accuracy, how many pairs there are and how many differ from `eval`'s items, and how far apart their margins are."""
    import lm_eval
    import pyarrow.parquet
    from lm_eval.tasks import TaskManager

    arguments = {
        "model": facts["model"], "base_url": f"{facts['base']}/v1/completions", "tokenizer": facts["tokenizer"],
        "tokenizer_backend": "huggingface", "tokenized_requests": True, "num_concurrent": 8, "max_length": facts["seq_len"],
        "custom_prefix_token_id": facts["bos"],
    }  # fmt: skip
    task = {
        "task": "pairs", "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": facts["pairs"]}},
        "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}", "target_delimiter": "", "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    begun = time.monotonic()
    found = lm_eval.simple_evaluate(
        "local-completions", model_args=arguments, tasks=[task], task_manager=TaskManager(), log_samples=True, bootstrap_iters=0
    )
    margins = {}
    for sample in found["samples"]["pairs"]:
        good, bad = (response[0] for response in sample["filtered_resps"])
        margins[sample["doc"]["id"]] = good - bad
    seconds = time.monotonic() - begun
    own = {item["id"]: item["nats"] for item in pyarrow.parquet.read_table(facts["items"]).to_pylist()}
    assert own.keys() == margins.keys(), (len(own), len(margins))
    return {
        "accuracy": found["results"]["pairs"]["acc,none"], "pairs": len(own), "seconds": seconds,
        "others": sum((own[id] > 0) != (margin > 0) for id, margin in margins.items()),
        "apart": max(abs(own[id] - margin) for id, margin in margins.items()),
    }  # fmt: skip


# -- what is checked -----------------------------------------------------------------------------------


def beside(python, what, facts):
    """What the side called `what` found, in a process that has the packages."""
    # Nothing is needed from Hugging Face's hub.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([python, __file__, "--side", what], input=json.dumps(facts), capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{what} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def beside_openai(rows, server, python):
    found = server.ask("POST", "/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 1})[1]
    ids = server.ask("POST", "/tokenize", {"model": MODEL, "content": PROMPT, "add_special": True})[1]["tokens"]
    token = found["choices"][0]["logprobs"]["tokens"][0]
    first = server.ask("POST", "/tokenize", {"model": MODEL, "content": token, "add_special": False})[1]["tokens"][0]
    for name, error in beside(python, "openai", {"base": server.base, "model": MODEL, "ids": ids, "first": first}):
        rows.add(f"openai: {name}", "found", error or "as expected", error is None)


def beside_lm_eval(rows, server, project, python, pairs):
    folder = project.folder / "hf"
    shutil.rmtree(folder, ignore_errors=True)
    project.run("export", "--model", "serving:base", "--format", "hf", "-o", folder)
    bos = json.loads((folder / "config.json").read_text())["bos_token_id"]
    listed = project.folder / "pairs.jsonl"
    with open(pairs, newline="") as file, open(listed, "w") as out:
        for row in csv.DictReader(file, delimiter="\t"):
            pair = {"id": f"{row['uid']}/{row['pair_id']}", "good": row["good"], "bad": row["bad"]}
            out.write(json.dumps(pair) + "\n")
    facts = {
        "base": server.base, "model": "serving:base", "tokenizer": str(folder), "seq_len": SHAPE["seq_len"], "bos": bos,
        "pairs": str(listed), "items": str(project.folder / "artifacts/serving/eval/report/items.parquet"),
    }  # fmt: skip
    theirs = beside(python, "lm_eval", facts)
    own = json.loads((project.folder / "artifacts/serving/eval/report/report.json").read_text())["pairs"]
    apart = abs(own["accuracy"] - theirs["accuracy"])
    count = theirs["pairs"]
    rows.add(f"lm-eval: accuracy of {count} pairs", "found", f"{theirs['accuracy']:.4f}, eval {own['accuracy']:.4f}", apart < 1e-9)
    rows.add("lm-eval: pairs that it decides otherwise", "found", f"{theirs['others']} of {count}", theirs["others"] == 0)
    rows.add("lm-eval: nats between the sentences of a pair, apart by at most", "found", f"{theirs['apart']:.1e}", theirs["apart"] < 1e-3)
    rows.add("lm-eval: pairs a second", "found", f"{count / theirs['seconds']:.0f}")


async def open_stream(port, body, path="/v1/completions"):
    """A connection on which a request has been written."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


async def status_of(reader):
    """The status of a response, its headers read."""
    line = await reader.readline()
    while (await reader.readline()).strip():
        pass
    return int(line.split()[1]) if line else 0


async def stream_once(port, body):
    """(tokens, seconds to the first) of a streamed completion, read to its end."""
    begun = time.monotonic()
    reader, writer = await open_stream(port, {**body, "stream": True, "stream_options": {"include_usage": True}})
    status, first, usage, ended = await status_of(reader), None, None, False
    if status != 200:
        raise RuntimeError(f"status {status}: {await reader.read(300)}")
    while not ended:
        line = await asyncio.wait_for(reader.readline(), 60)
        if not line:
            raise RuntimeError("the stream broke off")
        if line.startswith(b"data:"):
            first = first or time.monotonic() - begun
            ended = line.strip() == b"data: [DONE]"
            if b'"usage":{' in line:
                usage = json.loads(line[5:])["usage"]
            elif b'"error"' in line:
                raise RuntimeError(line.decode())
    writer.close()
    return usage["completion_tokens"], first


class Stream:
    """A streamed completion, read by a client that hardly computes: on a machine of few cores, one that parses each event takes
    most of what it measures."""

    def __init__(self, port, body):
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.begun, self.first, self.end = time.monotonic(), None, b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.sendall(head.encode() + data)
        self.socket.setblocking(False)

    def read(self):
        """Reads what has come; the number of tokens once it is complete."""
        new = self.socket.recv(1 << 18)
        if not new:
            raise RuntimeError(f"the stream broke off: {self.end[-200:]}")
        if self.first is None and b"data:" in new:
            self.first = time.monotonic() - self.begun
        # What can end with the new bytes.
        self.end = self.end[-2000:] + new
        if b'"error"' in self.end:
            raise RuntimeError(self.end.decode(errors="replace"))
        if b"data: [DONE]" not in self.end:
            return None
        usage = next(line for line in self.end.splitlines() if b'"usage":{' in line)
        return json.loads(usage[5:])["usage"]["completion_tokens"]


def crowd(port, clients, seconds):
    """Of each client the tokens that it got, and what went wrong."""
    tokens, turns, errors, firsts = [0] * clients, [0] * clients, [], []
    ready, begun = selectors.DefaultSelector(), time.monotonic()

    def ask(i):
        # No two clients ask the same.
        prompt = f"{PROMPT} there were {i} {turns[i]}"
        seed = i * 1000 + turns[i]
        turns[i] += 1
        stream = Stream(port, {"model": MODEL, "prompt": prompt, "max_tokens": 64, "seed": seed, "temperature": 1.0, **NO_END})
        ready.register(stream.socket, selectors.EVENT_READ, (i, stream))

    for i in range(clients):
        ask(i)
    while ready.get_map():
        found = ready.select(60)
        if not found:
            errors.append("nothing came for a minute")
            break
        for key, _ in found:
            i, stream = key.data
            try:
                new = stream.read()
                if new is None:
                    continue
                tokens[i] += new
                firsts.append(stream.first)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            ready.unregister(stream.socket)
            stream.socket.close()
            if time.monotonic() < begun + seconds:
                ask(i)
    return tokens, errors, firsts, time.monotonic() - begun


def a_crowd(rows, server, clients, seconds):
    one, errors, firsts, took = crowd(server.port, 1, min(10, seconds))
    alone, first = one[0] / took, statistics.median(firsts)
    before = server.resident()[0]
    tokens, more, firsts, took = crowd(server.port, clients, seconds)
    (after, peak), rate = server.resident(), sum(tokens) / took
    errors += more
    rows.add(f"{clients} clients, {seconds} s: errors", "found", f"{len(errors)} {errors[:1] or ''}".strip(), not errors)
    share = min(tokens) / max(tokens)
    rows.add("share of the client with least tokens beside that with most", "found", f"{share:.2f} ({min(tokens)} and {max(tokens)})", share >= 0.5)
    rows.add("tokens/s of all beside one client alone", "found", f"{rate:.0f} and {alone:.0f}: {rate / alone:.1f} x", rate >= 3 * alone)
    rows.add("first token, median", "found", f"{1000 * statistics.median(firsts):.0f} ms, alone {1000 * first:.0f} ms")
    rows.add("memory before, at most, after", "found", f"{before:.0f}, {peak:.0f}, {after:.0f} MiB", after <= before + 256)


RUNNING = "tinylm_sequences_running"


def vanishing(rows, server):
    """A client that leaves in the middle of a long answer."""

    async def leave():
        long = {"model": LONG, "prompt": PROMPT, "max_tokens": 4000, "n": 16, "temperature": 1.0, "stream": True, **NO_END}
        reader, writer = await open_stream(server.port, long)
        await status_of(reader)
        await reader.read(400)
        seen = server.metrics()[RUNNING]
        writer.transport.abort()
        return seen

    seen = asyncio.run(leave())
    begun = time.monotonic()
    while server.metrics()[RUNNING] and time.monotonic() - begun < 10:
        time.sleep(0.01)
    freed, took = not server.metrics()[RUNNING], time.monotonic() - begun
    rows.add("a client vanishes: its place is free", "found", f"{seen:.0f} running, freed after {took:.2f} s", freed and seen > 0 and took < 2)


def cached_history(rows, server):
    """The first token of a turn whose history has been read, and of one that has not."""
    said = " ".join(f"The cat number {i} likes the river and the old house." for i in range(80))

    def first(tag, turns):
        messages = [{"role": "user", "content": f"{tag} {said}"}, *turns]
        begun = time.monotonic()
        status, found = server.ask("POST", "/v1/chat/completions", {"model": LONG, "messages": messages, "max_tokens": 1, "temperature": 0})
        if status != 200:
            raise RuntimeError(f"{status}: {found}")
        usage = found["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return 1000 * (time.monotonic() - begun), usage["prompt_tokens"], cached

    first("0", [])
    cold, warm, prompt, kept = [], [], 0, 0
    more = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And now?"}]
    for i in range(1, 6):
        took, prompt, cached = first(str(i), [])
        cold.append(took)
        took, prompt, kept = first(str(i), more)
        warm.append(took)
    cold, warm = statistics.median(cold), statistics.median(warm)
    rows.add(f"first token behind {prompt} tokens, {kept} of them read before", "found", f"{warm:.1f} ms, unread {cold:.1f} ms", kept > 0.9 * prompt and warm < cold / 3)


# -- malformed requests --------------------------------------------------------------------------------

VALID = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "n": 1, "stream": False},
    "/v1/completions": {"model": MODEL, "prompt": "Hi", "max_tokens": 2, "logprobs": 1, "echo": True, "logit_bias": {"5": 1.5}, "seed": 3},
    "/tokenize": {"model": MODEL, "content": "Hello", "add_special": True},
    "/detokenize": {"model": MODEL, "tokens": [5, 6, 7]},
    "/apply-template": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
    "/generate": {"prompt": "Hello"},
    "/api/attention": {"model": MODEL, "text": "Hello you", "layer": 0, "head": 0},
}  # fmt: skip
ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**64, -(2**63), 1e308, -0.0, 0.5, 1e-320, "", "x", "\x00", "\ud800", "🎉" * 50, "a" * 5000,
    "../../etc/passwd", "<script>alert(1)</script>", [], {}, [[]], [None], [1, "x"], {"": None}, [[1, 2], [3]], "NaN", [2**32], [-1], [1.5],
]  # fmt: skip


def mutated(rng, value):
    """A JSON value with something wrong in it, most of the time."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        value, key = dict(value), rng.choice(list(value))
        what = rng.random()
        if what < 0.15:
            del value[key]
        elif what < 0.25:
            value[rng.choice(["tools", "functions", "no_such", "suffix", "best_of", "response_format", "stream_options", ""])] = rng.choice(ODD)
        else:
            value[key] = mutated(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        value, at = list(value), rng.randrange(len(value))
        value[at] = mutated(rng, value[at])
        return value * rng.choice([1, 1, 1, 40])
    return rng.choice(ODD)


def malformed_json(rng):
    path = rng.choice(list(VALID))
    text = json.dumps(mutated(rng, VALID[path])).encode()
    what = rng.random()
    if what < 0.1:
        text = text[: rng.randrange(len(text))]
    elif what < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    elif what < 0.22:
        text = b"[" * 3000 + text
    elif what < 0.23:
        text = b'{"model":' * 500 + text
    return path, text


def malformed_bytes(rng, port):
    """A request over HTTP that is wrong in some way."""
    body = json.dumps(VALID["/v1/completions"]).encode()
    lines = [b"POST /v1/completions HTTP/1.1", f"Host: 127.0.0.1:{port}".encode(), b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    what = rng.randrange(14)
    if what == 0:
        return rng.randbytes(rng.randrange(1, 400))
    if what == 1:
        lines[0] = rng.choice([b"GET", b"POST /v1/models", b"get / http/1.1", b"POST  /v1 HTTP/9.9", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0", b"BREW / HTTP/1.1"])
    if what == 2:
        lines[1] = rng.choice([b"Host: evil.example", b"Host: a\x00b", b"Host:", b"NoHost: x", b"Host: 127.0.0.1:1:2", b"Host: [::1"])
    if what == 3:
        lines[2] = rng.choice([b"Content-Type: text/plain", b"Content-Type: multipart/form-data; boundary=x", b"X: y", b"Content-Type: application/json; charset=\xff"])
    if what == 4:
        lines[3] = rng.choice([b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 5", b"Content-Length: x", b"Content-Length: 3\r\nContent-Length: 4", b"Content-Length: 2000000"])
    if what == 5:
        lines[3] = b"Transfer-Encoding: chunked"
        body = rng.choice([b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffff\r\nx", b"-1\r\n\r\n", b"0\r\n\r\n", b"3;" + b"x" * 40000])
    if what == 6:
        lines.insert(1, b"X-Long: " + b"a" * rng.choice([100, 20000, 200000]))
    if what == 7:
        lines[1:1] = [b"X-%d: y" % i for i in range(rng.choice([50, 150, 2000]))]
    if what == 8:
        lines[0] = b"POST /" + rng.choice([b"%00", b"../../../etc/passwd", b"%2e%2e/%2e%2e/etc/passwd", b"a" * 9000, b"static/..%2f..%2fCargo.toml", b"\xff\xfe", b"artifacts/%0d%0aX: y", b"api/artifacts/..%2f..", b"v1/models/%F0%9F"]) + b" HTTP/1.1"
    if what == 9:
        lines[0] = b"GET /" + rng.choice([b"static/../app.css", b"static/%2e%2e%2fapi.rs", b"api/artifacts/../../Cargo.toml", b"api/runs/..%2f..%2f", b"api/runs/%00/logs/x", b"v1/models/<script>", b"api/artifacts/x/files/..%2f..%2fCargo.toml", b"?" + b"a=b&" * 500]) + b" HTTP/1.1"
        lines[3], body = b"Content-Length: 0", b""
    if what == 10:
        lines.append(rng.choice([b"Expect: 100-continue", b"Expect: nonsense", b"Upgrade: h2c\r\nConnection: Upgrade", b"Connection: close, keep-alive", b"Origin: http://evil.example", b"Authorization: Bearer \xff\xff"]))
    if what == 11:
        body = body[: rng.randrange(len(body))]
    head = (b"\n" if what == 12 else b"\r\n").join(lines)
    text = head + b"\r\n\r\n" + body
    if what == 13:
        at = rng.randrange(len(text))
        text = text[:at] + rng.randbytes(3) + text[at + 3 :]
    return text


def send_bytes(port, data, patience):
    """The status of the response, `closed` where there is none, `silent` where the server waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            connection.sendall(data)
            found = connection.recv(64)
        except (BrokenPipeError, ConnectionResetError):
            return "closed"
        except socket.timeout:
            return "silent"
    parts = found.split(b" ")
    return parts[1].decode(errors="replace") if len(parts) > 1 and parts[0].startswith(b"HTTP/1") else "closed"


def send_json(port, path, data):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body=data, headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status >= 400 and "error" not in json.loads(text):
        return "no error in the body"
    return str(response.status)


def malformed(rows, server, count):
    expected, statuses, lock = server.complete(MODEL), collections.Counter(), threading.Lock()
    bad = {}

    def work(part):
        rng = random.Random(part)
        for i in range(count // 8):
            sent = None
            try:
                if i % 2:
                    sent = malformed_bytes(rng, server.port)
                    status = send_bytes(server.port, sent, 0.25)
                else:
                    path, sent = malformed_json(rng)
                    status = send_json(server.port, path, sent)
                    sent = path.encode() + b" " + sent
            except Exception as error:
                status = type(error).__name__
            with lock:
                statuses[status] += 1
                if not (status in ("closed", "silent") or status[:1] in "124"):
                    bad.setdefault(status, sent[:300])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for status, sent in bad.items():
        tell(f"{status}: {sent!r}")
    shown = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
    rows.add(f"{sum(statuses.values())} malformed requests, by status", "found", shown, not bad)
    right = server.alive() and server.complete(MODEL) == expected
    rows.add("and then", "found", "answers as before" if right else "other answers, or none", right)


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Slow:
    """A connection that sends a byte a second."""

    def __init__(self, port, before, text):
        self.connection, self.text, self.sent, self.ended = socket.create_connection(("127.0.0.1", port)), text, 0, None
        self.connection.sendall(before)
        self.connection.settimeout(0.01)

    def send(self):
        try:
            self.connection.sendall(self.text[self.sent : self.sent + 1])
            self.sent += 1
            found = self.connection.recv(64)
            self.ended = found.split(b" ")[1].decode() if found.startswith(b"HTTP") else "closed"
        except socket.timeout:
            pass
        except OSError:
            self.ended = "closed"


def slow_and_many(rows, server):
    """Clients of a byte a second, and 500 connections at once; others are answered meanwhile."""
    slow = {
        "headers": Slow(server.port, b"", HEAD + b"X: " + b"y" * 500),
        "a body": Slow(server.port, HEAD + b"Content-Length: 500\r\n\r\n", b'{"model": "' + b"x" * 500),
    }
    ended, connections = {}, []
    for second in range(60):
        for name, one in slow.items():
            if name not in ended:
                one.send()
                if one.ended:
                    ended[name] = (one.ended, second)
        if second == 3:
            connections = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(500)]
            rows.share("500 connections at once: answered", "found", [answer(c) for c in connections].count("200"), 500)
            began = time.monotonic()
            server.complete(MODEL)
            rows.add("and another one beside them", "found", f"answered in {1000 * (time.monotonic() - began):.0f} ms")
        if len(ended) == len(slow):
            break
        time.sleep(1)
    [connection.close() for connection in connections]
    for name in slow:
        status, second = ended.get(name, ("still there", 60))
        rows.add(f"{name}, a byte a second", "found", f"{status} after {second} s", status in ("408", "closed"))
    rows.add("the server after that", "found", "answers" if server.complete(MODEL) else "nothing", server.alive())


def answer(connection):
    try:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(64).split(b" ")[1].decode()
    except (OSError, IndexError):
        return "none"


# -- models ---------------------------------------------------------------------------------------------


def many_models(rows, project):
    """Twenty models where there is room for four."""
    listed = lambda server: {entry["id"]: entry["tinylm"] for entry in server.ask("GET", "/v1/models")[1]["data"]}
    small = ["--prefix-memory", "1MiB"]
    with Server(project, *small) as server:
        one = listed(server)["serving:many@seed=1"]["bytes"]
    limit = 4 * one + one // 2
    with Server(project, *small, "--memory", limit) as server:
        many = [name for name in listed(server) if name.startswith("serving:many@")]
        before, most, right = server.resident()[0], 0, 0
        for name in many * 2:
            right += server.ask("POST", "/v1/completions", {"model": name, "prompt": PROMPT, **GREEDY})[0] == 200
            loaded = [about for about in listed(server).values() if about["loaded"]]
            most = max(most, sum(about["bytes"] for about in loaded))
        after = server.resident()[0]
    rows.add("models listed", "found", f"{len(many)}", len(many) == MANY)
    rows.share("each asked twice: answered", "found", right, 2 * MANY)
    shown = f"{most / 2**20:.1f} of {limit / 2**20:.1f} MiB (resident: before {before:.0f}, after {after:.0f})"
    rows.add("their memory, at most", "found", shown, 0 < most <= limit)


def replaced(rows, project):
    folder = project.folder / "replaced"
    shutil.rmtree(folder, ignore_errors=True)
    project.run("export", "--model", "serving:base", "--format", "hf", "-o", folder)
    other = project.folder / "other"
    shutil.rmtree(other, ignore_errors=True)
    project.run("export", "--model", MODEL, "--format", "hf", "-o", other)

    def replace(text):
        # As a program does that writes carefully.
        (folder / "new").write_bytes(text)
        os.replace(folder / "new", folder / "model.safetensors")

    with Server(project, "--model", f"one={folder}", "--model", f"two={other}") as server:
        old, new = server.complete("one"), server.complete("two")

        async def during():
            running = asyncio.create_task(stream_once(server.port, {"model": "one", "prompt": PROMPT, **GREEDY, "max_tokens": 200}))
            await asyncio.sleep(0.02)
            await asyncio.to_thread(replace, (other / "model.safetensors").read_bytes())
            return await running

        tokens, _ = asyncio.run(during())
        rows.add("a model is replaced while it is read: the answer that runs", "found", f"{tokens} tokens", tokens > 0)
        found = server.complete("one")
        rows.add("the next answer", "found", "is the new model's" if found == new else "is another", found == new != old)
        replace(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
        found = server.complete("one")
        error = next(entry["tinylm"].get("error") for entry in server.ask("GET", "/v1/models")[1]["data"] if entry["id"] == "one")
        rows.add("it is damaged: the next answer", "found", "is the last good model's" if found == new else "is another", found == new)
        rows.add("and its error is listed", "found", str(error)[:80], bool(error))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="minimal pairs: a TSV with uid, pair_id, good, bad")
    parser.add_argument("--steps", type=int, default=150, help="of training (default 150)")
    parser.add_argument("--clients", type=int, default=50, help="that stream at once (default 50)")
    parser.add_argument("--seconds", type=int, default=60, help="for which they do (default 60)")
    parser.add_argument("--malformed", type=int, default=10_000, metavar="N", help="malformed requests (default 10000)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some parts: openai lm-eval crowd vanish cache malformed slow many replaced")
    parser.add_argument("--python", help="a Python that has the packages")
    parser.add_argument("--project", help="keep everything in this folder")
    parser.add_argument("--side", choices=["openai", "lm_eval"], help=argparse.SUPPRESS)
    add_tinylm(parser)
    args = parser.parse_args()
    if args.side:
        side = {"openai": openai_side, "lm_eval": lm_eval_side}[args.side]
        return print(json.dumps(side(json.load(sys.stdin))))
    check_tinylm(args)
    python = python_with_packages(args.python, PACKAGES, "serve-venv", PIP)
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        project = Project(Path(args.project or folder).resolve(), args.tinylm)
        (project.folder / "pipelines").mkdir(parents=True, exist_ok=True)
        if not args.pairs:
            args.pairs = project.folder / "pairs.tsv"
            write_pairs(args.pairs)
        args.pairs = args.pairs.resolve()
        # JSON is YAML.
        (project.folder / "pipelines/serving.yaml").write_text(json.dumps(pipeline(args), indent=1))
        tell("training")
        project.run("run", "serving")
        rows = Rows()
        judge(rows, project, args, python)
        rows.print(["found"])
        if rows.missed:
            sys.exit(f"{rows.missed} figures miss their bar")


def judge(rows, project, args, python):
    with Server(project) as server:
        parts = {
            "openai": lambda: beside_openai(rows, server, python),
            "lm-eval": lambda: beside_lm_eval(rows, server, project, python, args.pairs),
            "crowd": lambda: a_crowd(rows, server, args.clients, args.seconds),
            "vanish": lambda: vanishing(rows, server),
            "cache": lambda: cached_history(rows, server),
            "malformed": lambda: malformed(rows, server, args.malformed),
            "slow": lambda: slow_and_many(rows, server),
        }
        for name, part in parts.items():
            if not args.only or name in args.only:
                tell(name)
                part()
    for name, part in {"many": many_models, "replaced": replaced}.items():
        if not args.only or name in args.only:
            tell(name)
            part(rows, project)


if __name__ == "__main__":
    main()
