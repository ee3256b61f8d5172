# SPDX-License-Identifier: Apache-2.0
"""A plan in, what a person reads about it out: the arrangement, why it is that one, and where each GiB goes.

Called by `kaito-ray plan` and `kaito-ray presets`. Everything here is words about numbers that were decided elsewhere.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kaito_ray.advise import Offer
from kaito_ray.compatibility import tensor_sizes
from kaito_ray.kv_cache import kv_layout
from kaito_ray.plan import MemoryBudget, ServePlan, TunePlan
from kaito_ray.preset import CacheLayers, Preset
from kaito_ray.shape import BLOCK, CPU_BLOCK, Load, Shape
from kaito_ray.sizing import DEFAULT_CONTEXT, Demand, budget, serving_loads
from kaito_ray.sku import Sku

_BAR_CELLS = 40
_PARTS = (
    ("weights", "weights_gib", "█", "blue"),
    ("adapters", "lora_gib", "▓", "magenta"),
    ("activations", "activations_gib", "▒", "yellow"),
    ("CUDA and graphs", "overhead_gib", "░", "red"),
    ("KV cache", "kv_cache_gib", "▪", "green"),
)


def print_all(renderables: Sequence[RenderableType]) -> None:
    """Print to stdout, with colours on a terminal; lines are never cut where it is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    for index, renderable in enumerate(renderables):
        if index:
            console.print()
        console.print(renderable)


def serve_view(name: str, plan: ServePlan, preset: Preset, sku: Sku, better: Offer | None) -> RenderableType:
    """One ServePlan for a person. `better` is a cheaper or simpler offer for the same context, if there is one."""
    lines = [
        Text.assemble((name, "bold"), f"  serves {plan.model}"),
        Text(f"  {_nodes(plan, sku)}{_price(plan.hourly_usd)}"),
        Text(f"  {_arrangement(plan, sku)}"),
        *(Text(f"  {line}") for line in _reasons(plan, preset, sku)),
    ]
    lines += [Text("  "), *_memory(plan, preset, sku)]
    if better is not None:
        lines.append(Text(f"  {_better_words(plan, better)}", "green"))
    return Group(*lines, *_warnings(plan.warnings))


def tune_view(plan: TunePlan, sku: Sku) -> RenderableType:
    """One TunePlan for a person."""
    workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    training = plan.arguments["training"]
    return Group(
        Text.assemble((plan.name, "bold"), f"  tunes {plan.model} with {plan.method}"),
        Text(f"  {_nodes(plan, sku)}{_price(plan.hourly_usd)}"),
        Text(
            f"  {workers}, each with the whole model in {plan.arguments['model']['dtype']}; examples up to "
            f"{training['max_length']:,} tokens, {training['per_device_train_batch_size']} at a time"
        ),
        *_warnings(plan.warnings),
    )


def error_view(name: str, messages: Sequence[str]) -> RenderableType:
    """A Workspace without a plan."""
    return Group(Text(name, "bold"), *(Text(f"  cannot be planned: {message}", "red") for message in messages))


def offers_view(title: str, offers: Sequence[Offer]) -> RenderableType:
    """Sizes that hold a model, the cheapest first."""
    if not offers:
        return Text(f"{title}: none within the caps")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("$/hour", "size", "nodes", "GPUs", "TP x PP", "copies", "context", "notes"):
        table.add_column(column, justify="left" if column in ("size", "GPUs", "notes") else "right", no_wrap=True)
    notes: dict[str, int] = {}
    for offer in offers:
        numbers = [notes.setdefault(warning, len(notes) + 1) for warning in offer.sku.warnings]
        shape = offer.sizing.shape
        table.add_row(
            "?" if offer.hourly_usd is None else f"{offer.hourly_usd:.2f}",
            offer.sku.name,
            str(offer.sizing.nodes),
            f"{offer.sku.gpus} x {offer.sku.gpu.removeprefix('NVIDIA ')}",
            f"{shape.tensor} x {shape.pipeline}",
            str(offer.sizing.replicas),
            f"{offer.sizing.max_model_len:,}",
            " ".join(f"({number})" for number in numbers),
        )
    return Group(table, *(Text(f"({number}) {note}", "dim") for note, number in notes.items()))


