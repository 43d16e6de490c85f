"""Exceptions shaped like those of libraries that need not be installed here.

Rules:
1. A shape has the module, the name, the bases and the attributes that the library's own has, and nothing else.
2. `test_policies_classify.py` holds the shapes against the real classes wherever a library is installed.
"""

from __future__ import annotations

from typing import Any


def shape(module: str, name: str, *bases: type[BaseException], **attributes: Any) -> type[Exception]:
    """Make an exception class as `module` defines it."""
    return type(name, bases or (Exception,), {"__module__": module, **attributes})


class Thing:
    """A response, or anything else that has attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def httpx_status(status: int, **headers: str) -> Exception:
    """httpx.HTTPStatusError: the status is the response's."""
    error = shape("httpx", "HTTPStatusError", shape("httpx", "HTTPError"))("refused")
    error.response = Thing(status_code=status, headers=_headers(headers))  # type: ignore[attr-defined]
    return error


def aiohttp_status(status: int, **headers: str) -> Exception:
    """aiohttp.ClientResponseError: status and headers are its own."""
    error = shape("aiohttp.client_exceptions", "ClientResponseError")("refused")
    error.status, error.headers = status, _headers(headers)  # type: ignore[attr-defined]
    return error


def requests_status(status: int, **headers: str) -> Exception:
    """requests.HTTPError is an OSError, whatever the status."""
    error = shape(
        "requests.exceptions", "HTTPError", shape("requests.exceptions", "RequestException", OSError)
    )()
    error.response = Thing(status_code=status, headers=_headers(headers))  # type: ignore[attr-defined]
    return error


def sdk_status(status: int, **headers: str) -> Exception:
    """What the generated SDKs (openai, anthropic) raise: the status is its own, the headers the response's."""
    error = shape("openai", "APIStatusError")("refused")
    error.status_code = status  # type: ignore[attr-defined]
    error.response = Thing(status_code=status, headers=_headers(headers))  # type: ignore[attr-defined]
    return error


def botocore_status(status: int, code: str = "Other", **headers: str) -> Exception:
    """botocore.exceptions.ClientError: all of it is in a dict."""
    error = shape("botocore.exceptions", "ClientError")("refused")
    meta = {"HTTPStatusCode": status, "HTTPHeaders": _headers(headers)}
    error.response = {"Error": {"Code": code}, "ResponseMetadata": meta}  # type: ignore[attr-defined]
    return error


def _headers(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


STATUS_MAKERS = (httpx_status, aiohttp_status, requests_status, sdk_status, botocore_status)
