# SPDX-License-Identifier: Apache-2.0
"""`POST /chat` as KAITO served it until 0.8, over vLLM instead of a transformers pipeline.

    {"prompt": "What is Ray?", "generate_kwargs": {"max_length": 200}}          -> {"Result": "<text>"}
    {"messages": [{"role": "user", "content": "What is Ray?"}], ...}            -> {"Result": "<text>"}

A prompt is continued as it stands, messages go through the model's chat template. Everything wrong with a request is
a 400 `{"detail": "<sentences>"}`; a `model` that is neither the base model nor an adapter is a 404.

New here: `model` chooses an adapter (a Workspace that tuned its model answers with its own adapter unless told
otherwise), and `stream: true` answers with server-sent events, each
`data: {"Result": "<next piece>"}`, then `data: [DONE]`; the pieces joined are the `Result` of the plain answer. An
error after the first piece is `data: {"detail": "<sentence>"}` and ends the stream.

serve_apps/chat.py adds the route; `fastapi` and `vllm` are imported where they are used.
"""

import json
import logging
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serve_apps.sampling import GenerateKwargs, sampling_fields, unsupported

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

logger = logging.getLogger(__name__)

# What KAITO said, word for word.
NO_PROMPT = "Text generation parameter prompt required"
NO_MESSAGES = "Conversational parameter messages required"


class Message(BaseModel):
    """One turn of a conversation; what the chat template reads beyond these passes through."""

    model_config = ConfigDict(frozen=True, extra="allow")

    role: str
    content: str


class ChatRequest(BaseModel):
    """The body; further keys are ignored, as KAITO did. `null` means the default."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str | None = None
    messages: list[Message] | None = None
    return_full_text: bool = True
    """Whether the result begins with the prompt; nothing to messages."""
    clean_up_tokenization_spaces: bool = False
    prefix: str | None = None
    """Stands before the prompt for the model, and not in the result."""
    handle_long_generation: Literal["hole"] | None = None
    """`hole` drops the beginning of a prompt that leaves no room for `max_new_tokens`."""
    generate_kwargs: GenerateKwargs = Field(default_factory=GenerateKwargs)
    model: str | None = None
    stream: bool = False

    @field_validator("generate_kwargs", mode="before")
    @classmethod
    def _defaults_for_null(cls, value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


class Refused(Exception):
    """A request that cannot be answered: the status and what to say."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def parse_chat(body: bytes) -> ChatRequest:
    """Read a request; raise Refused(400) naming every field that is wrong."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refused(400, "The body must be a JSON object")
    try:
        request = ChatRequest.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        raise Refused(400, "; ".join(_sentence(item) for item in error.errors())) from None
    if not request.prompt and not request.messages:
        raise Refused(400, NO_PROMPT if request.messages is None else NO_MESSAGES)
    problems = unsupported(request.generate_kwargs)
    if request.stream and request.generate_kwargs.num_return_sequences > 1:
        problems.append("generate_kwargs.num_return_sequences must be 1 with stream")
    if request.stream and request.clean_up_tokenization_spaces:
        problems.append("clean_up_tokenization_spaces must be false with stream")
    if problems:
        raise Refused(400, "; ".join(problems))
    return request


def _sentence(item: Any) -> str:
    # The union's own branch names, such as "int" behind eos_token_id, say nothing to the caller.
    path = [str(part) for part in item["loc"] if part not in ("int", "str", "list[int]", "list[str]")]
    return f"{'.'.join(path)}: {item['msg']}, got {_short(item['input'])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def clean_spaces(text: str) -> str:
    """Remove the spaces that old tokenizers leave before punctuation and English contractions."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def add_route(app: "FastAPI") -> None:
    """Add `POST /chat` to vLLM's app, whose state has the engine and the models."""
    from fastapi import Request
    from fastapi.responses import JSONResponse

    async def chat(http: Request) -> "Response":
        try:
            return await _answer(http)
        except Refused as refused:
            return JSONResponse({"detail": refused.detail}, status_code=refused.status)

    app.add_route("/chat", chat, methods=["POST"])


