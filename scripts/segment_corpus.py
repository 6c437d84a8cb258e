from backtranslation import logs, records, segments, sources

with logs.job(snakemake.log[0], online=True):
    documents, unread = sources.read_corpus(snakemake.params.sources)
    pieces, kept, dropped = segments.segment(documents)
    records.settle("segment", pieces, kept, dropped)
    if not kept:
        raise ValueError(f"corpus.sources: none of {len(pieces)} segments is left; the reasons are in the ledger: "
                         + ", ".join(sorted({row["reason"] for row in dropped})))
    logs.logger.info("%d documents, %d unreadable rows; kept %s", len(documents), len(unread), segments.describe(kept))
    records.write([*unread, *dropped], records.DROPPED, snakemake.output.dropped)
    records.write(kept, records.SEGMENTS, snakemake.output.segments)
