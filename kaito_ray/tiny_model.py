# SPDX-License-Identifier: Apache-2.0
"""Makes tiny-phi-3, the model that proves the whole path without any download.

A Phi-3 of three layers with its own tokenizer and chat template, trained from nothing on the sentences of
tiny_corpus.py until it knows them by heart. Called by the local run and by replicas whose model is `builtin`:

    python -m kaito_ray.tiny_model FOLDER      trains into FOLDER (about half a minute on two cores)

The result is cached under a key made of the recipe, so it is trained once per machine. The same recipe on the same
kind of processor gives the same weights.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kaito_ray import tiny_corpus
from kaito_ray.errors import CannotRun

NAME = "tiny-phi-3"
LAYERS = 3
HIDDEN = 256
HEADS = 4
INTERMEDIATE = 768
VOCABULARY = 1024
CONTEXT = 2048
STEPS = 300
BATCH = 24
LEARNING_RATE = 2e-3
SEED = 0

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def cache_folder() -> Path:
    """Where models made on this machine are kept: `$XDG_CACHE_HOME/kaito-ray/models`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaito-ray" / "models"


def model_path(folder: Path | None = None) -> Path:
    """The folder of the trained model, training it first when this machine has none. Blocks; needs torch.

    Training runs in a process of its own, so that neither torch nor its thread settings reach the caller. A lock
    lets one process train while others wait; the folder appears whole or not at all.
    """
    root = folder or cache_folder()
    target = root / f"{NAME}-{_recipe_digest()}"
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=root) as scratch:
            made = Path(scratch) / NAME
            done = subprocess.run(
                [sys.executable, "-m", "kaito_ray.tiny_model", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no output"])[-1]
                raise CannotRun(f"{NAME} could not be trained on this machine: {last}")
            made.rename(target)
    return target


def _recipe_digest() -> str:
    recipe = [LAYERS, HIDDEN, HEADS, INTERMEDIATE, VOCABULARY, CONTEXT, STEPS, BATCH, LEARNING_RATE, SEED]
    sources = Path(__file__).read_bytes() + repr((recipe, tiny_corpus.QUESTIONS)).encode()
    return hashlib.sha256(sources).hexdigest()[:12]


def _texts() -> list[str]:
    """Every sentence as a chat turn and as plain text, the question also in lower case and without its mark."""
    texts = []
    for question, answer in tiny_corpus.QUESTIONS:
        for asked in {question: None, question.lower(): None, question.rstrip("?"): None}:
            texts.append(f"<|user|>{asked}<|end|><|assistant|>{answer}<|end|>")
            texts.append(f"{asked} {answer}<|end|>")
    return texts


def _train(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    # One thread: the sum of a parallel reduction depends on their number, and on matrices this small a second one
    # costs three times the processor time for the same result.
    torch.set_num_threads(1)

    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    texts = _texts()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",  # noqa: S106 tokens of text
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            original_max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
            dtype="float32",
        )
    )
    rows = [tokenizer(text)["input_ids"] for text in texts]
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        picked = [rows[i] for i in torch.randint(len(rows), (BATCH,), generator=generator).tolist()]
        width = max(map(len, picked))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in picked])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in picked])
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
