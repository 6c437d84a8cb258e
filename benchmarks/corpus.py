"""The corpus at size: `make bench-corpus`, or with `DOCS=100000` and `PAGES=<folder of web pages>`.

Documents are generated: words that are as frequent as in language (Zipf), in sentences, paragraphs and sections, 2,000
characters on average, with exact and near copies, menus, repetitive and broken ones among them. Two processes cut the
parts as two jobs of the workflow would, then one process deduplicates and draws; time is from the first document to
the written sample, memory that of all processes together. The same for a hundredth of the documents, to see what a
document costs at either size; and beside a straight datatrove pipeline in an environment of its own, on 20,000 of the
documents, since it needs hours for all. With PAGES also: how many segments these pages give and why others are
dropped, and 30 of them to read in results/bench/segments.txt. Writes results/bench/corpus.json.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.chdir(ROOT)

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from about import about  # noqa: E402

from backtranslation import corpus, decontamination, dedup, funnel, records, settings, sources  # noqa: E402

OUTPUT = Path("results/bench")
WORK = OUTPUT / "corpus"
FILES, REFERENCE_DOCS, SAMPLE = 20, 20_000, 0.1
REFERENCE = Path(".venv-datatrove/bin/python")


def edit(words: list[str], share: float, draw: random.Random) -> list[str]:
    """Words of which that share is replaced, left out or doubled."""
    words = words.copy()
    for at in draw.sample(range(len(words)), round(share * len(words))):
        words[at] = draw.choice(["", f"new{draw.randrange(10**6)}", f"{words[at]} {words[at]}"])
    return [word for word in words if word]


class Writer:
    """Documents by number: each is the same in every run, whatever was made before it."""

    def __init__(self) -> None:
        draw = random.Random(0)
        self.words = ["the", "of", "and", "to", "a", "in", "that", "is", "be", "have", "with", "it"]
        syllables = [a + b for a in "bcdfghjklmnprstvw" for b in "aeiou"]
        self.words += ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(50_000)]
        ranks = np.arange(1, len(self.words) + 1)
        self.chances = np.cumsum(1 / ranks) / np.sum(1 / ranks)

    def body(self, number: int, length: int) -> list[str]:
        places = np.searchsorted(self.chances, np.random.default_rng(number).random(length))
        return [self.words[place] for place in places]

    def text(self, number: int) -> str:
        draw = random.Random(number)
        kind = draw.random()
        if number and kind < 0.02:
            return self.text(draw.randrange(number))  # an exact copy
        length = draw.randint(120, 620)
        words = self.body(number, length)
        if number and kind < 0.05:  # a near copy
            words = edit(self.body(number - 1, random.Random(number - 1).randint(120, 620)), draw.uniform(0.05, 0.15), draw)
        if kind > 0.99:
            words = words[:12] * (length // 12)  # repetitive
        sentences = [" ".join(words[at : at + 14]).capitalize() + "." for at in range(0, len(words), 14)]
        paragraphs = [" ".join(sentences[at : at + 5]) for at in range(0, len(sentences), 5)]
        title = "CONTENTS AND MENU" if 0.98 < kind < 0.99 else " ".join(words[:4]).capitalize()
        half = len(paragraphs) // 2
        return f"# {title}\n\n" + "\n\n".join(paragraphs[:half]) + f"\n\n## {words[-1].capitalize()}\n\n" + "\n\n".join(paragraphs[half:])


def write_file(path: Path, first: int, last: int) -> None:
    writer = Writer()
    with records.atomic(path) as temporary, open(temporary, "w") as stream:
        for number in range(first, last):
            # Damage, as a dump has it.
            stream.write('{"text": "cut off\n' if number % 5000 == 4999 else json.dumps({"text": writer.text(number)}) + "\n")


def generate(docs: int) -> Path:
    """A folder of FILES jsonl files with the first `docs` documents."""
    folder = WORK / f"given-{docs}"
    bounds = [docs * n // FILES for n in range(FILES + 1)]
    with ProcessPoolExecutor(2) as pool:
        paths = [folder / f"{n:02d}.jsonl" for n in range(FILES)]
        jobs = [pool.submit(write_file, path, *bounds[n : n + 2]) for n, path in enumerate(paths) if not path.exists()]
        for job in jobs:
            job.result()
    return folder


def configured(**source: Any) -> dict[str, Any]:
    """The default configuration with one source in place of its own."""
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    config["corpus"] |= {"sources": [source], "part_mb": 0.001}
    settings.validate(config, yaml.safe_load(Path("config/schema.yaml").read_text()))
    return config["corpus"]


def cut(part: sources.Part, filters: dict[str, Any], paths: list[str]) -> None:
    corpus.cut_part(part, filters, decontamination.Protected([("prompt", "which of the largest rivers of the world flow to the north")], 10), *paths)


def finish(cut_parts: list[list[str]], near: float | None, folder: str) -> int:
    corpus.merge(*map(list, zip(*cut_parts, strict=True)), ["generated"], near, f"{folder}/segments.parquet", f"{folder}/dropped.parquet", f"{folder}/counts.json")
    drawn = corpus.sample(f"{folder}/segments.parquet", SAMPLE, 42, [None], False, None, None, None, f"{folder}/sample.parquet", f"{folder}/not_sampled.parquet")
    return drawn


def warm() -> None:
    """What a process imports once, however many documents it sees."""
    import rensa  # noqa: F401

    time.sleep(0.2)


class Peak:
    """The largest memory in MB of this process' children together, looked at ten times a second."""

    def __enter__(self) -> "Peak":
        self.mb, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.1):
            kilobytes = 0
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                try:
                    kilobytes += int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
                except (OSError, IndexError):  # it has just ended
                    continue
            self.mb = max(self.mb, kilobytes / 1024)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def measure(given: Path, docs: int) -> dict[str, float]:
    """Seconds and peak memory from the first document to the drawn sample."""
    folder = WORK / f"made-{docs}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = configured(path=str(given / "*.jsonl"), cut=True, min_chars=600, max_chars=3000)
    parts = sources.parts(asked["sources"], asked["part_mb"])
    paths = [[str(folder / f"{n}.{kind}") for kind in ("parquet", "dropped.parquet", "json")] for n in range(len(parts))]
    with ProcessPoolExecutor(2) as pool, Peak() as peak:
        for job in [pool.submit(warm) for _ in range(2)]:
            job.result()
        started = time.monotonic()
        for job in [pool.submit(cut, part, asked["filters"], path) for part, path in zip(parts, paths, strict=True)]:
            job.result()
        cut_s = time.monotonic() - started
        drawn = pool.submit(finish, paths, asked["near_duplicates"], str(folder)).result()
        wall = time.monotonic() - started
    reasons = funnel.reasons_of(str(folder / "dropped.parquet"))
    print(f"{docs} documents: {wall:.1f} s ({cut_s:.1f} s cutting), {peak.mb:.0f} MB, {drawn} drawn", flush=True)
    print("  " + ", ".join(f"{reason} {count}" for (_, reason), count in reasons.most_common()), flush=True)
    return {"wall_s": wall, "cut_s": cut_s, "peak_mb": peak.mb, "segments": records.count(folder / "segments.parquet")}


