"""The HTTP surface: which path is answered by what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from rolecall.core.catalog import ROLE_PREFIX, Target
from rolecall.core.json_text import escaped
from rolecall.core.keys import Scope as ApiKeyScope
from rolecall.core.learning import Footprint
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Candidate, Demand
from rolecall.core.slot import ModelStatus
from rolecall.errors import BadRequest, ConfigurationError, NotFound
from rolecall.gateway import views
from rolecall.gateway.caller import caller_of
from rolecall.gateway.inference import Inference
from rolecall.gateway.query import read_flag
from rolecall.gateway.services import Services
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.roster import choose, explain
from rolecall.runtime.settings_reload import Reread
from rolecall.runtime.supervisor import EngineStatus

INFERENCE_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/tokenize",
    "/detokenize",
)

Need = ApiKeyScope | Literal["open"]
"""What a request needs: a key with a scope, or nothing at all, not even a key."""


class ScopedRoute(Route):
    """A route that says itself what its callers need; None is any key."""

    def __init__(
        self, path: str, endpoint: ASGIApp | Callable[..., Any], *, methods: list[str], need: Need | None
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.need = need


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the encoded object."""
        try:
            return orjson.dumps(content)
        except orjson.JSONEncodeError:  # a lone surrogate, as an environment variable may have
            return escaped(json.dumps(content, ensure_ascii=False)).encode()


def routes(
    services: Services,
    inference: Inference,
    reload: Callable[[], Awaitable[Reread]],
    created: int,
    key_problem: Callable[[], str | None] = lambda: None,
) -> list[ScopedRoute]:
    """Return all routes of the gateway.

    ``created`` is the time (s since the epoch) that model cards show, ``key_problem`` what is wrong with the key file.
    """
    api = _Api(services, reload, created, key_problem)
    table: list[tuple[str, str, Callable[[Request], Awaitable[Json]], Need | None]] = [
        ("POST", "/v1/models/{id:path}/load", api.load, "admin"),
        ("POST", "/v1/models/{id:path}/unload", api.unload, "admin"),
        ("POST", "/v1/models/{id:path}/pin", api.pin, "admin"),
        ("POST", "/v1/models/{id:path}/unpin", api.unpin, "admin"),
        ("POST", "/v1/admin/reload", api.reload, "admin"),
        ("GET", "/health", api.health, "open"),  # who may not know more learns only that it is up
        ("GET", "/v1/models", api.models, None),
        ("GET", "/v1/models/select_by_role", api.select_by_role, None),
        ("GET", "/v1/models/health", api.models_health, "admin"),
        ("GET", "/v1/config/profile", api.profile, "admin"),
        ("GET", "/v1/config/proxy", api.settings, "admin"),
        ("GET", "/v1/models/{id:path}", api.model, None),
    ]
    return [
        *(ScopedRoute(path, inference, methods=["POST"], need="inference") for path in INFERENCE_PATHS),
        *(ScopedRoute(path, endpoint, methods=[method], need=need) for method, path, endpoint, need in table),
    ]


def needed_scope(routes: Iterable[ScopedRoute]) -> Callable[[Scope], Need | None]:
    """Return a function that tells the scope of an API key that a request needs; None where any key will do.

    ``open`` is what needs no key, such as a page that asks for one. It asks the routes themselves, in the router's
    order, so that both mean the same one; what no route answers needs any key.
    """
    all_routes = tuple(routes)
    inference = frozenset(route.path for route in all_routes if isinstance(route.endpoint, Inference))

    def needed(scope: Scope) -> Need | None:
        if scope["method"] == "POST" and scope["path"] in inference:  # as most are: no pattern needs to be tried
            return "inference"
        found = next((route for route in all_routes if route.matches(scope)[0] is Match.FULL), None)
        return None if found is None else found.need

    return needed


