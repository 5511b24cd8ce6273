"""Writes errors in the format that OpenAI's clients read."""

import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from janus_dola.arguments import shown


def error_response(
    status: int, message: str, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Returns an answer that says what was wrong: `param` is the request's field, `code` the kind of error for programs."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, param, code), status, headers)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns an error as JSON holds it. What UTF-8 cannot write is escaped: a request may name half a character."""
    texts = {"message": message, "type": kind, "param": param, "code": code}
    return {"error": {name: text and text.encode(errors="backslashreplace").decode() for name, text in texts.items()}}


def validation_response(error: RequestValidationError) -> JSONResponse:
    """Returns an answer that names the first wrong field."""
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return error_response(400, f"the body must be JSON: {first['ctx']['error']}", code="invalid_json")
    field = _field(first)
    name, kind = field or "the body", first["type"]
    if kind == "missing":
        message = f"{name} must be given" if field else "the body must be a JSON object, got nothing"
    elif kind == "extra_forbidden":
        message = f"{name} is not known to this server: leave it out"
    else:  # each member of a union has an error of its own
        same = (each["msg"] for each in (first, *others) if _field(each) == field)
        allowed = dict.fromkeys(re.sub("^[A-Z][a-z]+ should ", "", text) for text in same)
        message = f"{name} must {' or '.join(allowed)}, got {shown(first.get('input'))}"
    return error_response(400, message, field, "invalid_value")


def _field(error: dict[str, Any]) -> str | None:
    place = [part for part in error["loc"] if part != "body"]
    return str(place[0]) if place else None
