# Everything that is Python and not a rule: checking the configuration, and what rules take as input.
import ast
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from backtranslation import checks, grid, harness, models, records, settings, sources


def check_config():
    """Refuse a wrong configuration before any job starts, in plain sentences."""
    schema = yaml.safe_load(
        Path(workflow.source_path("../config/schema.yaml")).read_text()
    )
    try:
        # Snakemake has read them, but takes a key that stands twice.
        for path in workflow.configfiles:
            settings.read(Path(path))
        settings.validate(config, schema)
        checks.check(config)
        methods = workflow.deployment_settings.deployment_method
        if DeploymentMethod.CONDA not in methods:
            checks.check_packages(config)
        elif config["report"]["embedding"]:
            raise settings.SettingsError(
                "report.embedding: the conda environments do not hold all-MiniLM-L6-v2; set it to false, or leave --sdm conda out"
            )
    except ValueError as error:
        raise WorkflowError(str(error)) from None


check_config()


# vllm pins other versions of torch and transformers, so it has an environment of its own.
ENGINE_ENV = (
    "../envs/vllm.yaml" if config["engine"] == "vllm" else "../envs/inference.yaml"
)


def library(*modules):
    """Files of the library and of all they import, as inputs.

    Snakemake sees edits to a rule's script but not to modules it imports; named as inputs, an edit
    reruns the rules that use it and no others.
    """
    found, waiting = {}, list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = imports_of(name)
            waiting += imported
    return sorted(found.values())


@cache
def imports_of(name):
    """The file of a module of the library, and the modules of the library that it imports."""
    # Not source_path(), which is absolute: a project's folder that was moved or copied would do everything again.
    path = short_path(
        Path(workflow.basedir) / "scripts" / "backtranslation" / f"{name}.py"
    )
    imported = []
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "backtranslation":
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "backtranslation."
        ):
            imported.append(node.module.removeprefix("backtranslation."))
    return path, imported


def source_files(found):
    """The files that sources are read from, so that new data reruns what it should."""
    files = [str(path) for source in found for path in sources.files_of(source)]
    for file in files:
        if not nameable(file):
            raise WorkflowError(
                f"{file}: the name of a file of seed pairs or prompts must not hold any of {{}}<>"
            )
    return files


def nameable(file):
    """Whether a file can be an input: Snakemake takes braces for wildcards and angle brackets for folders, whatever they are."""
    return not set("{}<>") & set(file)


# What the corpus is cut into for its jobs; it does not shape the result.
CORPUS_PARTS = sources.parts(config["corpus"]["sources"], config["corpus"]["part_mb"])


def part_of(wildcards):
    """One part of the corpus: sources, each with some of its files."""
    return CORPUS_PARTS[int(wildcards.part) - 1]


def files_of_part(wildcards):
    """The files of one part of the corpus. A dump may have any names; the job reads by its params what cannot be named here."""
    return [
        file for _, _, files in part_of(wildcards) for file in files if nameable(file)
    ]


def corpus_names(wildcards):
    """The names of the corpus's sources; a function, since of a list Snakemake would fill in braces."""
    return [sources.name_of(source) for source in config["corpus"]["sources"]]


def of_parts(pattern):
    """The files of all parts, in the order of the corpus."""
    return expand(pattern, part=range(1, len(CORPUS_PARTS) + 1))


# The data sets of the hub, by the name of their folder.
DATA_SETS = {
    sources.data_key(source): {key: source.get(key) for key in sources.HUB_KEYS}
    for source in (
        *config["seed"]["sources"],
        *config["corpus"]["sources"],
        *config["decontamination"]["prompts"],
    )
    if "hub" in source
}


def tokenizer_for_lengths():
    """The model whose tokens the segments are measured in, where they are."""
    if config["corpus"]["tokens"] or config["corpus"]["token_quantiles"]:
        return "<model>/manifest.json"
    return []


# The base model, and a fixed judge where there is one, by the name of their folder.
MODELS = {
    models.model_key(model): models.weights_of(model)
    for model in (config["model"], config["judge"]["model"])
    if model
}
JUDGE_MODEL = config["judge"]["model"] or config["model"]
LAST = config["curation"]["iterations"]


def judge_adapter(wildcards):
    """The adapter of the model that judges in an iteration: M_(t-1), or none of the untouched model."""
    before = int(wildcards.iteration) - 1
    if config["judge"]["model"] or (before == 0 and config["judge"]["first"] == "base"):
        return []
    return f"<results>/forward/{before}/adapter/training.json"


def earlier(path):
    """The same file of the first iteration, for what does not change with the judge; none in the first."""

    def of(wildcards):
        return path.replace("{iteration}", "1") if int(wildcards.iteration) > 1 else []

    return of


def curated_of(wildcards):
    """What M_t is trained on beside the seed pairs: A_k^(t), and nothing for M_0."""
    if int(wildcards.iteration) == 0:
        return []
    return "<results>/curation/{iteration}/curated.parquet"


def iterations(path, first=1):
    """The file of every iteration that was made, M_0's too with `first=0`."""

    def of(wildcards):
        return [
            path.replace("{iteration}", str(t))
            for t in range(first, iterations_made()["last"] + 1)
        ]

    return of


