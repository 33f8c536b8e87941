"""What becomes of every row of real text: runs two_stage on each file given, with a tiny model and a few steps, and
prints what the reports account for.

    bench/reports.py --corpus books.txt tales.txt --chats chats.jsonl talks.json

A line a file: rows (or documents) read, kept, dropped by cause, and what of the rows is not read. It fails when a sum
does not come out even, or a run fails for another reason than an input that is refused.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from common import add_tinylm, check_tinylm

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    "vars.synthetic": 0,
    "vars.pretrain_steps": 4,
    "vars.finetune_steps": 4,
    "stages.base.params.d_model": 16,
    "stages.base.params.n_head": 2,
    "stages.base.params.n_layer": 1,
}


def run(tinylm, project, sets):
    arguments = [f"--set={key}={value}" for key, value in {**SMALL, **sets}.items()]
    return subprocess.run([tinylm, "run", "two_stage", *arguments], cwd=project, capture_output=True, text=True)


def report(project, stage, port):
    return json.loads((project / "artifacts/two_stage" / stage / port / "report.json").read_text())


def causes(removed):
    """The counts above 0 of a map of counts, nested ones included."""
    counts = dict(removed.get("bad_rows", {}))
    counts.update({name: n for name, n in removed.items() if isinstance(n, int)})
    return {name: n for name, n in counts.items() if n}


def of_documents(project):
    [file] = report(project, "docs", "docs")["files"]
    dropped = causes(file["removed"])
    even = file["rows_in"] + file["further_documents"] == file["documents_in"]
    even &= file["documents_in"] == file["documents_kept"] + sum(dropped.values())
    return file["documents_in"], file["documents_kept"], dropped, file["ignored_keys"], even


def of_chats(project):
    [file] = report(project, "chats", "chats")["files"]
    dropped = file["rows_dropped"]
    even = file["rows_in"] == file["rows_kept"] + sum(dropped.values())
    return file["rows_in"], file["rows_kept"], dropped, file["ignored_keys"], even


def scores(project):
    """Texts that were scored by the last report of each sort, as the split of training and eval has them."""
    base, chat = report(project, "base_report", "report"), report(project, "report", "report")
    return f"{base.get('texts', 0)}/{chat.get('chats', {}).get('texts', 0)}"


def line(*cells):
    print("{:34} {:>8} {:>8}  {:38} {:44} {}".format(*map(str, cells)), flush=True)


def names(counts):
    return ", ".join(f"{name} {n}" for name, n in counts.items()) or "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="*", default=[], help="files of text")
    parser.add_argument("--chats", nargs="*", default=[], help="files of conversations")
    add_tinylm(parser)
    args = parser.parse_args()
    check_tinylm(args)
    wrong = 0
    line("file", "read", "kept", "dropped", "not read", "scored")
    with tempfile.TemporaryDirectory() as folder:
        project = pathlib.Path(folder)
        for name in ["pipelines", "stages", "data"]:
            shutil.copytree(ROOT / name, project / name)
        for variable, files, account in [("corpus", args.corpus, of_documents), ("chats", args.chats, of_chats)]:
            for file in map(pathlib.Path, files):
                name = "/".join(file.parts[-2:])
                ran = run(args.tinylm, project, {f"vars.{variable}": file.resolve()})
                if ran.returncode == 0:
                    read, kept, dropped, ignored, even = account(project)
                    line(name[-34:], read, kept, names(dropped), names(ignored), scores(project))
                    wrong += not even
                    if not even:
                        print(f"  the sums of {name} are not even", file=sys.stderr)
                else:
                    said = next((text for text in ran.stderr.splitlines() if text.startswith("error: ")), ran.stderr)
                    line(name[-34:], "-", "-", "refused", said[7:180], "-")
                    wrong += ran.returncode != 1
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