def reference(given: Path) -> float:
    """Seconds of datatrove for the same work."""
    work = WORK / "datatrove"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with open(OUTPUT / "datatrove.log", "w") as log:
        command = [str(REFERENCE), "benchmarks/reference.py", str(given), str(work), str(FILES), str(SAMPLE)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not found:
        raise SystemExit(f"ERROR: datatrove failed; see {OUTPUT}/datatrove.log")
    print(f"datatrove: {float(found[0][1]):.1f} s, {found[0][2]} drawn", flush=True)
    return float(found[0][1])


def planted() -> dict[str, float]:
    """Near duplicates among 2,000 documents, 300 of them another one with 5 to 15 % of the words edited."""
    writer, draw = Writer(), random.Random(7)
    texts = [writer.body(10**7 + n, draw.randint(120, 450)) for n in range(1700)]
    texts += [edit(texts[n], draw.uniform(0.05, 0.15), draw) for n in range(300)]
    found = dedup.near_texts([" ".join(words) for words in texts], 0.5)
    right = sum(place >= 1700 and other == place - 1700 for place, (other, _) in found.items())
    return {"neardup_recall": right / 300, "neardup_precision": right / max(len(found), 1)}


def read_pages(pages: str) -> dict[str, Any]:
    """What a folder of web pages gives, with 30 of its segments to read."""
    folder = WORK / "pages"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = configured(path=pages, cut=True, min_chars=600, max_chars=3000, language="en", filters={"unfinished": True})
    paths = [str(folder / f"1.{kind}") for kind in ("parquet", "dropped.parquet", "json")]
    started = time.monotonic()
    cut(sources.parts(asked["sources"], 10_000)[0], asked["filters"], paths)
    seconds = time.monotonic() - started
    finish([paths], asked["near_duplicates"], str(folder))
    kept = records.read(folder / "segments.parquet")
    counts = records.read_json(folder / "counts.json")
    reasons = Counter({reason: count for (_, reason), count in funnel.reasons_of(str(folder / "dropped.parquet")).items()})
    print(f"{pages}: {counts['rows']} pages, {counts['pieces']} pieces, {len(kept)} segments, {seconds:.1f} s")
    print("\n".join(f"  {reason:<20}{count:>8}" for reason, count in reasons.most_common()))
    shown = random.Random(42).sample(kept, min(30, len(kept)))
    records.write_text("\n\n".join(f"##### {n}: {row['source']}\n{row['text']}" for n, row in enumerate(shown, start=1)), OUTPUT / "segments.txt")
    return {"pages": counts["rows"], "pages_segments": len(kept), "pages_dropped": dict(reasons.most_common())}


def main(docs: str = "1000000", pages: str = "") -> None:
    total = int(docs)
    small = max(total // 100, 1000)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    print(f"generating {total} documents", flush=True)
    given = {n: generate(n) for n in sorted({small, min(REFERENCE_DOCS, total), total})}
    size_mb = sum(path.stat().st_size for path in given[total].iterdir()) / 1e6
    # Twice, one before and one after, so that drift of the machine cancels.
    few = [measure(given[small], small)]
    many = measure(given[total], total)
    few.append(measure(given[small], small))
    beside = min(REFERENCE_DOCS, total)
    ours = [measure(given[beside], beside)["wall_s"]]
    theirs = reference(given[beside])
    ours.append(measure(given[beside], beside)["wall_s"])
    per_doc = sum(run["wall_s"] for run in few) / 2 / small
    figures = {
        **about("pyarrow", "rensa", "resiliparse", "numpy"),
        "docs": total,
        "docs_mb": size_mb,
        **many,
        "docs_per_s": total / many["wall_s"],
        "reference": "datatrove 0.10.1",
        "reference_docs": beside,
        "reference_wall_s": theirs,
        "ratio_to_reference": sum(ours) / 2 / theirs,
        "cost_ratio_1e6_to_1e4": many["wall_s"] / total / per_doc,
        **planted(),
        **(read_pages(pages) if pages else {}),
    }
    records.write_json(figures, OUTPUT / "corpus.json")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
