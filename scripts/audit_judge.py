from pathlib import Path

from backtranslation import audit, judge, labels, logs, records

with logs.job(snakemake.log[0]):
    given, made, settings, seed = snakemake.input, snakemake.output, snakemake.params.audit, snakemake.params.random_seed
    if settings["labels"]:
        pairs = labels.read_labels(settings["labels"])
    else:
        pairs = audit.pairs(records.read(given.heldout), settings["pairs"], seed)
    asked, shape = judge.configured(given, snakemake.params.judge, snakemake.resources.gpu)
    folder, shape = Path(made.figures).parent / ".work", [shape, records.code_of(given.code), [row["id"] for row in pairs]]
    work = [records.WorkFile(folder, [part, *shape]) for part in ("pairs", "injection")]
    rated = judge.rate(pairs, asked, work[0], records.read(given.earlier) if given.earlier else None)
    weights, held_out = audit.fit(rated, seed)
    rated = [{**row, "combination": float(p)} for row, p in zip(rated, held_out, strict=True)]
    table = audit.aurocs(rated, seed)
    figures = audit.summary(rated, table, seed)
    if "rating" in asked.signals:
        figures["injection"] = audit.injection(pairs, asked, work[1])
    logs.logger.info("\n%s", table.pivot(index="signal", columns="kind", values="auroc").round(3).to_string())
    for frame, path in ((table, made.table), (audit.cuts(rated), made.cuts), (audit.reliability(rated), made.reliability)):
        records.write_table(frame.round(4), path)
    records.write(rated, records.AUDITED, made.rated)
    records.write_json(weights, made.combination)
    records.write_json(figures, made.figures)
    for part in work:
        part.clear()