def presets_view(presets: Sequence[Preset]) -> RenderableType:
    """The catalogue as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "alias", "weights GiB", "context", "KV KiB/token", "attention", "quantised", "can"):
        right = column in ("weights GiB", "context", "KV KiB/token")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for preset in presets:
        table.add_row(
            preset.name,
            ", ".join(preset.aliases),
            f"{preset.weights_gib:.2f}",
            f"{preset.context:,}",
            f"{preset.kv_bytes_per_token / 1024:.1f}",
            preset.attention,
            preset.quantization or "",
            " ".join(_abilities(preset)),
        )
    return table


def preset_view(preset: Preset, offers: Sequence[Offer]) -> RenderableType:
    """One preset with the sizes it fits on."""
    facts = [
        ("aliases", ", ".join(preset.aliases)),
        ("licence", f"{preset.license}{', gated: needs a token' if preset.gated else ''}"),
        ("architecture", f"{preset.architecture}, {preset.layers} layers, {preset.heads} heads, {preset.attention}"),
        ("weights", f"{preset.weights_gib:.2f} GiB{f', {preset.quantization}' if preset.quantization else ''}"),
        ("context", f"{preset.context:,} tokens"),
        (
            "KV cache",
            f"{preset.kv_bytes_per_token:,} bytes per token if every layer kept every token; {_layers(preset)}",
        ),
        ("can", ", ".join(_abilities(preset))),
        *(("note", note) for note in preset.notes),
    ]
    lines = [Text.assemble((f"  {name:<13}", "dim"), value) for name, value in facts if value]
    return Group(Text(preset.name, "bold"), *lines, Text(""), offers_view("fits on", offers))


def _abilities(preset: Preset) -> Iterator[str]:
    yield "serve"
    if preset.lora:
        yield "adapters"
    if preset.tuning:
        yield "tune"
    if preset.tool_parser:
        yield "tools"
    if preset.reasoning_parser:
        yield "reasoning"


def _nodes(plan: ServePlan | TunePlan, sku: Sku) -> str:
    if not sku.gpus:
        return f"this machine: {sku.vcpus} cores, {sku.ram_gib:.1f} GiB of memory, no GPU"
    gpus = f"{sku.gpus} x " if sku.gpus > 1 else ""
    return f"{plan.nodes} x {sku.name} ({gpus}{sku.gpu}, {sku.memory_gib:.0f} GB)"


def _price(hourly_usd: float | None) -> str:
    return "" if hourly_usd is None else f", ${hourly_usd:,.2f} an hour at list price"


def _arrangement(plan: ServePlan, sku: Sku) -> str:
    dtype = "as it is stored" if plan.dtype == "auto" else f"in {plan.dtype}"
    copies = f"{plan.replicas} {'copy' if plan.replicas == 1 else 'copies'} of the model {dtype}"
    if not sku.gpus:
        return copies
    gpus = plan.tensor_parallel * plan.pipeline_parallel
    if gpus == 1:
        return f"{copies}, one GPU each" if plan.replicas > 1 else f"{copies}, on one GPU"
    cut = f"tensor parallel {plan.tensor_parallel} inside a node" if plan.tensor_parallel > 1 else ""
    across = f"pipeline parallel {plan.pipeline_parallel} across nodes" if plan.pipeline_parallel > 1 else ""
    return f"{copies}, over {gpus} GPUs{' each' if plan.replicas > 1 else ''}: {', '.join(filter(None, (cut, across)))}"


def _reasons(plan: ServePlan, preset: Preset, sku: Sku) -> Iterator[str]:
    yield _weights(preset)
    yield f"{plan.max_model_len:,} tokens of context ({_bound(plan, preset)})"
    cache = _sequence_gib(plan, preset, Shape(1, 1))
    yield f"one sequence that long keeps {cache:.1f} GiB of KV cache; {_layers(preset)}"
    fewer = _why_not_fewer(plan, preset, sku)
    if fewer:
        yield fewer


def _weights(preset: Preset) -> str:
    stored = f"{preset.weights_gib:,.2f} GiB of weights"
    if preset.loaded_gib is not None:
        stored += f", of which {preset.loaded_gib:,.2f} are loaded"
    return f"{stored}, quantised as {preset.quantization}" if preset.quantization else stored


def _sequence_gib(plan: ServePlan, preset: Preset, shape: Shape) -> float:
    """The cache of one sequence of full length on one GPU of `shape`."""
    eight_bits = str(plan.engine.get("kv-cache-dtype", "")).startswith(("fp8", "int8"))
    load = Load(
        sequences=plan.max_queued_requests,
        batched_tokens=plan.engine["max-num-batched-tokens"],
        kv_bytes=4 if plan.dtype == "float32" else 1 if eight_bits else 2,
        block=BLOCK if plan.gpus_per_node else CPU_BLOCK,
    )
    return kv_layout(preset, shape, load).sequence_gib(plan.max_model_len)


def _bound(plan: ServePlan, preset: Preset) -> str:
    full = plan.max_model_len == preset.context
    return "all that the model takes" if full else f"the model takes up to {preset.context:,}"


def _layers(preset: Preset) -> str:
    """How many layers keep what."""
    if not preset.cache:
        return f"all {preset.layers} layers keep every token"
    return ", ".join(_group(group) for group in preset.cache)


def _group(group: CacheLayers) -> str:
    keeps = {
        "full": "every token",
        "sliding": f"a window of {group.window}",
        "compressed": f"one entry for {group.ratio} tokens",
        "recurrent": "a state of fixed size",
        "none": "nothing",
    }[group.kind]
    return f"{group.layers} layers keep {keeps}"


def _why_not_fewer(plan: ServePlan, preset: Preset, sku: Sku) -> str:
    """What keeps the next smaller arrangement from holding the model."""
    sizes = tensor_sizes(preset, sku.gpus) if sku.gpus else []
    if plan.pipeline_parallel > 1:
        smaller = Shape(sizes[-1], plan.pipeline_parallel - 1)
        where = f"on {smaller.pipeline} node{'s' if smaller.pipeline > 1 else ''}"
    elif plan.tensor_parallel > 1:
        smaller = Shape(max(size for size in sizes if size < plan.tensor_parallel), 1)
        where = f"on {smaller.tensor} GPU{'s' if smaller.tensor > 1 else ''}"
    else:
        return ""
    load = list(serving_loads(preset, sku, Demand(lora=preset.lora)))[-1]
    parts = budget(preset, sku, smaller, load, utilization=plan.engine["gpu-memory-utilization"])
    layout = kv_layout(preset, smaller, load)
    longest = layout.longest(parts.kv_cache_gib, preset.context)
    if longest >= DEFAULT_CONTEXT:
        return f"{where} at most {longest:,} tokens of context would fit"
    rest = parts.activations_gib + parts.lora_gib + parts.overhead_gib
    return (
        f"{where} each GPU would need {parts.weights_gib:.1f} GiB for weights, "
        f"{layout.sequence_gib(DEFAULT_CONTEXT):.1f} for {DEFAULT_CONTEXT:,} tokens and {rest:.1f} beside, and has "
        f"{parts.usable_gib:.1f}"
    )


def _memory(plan: ServePlan, preset: Preset, sku: Sku) -> Iterator[Text]:
    parts = plan.budget
    what = "each GPU" if sku.gpus else "memory"
    scale = parts.gpu_gib / _BAR_CELLS
    bar = Text(f"  {what:<9}")
    filled = 0.0
    drawn = 0
    for _, field, cell, colour in _PARTS:
        filled += getattr(parts, field)
        cells = round(filled / scale) - drawn
        drawn += cells
        bar.append(cell * cells, colour)
    bar.append("·" * (_BAR_CELLS - drawn), "dim")
    bar.append(f" {parts.gpu_gib:.1f} GiB")
    yield bar
    yield _legend(parts)
    sequences = parts.kv_cache_gib / _sequence_gib(plan, preset, Shape(plan.tensor_parallel, plan.pipeline_parallel))
    yield Text(f"  the KV cache holds {sequences:.1f} sequences of {plan.max_model_len:,} tokens at once")


def _legend(parts: MemoryBudget) -> Text:
    text = Text("           ")
    for name, field, cell, colour in _PARTS:
        value = getattr(parts, field)
        if value >= 0.05:
            text.append(f"{cell} ", colour).append(f"{name} {value:.1f}   ")
    return text.append(f"· left alone {parts.gpu_gib - parts.usable_gib:.1f}", "dim")


def _better_words(plan: ServePlan, better: Offer) -> str:
    what = (
        f"{better.sizing.nodes} x {better.sku.name} would hold the same context for ${better.hourly_usd:,.2f} an hour"
    )
    if better.sizing.nodes < plan.nodes:
        return f"simpler: {what}, with {'no' if better.sizing.nodes == 1 else 'less'} traffic between nodes"
    return f"cheaper: {what}"


def _warnings(warnings: Sequence[str]) -> Iterator[Text]:
    for warning in warnings:
        yield Text(f"  ! {warning}", "yellow")
