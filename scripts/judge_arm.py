from pathlib import Path

from backtranslation import logs, pairwise, records

with logs.job(snakemake.log[0], online=bool(snakemake.params.served)):
    given, params = snakemake.input, snakemake.params
    judge, identity = pairwise.load_judge(params.served, given.judge, params.template, params.batch_tokens, params.precision)
    answers = zip(records.read_jsonl(given.own), records.read_jsonl(given.other[0]), strict=True)
    rows = [{"id": own["id"], "instruction": own["prompt"], "own": own["answer"], "other": other["answer"]} for own, other in answers]
    work = records.WorkFile(Path(snakemake.output.wins).parent / ".work", ["judge", rows, *identity, records.code_of(given.code), *params])
    wins = pairwise.compare(rows, judge, work)
    records.write_table(wins.assign(**{"size" if name == "n" else name: value for name, value in params.cell.items()}), snakemake.output.wins)
    work.clear()
