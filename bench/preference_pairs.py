"""Makes pairs of a chosen and a rejected answer of OpenAssistant message trees, for `ingest_chat` and `prefer`.

    python bench/preference_pairs.py ../shared/data/conv_oasst_en100/en_100_tree.jsonl pairs.jsonl chats.jsonl

Every reply of the assistant that people ranked is compared with those of the same message that they ranked lower:
one row {"prompt": [messages], "chosen": text, "rejected": text} a pair. The third file, if named, gets the
best-ranked thread of each tree as {"messages": [...]}, to fine-tune on before. Needs nothing but Python.
"""

import itertools
import json
import sys

ROLES = {"prompter": "user", "assistant": "assistant"}


def message(node):
    return {"role": ROLES[node["role"]], "content": node["text"]}


def ranked(node):
    """The replies that have a rank, the best first."""
    replies = [r for r in node["replies"] if r.get("rank") is not None and not r.get("deleted")]
    return sorted(replies, key=lambda reply: reply["rank"])


def pairs(node, before):
    """The pairs of all answers in the tree below `node`, which follows the messages `before`."""
    prompt = before + [message(node)]
    if node["role"] == "prompter":
        for better, worse in itertools.combinations(ranked(node), 2):
            if better["rank"] < worse["rank"] and better["text"] != worse["text"]:
                yield {"prompt": prompt, "chosen": better["text"], "rejected": worse["text"]}
    for reply in node["replies"]:
        yield from pairs(reply, prompt)


def best_thread(node):
    """From `node` on, always the reply that was ranked best, down to an answer."""
    thread = [node]
    while thread[-1]["replies"]:
        thread.append((ranked(thread[-1]) or thread[-1]["replies"])[0])
    if thread[-1]["role"] == "prompter":
        thread.pop()
    return [message(node) for node in thread]


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(trees, pairs_path, chats_path=None):
    with open(trees, encoding="utf-8") as file:
        roots = [json.loads(line)["prompt"] for line in file]
    rows = [pair for root in roots for pair in pairs(root, [])]
    write(pairs_path, rows)
    prompts = {json.dumps(row["prompt"]) for row in rows}
    print(f"{len(rows)} pairs of {len(prompts)} prompts, of {len(roots)} trees")
    if chats_path:
        threads = [thread for thread in map(best_thread, roots) if thread]
        write(chats_path, ({"messages": thread} for thread in threads))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
