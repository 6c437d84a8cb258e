import pandas as pd

from backtranslation import logs, pairwise, proof, records


def read(paths):
    texts = dict.fromkeys(["size", "seed", *snakemake.params.search], str)
    # The text null is a setting.
    options = {"sep": "\t", "dtype": texts, "keep_default_na": False, "na_values": [""]}
    return pd.concat([pd.read_csv(path, **options) for path in paths], ignore_index=True)


with logs.job(snakemake.log[0]):
    given, made, seed = snakemake.input, snakemake.output, snakemake.params.random_seed
    values = read(given.values)
    if given.wins:
        numbers = values[["arm", "size", "n"]].drop_duplicates()
        values = pd.concat([values, pairwise.win_rates(read(given.wins)).merge(numbers)], ignore_index=True)
    judge = records.read_json(given.judge) if given.judge else None
    values, settings = proof.tuned(values, snakemake.params.search)
    compared = proof.comparisons(values, seed)
    figures = proof.summary(values, compared, seed, judge)
    for sentence in figures["words"]:
        logs.logger.info("%s", sentence)
    words = pd.DataFrame({"words": figures["words"]})
    for frame, path in ((proof.table(values, seed), made.arms), (compared, made.comparisons), (words, made.words), (settings, made.settings)):
        records.write_table(frame.round(5), path)
    records.write_json(figures, made.summary)