class _Api:
    def __init__(
        self,
        services: Services,
        reload: Callable[[], Awaitable[Reread]],
        created: int,
        key_problem: Callable[[], str | None],
    ) -> None:
        self._services = services
        self._reload = reload
        self._created = created
        self._key_problem = key_problem

    async def health(self, request: Request) -> Json:
        s = self._services
        whole = views.health(s.roster, s.supervisor, s.recorder, s.problems(self._key_problem()))
        return Json(whole if caller_of(request.scope).may("admin") else views.short_health(whole))

    async def models(self, request: Request) -> Json:
        include = read_flag(request, "include_non_installed") or self._services.settings.include_non_installed
        listed = self._services.roster.catalog.listed(include_non_installed=include)
        caller = caller_of(request.scope)
        return Json(views.model_list(self._card(entry.name) for entry in listed if caller.sees(entry)))

    async def model(self, request: Request) -> Json:
        id_ = request.path_params["id"]
        target = caller_of(request.scope).find(self._services.roster.resolve, id_)
        if target.role is None:
            card = self._card(target.entries[0].name)
        else:
            candidates = self._candidates(target)
            selection = choose(self._services.roster, candidates, target.role, profile=target.profile)
            card = self._card(selection.best().name)
        return Json(card if card["id"] == id_ else {**card, "id": id_, "resolves_to": card["id"]})

    def _candidates(self, target: Target) -> list[Candidate]:
        names = {entry.name for entry in target.entries}
        return [candidate for candidate in self._services.supervisor.candidates() if candidate.name in names]

    def _card(self, name: str) -> dict[str, Any]:
        roster, supervisor = self._services.roster, self._services.supervisor
        entry = roster.catalog.get(name)
        parallel = roster.backend(entry).parallel(entry)
        return views.model_card(entry, roster.catalog, supervisor.scheduler.state(name), self._created, parallel)

    async def models_health(self, _request: Request) -> Json:
        catalog = self._services.roster.catalog
        supervisor = self._services.supervisor
        report = await self._gpus() if self._services.roster.gpus.gpus else None
        footprints = await asyncio.to_thread(self._footprints, [entry.name for entry in catalog.entries])
        return Json(views.models_health(supervisor, catalog, footprints, report))

    def _footprints(self, names: Iterable[str]) -> dict[str, Footprint | None]:
        return {name: self._services.supervisor.footprint(name) for name in names}

    async def _gpus(self) -> GpuReport:
        """Ask the driver, which may hang, by the one watch that copes with that."""
        memory = self._services.supervisor.memory
        return await memory.look() if memory else await asyncio.to_thread(self._services.roster.look_at_gpus)

    async def select_by_role(self, request: Request) -> Json:
        query = request.query_params
        role = query.get("role", "").removeprefix("role:")
        if not role:
            raise BadRequest("The query needs a role, as in ?role=caption.", param="role")
        target = caller_of(request.scope).find(lambda _: self._services.roster.catalog.role(role), ROLE_PREFIX + role)
        profile = query.get("profile") or None
        listed = query.getlist("exclude_models")
        excluded = [name for value in listed for name in (value, *map(str.strip, value.split(",")))]
        try:
            selection = choose(
                self._services.roster,
                self._candidates(target),
                role,
                profile=profile,
                exclude=excluded,
                include_non_installed=read_flag(request, "include_non_installed"),
            )
        except ConfigurationError as error:
            raise BadRequest(str(error), param="profile") from None
        name = profile or self._services.roster.active.profile.name
        return Json(explain(selection, name, full=read_flag(request, "explain")))

    async def profile(self, _request: Request) -> Json:
        roster = self._services.roster
        return Json(views.profile_view(roster.active, await self._gpus()))

    async def settings(self, _request: Request) -> Json:
        return Json(views.settings_view(self._services.settings))

    async def load(self, request: Request) -> Json:
        target = self._services.roster.resolve(request.path_params["id"])
        demand = Demand(target.role, profile=target.profile)
        return await self._row(await self._services.supervisor.load(target.entries, demand))

    async def pin(self, request: Request) -> Json:
        return await self._pin(request, pinned=True)

    async def unpin(self, request: Request) -> Json:
        return await self._pin(request, pinned=False)

    async def _pin(self, request: Request, *, pinned: bool) -> Json:
        entry = self._named(request, "Pin" if pinned else "Unpin")
        if not self._services.roster.backend(entry).managed:
            raise BadRequest(f"The model {entry.name!r} is run by somebody else; it makes room for nobody.", param="id")
        self._services.supervisor.pin(entry, pinned=pinned)
        return await self._row(entry)

    def _named(self, request: Request, what: str) -> ModelEntry:
        """Return the model that a path names; raises ``BadRequest`` for a role."""
        target = self._services.roster.resolve(request.path_params["id"])
        if target.role is not None:
            names = ", ".join(entry.name for entry in target.entries)
            raise BadRequest(f"{what} takes a model's name; the role {target.role!r} is played by {names}.", param="id")
        return target.entries[0]

    async def unload(self, request: Request) -> Json:
        entry = self._named(request, "Unload")
        await self._services.supervisor.unload(entry)
        return await self._row(entry)

    async def reload(self, _request: Request) -> Json:
        try:
            found = await self._reload()
        except ConfigurationError as error:
            raise BadRequest(f"The settings are wrong, the last good ones stay in force: {error}") from None
        if problems := self._services.problems_of_configuration():
            raise BadRequest("\n".join(problem[0].upper() + problem[1:] for problem in problems))
        registry = self._services.roster.registry
        settings = {"applied": found.applied, "restart": found.pending}
        return Json({"entries": len(registry.entries), "warnings": list(registry.warnings), "settings": settings})

    async def _row(self, entry: ModelEntry) -> Json:
        supervisor = self._services.supervisor
        footprint = await asyncio.to_thread(supervisor.footprint, entry.name)
        gone = EngineStatus(ModelStatus(entry.name, State.STOPPED), entry.backend)
        rows = (row for row in supervisor.status() if row.model.name == entry.name)
        row = next(rows, gone)  # the entry may have been removed meanwhile
        return Json(views.engine_row(row, footprint, supervisor.scheduler.ledger))


def not_found(path: str) -> NotFound:
    """Return the error for a path that nothing answers."""
    return NotFound(f"There is nothing at {path[:200]}; models are at /v1/models, chat is at /v1/chat/completions.")
