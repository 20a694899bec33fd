"""The registry and the machine brought together: what is in force, what can be served, what a role stands for."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from builders import row
from fakes import FakeBackend, FakeProbe
from model_places import model_gguf
from process.fake_ollama import FakeOllama
from rolecall.backends.base import Backend, Reducible
from rolecall.backends.custom import CustomCommand
from rolecall.core.models import BACKENDS, ModelEntry
from rolecall.core.selection import Rules
from rolecall.errors import ConfigurationError, ModelNotFound, NoModelForRole
from rolecall.runtime.drivers import backends
from rolecall.runtime.registry import CURATED
from rolecall.runtime.roster import Roster, choose, explain, load_profiles
from rolecall.settings import Settings, load_settings
from simulator.nvml import card

CONFIGS = Path(__file__).parents[2] / "configs"
FLORENCE = "florence-2-large_(SAFETENSORS)"
QWEN3 = "qwen3-vl-8b-instruct_(FP8)"


def write(folder: Path, *rows: Any) -> None:
    """Write the curated registry."""
    folder.mkdir(exist_ok=True)
    (folder / CURATED).write_text(json.dumps(rows))


def settings(folder: Path, environ: dict[str, str] | None = None, **values: Any) -> Settings:
    """Return the settings for a config folder."""
    return load_settings({"config_dir": folder, "state_dir": folder / "state", **values}, environ or {})


def roster(folder: Path, probe: FakeProbe | None = None, backend: Backend | None = None, **values: Any) -> Roster:
    """Return a loaded roster over a config folder, with the same backend for all."""
    made = Roster(settings(folder, **values), lambda _name: backend or FakeBackend(), probe or FakeProbe())
    made.load()
    return made


@pytest.fixture
def shipped_roster(tmp_path: Path) -> Callable[..., Roster]:
    """Return a maker of rosters over a copy of the shipped configuration, with the real backends."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)

    def make(*gpus_mb: int, **values: Any) -> Roster:
        probe = FakeProbe(*(card(index, mb) for index, mb in enumerate(gpus_mb)))
        own = settings(folder, **values)
        made = Roster(own, backends(own), probe)
        made.load()
        return made

    return make


def test_the_backends_that_entries_may_name_are_driven(tmp_path: Path) -> None:
    """What the registry takes for known without a warning is what there is a driver for."""
    driver = backends(settings(tmp_path))
    assert [driver(name).name for name in BACKENDS if not isinstance(driver(name), CustomCommand)] == list(BACKENDS)


# -- loading and reloading


def test_loading_brings_all_of_it_together(tmp_path: Path) -> None:
    """Entries, roles, the profile of the GPUs and the budget are there; the snapshot is written."""
    write(tmp_path, row("a", roles=["x"]), row("b"))
    made = roster(tmp_path, FakeProbe(card(0, 24564)))
    assert [each.name for each in made.catalog.entries] == ["a", "b"]
    assert made.catalog.roles == ("x",)
    assert (made.active.profile.name, made.active.source, made.active.budget_mb) == ("balanced_24gb", "auto", 22516)
    assert made.problem is None


def test_how_models_want_to_be_spoken_to(tmp_path: Path) -> None:
    """What their templates say is known once their files were looked at, and again when these change."""
    (tmp_path / "chat_template.jinja").write_text("{% if role == 'developer' %}")
    model = {"model_path": str(tmp_path)}
    write(tmp_path, row("a", backend_config=model), row("b", backend_config=model, developer_role=False), row("c"))
    made = roster(tmp_path)
    assert [made.traits(each).knows_developer for each in made.registry.entries] == [True, False, False]
    (tmp_path / "chat_template.jinja").write_text("{% if role == 'system' %} <think>")
    made.refresh()
    assert [made.traits(each).knows_developer for each in made.registry.entries] == [False, False, False]
    assert made.traits(made.registry.entries[0]).thinks


