# Is the judge to be believed? Measured on labelled pairs before it rates any candidate, in each iteration anew.


rule audit_judge:
    input:
        heldout="<results>/seed/heldout.parquet",
        labels=config["audit"]["labels"] or [],
        rubric=config["judge"]["rubric"],
        adapter="<results>/backward/adapter/training.json",
        manifest="<model>/manifest.json",
        judge="<judge>/manifest.json",
        judge_adapter=judge_adapter,
        earlier=earlier("<results>/audit/{iteration}/rated.parquet"),
        code=library("audit"),
    output:
        figures="<results>/audit/{iteration}/audit.json",
        table=ensure("<results>/audit/{iteration}/audit.tsv", non_empty=True),
        cuts="<results>/audit/{iteration}/cuts.tsv",
        reliability="<results>/audit/{iteration}/reliability.tsv",
        combination="<results>/audit/{iteration}/combination.json",
        rated="<results>/audit/{iteration}/rated.parquet",
    log:
        "<logs>/audit_judge/{iteration}.log",
    benchmark:
        "<benchmarks>/audit_judge/{iteration}.jsonl"
    conda:
        ENGINE_ENV
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="6h",
    params:
        audit={key: config["audit"][key] for key in ("pairs", "labels")},
        judge=judge_settings,
        random_seed=config["random_seed"],
    message:
        "Auditing the judge of iteration {wildcards.iteration} on labelled pairs"
    script:
        "../scripts/audit_judge.py"


# Apart from the audit, so that another signal or floor costs no second audit.
rule check_judge:
    input:
        figures="<results>/audit/{iteration}/audit.json",
        code=library("audit"),
    output:
        verdict="<results>/audit/{iteration}/verdict.json",
    log:
        "<logs>/check_judge/{iteration}.log",
    benchmark:
        "<benchmarks>/check_judge/{iteration}.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        signal=config["curation"]["keep"]["signal"],
        floor=config["audit"]["floor"],
        on_fail=config["audit"]["on_fail"],
    message:
        "Holding the judge of iteration {wildcards.iteration} against audit.floor"
    script:
        "../scripts/check_judge.py"


# The first judge's; how the later ones did is in the table of iterations.
rule report_audit:
    input:
        figures="<results>/audit/1/audit.json",
        verdict="<results>/audit/1/verdict.json",
        table="<results>/audit/1/audit.tsv",
        reliability="<results>/audit/1/reliability.tsv",
        rated="<results>/audit/1/rated.parquet",
        code=library("audit", "plots"),
    output:
        figures="<results>/audit/audit.json",
        aurocs=report(
            "<results>/report/audit.svg",
            caption="../config/captions/audit.rst",
            category="3. Can the judge be trusted?",
            labels={"shows": "good pairs against each kind of bad ones"},
        ),
        roc=report(
            "<results>/report/roc.svg",
            caption="../config/captions/roc.rst",
            category="3. Can the judge be trusted?",
            labels={"shows": "good pairs kept for bad ones"},
        ),
        reliability=report(
            "<results>/report/reliability.svg",
            caption="../config/captions/reliability.rst",
            category="3. Can the judge be trusted?",
            labels={"shows": "share of good pairs by value"},
        ),
        lines=report(
            "<results>/report/audit.tsv",
            caption="../config/captions/verdict.rst",
            category="3. Can the judge be trusted?",
            labels={"shows": "verdict, values, injected scores"},
        ),
    log:
        "<logs>/report_audit.log",
    benchmark:
        "<benchmarks>/report_audit.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        random_seed=config["random_seed"],
    message:
        "Drawing the audit"
    script:
        "../scripts/report_audit.py"
