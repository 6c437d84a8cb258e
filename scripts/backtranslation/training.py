"""One function trains the backward and the forward model: all weights, LoRA or QLoRA, with trl and peft."""

import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from backtranslation import models
from backtranslation.logs import Progress, computing, count_tokens, logger
from backtranslation.records import Row, atomic, drop, fingerprint, read_json, sha256_of, write_json, write_table

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState

    from backtranslation.templates import Template


PAPER_STEPS = {100: 30, 3_200: 500, 51_200: 1_600}
"""Optimiser steps by number of examples (paper, appendix; at batches of 8 for the first and 32 for the second line)."""


class TrainingError(ValueError):
    """Training cannot start or go on; the message says why, and at which step and examples."""


def encode(examples: list[Row], template: "Template", max_tokens: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Token ids and labels of each example; an example over `max_tokens` is dropped, never cut.

    Returns (rows with `id`, `input_ids` and `labels`, kept examples, dropped). Labels are -100 on
    the prompt, so the loss falls on the completion and its end-of-turn token alone.
    """
    rows, kept, dropped = [], [], []
    for example in examples:
        encoded = template.example(example["prompt"], example["completion"], example["system"])
        ids = encoded.prompt + encoded.completion
        if len(ids) > max_tokens:
            origin = {"id": example["id"], "source": example["origin"], "row": None}
            detail = f"{len(ids)} > {max_tokens} tokens"
            dropped.append(drop(origin, "train", "over_max_tokens", detail, example["completion"]))
            continue
        labels = [-100] * len(encoded.prompt) + encoded.completion
        rows.append({"id": example["id"], "input_ids": ids, "labels": labels})
        kept.append(example)
    return rows, kept, dropped


def train(
    examples: list[Row],
    heldout: list[Row],
    base: Path,
    template: "Template",
    settings: dict[str, Any],
    random_seed: int,
    output: Path,
    identity: Any = None,
    checkpoint_steps: int = 20,
    processes: int = 1,
) -> tuple[list[Row], list[Row]]:
    """Train on `examples` and write what was learned to the folder `output`.

    `settings` is the configuration's `training` with `epochs`, `steps` (optimiser steps, `paper` for
    those of PAPER_STEPS, or None for epochs), `dtype` and `quantization`; `identity` tells the base model from another one at the
    same place. Writes an adapter, or the whole model where `settings["lora"]` is None, `history.tsv`
    (loss per step, held-out loss per epoch) and, last, `training.json` (what was used). Returns (kept,
    dropped) examples.

    Every `checkpoint_steps` steps the state of training goes to `output/.work/`, in a folder keyed by
    all that shapes training; a run that was stopped goes on from there and ends with the same bytes.
    With several `processes`, one per GPU, each takes `batch_size` examples of a step.

    Raises TrainingError when no example is left to train on, when this machine lacks what `settings`
    ask for, and when the loss is not a number or diverges; OSError when a checkpoint cannot be written.
    """
    rows, kept, dropped = encode(examples, template, settings["max_tokens"])
    if not rows:
        raise TrainingError(f"nothing to train on: all {len(examples)} examples are over training.max_tokens")
    if settings["steps"] == "paper":
        settings = {**settings, "steps": paper_steps(len(rows))}
    # Snakemake cuts a request for a GPU down to 0 where the user said that there is none.
    processes = max(processes, 1)
    _check_machine(settings, processes)
    heldout_rows = encode(heldout, template, settings["max_tokens"])[0]
    tokens = sum(len(row["input_ids"]) for row in rows)
    logger.info("%d examples, %d tokens, %d dropped as too long", len(rows), tokens, len(dropped))

    where = [*models.computed_in(settings["dtype"]), processes]
    shape = fingerprint([rows, heldout_rows, str(base), identity, settings, random_seed, where])
    folder = output / ".work" / shape
    folder.mkdir(parents=True, exist_ok=True)
    task: dict[str, Any] = {
        "rows": rows,
        "heldout": heldout_rows,
        "base": str(base),
        "settings": settings,
        "random_seed": random_seed,
        "output": str(output),
        # A folder of its own, so that a second copy of this job is harmless.
        "work": tempfile.mkdtemp(prefix="run-", dir=folder),
        "checkpoint_steps": checkpoint_steps,
        "recorded": {"examples": len(rows), "tokens": tokens, "dropped": len(dropped), "processes": processes},
    }
    while True:
        task["resume"] = newest_checkpoint(folder)
        try:
            if processes > 1:
                _launch(task, processes)
            else:
                fit(**task)
            break
        except TrainingError:
            # The same would come of the checkpoint.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except Exception:
            if task["resume"] is None or Path(task["resume"]).exists():
                raise
            logger.info("another copy of this job has removed %s meanwhile", task["resume"])
    count_tokens(round(tokens * read_json(output / "training.json")["epochs"]))
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        # Other settings may have left something there.
        folder.parent.rmdir()
    return kept, dropped


def paper_steps(examples: int) -> int:
    """Optimiser steps for a number of examples, between and beyond the lines of PAPER_STEPS on a log-log scale."""
    sizes, steps = list(map(math.log, PAPER_STEPS)), list(map(math.log, PAPER_STEPS.values()))
    # The line on whose right side, or beyond it, the number lies.
    at = 0 if examples <= 3_200 else 1
    slope = (steps[at + 1] - steps[at]) / (sizes[at + 1] - sizes[at])
    return max(1, round(math.exp(steps[at] + slope * (math.log(examples) - sizes[at]))))


def _check_machine(settings: dict[str, Any], processes: int) -> None:
    import torch

    if settings["optimizer"].startswith("paged") and not torch.cuda.is_available():
        raise TrainingError(f"training.optimizer: {settings['optimizer']} needs a CUDA GPU, and here is none; set adamw")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise TrainingError(f"resources: gpu={processes} was asked for, {torch.cuda.device_count()} are here")


def schedule(settings: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The scheduler of transformers, and its arguments, that ends at the value `final_learning_rate`."""
    final = settings["final_learning_rate"]
    if settings["schedule"] == "constant":
        return "constant_with_warmup", {}
    if final == 0:
        return settings["schedule"], {}
    if settings["schedule"] == "linear":
        return "polynomial", {"lr_end": final, "power": 1.0}
    return "cosine_with_min_lr", {"min_lr": final}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of all runs in `folder`, the newest first."""
    found = [path for path in folder.glob("run-*/checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step, reverse=True)


def _sums(checkpoint: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(checkpoint.iterdir()) if path.name != "whole.json"}


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in `folder` that is whole; newer ones, half-written or damaged, are removed."""
    for checkpoint in _checkpoints(folder):
        try:
            sums = _sums(checkpoint)
            # The parts, too: what another run removed and this one went on writing has its checksums.
            if read_json(checkpoint / "whole.json") == sums and {"trainer_state.json", "optimizer.pt", "order.json"} <= set(sums):
                return str(checkpoint)
        except (OSError, ValueError):
            pass
        logger.info("%s is not whole; it is skipped", checkpoint.name)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def fit(
    rows: list[Row],
    heldout: list[Row],
    base: str,
    settings: dict[str, Any],
    random_seed: int,
    output: str,
    work: str,
    checkpoint_steps: int,
    resume: str | None,
    recorded: Row,
) -> None:
    """What `train` does in each of its processes; see there. The arguments can be written as JSON.

    `work` is the folder for checkpoints, `resume` one to go on from; `recorded` goes to `training.json`.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from transformers.trainer_pt_utils import LengthGroupedSampler
    from trl import SFTConfig, SFTTrainer, pack_dataset
    from trl.trainer import utils as heads

    # Where there is no Triton, trl has the output layer score prompts and padding as well, and throws that away: nine
    # tokens in ten of an example of the backward model.
    heads._use_triton = lambda device: True
    models.keep_memory()
    set_seed(random_seed)
    dtype, lora = models.resolve_dtype(settings["dtype"]), settings["lora"]
    # Weights that are trained stay in float32, whatever they are computed in: the steps are smaller
    # than what bfloat16 can tell apart.
    model = models.load(Path(base), settings["dtype"] if lora else "float32", settings["quantization"], train=True)
    scheduler, scheduler_settings = schedule(settings)
    arguments = SFTConfig(
        output_dir=work,
        num_train_epochs=settings["epochs"],
        max_steps=settings["steps"] or -1,
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation"],
        # By its old name, since the transformers that stands beside vllm does not know the new one.
        gradient_checkpointing=settings["gradient_checkpointing"],
        optim={"adamw": "adamw_torch_fused"}.get(settings["optimizer"], settings["optimizer"]),
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=scheduler_settings,
        warmup_steps=settings["warmup"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        max_length=None,
        packing=settings["packing"],
        # Few distinct shapes: the first step of each costs seconds on a CPU.
        pad_to_multiple_of=64,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=random_seed,
        data_seed=random_seed,
        eval_strategy="epoch" if heldout else "no",
        eval_on_start=bool(heldout) and resume is None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=checkpoint_steps,
        report_to="none",
        disable_tqdm=True,
        use_cpu=models.device() == "cpu",
        dataloader_pin_memory=models.device() == "cuda",
        ddp_find_unused_parameters=False,
    )

    # Else trl would refuse a machine with several GPUs, all of which the Trainer takes at once.
    arguments._n_gpu = min(arguments.n_gpu, 1)

    def table(rows: list[Row]) -> Dataset:
        # The row's number at each of its tokens, which packing keeps beside them.
        return Dataset.from_list(
            [{"input_ids": r["input_ids"], "labels": r["labels"], "rows": [i] * len(r["labels"])} for i, r in enumerate(rows)]
        )

    class Sampler(LengthGroupedSampler):
        """Remembers the order of the epoch, which a checkpoint in its middle needs."""

        order: list[int]
        given: list[int] | None = None

        def __iter__(self) -> Any:
            self.order, self.given = self.given or list(super().__iter__()), None
            return iter(self.order)

    class Trainer(SFTTrainer):
        batch: list[str]

        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
            # Over all processes, so that their number does not change the order.
            together = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            self.sampler = Sampler(together, lengths=[len(ids) for ids in self.train_dataset["input_ids"]])
            if resume is not None:
                self.sampler.given = read_json(Path(resume) / "order.json")
            return self.sampler

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
            numbers = inputs.pop("rows")
            loss = super().compute_loss(model, inputs, *args, **options)
            if model.training:
                self.batch = [rows[i]["id"] for i in numbers.tolist()]
                if not torch.isfinite(loss):
                    raise stopped(f"the loss is {loss.item()}", self.state.global_step + 1, self.batch)
            return loss

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """A checkpoint needs none."""

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """A checkpoint counts once `whole.json` has the checksums of its files; the last two are kept."""
            checkpoint = Path(work) / f"checkpoint-{self.state.global_step}"
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    ended = float(self.state.epoch).is_integer()
                    write_json([] if ended else self.sampler.order, checkpoint / "order.json")
                    write_json(_sums(checkpoint), checkpoint / "whole.json")
                    found = _checkpoints(checkpoint.parents[1])
                    second = ([_step(path) for path in found if (path / "whole.json").exists()] + [0, 0])[1]
                    for path in found:
                        if _step(path) < second:
                            shutil.rmtree(path, ignore_errors=True)
            except (OSError, RuntimeError) as error:
                # On a full disk, say. Going on would lose all that follows if the result cannot be written either.
                shutil.rmtree(checkpoint, ignore_errors=True)
                raise OSError(f"the checkpoint of step {self.state.global_step} could not be written: {error}") from error

    class Watch(TrainerCallback):
        """Logs the steps, stops when they diverge, and moves checkpoints to where one can go on from."""

        progress: Progress
        due = False

        def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **_: Any) -> None:
            self.progress = Progress("training steps", state.max_steps)
            self.progress.skip(state.global_step)

        def on_step_end(self, args: Any, state: "TrainerState", control: "TrainerControl", **_: Any) -> None:
            # At the end of an epoch only after its evaluation, and none before the final files.
            if control.should_save and float(state.epoch).is_integer():
                self.due, control.should_save = True, False
            if state.global_step >= state.max_steps:
                self.due = control.should_save = False

        def on_epoch_end(self, args: Any, state: "TrainerState", control: "TrainerControl", **_: Any) -> None:
            control.should_save, self.due = self.due, False

        def on_log(self, args: Any, state: "TrainerState", control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "eval_loss" in logs:
                logger.info("held-out loss after %d steps: %.4f", state.global_step, float(logs["eval_loss"]))
            elif "loss" in logs:
                self.progress.add(1, note=f", loss {float(logs['loss']):.3f}")
                # The scaler of float16 meets infinite gradients on its way, and leaves those steps out.
                if dtype != torch.float16 and not math.isfinite(float(logs["grad_norm"])):
                    raise stopped(f"the gradient's norm is {float(logs['grad_norm'])}", state.global_step, trainer.batch)
                if reason := diverging([entry["loss"] for entry in state.log_history if "loss" in entry]):
                    raise stopped(reason, state.global_step, trainer.batch)

    train_rows = table(rows)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=pack_dataset(train_rows, settings["max_tokens"]) if settings["packing"] else train_rows,
        eval_dataset=table(heldout) if heldout else None,
        processing_class=models.load_tokenizer(Path(base)),
        peft_config=lora
        and LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        ),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    plain = trainer.data_collator

    def collate(batch: list[Row]) -> dict[str, "torch.Tensor"]:
        numbers = torch.tensor(sorted({i for row in batch for i in row["rows"]}))
        return {**plain(batch), "rows": numbers}

    trainer.data_collator = collate
    for parameter in trainer.model.parameters():
        # trl has bfloat16 for the adapter of quantised weights, in which small steps are lost and which
        # a GPU without bfloat16 cannot scale.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if resume is not None:
        logger.info("going on after step %d", _step(Path(resume)))
    with computing():
        trainer.train(resume_from_checkpoint=resume)
    if not trainer.is_world_process_zero():
        return

    target = Path(output)
    # Another copy of this job may have removed it at its own end.
    Path(work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        trained = trainer.model if lora else trainer.model.to(dtype)
        trained.save_pretrained(scratch, max_shard_size="1TB")
        if lora:
            # A set in peft, so in another order each time.
            described = read_json(Path(scratch) / models.ADAPTER_FILES[1])
            write_json({**described, "target_modules": sorted(described["target_modules"])}, Path(scratch) / models.ADAPTER_FILES[1])
        for name in models.ADAPTER_FILES if lora else models.MODEL_FILES:
            with atomic(target / name) as temporary:
                shutil.copyfile(Path(scratch) / name, temporary)
    # An earlier run with another training.lora may have left the other kind.
    for name in models.MODEL_FILES if lora else models.ADAPTER_FILES:
        (target / name).unlink(missing_ok=True)
    entries = trainer.state.log_history
    history(entries, target / "history.tsv")
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    write_json(
        {
            "base": base,
            "device": models.device(),
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": settings["quantization"],
            **recorded,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch if settings["steps"] else settings["epochs"],
            "learning_rate": settings["learning_rate"],
            "random_seed": random_seed,
            "train_loss": sum(losses) / len(losses),
        },
        target / "training.json",
    )


def stopped(reason: str, step: int, ids: list[str]) -> TrainingError:
    return TrainingError(
        f"training: {reason} at step {step}, examples {', '.join(ids)}; look at these, or lower training.learning_rate"
    )


def diverging(losses: list[float]) -> str | None:
    """Why training with these losses per step is past help: five steps far above the first five."""
    if len(losses) < 10:
        return None
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    return f"the loss diverges, from {first:.2f} to {last:.2f} (means of five steps)," if last > 2 * first + 1 else None


def _launch(task: Row, processes: int) -> None:
    """Run `fit` in several processes on this machine, one per GPU, or with gloo on the CPU."""
    with tempfile.TemporaryDirectory() as scratch, computing():
        write_json(task, Path(scratch) / "task.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        run = subprocess.run(
            [*command, "--module", "backtranslation.training", Path(scratch) / "task.json"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        error = Path(scratch) / "error.txt"
        if error.exists():
            raise TrainingError(error.read_text())
        if run.returncode:
            raise RuntimeError(f"training in {processes} processes ended with status {run.returncode}; the log says more")


def _work(task: Path) -> None:
    """One of the processes that `_launch` starts."""
    import torch

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO if os.environ["RANK"] == "0" else logging.WARNING)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        fit(**read_json(task))
    except ValueError as error:
        (task.parent / "error.txt").write_text(str(error))
        raise
    torch.distributed.destroy_process_group()


def history(entries: list[dict[str, Any]], path: Path) -> None:
    """The trainer's log as a table: step, epoch, loss, heldout_loss, learning_rate, grad_norm."""
    table = pd.DataFrame(entries).reindex(
        columns=["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    )
    table = table.rename(columns={"eval_loss": "heldout_loss"})
    table = table[table["loss"].notna() | table["heldout_loss"].notna()]
    write_table(table, path)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