def test_a_broken_registry_refuses_the_start(tmp_path: Path) -> None:
    """At the start there is no last good registry to fall back to."""
    write(tmp_path, row("a", pinned="perhaps"))
    with pytest.raises(ConfigurationError, match=r"'a'.*pinned"):
        roster(tmp_path)


def test_a_folder_without_a_registry_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be the wrong one: the path is told. An empty list says that no model is wanted."""
    roster(tmp_path)
    assert [f"{tmp_path / CURATED} does not exist" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    write(tmp_path)
    roster(tmp_path)
    assert caplog.records == []


def test_a_broken_reload_keeps_the_last_good_registry(tmp_path: Path) -> None:
    """The problem is kept in words until a registry loads again; the snapshot stays that of the good one."""
    write(tmp_path, row("a"))
    made = roster(tmp_path)
    (tmp_path / CURATED).write_text("[")
    made.reload()
    assert CURATED in (made.problem or "")
    assert [each.name for each in made.catalog.entries] == ["a"]
    write(tmp_path, row("b"))
    made.reload()
    assert made.problem is None
    assert [each.name for each in made.catalog.entries] == ["b"]


def test_files_that_come_and_go(tmp_path: Path) -> None:
    """A refresh sees files that appear or vanish, and says whether anything changed."""
    model = tmp_path / "model.gguf"
    write(tmp_path, row("a", backend_config={"model_path": str(model)}))
    made = roster(tmp_path)
    assert made.catalog.unavailable == {"a": f"not installed: {model} does not exist"}
    assert made.catalog.listed() == ()
    assert not made.refresh()
    model.write_bytes(bytes(3 * 2**20))
    assert made.refresh()
    assert [each.name for each in made.catalog.listed()] == ["a"]
    assert made.configured().specs[0].footprint_mb == 3
    assert not made.refresh()
    model.unlink()
    assert made.refresh()
    assert made.catalog.listed() == ()


def test_a_reload_asks_no_daemon(tmp_path: Path) -> None:
    """It goes by the last answer; a daemon that is new counts as one without the model until the next look."""

    def ollama_row(name: str, url: str) -> dict[str, Any]:
        return row(name, backend="ollama", backend_config={"base_url": url})

    with FakeOllama("old:latest") as old, socket.create_server(("127.0.0.1", 0)) as silent:
        write(tmp_path, ollama_row("old", old.base_url))
        own = settings(tmp_path)
        made = Roster(own, backends(own), FakeProbe())
        made.load()
        assert made.catalog.unavailable == {}
        old.pulled = ()
        new_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        write(tmp_path, ollama_row("old", old.base_url), ollama_row("new", new_url))
        made.reload()
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()
        assert list(made.catalog.unavailable) == ["new"]
        assert "not asked yet" in made.catalog.unavailable["new"]
    assert made.refresh()
    assert "cannot be asked" in made.catalog.unavailable["new"]


class _ReloadsOnce(FakeBackend):
    """A backend whose first look at an entry takes so long that the registry is read again meanwhile."""

    meanwhile: Callable[[], None] | None = None

    def parallel(self, entry: ModelEntry) -> int:
        """Return the slots after whatever is to happen before."""
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return super().parallel(entry)


def test_reading_ahead_leaves_a_reload_nothing_to_read(tmp_path: Path) -> None:
    """Files of new models are read off the event loop first; a broken registry is for the reload to tell of."""
    write(tmp_path)
    own = settings(tmp_path, llama_server="embedded")
    made = Roster(own, backends(own), FakeProbe())
    made.load()
    for number in range(20):
        model_gguf(tmp_path / f"m{number}.gguf")
    write(tmp_path, *(row(f"m{n}", backend_config={"model_path": f"m{n}.gguf"}) for n in range(20)))
    made.read_ahead()
    assert made.registry.entries == ()
    before = bytes_read()
    made.reload()
    assert len(made.catalog.listed()) == 20
    assert bytes_read() - before < 20 * 2000
    (tmp_path / CURATED).write_text("[")
    made.read_ahead()
    assert (made.problem, len(made.registry.entries)) == (None, 20)


def bytes_read() -> int:
    """Return the bytes that this process has read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_a_reload_in_the_middle_of_a_look(tmp_path: Path) -> None:
    """What was seen is of the registry of before with its groups, and is not acted upon."""
    (tmp_path / "profiles.toml").write_text(
        (CONFIGS / "profiles.toml").read_text() + '\n[[groups]]\nname = "pair"\nmodels = ["a", "b"]\n'
    )
    write(tmp_path, row("a", vram_estimate_mb=100))
    backend = _ReloadsOnce()
    made = roster(tmp_path, backend=backend)

    def meanwhile() -> None:
        write(tmp_path, row("a", vram_estimate_mb=100), row("b", vram_estimate_mb=100))
        made.reload()

    backend.meanwhile = meanwhile
    seen = made.look_at_files()
    assert [spec.entry.name for spec in seen.specs] == ["a"]
    assert not made.accept(seen)
    assert [spec.entry.name for spec in made.configured().specs] == ["a", "b"]


