"""Validates responses and frames against the server's own OpenAPI document."""

from __future__ import annotations

from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from referencing import Registry

from stream_server.http.docs import openapi

_FORMATS = Draft202012Validator.FORMAT_CHECKER


def make_validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator that also checks formats, and fetches nothing."""
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=_FORMATS, registry=Registry())


def validation_errors(kind: str, value: object, *, strictly: bool = False) -> list[str]:
    """Return the errors of a value under the component `kind` of `/openapi.json`.

    Args:
        kind: Name of the component.
        value: Decoded JSON.
        strictly: Whether members that the schema does not name are errors.
    """
    return [f"{error.json_path}: {error.message}" for error in _validator(kind, strictly).iter_errors(value)]


@cache
def _validator(kind: str, strictly: bool) -> Draft202012Validator:
    components = openapi.build_openapi()["components"]
    if strictly:
        for schema in components["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False
    return make_validator({"$ref": f"#/components/schemas/{kind}", "components": components})


def response_errors(response: httpx.Response, path: str) -> list[str]:
    """Return how a response differs from what `/openapi.json` documents.

    Args:
        response: The response.
        path: Path of the operation, with its variables in braces.
    """
    operation = openapi.build_openapi()["paths"][path][response.request.method.lower()]
    documented = operation["responses"].get(str(response.status_code))
    if documented is None:
        return [f"status {response.status_code}"]
    missing = [f"without {name}" for name in documented.get("headers", {}) if name not in response.headers]
    if "content" not in documented:
        return missing + ([f"a body: {response.text[:100]}"] if response.content else [])
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if media_type not in documented["content"]:
        return [*missing, f"media type {media_type!r}"]
    if not media_type.endswith("json"):
        return missing
    schema = documented["content"][media_type]["schema"]
    options = schema.get("anyOf", [schema])
    # The bare value of a task can be any JSON.
    kind = options[0].get("$ref", "").rpartition("/")[2]
    bare = "unwrap=true" in str(response.request.url) and response.is_success
    return missing + ([] if bare or not kind else validation_errors(kind, response.json(), strictly=kind != "Problem"))
