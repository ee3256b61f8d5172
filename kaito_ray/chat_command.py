# SPDX-License-Identifier: Apache-2.0
"""A Workspace in a cluster in, a conversation with its model out: what `kaito-ray chat` does. Called by cli.py.

Requests go to a ready worker pod through the API server, so no Ingress and no open port is needed. Answers are shown as
they come; what was said so far goes along with each question.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPResponse
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, new_client_from_config

from kaito_ray import names
from kaito_ray.errors import CannotRun
from kaito_ray.port_forward import post

_KEY = "KAITO_RAY_API_KEY"
Message = dict[str, str]


def chat(name: str, namespace: str, *, model: str, once: str | None, say: Callable[[str], None]) -> None:
    """Talk until the input ends; with `once` ask one question. `say` prints what comes, piece by piece."""
    api = _connect()
    pod = _ready_pod(api, name, namespace)
    history: list[Message] = []
    for question in [once] if once is not None else _questions(say):
        history.append({"role": "user", "content": question})
        answer = ""
        for piece in _ask(api, namespace, pod, model, history):
            say(piece)
            answer += piece
        say("\n")
        history.append({"role": "assistant", "content": answer})


def _connect() -> ApiClient:
    try:
        api: ApiClient = new_client_from_config()  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise CannotRun(f"there is no cluster to talk to: {error}; set KUBECONFIG") from None
    return api


def _ready_pod(api: ApiClient, name: str, namespace: str) -> str:
    """A worker pod that serves; its proxy reaches all copies of the model."""
    labels = f"{names.LABEL_WORKSPACE}={name},ray.io/node-type=worker"
    try:
        pods = CoreV1Api(api).list_namespaced_pod(namespace, label_selector=labels).items
    except ApiException as error:
        raise CannotRun(f"the pods of namespace {namespace} cannot be listed: {error.reason}") from None
    for pod in pods or ():
        conditions = (pod.status.conditions if pod.status else None) or ()
        if pod.metadata and any(one.type == "Ready" and one.status == "True" for one in conditions):
            return str(pod.metadata.name)
    raise CannotRun(
        f"no pod of Workspace {name} in namespace {namespace} serves; see `kaito-ray status {name} -n {namespace}`"
    )


def _questions(say: Callable[[str], None]) -> Iterator[str]:
    """Lines of the input; on a terminal with a prompt, and with the arrow keys for what was asked before."""
    prompts = sys.stdin.isatty()
    if prompts:
        import readline  # noqa: F401  # importing it is what makes input() remember

        say("Ask something; Ctrl-D ends.\n")
    while True:
        try:
            line = input("> " if prompts else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


def _ask(api: ApiClient, namespace: str, pod: str, model: str, history: list[Message]) -> Iterator[str]:
    body: dict[str, Any] = {"messages": history, "stream": True}
    if model:
        body["model"] = model
    key = os.environ.get(_KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with post(api, namespace, pod, names.PORT_SERVE, "/v1/chat/completions", body, headers) as answer:
        if answer.status == 401:
            raise CannotRun(f"the Workspace asks for a key; put one into {_KEY}")
        if answer.status != 200:
            raise CannotRun(f"the model answered {answer.status}: {_complaint(answer)}")
        yield from _pieces(answer)


def _pieces(lines: Iterable[bytes]) -> Iterator[str]:
    """The text in a stream of server-sent events."""
    for line in lines:
        data = line.decode().strip().removeprefix("data:").strip()
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise CannotRun(f"the model stopped: {event['error'].get('message', event['error'])}")
        for choice in event.get("choices", ()):
            yield choice.get("delta", {}).get("content") or ""


def _complaint(answer: HTTPResponse) -> str:
    text = answer.read(2000).decode(errors="replace")
    try:
        error = json.loads(text).get("error", text)
    except (ValueError, AttributeError):
        return text
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
