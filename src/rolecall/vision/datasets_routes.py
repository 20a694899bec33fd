"""The HTTP surface of datasets: which path is answered by what, and what comes in and goes out as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rolecall.errors import BadRequest, NotFound
from rolecall.gateway.body import parse_json, receive_body
from rolecall.gateway.caller import caller_of
from rolecall.gateway.query import is_number, read_flag, read_number
from rolecall.gateway.routes import Json, Need, ScopedRoute

if TYPE_CHECKING:
    from rolecall.vision.datasets import Datasets
    from rolecall.vision.datasets_records import Dataset, Sample, Tags
    from rolecall.vision.jobs import Progress

MAX_BODY_BYTES = 2**20
DEFAULT_LIMIT, MAX_LIMIT = 100, 500
_LARGEST_ID = 2**63 - 1
_DEFAULT_TASK = "tags"

Get = Callable[[], Awaitable["Datasets"]]


def dataset_routes(get: Get) -> list[ScopedRoute]:
    """Return the routes; ``get`` makes the datasets when they are needed."""
    api = _Api(get)
    one, sample = "/datasets/{id}", "/datasets/{id}/samples/{sample_id}"
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]], Need | None]] = [
        ("GET", "/datasets", api.datasets, None),
        ("POST", "/datasets", api.add, "admin"),
        ("POST", "/datasets/snapshot", api.snapshot, "admin"),
        ("GET", one, api.dataset, None),
        ("DELETE", one, api.remove, "admin"),
        ("POST", f"{one}/rescan", api.rescan, None),
        ("GET", f"{one}/samples", api.samples, None),
        ("GET", sample, api.sample, None),
        ("PATCH", sample, api.edit, None),
        ("GET", f"{sample}/thumbnail", api.thumbnail, None),
        ("POST", f"{one}/auto-tag", api.auto_tag, "inference"),
        ("DELETE", f"{one}/auto-tag", api.cancel, "inference"),
        ("GET", f"{one}/auto-tag/progress", api.progress, None),
    ]
    return [ScopedRoute(path, endpoint, methods=[method], need=need) for method, path, endpoint, need in table]


class _Api:
    def __init__(self, get: Get) -> None:
        self._get = get

    async def _with(self, id_: int) -> Datasets:
        """Return the datasets, among which this one is; raises ``NotFound``."""
        datasets = await self._get()
        await datasets.store.run(lambda store: store.dataset(id_))
        return datasets

    # -- datasets

    async def datasets(self, request: Request) -> Json:
        datasets = await self._get()
        found = await datasets.store.run(lambda store: store.datasets())
        is_admin = caller_of(request.scope).may("admin")
        tasks = [{"id": task.id, "title": task.title} for task in await asyncio.to_thread(datasets.tagger.tasks)]
        rows = [_dataset(each, with_folder=is_admin) for each in found]
        return Json({"object": "list", "data": rows, "tasks": tasks, "may_register": is_admin})

    async def add(self, request: Request) -> Json:
        body = await _body(request, {"name", "folder"})
        datasets = await self._get()
        added = await datasets.add(_text(body, "name"), _text(body, "folder"))
        return Json(_dataset(added, with_folder=True), status_code=201, headers={"location": f"/datasets/{added.id}"})

    async def snapshot(self, _request: Request) -> Json:
        copy = await (await self._get()).snapshot()
        return Json({"object": "datasets.snapshot", "path": str(copy), "bytes": copy.stat().st_size}, status_code=201)

    async def dataset(self, request: Request) -> Json:
        id_ = _id(request)
        datasets = await self._get()
        return await self._whole(request, datasets, await datasets.store.run(lambda store: store.dataset(id_)))

    async def _whole(self, request: Request, datasets: Datasets, found: Dataset) -> Json:
        id_ = found.id
        counts = await datasets.store.run(lambda store: store.tag_counts(id_))
        progress = await datasets.jobs.progress(id_)
        return Json(
            {
                **_dataset(found, with_folder=caller_of(request.scope).may("admin")),
                "tags": [{"tag": tag, "count": count} for tag, count in counts],
                "auto_tag": _progress(progress),
            }
        )

    async def rescan(self, request: Request) -> Json:
        datasets = await self._get()
        return await self._whole(request, datasets, await datasets.rescan(_id(request)))

    async def remove(self, request: Request) -> Json:
        removed = await (await self._get()).remove(_id(request))
        return Json({"id": removed.id, "object": "dataset", "deleted": True})

    # -- samples

    async def samples(self, request: Request) -> Json:
        id_ = _id(request)
        tags = [tag for tag in request.query_params.getlist("tag") if tag]
        limit = read_number(request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
        offset = read_number(request, "offset", 0, 0, _LARGEST_ID)
        failed = read_flag(request, "failed")
        datasets = await self._with(id_)
        found, total = await datasets.store.run(
            lambda store: store.samples(id_, tags, failed=failed, limit=limit, offset=offset)
        )
        rows = [_sample(each) for each in found]
        return Json({"object": "list", "data": rows, "total": total, "limit": limit, "offset": offset})

    async def sample(self, request: Request) -> Json:
        _, sample = await self._found(request)
        return Json(_sample(sample))

    async def _found(self, request: Request) -> tuple[Datasets, Sample]:
        id_, sample_id = _id(request), _id(request, "sample_id")
        datasets = await self._get()
        return datasets, await datasets.store.run(lambda store: store.sample(id_, sample_id))

    async def edit(self, request: Request) -> Json:
        id_, sample_id = _id(request), _id(request, "sample_id")
        change = _change(await _body(request, {"tags", "add", "remove"}))
        edited = await (await self._get()).store.run(lambda store: store.edit_tags(id_, sample_id, change))
        return Json(_sample(edited))

    async def thumbnail(self, request: Request) -> Response:
        size = request.query_params.get("size", "small")
        if size not in {"small", "large"}:
            raise BadRequest(f"The query's size must be small or large, not {size[:50]!r}.", param="size")
        datasets, sample = await self._found(request)
        version = _version(sample)
        headers = {
            "etag": f'"{version}-{size}"',
            "cache-control": "private, max-age=31536000, immutable"
            if request.query_params.get("v") == version
            else "private, no-cache",
            "vary": "authorization, x-api-key, api-key",
            "x-content-type-options": "nosniff",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        dataset = await datasets.store.run(lambda store: store.dataset(sample.dataset_id))
        data = await datasets.thumbnails.get(Path(dataset.folder), sample, size)
        return Response(data, media_type="image/jpeg", headers=headers)

    # -- jobs

    async def auto_tag(self, request: Request) -> Json:
        id_ = _id(request)
        body = await _body(request, {"task", "model", "again"}, may_be_empty=True)
        datasets = await self._with(id_)
        wish = await asyncio.to_thread(
            datasets.tagger.wish,
            _text(body, "task", _DEFAULT_TASK),
            model=_text(body, "model", None),
            again=_flag(body, "again"),
            caller=caller_of(request.scope),
        )
        job = await datasets.jobs.start(id_, wish)
        words = f"Tagging {job.total} samples by the task {wish.task_id}."
        return Json({"dataset_id": id_, "status": "started", "message": words}, status_code=202)

    async def cancel(self, request: Request) -> Json:
        id_ = _id(request)
        datasets = await self._with(id_)
        return Json({"dataset_id": id_, **_progress(await datasets.jobs.cancel(id_))})

    async def progress(self, request: Request) -> Response:
        id_ = _id(request)
        datasets = await self._with(id_)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
        return StreamingResponse(_events(datasets.jobs.watch(id_)), media_type="text/event-stream", headers=headers)


async def _events(states: AsyncIterator[Progress | None]) -> AsyncIterator[bytes]:
    """Yield server-sent events; a comment where nothing has changed for long, so that nobody takes it for dead."""
    async for state in states:
        yield (
            b": still there\n\n" if state is None else b"event: progress\ndata: %b\n\n" % orjson.dumps(_progress(state))
        )


# -- what goes out


def _dataset(dataset: Dataset, *, with_folder: bool) -> dict[str, Any]:
    row = {
        "id": dataset.id,
        "object": "dataset",
        "name": dataset.name,
        "folder": dataset.folder,
        "created": _time(dataset.created),
        "scanned": _time(dataset.scanned),
        "samples": dataset.samples,
        "tagged": dataset.tagged,
        "failed": dataset.failed,
        "missing": dataset.missing,
        "skipped": dataset.skipped,
    }
    return row if with_folder else {name: value for name, value in row.items() if name != "folder"}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _sample(sample: Sample) -> dict[str, Any]:
    path = f"/datasets/{sample.dataset_id}/samples/{sample.id}/thumbnail"
    return {
        "id": sample.id,
        "dataset_id": sample.dataset_id,
        "file_name": sample.file.name,
        "bytes": sample.file.size,
        "tags": list(sample.tags.shown),
        "own_tags": list(sample.tags.own),
        "task": sample.task,
        "model": sample.model,
        "problem": sample.problem,
        "thumbnail": f"{path}?{urlencode({'v': _version(sample)})}",
    }


def _version(sample: Sample) -> str:
    from rolecall.vision.datasets_thumbnails import mark  # noqa: PLC0415 - imports Pillow

    return mark(sample)


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "status": progress.status,
        "processed": progress.processed,
        "total": progress.total,
        "message": progress.message,
    }


# -- what comes in


async def _body(request: Request, fields: set[str], *, may_be_empty: bool = False) -> dict[str, Any]:
    """Return a JSON object with no other fields; raises ``BadRequest``."""
    headers = dict(request.scope["headers"])
    if may_be_empty and headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return {}
    body = parse_json(await receive_body(headers, request.receive, MAX_BODY_BYTES))
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    if strange := sorted(body.keys() - fields):
        raise BadRequest(
            f"There is no field {strange[0][:100]!r} here; there are {', '.join(sorted(fields))}.",
            param=strange[0][:100],
        )
    return body


def _id(request: Request, name: str = "id") -> int:
    text: str = request.path_params[name]
    if not is_number(text, 0, _LARGEST_ID):
        what = "dataset" if name == "id" else "sample"
        raise NotFound(f"There is no {what} {text[:100]!r}; ids are numbers.")
    return int(text)


def _text(body: dict[str, Any], name: str, default: Any = ...) -> Any:
    value = body.get(name)
    if value is None and default is not ...:
        return default
    if not isinstance(value, str) or not value.strip() or len(value) > 4096:
        raise BadRequest(f"The field {name} must be a text that is not empty.", param=name)
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"The field {name} must be true or false.", param=name)
    return value


def _change(body: dict[str, Any]) -> Callable[[Tags], Tags]:
    """Return what a person wants of a sample's tags: ``tags``, all of them, or some to ``add`` and to ``remove``."""
    given = {name: _tags(body, name) for name in ("tags", "add", "remove") if name in body}
    if ("tags" in given and len(given) > 1) or not given:
        raise BadRequest("The body needs either tags, the whole list, or add and remove.", param="tags")
    if "tags" in given:
        return lambda tags: tags.replaced(given["tags"])
    return lambda tags: tags.edited(given.get("add", ()), given.get("remove", ()))


def _tags(body: dict[str, Any], name: str) -> tuple[str, ...]:
    from rolecall.vision.datasets_records import clean_tags  # noqa: PLC0415 - with all the rest of datasets

    value = body[name]
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise BadRequest(f"The field {name} must be a list of texts.", param=name)
    return clean_tags(value, name)