async def _answer(http: "Request") -> "Response":
    from fastapi.responses import JSONResponse, StreamingResponse
    from vllm.entrypoints.serve.utils.api_utils import with_cancellation

    request = parse_chat(await http.body())
    adapter = _adapter(http, request.model)
    outputs = await _generate(http, request, adapter)
    before = request.prompt if request.prompt and request.return_full_text else ""
    if request.stream:
        return StreamingResponse(_events(before, outputs), media_type="text/event-stream")

    async def texts(_: ChatRequest, raw_request: "Request") -> list[str]:  # noqa: ARG001
        final: list[str] = []
        async for output in outputs:
            final = [before + choice.text for choice in output.outputs]
        return final

    # Cancels, and so aborts in the engine, when the client goes away; then nobody reads the answer.
    final = await with_cancellation(texts)(request, http) or []
    if request.clean_up_tokenization_spaces:
        final = [clean_spaces(text) for text in final]
    return JSONResponse({"Result": "".join(final)})


async def _generate(
    http: "Request", request: ChatRequest, adapter: "LoRARequest | None"
) -> "AsyncIterator[RequestOutput]":
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    engine = http.app.state.engine_client
    try:
        prompt = await _render(http, request)
        fields = sampling_fields(
            request.generate_kwargs,
            prompt_tokens=len(prompt["prompt_token_ids"]),
            context=engine.model_config.max_model_len,
        )
        kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        params = SamplingParams(**fields, output_kind=kind)
        engine.check_admission(params.n)
    except (VLLMClientError, ValueError) as error:
        raise Refused(400, str(error)) from None
    except GracefulHTTPError as error:
        raise Refused(error.http_status, str(error)) from None
    name = http.headers.get("x-request-id") or uuid.uuid4().hex
    outputs: AsyncIterator[RequestOutput] = engine.generate(prompt, params, f"chat-{name}", lora_request=adapter)
    return outputs


async def _render(http: "Request", request: ChatRequest) -> Any:
    """The prompt as the engine takes it, tokenized off the event loop."""
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.renderers.params import ChatParams

    engine, online = http.app.state.engine_client, http.app.state.online_renderer
    renderer = engine.renderer
    if request.prompt:
        text = (request.prefix or "") + request.prompt
        tokens = renderer.default_cmpl_tok_params
        keep = _kept_tokens(request, engine.model_config.max_model_len)
        if keep is not None:
            tokens = tokens.with_kwargs(truncate_prompt_tokens=keep, truncation_side="left")
        [prompt] = await renderer.render_cmpl_async([parse_model_prompt(engine.model_config, text)], tokens)
        return prompt
    turns = [message.model_dump() for message in request.messages or ()]
    params = ChatParams(
        chat_template=online.chat_template,
        chat_template_content_format=online.chat_template_content_format,
        chat_template_kwargs={"add_generation_prompt": True, **online.default_chat_template_kwargs},
    )
    _, [prompt] = await renderer.render_chat_async([turns], params)
    return prompt


def _kept_tokens(request: ChatRequest, context: int) -> int | None:
    """How many tokens of the prompt `hole` keeps, as transformers' text generation pipeline had it."""
    new_tokens = request.generate_kwargs.max_new_tokens
    if request.handle_long_generation is None or new_tokens is None:
        return None
    if new_tokens >= context:
        raise ValueError(f"generate_kwargs.max_new_tokens is {new_tokens}, the model takes {context} with the prompt")
    return context - new_tokens


def _adapter(http: "Request", name: str | None) -> "LoRARequest | None":
    models = http.app.state.openai_serving_models
    default = getattr(http.app.state, "default_adapter", None) if name is None else None
    wanted = name or default
    if wanted is None or models.is_base_model(wanted):
        return None
    adapter: LoRARequest | None = models.lora_requests.get(wanted)
    if adapter is None and default:
        # The base model would answer as if nothing had been tuned.
        raise Refused(503, f"The adapter `{default}` is not loaded; GET /adapters says why")
    if adapter is None:
        raise Refused(404, f"The model `{name}` does not exist")
    return adapter


async def _events(before: str, outputs: "AsyncIterator[RequestOutput]") -> AsyncIterator[str]:
    try:
        if before:
            yield _event({"Result": before})
        async for output in outputs:
            if text := output.outputs[0].text:
                yield _event({"Result": text})
    except Exception as error:
        # The status is sent already, so the stream itself has to say it.
        logger.exception("a streamed answer failed")
        yield _event({"detail": f"The answer broke off: {type(error).__name__}"})
        return
    yield "data: [DONE]\n\n"


def _event(content: dict[str, str]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
