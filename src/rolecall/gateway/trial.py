"""A request that takes part in an experiment: sent as its variant says, or else as the control does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rolecall.core.catalog import ROLE_PREFIX, Target
from rolecall.errors import RolecallError
from rolecall.gateway.account import Account
from rolecall.gateway.caller import Caller
from rolecall.gateway.dispatch import CANNOT_SERVE, Dispatch
from rolecall.gateway.header_text import header_text
from rolecall.gateway.incoming import Incoming
from rolecall.gateway.services import Services
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.lease import Lease

if TYPE_CHECKING:
    from rolecall.core.experiments import Assignment, Experiments, Variant

_HEADER, _SESSION = b"x-rolecall-experiment", b"x-session-id"
FORCED = "forced"
FALLBACK = "fallback"
KEPT = "kept"


class Trial:
    """One request's part in an experiment.

    Its line says which variant it was assigned, whatever became of it: what is compared is what was intended, or a
    variant whose model fails to start for the hard requests would look better for it. ``variant_note`` says where the
    request did not get all of it.
    """

    def __init__(self, services: Services, caller: Caller, account: Account, assignment: Assignment) -> None:
        self._services = services
        self._caller = caller
        self._line = account.line
        self._own_version = account.line.prompt_version
        self._assignment = assignment
        self._has_fallen_back = False
        self._line.experiment, self._line.variant = assignment.experiment.name, assignment.name
        if assignment.unit is not None:
            self._line.experiment_unit = assignment.unit
        if assignment.is_forced:
            self._note(FORCED)

    @property
    def words(self) -> str:
        """What the answer's header says: ``NAME=VARIANT``."""
        return self._assignment.words

    async def send(self, dispatch: Dispatch, incoming: Incoming, target: Target) -> tuple[UpstreamResponse, Lease]:
        """Send the request to the variant's model, else to the control's, else to whoever answers without experiment.

        The last of them is the one whose refusal the client is told.
        """
        ways = list(self._ways(target))
        await incoming.settle(_together([target, *(way for way, _ in ways)]))
        for way, variant in ways:
            self._treat(incoming, variant)
            try:
                found = await dispatch.send_to(way)
            except CANNOT_SERVE as error:
                self._fall_back(error)
            else:
                self._line.role_selector = f"experiment {self.words}"
                return found
        assigned = self._assignment
        self._treat(incoming, assigned.variant if assigned.variant.model is None else assigned.control)
        return await dispatch.send(target)

    def _ways(self, target: Target) -> Iterator[tuple[Target, Variant]]:
        """Yield the models to ask before the request's own target, each with its variant."""
        assigned = self._assignment
        variants = [assigned.variant]
        if assigned.variant is not assigned.control:
            variants.append(assigned.control)
        for variant in variants:
            if variant.model is None:
                return
            try:
                yield self._found(variant.model, target), variant
            except CANNOT_SERVE as error:
                self._fall_back(error)

    def _found(self, name: str, target: Target) -> Target:
        """Return the models of a variant, as far as the caller may use them; raises what ``CANNOT_SERVE`` has.

        Who may ask for a role may be given the model of an experiment on it.
        """
        found = self._services.roster.resolve(name)
        if name[: len(ROLE_PREFIX)].lower() == ROLE_PREFIX:
            return self._caller.check(found)
        return replace(self._caller.check(replace(found, role=target.role)), role=None)

    def _treat(self, incoming: Incoming, variant: Variant) -> None:
        if (words := incoming.treat(variant)) and variant is self._assignment.variant:
            self._note(f"{KEPT} {' '.join(words)}")
        self._line.prompt_version = variant.prompt_version or self._own_version

    def _fall_back(self, error: RolecallError) -> None:
        if not self._has_fallen_back:
            self._has_fallen_back = True
            self._note(f"{FALLBACK} {error.code}")

    def _note(self, words: str) -> None:
        self._line.variant_note = "; ".join(filter(None, [self._line.variant_note, words]))


def _together(targets: Sequence[Target]) -> Target:
    """Return the first target with the entries of all of them, each once."""
    entries = {entry.name: entry for target in targets for entry in target.entries}
    return replace(targets[0], entries=tuple(entries.values()))


def enter(  # noqa: PLR0913, PLR0917 - what a request is, and who serves it
    experiments: Experiments,
    services: Services,
    caller: Caller,
    account: Account,
    target: Target,
    endpoint: str,
) -> Trial | None:
    """Return the request's part in an experiment, None if it has none.

    Raises ``BadRequest`` for a header that names no variant.
    """
    from rolecall.core.experiments import Asked  # noqa: PLC0415 - it is there: there are experiments

    headers, line = account.headers, account.line
    asked = Asked(
        endpoint=endpoint,
        role=target.role,
        prompt=line.prompt_id,
        key=caller.name,
        session=header_text(headers, _SESSION),
        request_id=line.request_id or "",
    )
    assignment = experiments.assign(asked, time.time(), header_text(headers, _HEADER))
    return None if assignment is None else Trial(services, caller, account, assignment)