def test_the_gpus_are_asked_again_for_their_free_memory(tmp_path: Path) -> None:
    """look_at_gpus shows this moment; the profile in force stays that of the start."""
    probe = FakeProbe(card(0, 24564, 20000))
    made = roster(tmp_path, probe)
    probe.gpus = (card(0, 24564, 5000),)
    assert made.look_at_gpus().gpus[0].vram_free_mb == 5000
    assert made.active.profile.name == "balanced_24gb"


# -- what the scheduler is told


@pytest.mark.parametrize(
    ("fields", "backend", "footprint_mb"),
    [
        ({"vram_estimate_mb": 700}, FakeBackend(), 700),
        ({"vram_estimate_mb": 0}, FakeBackend(), 0),
        ({}, FakeBackend(), None),
        ({"vram_estimate_mb": 700}, FakeBackend(managed=False), 0),
        ({"backend_config": {"model_path": "/no/such"}}, FakeBackend(), None),
        ({"backend_config": {"model_path": __file__}}, FakeBackend(), 1),
        ({"vram_estimate_mb": 700, "backend_config": {"model_path": __file__}}, FakeBackend(), 700),
    ],
)
def test_the_footprint(tmp_path: Path, fields: dict[str, Any], backend: FakeBackend, footprint_mb: int | None) -> None:
    """The estimate, else the size of the files; nothing for an engine that somebody else runs."""
    write(tmp_path, row(**fields))
    made = roster(tmp_path, backend=backend)
    (spec,) = made.configured().specs
    (candidate,) = made.candidates()
    assert (spec.footprint_mb, candidate.footprint_mb) == (footprint_mb, footprint_mb)
    assert spec.managed is backend.managed


def test_idle_time_and_slots_of_a_model(tmp_path: Path) -> None:
    """The entry's idle_unload_s, with 0 for never, goes before the profile's; the slots are the backend's."""
    write(tmp_path, row("a"), row("b", idle_unload_s=0), row("c", idle_unload_s=7, max_parallel=9))
    specs = roster(tmp_path, FakeProbe(card(0, 16376))).configured().specs
    assert [(spec.idle_unload_s, spec.max_parallel) for spec in specs] == [(300, 4), (0, 4), (7, 9)]


def test_how_models_may_be_started_smaller(tmp_path: Path) -> None:
    """As their engine can be, and the entry allows; the arguments of a command are its own."""
    fields: dict[str, Any] = {"context_length": 8192, "vram_estimate_mb": 900}
    command = {"command": ["sh", "{port}"]}
    write(
        tmp_path,
        row("a", **fields, allow_cpu=True),
        row("b", **fields),
        row("own", **fields, allow_cpu=True, backend_config=command),
    )
    able = FakeBackend(reducible=Reducible(context=True, cpu=True))
    specs = roster(tmp_path, FakeProbe(card(0, 16376)), able).configured().specs
    assert [(spec.smaller, spec.cpu_mb) for spec in specs] == [((4096, 2048), 900), ((4096, 2048), None), ((), None)]
    specs = roster(tmp_path, FakeProbe(card(0, 16376)), FakeBackend()).configured().specs
    assert {(spec.smaller, spec.cpu_mb) for spec in specs} == {((), None)}


