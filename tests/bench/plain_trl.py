# SPDX-License-Identifier: Apache-2.0
"""What somebody writes who has TRL and no kaito-ray: the other side of tuning.py, which starts it.

    python tests/bench/plain_trl.py ARGUMENTS-JSON-FILE ROWS.parquet OUTPUT-FOLDER
    torchrun --nproc-per-node 2 tests/bench/plain_trl.py ...

Prints `started` when the first step begins, and at the end a JSON object with tokens, seconds and loss.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Time and tokens from the first step to the last report."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.loss = 0.0
        self._began = 0.0

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        if args.process_index == 0:
            print("started", flush=True)

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """Stop it for now."""
        if "loss" in logs:
            self.seconds = time.monotonic() - self._began
            self.tokens, self.loss = int(logs["num_tokens"]), float(logs["loss"])


def main(arguments: dict[str, Any], rows: str, output: str) -> None:
    """Train as the arguments say and save the adapter."""
    model, quantization = arguments["model"], arguments["quantization"]
    set_seed(arguments["training"]["seed"])
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            model["reference"],
            dtype=getattr(torch, model["dtype"]),
            quantization_config=BitsAndBytesConfig(**quantization) if quantization else None,
            device_map={"": torch.accelerator.current_device_index() if arguments["use_gpu"] else "cpu"},
        ),
        processing_class=AutoTokenizer.from_pretrained(model["reference"]),
        args=SFTConfig(
            **arguments["training"],
            output_dir=output,
            use_cpu=not arguments["use_gpu"],
            save_strategy="no",
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=load_dataset("parquet", data_files=rows, split="train", cache_dir=f"{output}/cache"),
        peft_config=LoraConfig(**arguments["lora"], task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(output)
    if trainer.args.process_index == 0:
        print(json.dumps({"tokens": clock.tokens, "seconds": clock.seconds, "loss": clock.loss}), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3])
