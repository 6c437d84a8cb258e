"""One function trains the backward and the forward model: LoRA or QLoRA with trl and peft."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from backtranslation import models
from backtranslation.logs import Progress, computing, logger
from backtranslation.records import Row, atomic, drop, write_json

if TYPE_CHECKING:
    from transformers import TrainerState

    from backtranslation.templates import Template

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "training.json", "history.tsv")


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
) -> tuple[list[Row], list[Row]]:
    """Train a LoRA adapter on `examples` and write it to the folder `output`.

    `settings` is the configuration's `training` with `epochs`, `dtype` and `quantization`. Writes
    the adapter, `training.json` (what was used) and `history.tsv` (loss per step, held-out loss per
    epoch). Returns (kept, dropped) examples.

    Raises ValueError when no example is left to train on.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    rows, kept, dropped = encode(examples, template, settings["max_tokens"])
    if not rows:
        raise ValueError(f"nothing to train on: all {len(examples)} examples are over training.max_tokens")
    heldout_rows = encode(heldout, template, settings["max_tokens"])[0]
    tokens = sum(len(row["input_ids"]) for row in rows)
    logger.info("%d examples, %d tokens, %d dropped as too long", len(rows), tokens, len(dropped))

    models.keep_memory()
    set_seed(random_seed)
    dtype = models.resolve_dtype(settings["dtype"])
    model = models.load(base, settings["dtype"], settings["quantization"], train=True)
    lora = settings["lora"]
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="trainer-", dir=output.parent),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation"],
        activation_checkpointing=settings["gradient_checkpointing"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=settings["warmup"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        train_sampling_strategy="group_by_length",
        max_length=None,
        # Few distinct shapes: the first step of each costs seconds on a CPU.
        pad_to_multiple_of=64,
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=random_seed,
        data_seed=random_seed,
        eval_strategy="epoch" if heldout_rows else "no",
        eval_on_start=bool(heldout_rows),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=models.device() == "cpu",
        dataloader_pin_memory=models.device() == "cuda",
    )

    class LogSteps(TrainerCallback):
        progress: Progress

        def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **_: Any) -> None:
            self.progress = Progress("training steps", state.max_steps)

        def on_log(self, args: Any, state: "TrainerState", control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "eval_loss" in logs:
                logger.info("held-out loss after %d steps: %.4f", state.global_step, float(logs["eval_loss"]))
            elif "loss" in logs:
                self.progress.add(1, note=f", loss {float(logs['loss']):.3f}")

    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(heldout_rows) if heldout_rows else None,
        processing_class=template.tokenizer,
        peft_config=LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        ),
        callbacks=[LogSteps()],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        with computing():
            result = trainer.train()
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            trainer.model.save_pretrained(scratch, safe_serialization=True)
            for name in ADAPTER_FILES[:2]:
                with atomic(output / name) as temporary:
                    shutil.copyfile(Path(scratch) / name, temporary)
    finally:
        shutil.rmtree(arguments.output_dir, ignore_errors=True)
    history(trainer.state.log_history, output / "history.tsv")
    write_json(
        {
            "base": str(base),
            "device": models.device(),
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": settings["quantization"],
            "examples": len(rows),
            "tokens": tokens,
            "dropped": len(dropped),
            "steps": trainer.state.global_step,
            "epochs": settings["epochs"],
            "learning_rate": settings["learning_rate"],
            "random_seed": random_seed,
            "train_loss": result.training_loss,
        },
        output / "training.json",
    )
    return kept, dropped


def history(entries: list[dict[str, Any]], path: Path) -> None:
    """The trainer's log as a table: step, epoch, loss, heldout_loss, learning_rate, grad_norm."""
    table = pd.DataFrame(entries).reindex(
        columns=["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    )
    table = table.rename(columns={"eval_loss": "heldout_loss"})
    table = table[table["loss"].notna() | table["heldout_loss"].notna()]
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
