"""What a model will need is known by the beginning of its file, while that is still on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_shapes import Shape, described, transformer, write_gguf
from harness import CONFIGS
from hub_server import Fault, HubServer, Repo

pytest.importorskip("huggingface_hub", reason="pulling needs an extra: rolecall[hub]")

from rolecall.core.footprint import Demands
from rolecall.core.gguf_footprint import gguf_estimate
from rolecall.core.hub_fit import Knowledge, scaled
from rolecall.core.hub_listing import choices
from rolecall.hub.client import Hub
from rolecall.hub.plan import Machine, offer
from rolecall.hub.remote_header import knowledge, remote_header
from rolecall.runtime.gguf_facts import gguf_facts
from rolecall.runtime.gguf_header import read_gguf
from rolecall.settings import load_settings

NAME = "acme/Tiny-GGUF"
MODEL = "tiny-Q8_0.gguf"


def offered(server: HubServer, **files: bytes) -> Hub:
    """Return a client of a hub with these files, whose names end in ``.gguf``."""
    server.repos[NAME] = Repo({f"{name}.gguf": content for name, content in files.items()})
    return Hub(wait=lambda _seconds, _why: None)


def known(hub: Hub, most_context: int = 8192) -> Knowledge | None:
    """Return what is known of the repository's model."""
    found = hub.repository(NAME)
    return knowledge(hub, found, choices(found.files), most_context)


def made(folder: Path, shape: Shape) -> bytes:
    """Return a GGUF of that shape."""
    return write_gguf(folder / "made.gguf", *shape).read_bytes()


def test_the_beginning_says_what_the_whole_file_does(hub: HubServer, tmp_path: Path) -> None:
    """A header with a vocabulary of megabytes comes in some steps, and the weights stay where they are."""
    path = write_gguf(tmp_path / MODEL, *transformer(layers=8, width=512, words=200_000))
    client = offered(hub, **{"tiny-Q8_0": path.read_bytes()})
    repository = client.repository(NAME)
    header, own = remote_header(client, repository, repository.files[0]), read_gguf(path)
    assert (header.metadata, header.tensors) == (own.metadata, own.tensors)
    fetched = [span.removeprefix("bytes=").split("-") for span in hub.asked(MODEL) if span]
    assert sum(int(last) + 1 - int(first) for first, last in fetched) < path.stat().st_size / 4
    assert len(fetched) < 6


def test_another_quantization_needs_what_its_own_file_would_say(hub: HubServer, tmp_path: Path) -> None:
    """Scaled by the size of its file, a header serves for all of them: within 5 % of what each one says itself."""
    (described_, tensors), demands = transformer(layers=8, width=1024, feed_forward=4096), Demands(context_tokens=8192)
    client = offered(hub, **{"tiny-Q8_0": made(tmp_path, (described_, tensors))})
    half = [(name, shape, 12 if kind == 8 else kind) for name, shape, kind in tensors]  # Q8_0 becomes Q4_K
    path = write_gguf(tmp_path / "half.gguf", described_, half)
    fact = known(client)
    assert fact is not None
    assert fact.context_tokens == 8192
    guessed = gguf_estimate(scaled(fact.facts, path.stat().st_size), demands).mb
    assert guessed == pytest.approx(gguf_estimate(gguf_facts(read_gguf(path)), demands).mb, rel=0.05)


def test_the_headers_of_all_parts_are_one(hub: HubServer, tmp_path: Path) -> None:
    """Of a split model each part has the tensors that lie in it."""
    metadata, tensors = transformer(layers=4)
    first, second = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    part, other = made(tmp_path, (metadata, first)), made(tmp_path, ({"split.no": 1}, second))
    client = offered(hub, **{"tiny-Q8_0-00001-of-00002": part, "tiny-Q8_0-00002-of-00002": other})
    fact = known(client)
    assert fact is not None
    assert len(fact.facts.layers) == 4
    assert (
        fact.facts.tensor_bytes
        == gguf_facts(read_gguf(write_gguf(tmp_path / "w.gguf", metadata, tensors))).tensor_bytes
    )


def test_a_projector_is_looked_at_as_well(hub: HubServer, tmp_path: Path) -> None:
    """Its tensors count, and its header is read like the model's."""
    eyes = write_gguf(tmp_path / "mmproj.gguf", {"clip.vision.image_size": 64}, [("v.x", (64, 64), 0)]).read_bytes()
    client = offered(hub, **{"tiny-Q8_0": made(tmp_path, transformer()), "mmproj-F16": eyes})
    fact = known(client)
    assert fact is not None
    assert fact.projector is not None
    assert fact.projector.tensor_bytes == 64 * 64 * 4


@pytest.mark.parametrize("content", [b"GGUF" + bytes(2000), b"<html>" * 500])
def test_a_file_that_makes_no_sense_says_nothing(hub: HubServer, content: bytes) -> None:
    """Then the sizes of files must do."""
    assert known(offered(hub, **{"tiny-Q8_0": content})) is None


def test_a_header_that_cannot_be_had_says_nothing(hub: HubServer, tmp_path: Path) -> None:
    """A gated file is no reason not to show what there is; neither is one that describes nothing, or too many parts."""
    client = offered(hub, **{"tiny-Q8_0": made(tmp_path, transformer())})
    hub.repos[NAME].gated = "auto"
    assert known(client) is None
    assert known(offered(hub, **{"tiny-Q8_0": made(tmp_path, (described("llama", {}), []))})) is None
    parts = {f"tiny-Q8_0-{number:05}-of-00017": b"x" for number in range(1, 18)}
    assert known(offered(hub, **parts)) is None


def test_a_server_without_ranges_is_read_from_its_beginning(hub: HubServer, tmp_path: Path) -> None:
    """Only as much is taken of what it sends as is needed."""
    client = offered(hub, **{"tiny-Q8_0": made(tmp_path, transformer(words=60_000))})
    hub.fault(MODEL, Fault(times=-1, ranges=False))
    assert known(client) is not None


def test_a_break_in_the_middle_of_a_header_is_asked_for_again(hub: HubServer, tmp_path: Path) -> None:
    """As for whole files, what passes is waited for."""
    client = offered(hub, **{"tiny-Q8_0": made(tmp_path, transformer(words=60_000))})
    hub.fault(MODEL, Fault(times=1, cut_after=1000))
    hub.fault(MODEL, Fault(times=1, status=503))
    assert known(client) is not None


def test_a_header_that_comes_too_slowly_is_not_waited_for(hub: HubServer, tmp_path: Path) -> None:
    """The sizes of the files must do, and that is told: of one that drips, and of a hub that asks for a pause."""
    waited: list[float] = []
    offered(hub, **{"tiny-Q8_0": made(tmp_path, transformer(words=60_000))})
    client = Hub(wait=lambda seconds, _why: waited.append(seconds))
    machine = Machine.of(load_settings({"config_dir": CONFIGS, "state_dir": tmp_path / "state"}))
    for fault in (Fault(times=1, pause_s=0.05), Fault(times=1, status=503, headers={"Retry-After": "60"})):
        told: list[str] = []
        hub.fault(MODEL, fault)
        found = offer(client, client.repository(NAME), machine, headers_within_s=0.3, tell=told.append)
        assert [each.is_guessed for each in found.fits] == [True]
        assert told[0] == f"reading the beginning of {MODEL}"
        assert told[1].endswith("what it needs is guessed by the sizes of its files")
    assert waited == []
    assert [each.is_guessed for each in offer(client, client.repository(NAME), machine).fits] == [False]
