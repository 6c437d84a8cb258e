"""One step of the corpus in a process of its own, so that a test can kill it: `corpus_step.py <step> <input> <folder>`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "scripts"), str(Path(__file__).parent)]

from test_corpus import NOTHING, source  # noqa: E402
from test_segments import FILTERS  # noqa: E402

from backtranslation import corpus, sources  # noqa: E402

step, given, folder = sys.argv[1:]
parts = [f"{folder}/parts/1.{kind}" for kind in ("parquet", "dropped.parquet", "json")]
if step == "cut":
    corpus.BLOCK = 100
    corpus.cut_part(sources.parts([source(given)], 100)[0], FILTERS, NOTHING, *parts)
elif step == "merge":
    corpus.merge(*[[path] for path in parts], [given], 0.5, f"{folder}/segments.parquet", f"{folder}/dropped.parquet", f"{folder}/counts.json")
else:
    corpus.sample(f"{folder}/segments.parquet", 0.5, 42, [None], False, None, None, None, f"{folder}/sample.parquet", f"{folder}/not_sampled.parquet")
