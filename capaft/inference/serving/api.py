"""The server's interface as an OpenAPI document, and as a page that loads nothing from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

from capaft import __version__

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_TEXT = {"type": "string"}
_PAIR = {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2}
MOST_TOP = 1000
REQUEST = {
    "type": "object",
    "required": ["adapter", "inputs"],
    "additionalProperties": False,
    "properties": {
        "adapter": _TEXT | {"description": "Name of the adapter that answers."},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": {"oneOf": [_TEXT, _PAIR]},
            "description": "Texts, or pairs of texts.",
        },
        "top": {
            "type": "integer",
            "minimum": 1,
            "maximum": MOST_TOP,
            "description": "Number of the likeliest classes to list with their probabilities.",
        },
    },
}
_PREDICTIONS = {
    "type": "object",
    "properties": {"adapter": _TEXT, "predictions": {"type": "array", "items": {"type": "object"}}},
}
_ADAPTER = {
    "type": "object",
    "properties": {"name": _TEXT, "task": _TEXT, "labels": {"type": "array", "items": _TEXT}},
}
_REASONS = {
    "401": "The token is missing or wrong.",
    "404": "There is no adapter of this name.",
    "408": "The request did not arrive in time.",
    "413": "The request is too large.",
    "415": "The request is not JSON by its Content-Type.",
    "422": "The request is not of this form.",
    "503": "Too many inputs are waiting; try again.",
}


def openapi(*, has_token: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        has_token: requests have to carry a bearer token.
    """

    def operation(summary: str, schema: dict[str, Any] | None, *errors: str, body: bool = False) -> dict[str, Any]:
        content = {"application/json": {"schema": schema}} if schema else {"text/plain": {"schema": _TEXT}}
        responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
        for code in errors:
            if code != "401" or has_token:
                described = {"application/json": {"schema": _ERROR}}
                responses[code] = {"description": _REASONS[code], "content": described}
        made: dict[str, Any] = {"summary": summary, "responses": responses}
        if body:
            made["requestBody"] = {"required": True, "content": {"application/json": {"schema": REQUEST}}}
        return made

    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "capaft", "version": __version__, "description": "Adapters over one base model."},
        "paths": {
            "/predict": {"post": operation("Answer inputs by an adapter", _PREDICTIONS, *_REASONS, body=True)},
            "/adapters": {"get": operation("List the adapters", {"type": "array", "items": _ADAPTER}, "401")},
            "/health": {"get": operation("Tell whether the server answers", {"type": "object"})},
            "/metrics": {"get": operation("Counters and times, for Prometheus", None, "401")},
        },
    }
    if has_token:
        document["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"token": []}]
        document["paths"]["/health"]["get"]["security"] = []
    return document


def page(document: dict[str, Any]) -> str:
    """The document for people, as one page of HTML."""
    sections = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            request = operation.get("requestBody")
            schema = request and request["content"]["application/json"]["schema"]
            shown = f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre>" if schema else ""
            answers = "".join(
                f"<tr><td>{code}</td><td>{html.escape(answer['description'])}</td></tr>"
                for code, answer in operation["responses"].items()
            )
            summary = html.escape(operation["summary"])
            sections.append(f"<h2>{method.upper()} {path}</h2><p>{summary}</p>{shown}<table>{answers}</table>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>capaft</title>"
        "<style>body{font:16px sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
        "pre{background:#8882;padding:1em;overflow:auto}td{padding:.2em 1em .2em 0}</style>"
        f"<h1>capaft {html.escape(document['info']['version'])}</h1>"
        f"<p>Adapters over one base model. The same as <a href=openapi.json>openapi.json</a>.</p>{''.join(sections)}"
    )
