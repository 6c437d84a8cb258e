# Instruction backtranslation (Li et al. 2023, arXiv 2308.06259).
#
# Where things lie: resources/ holds base models and data sets of the hub, shared by runs; results/<name>/ holds one
# run, a folder per stage: seed, corpus, backward, augment, audit, curation, forward, evaluation, report, release; and proof.
# {iteration} counts from 1: its judge is M_(t-1), it keeps A_k^(t) and trains M_t. M_0 knows the seed alone.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "config/captions/workflow.rst"


include: "rules/common.smk"


pathvars:
    results=f"results/{config['name']}",
    logs=f"results/{config['name']}/logs",
    benchmarks=f"results/{config['name']}/benchmarks",
    model=f"resources/models/{models.model_key(config['model'])}",
    judge=f"resources/models/{models.model_key(JUDGE_MODEL)}",


wildcard_constraints:
    iteration=r"\d+",
    arm="[a-z0-9_]+",
    n=r"\d+|all",
    seed=r"\d+",


scattergather:
    shard=config["generation"]["shards"],


include: "rules/data.smk"
include: "rules/backward.smk"
include: "rules/augment.smk"
include: "rules/audit.smk"
include: "rules/curate.smk"
include: "rules/forward.smk"
include: "rules/evaluate.smk"
include: "rules/proof.smk"
include: "rules/report.smk"
include: "rules/release.smk"


onsuccess:
    # Only for a run of the default target; it says nothing in a dry run or when there was nothing to do.
    given = workflow.dag_settings
    if not given.targets and not given.until and not workflow.touch:
        logger.info(summary_of_run())


rule all:
    default_target: True
    input:
        "<results>/curation/curated.jsonl",
        "<results>/forward/model/model.safetensors",
        "<results>/evaluation/heldout.tsv",
        "<results>/report/scores.svg",
        "<results>/report/audit.svg",
        "<results>/report/labelling.html",
        "<results>/report/iterations.tsv",
        "<results>/evaluation/round_trip.tsv",
        "<results>/report/examples.html",
        "<results>/report/browse.html",
        "<results>/report/costs.tsv",
        "<results>/report/setup.html",
        "<results>/report/words.html",
        "<results>/release/data/messages.jsonl",
        "<results>/release/data/README.md",
        "<results>/forward/model/README.md",
        on_the_way,
        iterations("<results>/forward/{iteration}/adapter/training.json", first=0),
    message:
        "Done: curated set, forward model and report tables are in results/{config[name]}"


# Named targets, for going only part of the way.
rule release:
    input:
        "<results>/release/data/messages.jsonl",
        "<results>/release/data/README.md",
        "<results>/forward/model/README.md",
    message:
        "To give away: results/{config[name]}/release/data and results/{config[name]}/forward/model"


rule audit:
    input:
        "<results>/audit/audit.json",
        "<results>/report/audit.svg",
    message:
        "The judge is audited: results/{config[name]}/audit/audit.json"


rule proof:
    input:
        "<results>/arms.tsv",
        "<results>/summary.json",
        "<results>/proof/words.tsv",
        "<results>/proof/quality.svg",
        "<results>/proof/win_rates.svg" if config["proof"]["answers"] else [],
        on_the_way_to_proof,
    message:
        "The proof is made: results/{config[name]}/arms.tsv and summary.json"


rule leaderboards:
    input:
        leaderboard_answers,
    message:
        "Answered; docs/release.md says how the answers are judged"


rule push:
    input:
        pushes,
    message:
        "Pushed; results/{config[name]}/release/pushed says where to"


rule curated:
    input:
        "<results>/curation/curated.jsonl",
    message:
        "The curated set is ready"
