import pandas as pd

from backtranslation import logs, records, words

with logs.job(snakemake.log[0]):
    given = snakemake.input
    tables = {name: pd.read_csv(given[name], sep="\t") for name in ("funnel", "signals", "heldout", "round_trip", "costs")}
    figures, verdict = records.read_json(given.audit), records.read_json(given.verdict)
    base = records.read_json(given.manifest)["name"]
    found = words.answers(**tables, figures=figures, verdict=verdict, base=base, keep=snakemake.params.keep, best=snakemake.params.best)
    for question, sentences in found.items():
        logs.logger.info("%s %s", question, " ".join(sentences))
    words.page(found, snakemake.output.page)
    words.paragraphs(found, snakemake.output.paragraphs)
