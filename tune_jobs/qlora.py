# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a language model with LoRA, QLoRA or DPO on Ray Train, from a data set to a published adapter.

What a RayJob runs and what `kaito-ray run` runs on a laptop; kaito_ray/tune_arguments.py writes the file:

    kaito-ray render -f tuning.yaml                     # the ConfigMap in it holds an arguments.json
    python -m tune_jobs.qlora arguments.json            # on the Ray cluster at RAY_ADDRESS, or on one of its own
    ray job submit -- python -m tune_jobs.qlora /etc/kaito-ray/tune/arguments.json

Says what it does in the lines of kaito_ray/tuning_event.py on stdout. Leaves with 0 when the adapter is published, with
1 and a `failed` line otherwise. Interrupted at any point and started again with the same file, it goes on where it
was: with the data as judged, the last checkpoint, the finished adapter, or the push that is missing.
"""

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from kaito_ray import names
from kaito_ray.artifacts.cache import hold
from kaito_ray.artifacts.model_files import find_model
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import KaitoRayError, NotReadyYet, UserError
from kaito_ray.local_download import download
from kaito_ray.settings import Settings
from kaito_ray.tuning_event import Failed
from kaito_ray.tuning_schedule import schedule
from tune_jobs.arguments import Arguments
from tune_jobs.data import Prepared, prepare
from tune_jobs.following import Following, say
from tune_jobs.home import Home, Run, fingerprint
from tune_jobs.publish import check_image, check_push, publish

_MAX_FAILURES = 3
# As Ray's memory monitor words it (raylet/node_manager.cc).
_MEMORY_USED = re.compile(r"was ([\d.]+)GB used / ([\d.]+)GB limit")


def main(file: Path) -> int:
    """Run the job in `file`; the exit code."""
    try:
        tune(Arguments.read(file), Settings.from_env(os.environ).allow_private_urls)
    except KaitoRayError as error:
        final = isinstance(error, UserError)
        say(Failed(error.reason, str(error), final=final))
        if final:
            time.sleep(float(os.environ.get(names.ENV_LINGER_S, "0")))
        return 1
    except Exception as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        say(Failed("TuningFailed", f"{type(error).__name__}: {lines[-1] if lines else 'no reason was given'}"))
        return 1
    return 0


def tune(arguments: Arguments, allow_private_urls: tuple[str, ...]) -> None:
    """Data, training, result."""
    import ray

    check_image(arguments)
    home = Home.of(arguments)
    if arguments.model.kind == "hub":
        download(arguments.model.reference, arguments.model.revision, token=os.environ.get("HF_TOKEN"))
    data = prepare(arguments, home, load_tokenizer(arguments), allow_private_urls)
    say(data.event())
    run = home.run(fingerprint(arguments, data.digest, (ray.__version__,)))
    run.raise_verdict(forgive=arguments.forgive)
    if not run.adapter.is_dir():
        check_targets(arguments)
        check_push(arguments, allow_private_urls, say)
        train(arguments, data, run)
    say(publish(arguments, data, run, allow_private_urls, say))


def train(arguments: Arguments, data: Prepared, run: Run) -> None:
    """Train on all workers until the adapter lies in the run's folder; raises UserError when it never will."""
    # Ray's own print wrapper doubles every line, and its default of a minute is over before a GPU image is pulled.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    # Workers of a Ray that is started here get as much of the machine as this process; Ray would have them stand back.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError, WorkerGroupError

    run.error.unlink(missing_ok=True)
    for left in reversed(range(_MAX_FAILURES + 1)):
        # Without an address Ray would join any cluster that somebody runs on this machine.
        ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False, logging_level=logging.ERROR)
        try:
            with Following(run.events):
                outcome = fit(arguments, data, run)
            break
        except (TrainingFailedError, RayError) as error:
            # Lost workers Ray Train replaces. Where memory is short, Ray 2.60 also kills the actors that Ray Train runs
            # beside them, and that ends `fit`; leaving Ray clears what is left of it.
            if left and not isinstance(error, WorkerGroupError):
                ray.shutdown()
                continue
            if used := _MEMORY_USED.search(str(error)):
                message = (
                    f"Ray ended the training because memory was short ({used[1]} GB of {used[2]} GB were in use); lower"
                    " per_device_train_batch_size or max_length in TrainingArguments, or take a larger size"
                )
                raise NotReadyYet(message, reason="NodeOutOfMemory") from error
            raise
    if failure := outcome.get("failed"):
        run.write_verdict(*failure)
        raise UserError(failure[1], reason=failure[0])


