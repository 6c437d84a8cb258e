import pandas as pd

from backtranslation import cards, logs, records

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params.card
    card = cards.model(
        params["config"],
        records.read_json(given.manifest),
        params["licences"],
        pd.read_csv(given.heldout, sep="\t"),
        records.read_json(given.training),
        records.read_json(given.merge),
        records.read_json(given.audit),
        records.read_json(given.verdict),
        snakemake.params.best,
    )
    records.write_text(str(card), snakemake.output.card)
