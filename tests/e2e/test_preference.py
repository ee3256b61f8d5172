# SPDX-License-Identifier: Apache-2.0
"""Method dpo with nothing simulated but the GPU: pairs in, an adapter with which the tiny model prefers one side out.

It knows the rejected answers by heart; the chosen ones are their beginnings. What a tuning does besides, from a web
server to a registry and over the loss of workers, is the same for all methods (test_tuning.py).
"""

import asyncio
import json
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import pytest

from kaito_ray.tiny_corpus import QUESTIONS
from kaito_ray.tiny_model import model_path
from kaito_ray.tuning_event import Data, Failed, Started, Step, progress_of
from tune_rig import a_checkpoint, a_job, a_tiny_tune_plan, a_training_config, write_arguments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]

BRIEF = {
    "What is a node?": "A node is a machine of the cluster.",
    "What is Ray?": "Ray runs Python programs.",
    "What is LoRA?": "LoRA teaches a model.",
    "Hello": "Hello!",
}
KNOWN = {question: answer for question, answer in QUESTIONS if question in BRIEF}
# Checkpointing is what GPUs have by default; two rows for each of two workers leave no place to fill up.
CONFIG = a_training_config(
    TrainingArguments={
        "max_steps": 80,
        "logging_steps": 5,
        "learning_rate": 4e-4,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": True,
    }
)


async def test_the_model_prefers_the_chosen_answers(tmp_path: Path) -> None:
    output = tmp_path / "output"
    async with a_job(a_job_file(tmp_path, CONFIG, workers=2)) as job:
        events = await job.end()
        assert job.process.returncode == 0, job.log.read_text()

    [judged] = [event for event in events if isinstance(event, Data)]
    [started] = [event for event in events if isinstance(event, Started)]
    steps = [event for event in events if isinstance(event, Step)]
    assert (judged.rows, judged.format) == (4, "preference (prompt, chosen, rejected)")
    assert (started.workers, started.total_steps) == (2, 80)
    # A model that prefers nothing has a loss of ln 2.
    assert steps[0].step == 1
    assert steps[0].loss == pytest.approx(log(2), abs=1e-3)
    assert all(later.loss < earlier.loss for earlier, later in pairwise(steps[::3]) if later.loss and earlier.loss)
    assert steps[-1].reward_accuracy == 1
    assert (steps[-1].reward_margin or 0) > 1
    # The linter counts what TRL reads, on both sides.
    assert steps[-1].tokens == round(judged.tokens * steps[-1].epoch)
    assert progress_of(events).finished is not None

    record = json.loads((output / "tuning.json").read_text())
    assert (record["method"], record["quantization"]["bnb_4bit_quant_type"]) == ("dpo", "nf4")
    [*_, last] = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert last["reward_accuracy"] == 1

    before, after = preferences(None), preferences(output)
    assert all(before[asked][0] < 0 for asked in BRIEF)
    assert all(after[asked][0] > 0 for asked in BRIEF)
    assert {asked: said for asked, (_, said) in before.items()} == KNOWN
    assert {asked: said for asked, (_, said) in after.items()} == BRIEF


async def test_it_goes_on_after_everything_was_killed_with_pairs_held_out(tmp_path: Path) -> None:
    config = a_training_config(
        TrainingArguments={
            "max_steps": 60,
            "logging_steps": 7,
            "eval_strategy": "steps",
            "eval_steps": 15,
            "learning_rate": 4e-4,
        },
        DatasetConfig={"train_test_split": 0.75},
    )
    file = a_job_file(tmp_path, config, checkpoint_s=0.25)
    async with a_job(file) as first:
        following = asyncio.create_task(first.end())
        await a_checkpoint(first, tmp_path / "output")
    await following
    async with a_job(file) as second:
        events = await second.end()
        assert second.process.returncode == 0, second.log.read_text()

    [started] = [event for event in events if isinstance(event, Started)]
    assert (started.attempt, started.total_steps) == (2, 60)
    assert 0 < started.resumed_from < 60
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].step == 60
    learned, tried = [one for one in steps if one.loss is not None], [one for one in steps if one.eval_loss is not None]
    assert not {id(one) for one in learned} & {id(one) for one in tried}
    assert (learned[-1].loss or 1) < log(2) / 4
    assert all(one.tokens_per_second for one in learned[1:])
    assert tried
    assert [one.tokens_per_second for one in tried] == [None] * len(tried), "nothing was learned, so it has no pace"


async def test_a_model_that_breaks_while_its_loss_falls_is_not_published(tmp_path: Path) -> None:
    config = a_training_config(TrainingArguments={"learning_rate": 5e-3, "max_steps": 300, "logging_steps": 5})
    async with a_job(a_job_file(tmp_path, config)) as job:
        events = await job.end()
        assert job.process.returncode == 1
    steps, failed = [event for event in events if isinstance(event, Step)], events[-1]
    assert isinstance(failed, Failed)
    assert failed.reason == "AnswersLost"
    assert failed.message.endswith("lower the learning rate")
    assert (steps[-1].loss or 1) < 0.01
    assert steps[-1].step < 150
    assert [path.name for path in (tmp_path / "output").iterdir() if path.name != ".kaito-ray"] == []


def a_job_file(folder: Path, config: dict[str, str], *, workers: int = 1, **overrides: Any) -> Path:
    """A job that learns from the pairs."""
    data = folder / "data"
    data.mkdir()
    rows = [{"prompt": asked, "chosen": said, "rejected": KNOWN[asked]} for asked, said in BRIEF.items()]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    volumes = {name: {"volumeSource": {"hostPath": {"path": str(folder / name)}}} for name in ("data", "output")}
    made = a_tiny_tune_plan(config, workers=workers, method="dpo", input=volumes["data"], output=volumes["output"])
    return write_arguments(made, folder, data, **overrides)


def preferences(adapter: Path | None) -> dict[str, tuple[float, str]]:
    """By question how much likelier the chosen answer is, in nats, and what the model says.

    In full precision, as it is served, and with the adapter where there is one.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_path()))
    model: Any = AutoModelForCausalLM.from_pretrained(str(model_path()), dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()

    def likelihood(question: str, answer: str) -> float:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        begin = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(-1)
        return float(logits.gather(-1, ids[0, begin:, None]).sum())

    def said(question: str) -> str:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**asked, max_new_tokens=64, do_sample=False)[0, asked["input_ids"].shape[1] :]
        return str(tokenizer.decode(answer, skip_special_tokens=True)).strip()

    return {asked: (likelihood(asked, BRIEF[asked]) - likelihood(asked, KNOWN[asked]), said(asked)) for asked in BRIEF}