def fit(arguments: Arguments, data: Prepared, run: Run) -> dict[str, Any]:
    """Train from the last checkpoint to the end; what the first worker returns."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": arguments.cpus_per_worker} | ({"GPU": 1} if arguments.use_gpu else {})
    trainer = TorchTrainer(
        cast("Callable[[dict[str, Any]], None]", train_worker),
        train_loop_config={
            "arguments": arguments.model_dump(mode="json"),
            "data": str(data.file),
            "schedule": steps(arguments, data.rows),
            "storage": str(run.storage),
            "run": run.name,
        },
        scaling_config=ScalingConfig(
            num_workers=arguments.workers, use_gpu=arguments.use_gpu, resources_per_worker=resources
        ),
        # The same name and path find the checkpoints of an attempt that ended before its time.
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.storage),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return getattr(trainer.fit(), "return_value", None) or {}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker does; the first one's return value reaches the driver."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from ray.train import get_checkpoint, get_context
    from ray.train.torch import get_device
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from tune_jobs.progress import Progress

    arguments = Arguments.model_validate(config["arguments"])
    run = Run(Path(config["storage"]), config["run"])
    first = get_context().get_world_rank() == 0
    hopeless = run.error
    if hopeless.is_file():  # the attempt before this one ended in an error that would only come again
        return {"failed": hopeless.read_text().split("\n", 1)}
    try:
        disable_progress_bars()
        set_seed(int(arguments.training.get("seed", 42)))
        dtype = getattr(torch, arguments.model.dtype)
        quantization = arguments.quantization
        model = AutoModelForCausalLM.from_pretrained(
            location(arguments),
            revision=arguments.model.revision,
            trust_remote_code=arguments.model.trust_remote_code,
            dtype=dtype,
            quantization_config=BitsAndBytesConfig(**quantization) if quantization else None,
            # One whole copy per worker: "auto" would spread it over the GPUs of the others.
            device_map={"": get_device()},
            attn_implementation=arguments.model.attn_implementation,
        )
        rows = Dataset.from_parquet(config["data"], cache_dir=str(arguments.folders.cache / "datasets"))
        held_out = None
        if arguments.data.train_share < 1:
            parts = rows.train_test_split(train_size=arguments.data.train_share, seed=arguments.data.seed)
            rows, held_out = parts["train"], parts["test"]
        options = {"eval_strategy": "epoch", **arguments.training, **config["schedule"]}
        if held_out is None:
            options["eval_strategy"] = "no"
        progress = Progress(
            run.events,
            checkpoint_s=arguments.checkpoint_s,
            labels={"workspace": arguments.workspace, "namespace": arguments.namespace},
            pairs=arguments.method == "dpo",
        )
        # Pairs are judged against the base model, which is the same weights with the adapter off: no second copy.
        trainer_of, config_of = (DPOTrainer, DPOConfig) if arguments.method == "dpo" else (SFTTrainer, SFTConfig)
        trainer = trainer_of(
            model=model,
            processing_class=load_tokenizer(arguments),
            args=config_of(
                **options,
                # Absolute: Ray gives each worker a working directory of its own.
                output_dir=str(run.folder),
                use_cpu=not arguments.use_gpu,
                # `progress` says when a checkpoint is due, and Ray Train deletes old ones.
                save_strategy="no",
                # The trainer's own filter would hide a loss that is not a number behind the one before.
                logging_nan_inf_filter=False,
                ddp_find_unused_parameters=False,
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=rows,
            eval_dataset=held_out,
            peft_config=LoraConfig(**arguments.lora, task_type="CAUSAL_LM"),
            callbacks=[progress],
        )
        # TRL keeps the adapter of a quantised model in bfloat16, which float16 training cannot scale and old GPUs and
        # CPUs compute slowly; it is small, and learns better, in float32.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        checkpoint = get_checkpoint()
        trainer.train(resume_from_checkpoint=checkpoint.path if checkpoint else None)
    except (ValueError, TypeError, KeyError, ImportError, NotImplementedError, torch.OutOfMemoryError) as error:
        hopeless.write_text("\n".join(explained(error)))
        raise
    if progress.stopped:
        return {"failed": progress.stopped}
    if first:
        save(arguments, trainer.model, run)
    return {}


def save(arguments: Arguments, model: Any, run: Run) -> None:
    """Lay the adapter down in one piece; it names its base as the catalogue does, not by a folder of this machine."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = arguments.model.name, arguments.model.revision
    partial = run.folder / "adapter.partial"
    model.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
    (partial / "README.md").unlink(missing_ok=True)
    partial.replace(run.adapter)


