import shutil

from backtranslation import logs, records

with logs.job(snakemake.log[0]):
    given, made = snakemake.input, snakemake.output
    for name in ("rated", "dropped", "curated"):
        with records.atomic(made[name]) as temporary:
            shutil.copyfile(given[name], temporary)
    columns = ("id", "source", "instruction", "text", *records.SIGNALS, "combination")
    # JSON has no NaN: what has no value is left out.
    kept = records.read(given.curated)
    records.write_jsonl(({name: row[name] for name in columns if row[name] == row[name]} for row in kept), made.jsonl)