def rated_shards(wildcards):
    """The rated shards of every iteration."""
    path = "<results>/curation/{iteration}/shards/{scatteritem}.parquet"
    return [
        shard for rated in iterations(path)(wildcards) for shard in gather.shard(rated)
    ]


def on_the_way(wildcards):
    """What is made on the way to the rated candidates and the curated set.

    A job that fails leaves its old output deleted, and Snakemake makes what is missing in between only
    for a target; else the next run would take what was made from the old output for current.
    """
    judges = [
        judge_adapter(SimpleNamespace(iteration=t))
        for t in range(1, iterations_made()["last"] + 1)
    ]
    return [
        "<results>/seed/train.parquet",
        *of_parts("<results>/corpus/parts/{part}.parquet"),
        "<results>/corpus/segments.parquet",
        "<results>/corpus/sample.parquet",
        "<results>/backward/adapter/training.json",
        *gather.shard("<results>/augment/shards/{scatteritem}.parquet"),
        "<results>/augment/candidates.parquet",
        *iterations("<results>/audit/{iteration}/audit.json")(wildcards),
        *rated_shards(wildcards),
        *iterations("<results>/curation/{iteration}/curated.parquet")(wildcards),
        *[adapter for adapter in judges if adapter],
    ]


def chosen(path):
    """The file of the iteration that the run ends with."""

    def of(wildcards):
        return path.replace("{iteration}", str(iterations_made()["best"]))

    return of


def iterations_made():
    """`last`: the iteration after which none is made; `best`: the one that the run ends with."""
    made = {"last": LAST, "best": LAST}
    for t in range(1, LAST + 1) if config["curation"]["stop"] else ():
        decision = records.read_json(
            checkpoints.decide.get(iteration=t).output.decision
        )
        made = {"last": t, "best": decision["best"]}
        if decision["stop"]:
            break
    return made


def best_iteration(wildcards):
    return iterations_made()["best"]


def measured_so_far(wildcards):
    """What `curation.stop` looks at after an iteration: of M_0 to M_t the held-out losses, or audits as judges."""
    t = int(wildcards.iteration)
    if config["curation"]["stop"]["signal"] == "audit":
        return [f"<results>/audit/{n}/audit.json" for n in range(1, t + 2)]
    return [f"<results>/evaluation/forward/{n}.tsv" for n in range(t + 1)]


def training_settings(stage):
    """What shapes a training run: the shared settings with the stage's epochs or steps."""
    shared = {**config["training"], **config["precision"]}
    # How often a checkpoint is written shapes nothing, so it must not cause a rerun.
    del shared["checkpoint_steps"]
    return {**shared, **{key: config[stage][key] for key in ("epochs", "steps")}}


# What training leaves beside history.tsv and training.json.
WEIGHTS = models.ADAPTER_FILES if config["training"]["lora"] else models.MODEL_FILES


def judge_settings(wildcards):
    """What shapes the judge, beside its rubric and its models."""
    tags = config["forward"]["tags"]
    return {
        "signals": config["judge"]["signals"],
        "generated": config["judge"]["generated"],
        "prompt": config["backward"]["prompt"],
        "backward_template": config["model"]["template"],
        "template": JUDGE_MODEL["template"],
        # A model trained with tags is asked with both, as whenever it is used (paper, table 8).
        "tags": tags if judge_adapter(wildcards) else None,
        "engine": config["engine"],
        "precision": config["precision"],
        "batch_tokens": config["generation"]["batch_tokens"],
        "random_seed": config["random_seed"],
    }


# The grid of the proof: a training and a measurement for each arm, size and training seed, and each setting of a search.
# Snakemake's Paramspace would want pandas wherever the Snakefile is read.
CELLS = grid.cells(
    *(config["proof"][key] for key in ("arms", "sizes", "seeds", "search"))
)
CELL = "/".join(
    f"{name}~{{{name}}}"
    for name in ("arm", "n", "seed", *(config["proof"]["search"] or {}))
)


def cells(path):
    """The file of every cell of the grid."""
    return expand(path, cell=[CELL.format(**cell) for cell in CELLS])


def cell_of(wildcards):
    """A cell's arm, size, training seed and settings."""
    return dict(wildcards.items())


def trained(path):
    """The file of every cell in which a model is trained, so of all but the untouched model's."""
    return [file for file in cells(path) if "/arm~base/" not in file]


def judged(path):
    """The file of every cell whose answers are judged, against those of the untouched model; none without answers."""
    return trained(path) if config["proof"]["answers"] else []


def untouched(path):
    """The file of the untouched model's cell, where there is one."""
    return [file for file in cells(path) if "/arm~base/" in file]


def on_the_way_to_proof(wildcards):
    """What is made on the way to the proof; see `on_the_way`."""
    candidates = any(cell["arm"] not in grid.UNAUGMENTED for cell in CELLS)
    return [
        *(on_the_way(wildcards) if candidates else ["<results>/seed/train.parquet"]),
        "<results>/proof/heldout.parquet",
        *cells("<results>/proof/{cell}/examples.parquet"),
        *trained("<results>/proof/{cell}/adapter/training.json"),
        *cells("<results>/proof/{cell}/values.tsv"),
        *judged("<results>/proof/{cell}/wins.tsv"),
    ]


