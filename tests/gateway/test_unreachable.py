"""Engines that nobody reaches: what the client is told, and what the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.test_engine_context import lease
from rolecall.backends.base import Upstream
from rolecall.errors import UpstreamUnreachable
from rolecall.gateway.unreachable import Unreachable

ERROR = UpstreamUnreachable("The engine cannot be reached: Connection refused.")


async def test_the_model_is_for_the_client_the_address_for_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """Neither shows the password that an address may hold; the terminal is told once in ten seconds."""
    now = 100.0
    unreachable = Unreachable(lambda: now)
    held = replace(lease(), upstream=Upstream("http://me:rc-canary@box.lan:8080/v1"))
    named = [unreachable.named(ERROR, held) for _ in range(3)]
    assert {error.message for error in named} == {"The engine of 'alpha' cannot be reached: Connection refused."}
    told = "the engine of 'alpha' at http://box.lan:8080/v1 cannot be reached: Connection refused."
    assert [record.getMessage() for record in caplog.records] == [told]
    now += 10
    unreachable.named(ERROR, held)
    assert [record.getMessage() for record in caplog.records] == [told, told]