# -- budgets and profiles


def test_without_a_gpu_the_budget_is_host_memory(tmp_path: Path) -> None:
    """The machine's memory less the reserve, under the profile for development."""
    active = roster(tmp_path, FakeProbe(problem="no driver")).active
    assert (active.profile.name, active.source) == ("development", "auto")
    assert active.budget_mb == (psutil.virtual_memory().total >> 20) - 2048


def test_a_ceiling_by_hand(tmp_path: Path) -> None:
    """max_vram_mb lowers the budget of this machine, and of any profile that selection is asked about."""
    made = roster(tmp_path, FakeProbe(card(0, 24564)), max_vram_mb=5000)
    assert (made.active.budget_mb, made.configured().budget_mb, made.rules().limit_mb) == (5000, 5000, 5000)
    assert made.rules("generous_96gb").limit_mb == 5000


@pytest.mark.parametrize(
    ("environ", "values", "source"),
    [
        ({"CHAT_PROXY_DEPLOYMENT_PROFILE": "development"}, {}, "env"),
        ({"IMAGEWORKS_DEPLOYMENT_PROFILE": "development"}, {}, "env"),
        ({}, {"deployment_profile": "development"}, "config"),
        ({"CHAT_PROXY_DEPLOYMENT_PROFILE": "balanced_24gb"}, {"deployment_profile": "development"}, "config"),
    ],
)
def test_a_profile_by_hand(tmp_path: Path, environ: dict[str, str], values: dict[str, Any], source: str) -> None:
    """A named profile is in force whatever the GPUs are, with its own budget, and says who chose it."""
    own = settings(tmp_path, environ, **values)
    made = Roster(own, lambda _name: FakeBackend(), FakeProbe(card(0, 97887)))
    made.load()
    assert (made.active.profile.name, made.active.source, made.active.budget_mb) == ("development", source, 10000)


def test_a_profile_by_hand_that_does_not_exist(tmp_path: Path) -> None:
    """The start is refused with the setting, the value, its origin, the nearest name and what is allowed."""
    own = settings(tmp_path, {"CHAT_PROXY_DEPLOYMENT_PROFILE": "balanced_24"})
    with pytest.raises(ConfigurationError) as refusal:
        Roster(own, lambda _name: FakeBackend(), FakeProbe()).load()
    words = ["deployment_profile", "CHAT_PROXY_DEPLOYMENT_PROFILE", "'balanced_24'", "'balanced_24gb'", "generous_96gb"]
    assert [word for word in words if word not in str(refusal.value)] == []


def test_the_rules_of_another_profile(tmp_path: Path) -> None:
    """They are that profile's own, with its budget; those of the one in force have this machine's."""
    made = roster(tmp_path, FakeProbe(card(0, 24564)), quality_tolerance=5)
    assert made.rules("constrained_16gb") == Rules(
        14000, ("q4_k_m", "fp8", "awq", "q5_k_m", "q8_0"), "vram_efficient", 5
    )
    assert (made.rules().limit_mb, made.rules().bias) == (22516, "balanced")
    with pytest.raises(ConfigurationError, match=r"'nope'.*development"):
        made.rules("nope")