def cell_adapter(wildcards):
    """The adapter of a cell; the untouched model has none."""
    if wildcards.arm == "base":
        return []
    return f"<results>/proof/{CELL}/adapter/training.json"


def cell_candidates(wildcards):
    """The rated candidates, of which some arms need none."""
    if wildcards.arm in grid.UNAUGMENTED:
        return []
    return "<results>/curation/rated.parquet"


def cell_seed(wildcards):
    """The training seed of a cell, from which its draws come too."""
    return int(wildcards.seed)


def cell_seed_share(wildcards):
    """The share of seed pairs among a cell's examples."""
    return grid.setting(wildcards, "seed_share", config["forward"]["seed_share"])


def cell_training(wildcards):
    """What shapes the training of an arm: that of the forward model, in as many steps for each."""
    shared = {**training_settings("forward"), "steps": config["proof"]["steps"]}
    return {key: grid.setting(wildcards, key, value) for key, value in shared.items()}


# The licence of everything that the data set and the model were made from; null where nobody has named it.
NAMED = {entry["of"]: entry["licence"] for entry in config["release"]["licences"]}
LICENCES = [
    {"part": part, "name": name, "licence": NAMED.get(name)}
    for part, name in [
        ("base model", config["model"]["name"]),
        *([("judge", JUDGE_MODEL["name"])] if config["judge"]["model"] else []),
        *(("seed", sources.name_of(source)) for source in config["seed"]["sources"]),
        *(("text", sources.name_of(source)) for source in config["corpus"]["sources"]),
    ]
]

# What the cards say beside the numbers of the run.
CARD = {
    "licences": LICENCES,
    "config": {
        "name": config["name"],
        "curation": {"keep": config["curation"]["keep"]},
        "corpus": {"filters": config["corpus"]["filters"]},
        "forward": {"tags": config["forward"]["tags"]},
    },
}


def pushes(wildcards):
    """What the target push makes: a push of each of data set and model that has a repository."""
    push = config["release"]["push"]
    found = [kind for kind in ("dataset", "model") if push[kind]]
    if not found:
        raise WorkflowError(
            "release.push: name the repository of the dataset or the model, as owner/name"
        )
    return [f"<results>/release/pushed/{kind}.json" for kind in found]


def leaderboard_answers(wildcards):
    """What the target leaderboards makes: answers to each question file that is named."""
    made = {
        "alpaca_eval": "<results>/release/alpaca_eval/model_outputs.json",
        "mt_bench": f"<results>/release/mt_bench/model_answer/{config['name']}.jsonl",
    }
    found = [made[name] for name in made if config["release"]["leaderboards"][name]]
    if not found:
        raise WorkflowError(
            "release.leaderboards: name the question file alpaca_eval or mt_bench"
        )
    return found


def harness_files(wildcards):
    """What the target harness reads: the folder's tasks with their data."""
    asked = config["release"]["harness"]
    if not asked["tasks"] and not asked["names"]:
        raise WorkflowError(
            "release.harness: name a folder of tasks, or names of the harness's own"
        )
    return harness.files_of(asked["tasks"]) if asked["tasks"] else []


# Who measures nothing with the harness needs no environment for it.
HARNESS_ENV = (
    "../envs/harness.yaml"
    if config["release"]["harness"]["tasks"] or config["release"]["harness"]["names"]
    else "../envs/inference.yaml"
)


def data_memory(wildcards, attempt):
    """Memory of a job that holds no model, more with each attempt."""
    return 4000 * attempt


def merge_memory(wildcards, attempt):
    """Memory of the job that sees the whole corpus, 240 to 500 bytes a segment; more with each attempt."""
    return 2000 * 2**attempt


def model_memory(wildcards, attempt):
    """Memory of a job that holds the model, more with each attempt."""
    return 6000 * attempt


def summary_of_run():
    """What a finished run of the default target left, and what to do next, for somebody who has never seen Snakemake."""
    given = workflow.config_settings
    # As it can be typed here, with the same configuration.
    command = [short_path(Path(sys.executable).with_name("snakemake"))]
    command += ["--report", "report.html"]
    if given.configfiles:
        command += ["--configfile", *map(short_path, given.configfiles)]
    if given.config_args:
        command += ["--config", *given.config_args]
    results = f"results/{config['name']}"
    return "\n".join(
        [
            f"\nDone. What the run has made is in {results}:",
            f"  the instruction set   {results}/curation/curated.jsonl, one pair a line",
            f"  the model             {results}/forward/model; README.md there says what it is and how to load it",
            f"  the report            make it with: {shlex.join(command)}",
            "                        and open report.html in a browser",
            "  the next step         your own texts: see README.md, Use your own data\n",
        ]
    )


def short_path(path):
    """A path as it can be typed here: without the working directory, where it lies in it."""
    return str(
        path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    )
