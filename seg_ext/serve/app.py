"""The HTTP side: ``POST /predict`` takes an image and gives JSON, ``/docs`` is its OpenAPI page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

import seg_ext
from seg_ext.serve.answer import Answer, answer
from seg_ext.serve.service import RETRY, Limits, Refused, Service, too_large

Task = Literal["semantic", "instance", "panoptic"]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        "description": "the bytes of an image file",
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"description": "the image did not arrive in time"},
    413: {"description": "too many bytes or pixels"},
    415: {"description": "no image that can be read"},
    422: {"description": "the model or an option does not fit"},
    500: {"description": "the model failed"},
    503: {"description": "too many images are waiting"},
}


def build_app(service: Service, *, hosts: Sequence[str] = ()) -> FastAPI:
    """The application around a service.

    Args:
        service: the model.
        hosts: names that requests may ask for; empty for any. It keeps other web sites from reaching a loopback server
            through a name of theirs.
    """
    app = FastAPI(title="seg-ext serve", version=seg_ext.__version__, description="Segmentation of one image.")
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": str(RETRY)} if error.status == 503 else None
        return JSONResponse({"detail": error.message}, error.status, headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Tasks and limits."""
        limits = service.limits
        return {"tasks": service.tasks, "megabytes": limits.megabytes, "megapixels": limits.megapixels}

    @app.post("/predict", openapi_extra=_BODY, responses=_REFUSALS, response_model_exclude_none=True)
    async def predict(
        request: Request,
        task: Annotated[Task | None, Query(description="one of the model's; all without one")] = None,
        threshold: Annotated[float, Query(ge=0, le=1, description="least score of an instance")] = 0.5,
        tta: Annotated[bool, Query(description="average with the mirror image")] = False,
        uncertainty: Annotated[bool, Query(description="add a map of the semantic entropy")] = False,
    ) -> Answer:
        """Segment the image in the body."""
        if task is not None and task not in service.tasks:
            raise Refused(422, f"This model gives {', '.join(service.tasks)}, not {task}.")

        def work(content: bytes) -> Answer:
            found = service.segment(content, threshold=threshold, tta=tta, uncertainty=uncertainty)
            return answer(found, service.metadata, [task] if task else service.tasks)

        with service.admitted():
            content = await read_body(request, service.limits)
            return await to_thread.run_sync(work, content)

    return app


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, no more of it than the limit, and no longer waited for.

    Raises:
        Refused: it is empty, too large, too slow, or broken off.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.bytes:
        raise too_large(limits)
    parts: list[bytes] = []

    async def collect() -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limits.bytes:
                raise too_large(limits)
            parts.append(part)

    try:
        await asyncio.wait_for(collect(), limits.seconds)
    except asyncio.TimeoutError as error:
        raise Refused(408, f"The image did not arrive within {limits.seconds:g} seconds.") from error
    except ClientDisconnect as error:  # nobody is there to read it
        raise Refused(408, "The image broke off.") from error
    if not any(parts):
        raise Refused(415, "The request has no body; send the bytes of an image file.")
    return b"".join(parts)