def load_tokenizer(arguments: Arguments) -> Any:
    """The model's tokenizer; the end of a text stands in where it has no padding."""
    from transformers import AutoTokenizer

    model = arguments.model
    tokenizer = AutoTokenizer.from_pretrained(
        location(arguments), revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if model.chat_template:
        tokenizer.chat_template = model.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def location(arguments: Arguments) -> str:
    """What transformers loads: an id on the hub or a folder, made first for the built-in model."""
    if arguments.model.kind == "builtin":
        from kaito_ray.tiny_model import model_path

        return str(model_path())
    if arguments.model.kind == "path":
        folder = Path(arguments.model.reference)
        hold(folder)
        return str(find_model(folder))
    return arguments.model.reference


def steps(arguments: Arguments, rows: int) -> dict[str, float]:
    """What the number of rows decides: how often they are gone through, and how often that is reported."""
    made = schedule(
        arguments.training,
        rows=round(rows * arguments.data.train_share),
        workers=arguments.workers,
        min_steps=arguments.epochs_min_steps,
    )
    return {"num_train_epochs": made.epochs, "logging_steps": made.logging_steps}


def check_targets(arguments: Arguments) -> None:
    """Raise UserError for a layer that the model has not, with the names of those it has; needs no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted, given = arguments.lora.get("target_modules"), arguments.model
    if not isinstance(wanted, list):
        return
    trust = {"trust_remote_code": given.trust_remote_code}
    config = AutoConfig.from_pretrained(location(arguments), revision=given.revision, **trust)
    with torch.device("meta"):
        named = dict(AutoModelForCausalLM.from_config(config, **trust).named_modules())
    linear = {name.rpartition(".")[2] for name, module in named.items() if isinstance(module, torch.nn.Linear)}
    unknown = [one for one in wanted if not any(name == one or name.endswith(f".{one}") for name in named)]
    if unknown:
        raise UserError(
            f"LoraConfig.target_modules names {', '.join(unknown)}; the linear layers of {given.name} are"
            f" {', '.join(sorted(linear - {'lm_head'}))}",
            reason=Reason.WRONG_MODULES,
        )


def explained(error: Exception) -> tuple[str, str]:
    """Reason and sentence of an error that would come again."""
    if type(error).__name__ == "OutOfMemoryError":
        return "OutOfMemory", (
            "the GPU's memory is too small for this training; lower max_length or per_device_train_batch_size in"
            " TrainingArguments, or take weights of 4 bits or a larger size"
        )
    text = " ".join(str(error).split())
    return "TuningFailed", text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tune_jobs.qlora ARGUMENTS-JSON-FILE")
    sys.exit(main(Path(sys.argv[1])))