def test_profiles_of_the_folder_and_shipped_ones(tmp_path: Path) -> None:
    """A folder without profiles.toml has the shipped five; a broken one is refused by its name."""
    assert len(load_profiles(tmp_path)) == 5
    (tmp_path / "profiles.toml").write_text("[profiles.mine]\nmax_vram_mb = 0")
    with pytest.raises(ConfigurationError, match=r"profiles\.toml.*'mine'"):
        load_profiles(tmp_path)
    (tmp_path / "profiles.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"profiles\.toml"):
        load_profiles(tmp_path)


# -- what a role stands for


def answer(made: Roster, role: str, *, full: bool = False, **query: Any) -> Any:
    """Return the answer of select_by_role while nothing is loaded."""
    profile = query.get("profile") or made.active.profile.name
    return explain(choose(made, made.candidates(), role, **query), profile, full=full)


def test_the_shipped_registry_on_a_16_gb_card(shipped_roster: Callable[..., Roster]) -> None:
    """Keywords are florence's, then qwen3-vl's, with the figures of the registry."""
    made = shipped_roster()
    query: dict[str, Any] = {"profile": "constrained_16gb", "include_non_installed": True}
    assert answer(made, "keywords", **query) == {
        "model": FLORENCE,
        "role": "keywords",
        "priority": 95,
        "vram_estimate_mb": 3500,
        "profile": "constrained_16gb",
    }
    second = answer(made, "keywords", exclude=[FLORENCE], **query)
    assert (second["model"], second["priority"], second["vram_estimate_mb"]) == (QWEN3, 80, 10600)


@pytest.mark.parametrize(
    ("gpus_mb", "role", "model"),
    [
        ((16376,), "caption", QWEN3),
        ((16376,), "keywords", FLORENCE),
        ((10240,), "caption", "qwen25vl_8.3b_(Q4_K_M)"),
        ((8192,), "keywords", FLORENCE),
        ((4096,), "caption", "demo-vision"),
        ((24564,), "reasoning", "gpt-oss-20b_(MXFP4)"),
        ((16376,), "reasoning", "gpt-oss-20b_(MXFP4)"),
        ((8192,), "reasoning", "demo-reasoning"),
        ((8192,), "embedding", "siglip-large-patch16-384_(FP32)"),
        ((8192,), "object_detection", FLORENCE),
    ],
)
def test_roles_on_machines(
    shipped_roster: Callable[..., Roster], gpus_mb: tuple[int, ...], role: str, model: str
) -> None:
    """With all of the shipped models installed, each machine takes the best that fits it."""
    assert answer(shipped_roster(*gpus_mb), role, include_non_installed=True)["model"] == model


def test_a_fresh_machine_says_why_it_takes_what_it_takes(shipped_roster: Callable[..., Roster]) -> None:
    """With explain no entry of the role is missing: candidates in order, the others each with a reason."""
    full = answer(shipped_roster(16376), "keywords", full=True, include_non_installed=True, exclude=["demo-vision"])
    assert full["model"] == FLORENCE
    assert full["profile"] == "constrained_16gb"
    assert [candidate["priority"] for candidate in full["candidates"]] == [95, 80, 75]
    assert [(each["model"], each["why"]) for each in full["rejected"]] == [("demo-vision", "excluded")]
    fresh = answer(shipped_roster(16376), "keywords", full=True)
    assert fresh["model"] is None
    assert {each["model"] for each in fresh["rejected"]} == {FLORENCE, QWEN3, "qwen25vl_8.3b_(Q4_K_M)", "demo-vision"}
    assert all(each["reason"] for each in fresh["rejected"])


def test_the_setting_for_non_installed_models(shipped_roster: Callable[..., Roster]) -> None:
    """include_non_installed as a setting does what it does in a query."""
    assert answer(shipped_roster(16376, include_non_installed=True), "keywords")["model"] == FLORENCE


def test_no_answer(shipped_roster: Callable[..., Roster]) -> None:
    """A role that nobody plays, one that nobody can serve now, and a profile that does not exist differ."""
    made = shipped_roster(16376)
    with pytest.raises(ModelNotFound, match="role:caption"):
        answer(made, "captions")
    with pytest.raises(NoModelForRole, match=FLORENCE[:10]):
        answer(made, "object_detection")
    with pytest.raises(ConfigurationError, match="nope"):
        answer(made, "keywords", profile="nope")
