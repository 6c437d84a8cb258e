"""The work of the corpus rules as a straight datatrove pipeline: `reference.py <input folder> <work folder> <files> <share>`.

Reading jsonl, cutting at headers (with this project's own function, which datatrove has no counterpart of), Gopher's
filters, MinHash near duplicates with datatrove's defaults (5-grams, 14 buckets of 8 hashes), sampling. Two workers.
Prints the seconds from the first step to the last, and the number of segments that are left.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, SamplerFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from backtranslation import segments


class Cut(PipelineStep):
    """Documents as segments of 600 to 3,000 characters."""

    name = "cut"

    def run(self, data, rank=0, world_size=1):
        for document in data:
            for number, text in enumerate(segments.cut(document.text, 3000)):
                if 600 <= len(text) <= 3000:
                    yield Document(text=text, id=f"{document.id}/{number}")


def main(given: str, work: str, files: str, share: str) -> None:
    tasks, config = int(files), MinhashConfig()
    started = time.monotonic()

    def run(pipeline, tasks=tasks):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=f"{work}/logs/{len(list(Path(work).glob('logs/*')))}").run()

    # The filters' thresholds are such that the made words, of which few are English, pass as far as they do here.
    quality = GopherQualityFilter(min_stop_words=0)
    run([JsonlReader(given), Cut(), GopherRepetitionFilter(), quality, JsonlWriter(f"{work}/cut", compression=None)])
    run([JsonlReader(f"{work}/cut"), MinhashDedupSignature(f"{work}/signatures", config)])
    run([MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)], config.num_buckets)
    run([MinhashDedupCluster(f"{work}/buckets", f"{work}/clusters", config=config)], 1)
    run([JsonlReader(f"{work}/cut"), MinhashDedupFilter(f"{work}/clusters"), SamplerFilter(float(share), 42), JsonlWriter(f"{work}/sample", compression=None)])
    seconds = time.monotonic() - started
    lines = sum(path.read_bytes().count(b"\n") for path in Path(work, "sample").glob("*.jsonl"))
    print(f"RESULT {seconds} {lines}")


if __name__ == "__main__":
    main(*sys.argv[1:])
