# SPDX-License-Identifier: Apache-2.0
"""`helm template` for machines without Helm: the part of Go's templates that our chart uses, and nothing else.

What is not known raises, so a chart that outgrows this says so. Used by the tests of the chart and by `make generate`,
which writes the plain manifests of manifests/install from it:

    python tests/helm_template.py [--set a.b=c] > manifests/install/kaito-ray.yaml
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# libyaml's loader where it is there: the CRD is long.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
CHART = Path(__file__).resolve().parents[1] / "manifests" / "chart"
_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|[()|]|:=|[^\s()|]+')


def render_chart(
    values: Mapping[str, Any] | None = None, *, name: str = "kaito-ray", namespace: str = "kaito-ray"
) -> list[dict[str, Any]]:
    """The objects of the chart, in the order of its files."""
    text = "\n---\n".join(render_files(values, name=name, namespace=namespace).values())
    return [document for document in yaml.load_all(text, _Loader) if document]


def render_files(
    values: Mapping[str, Any] | None = None, *, name: str = "kaito-ray", namespace: str = "kaito-ray"
) -> dict[str, str]:
    """The text of each template of the chart, by file."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    context = {
        "Values": _merged(yaml.safe_load((CHART / "values.yaml").read_text()), values or {}),
        "Release": {"Name": name, "Namespace": namespace, "Service": "Helm"},
        "Chart": {key[0].upper() + key[1:]: value for key, value in chart.items()},
        "Files": _Files(),
    }
    templates = _Templates(context)
    for path in sorted((CHART / "templates").glob("*.tpl")):
        templates.run(path.read_text(), context)
    return {
        path.name: templates.run(path.read_text(), context) for path in sorted((CHART / "templates").glob("*.yaml"))
    }


class _Files:
    @staticmethod
    def get(path: str) -> str:
        return (CHART / path).read_text()


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, Mapping):
        return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return over


@dataclass
class _Block:
    """What stands between an action and its `end`: pieces of text and of actions; `otherwise` after an else."""

    opener: str
    pieces: "list[str | _Block]" = field(default_factory=list)
    otherwise: "_Block | None" = None


class _Templates:
    """Runs templates; defined ones are known by name."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._defined: dict[str, _Block] = {}

    def run(self, text: str, dot: Any) -> str:
        """The text a template makes of `dot`."""
        return self._pieces(_parse(text), dot, {"$": dot})

    def _pieces(self, block: _Block, dot: Any, variables: dict[str, Any]) -> str:
        return "".join(
            piece if isinstance(piece, str) else self._action(piece, dot, variables) for piece in block.pieces
        )

    def _action(self, block: _Block, dot: Any, variables: dict[str, Any]) -> str:
        word, _, rest = block.opener.partition(" ")
        if word == "define":
            self._defined[json.loads(rest)] = block
            return ""
        if word in {"if", "with", "range"}:
            return "".join(self._control(word, rest, block, dot, variables))
        assigned = re.match(r"(\$\w+)\s*:=\s*(.*)", block.opener, re.DOTALL)
        if assigned:
            variables[assigned[1]] = self._value(assigned[2], dot, variables)
            return ""
        return _text(self._value(block.opener, dot, variables))

    def _control(self, word: str, rest: str, block: _Block, dot: Any, variables: dict[str, Any]) -> Iterator[str]:
        names: list[str] = []
        found = re.match(r"((?:\$\w+,?\s*)+):=\s*(.*)", rest, re.DOTALL)
        if found:
            names, rest = re.findall(r"\$\w+", found[1]), found[2]
        value = self._value(rest, dot, variables)
        if not value:
            if block.otherwise is not None:
                yield self._pieces(block.otherwise, dot, variables)
        elif word == "range":
            items = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                bound = dict(zip(names[-2:], (key, item) if len(names) > 1 else (item,), strict=False))
                yield self._pieces(block, item, {**variables, **bound})
        else:
            bound = dict(zip(names, (value,), strict=False))
            yield self._pieces(block, value if word == "with" else dot, {**variables, **bound})

    def _value(self, expression: str, dot: Any, variables: dict[str, Any]) -> Any:
        tokens = _TOKEN.findall(expression)
        value = self._pipeline(tokens, dot, variables)
        if tokens:
            raise ValueError(f"cannot read the end of {{{{ {expression} }}}}: {tokens}")
        return value

    def _pipeline(self, tokens: list[str], dot: Any, variables: dict[str, Any]) -> Any:
        value, first = None, True
        while True:
            words: list[Any] = []
            name = ""
            while tokens and tokens[0] not in {"|", ")"}:
                token = tokens.pop(0)
                if not words and not name and token in {*_FUNCTIONS, "include", ".Files.Get", "$.Files.Get"}:
                    name = token
                else:
                    words.append(self._operand(token, tokens, dot, variables))
            if not first:
                words.append(value)
            value = self._call(name, words) if name else words[0]
            first = False
            if not tokens or tokens[0] == ")":
                return value
            tokens.pop(0)

    def _operand(self, token: str, tokens: list[str], dot: Any, variables: dict[str, Any]) -> Any:
        if token == "(":
            value = self._pipeline(tokens, dot, variables)
            tokens.pop(0)
            return value
        if token[0] in '"`':
            return json.loads(token) if token[0] == '"' else token[1:-1]
        if token in {"true", "false", "nil"}:
            return {"true": True, "false": False, "nil": None}[token]
        if re.fullmatch(r"-?\d+", token):
            return int(token)
        if token[0] in ".$":
            head, *path = token.split(".")
            value = dot if head == "" else variables[head]
            for part in path:
                if part:
                    value = value.get(part) if isinstance(value, Mapping) else None
            return value
        raise ValueError(f"{token!r} is not known here; teach tests/helm_template.py or write it otherwise")

    def _call(self, name: str, words: list[Any]) -> Any:
        if name == "include":
            return self._pieces(self._defined[words[0]], words[1], {"$": words[1]})
        if name.endswith(".Files.Get"):
            return self._root["Files"].get(words[0])
        return _FUNCTIONS[name](*words)


def _parse(text: str) -> _Block:
    root = _Block("")
    stack = [root]
    end = 0
    for match in _ACTION.finditer(text):
        before = text[end : match.start()]
        if match[1]:
            before = before.rstrip()
        stack[-1].pieces.append(before)
        end = match.end()
        if match[3]:
            end += len(text[end:]) - len(text[end:].lstrip())
        action = match[2]
        if action.startswith("/*"):
            continue
        word = action.split(" ", 1)[0]
        if word == "end":
            closed = stack.pop()
            if closed.opener == "else":
                stack.pop()
        elif word == "else":
            stack[-1].otherwise = _Block("else")
            stack.append(stack[-1].otherwise)
        else:
            block = _Block(action)
            stack[-1].pieces.append(block)
            if word in {"if", "with", "range", "define"}:
                stack.append(block)
    root.pieces.append(text[end:])
    if len(stack) != 1:
        raise ValueError(f"{{{{ {stack[-1].opener} }}}} has no end")
    return root


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _indent(width: int, text: str) -> str:
    return "\n".join(" " * width + line for line in text.split("\n"))


def _to_yaml(value: Any) -> str:
    return str(
        yaml.safe_dump(value, sort_keys=True, default_flow_style=False, width=2**20, allow_unicode=True)
    ).rstrip()


def _set(mapping: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    mapping[key] = value
    return mapping


def _dict(*words: Any) -> dict[str, Any]:
    return dict(zip(words[::2], words[1::2], strict=True))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "and": lambda *words: next((word for word in words if not word), words[-1]),
    "default": lambda otherwise, value=None: value or otherwise,
    "dict": _dict,
    "eq": lambda first, *others: first in others,
    "fromYaml": lambda text: yaml.load(text, _Loader),  # noqa: S506
    "gt": lambda first, second: first > second,
    "indent": _indent,
    "int": int,
    "join": lambda glue, parts: glue.join(map(_text, parts)),
    "kindIs": lambda kind, value: kind == "slice" and isinstance(value, list),
    "nindent": lambda width, text: "\n" + _indent(width, text),
    "not": lambda value: not value,
    "or": lambda *words: next((word for word in words if word), words[-1]),
    "printf": lambda pattern, *words: pattern % words,
    "quote": lambda value: json.dumps(_text(value)),
    "set": _set,
    "snakecase": lambda text: re.sub(r"(?<!^)(?=[A-Z])", "_", text).lower(),
    "toString": _text,
    "toYaml": _to_yaml,
    "upper": str.upper,
}


def main() -> None:
    """Print the chart as one YAML stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="a value, as Helm takes it")
    values: dict[str, Any] = {}
    for assignment in parser.parse_args().set:
        path, _, value = assignment.partition("=")
        *parents, last = path.split(".")
        inner = values
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = yaml.safe_load(value)
    for file, text in render_files(values).items():
        if text.strip():
            sys.stdout.write(f"---\n# Source: kaito-ray/templates/{file}\n{text.strip()}\n")


if __name__ == "__main__":
    main()
