"""The documentation says what is there: examples load, tables are complete, commands and links exist."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from pydantic import BaseModel
from typer.core import TyperGroup

from rolecall import __version__
from rolecall.cli import app as command_line
from rolecall.core.catalog import Catalog
from rolecall.core.discovery import Rule, When, read_rules
from rolecall.core.experiments import Experiment, Variant, read_experiments
from rolecall.core.lifecycle import State, diagram
from rolecall.core.markers_file import read_markers
from rolecall.core.models import BackendConfig, HistoryRules, ModelEntry, RequestRules
from rolecall.core.profiles import Profile, parse_profiles
from rolecall.core.registry import read_registry
from rolecall.core.transforms import read_facts
from rolecall.errors import RolecallError
from rolecall.gateway.app import create_app
from rolecall.gateway.recorder import RequestLine, encode
from rolecall.gateway.routes import INFERENCE_PATHS
from rolecall.gateway.server import running_gateway
from rolecall.insight.log_database import Tally, foreign_query
from rolecall.insight.log_statistics import BY, FIGURES
from rolecall.runtime.drivers import backends
from rolecall.runtime.roster import load_roster
from rolecall.runtime.settings_reload import LIVE
from rolecall.settings import PREFIX, Settings, load_settings
from rolecall.vision.datasets_routes import dataset_routes
from rolecall.vision.single_extension import single_requests
from rolecall.vision.task import Dimension, Task, Validation, Variable
from rolecall.vision.task import Image as PictureRules
from rolecall.vision.tasks import load_tasks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md")))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def all_blocks(language: str) -> Iterator[Any]:
    """The blocks of all pages as test parameters, named by page and number."""
    for path in PAGES:
        for number, block in enumerate(blocks(path.read_text(encoding="utf-8"), language), 1):
            yield pytest.param(block, id=f"{path.stem}-{number}")


def table(text: str, *heading: str) -> list[list[str]]:
    """The rows of the tables that have this heading; cells without backticks."""
    lines = iter(text.splitlines())
    rows: list[list[str]] = []
    for line in lines:
        if _cells(line)[: len(heading)] == list(heading):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append(_cells(row))
    assert rows, f"there is no table with the heading {heading}"
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]


def column(rows: list[list[str]], number: int = 0) -> list[str]:
    return [row[number] for row in rows]


# -- examples


@pytest.mark.parametrize("block", list(all_blocks("json")))
def test_json_examples_are_json_and_registry_examples_can_be_served(block: str, tmp_path: Path) -> None:
    """Every JSON block parses; a list is a registry that loads without a warning and whose backends accept it."""
    data = json.loads(block)
    if not isinstance(data, list):
        return
    registry = read_registry(data)
    assert registry.warnings == ()
    settings = load_settings({"config_dir": tmp_path, "state_dir": tmp_path}, {})
    backend_for = backends(settings)
    assert {entry.name: backend_for(entry.backend).unavailable(entry) for entry in registry.entries} == {
        entry.name: None for entry in registry.entries
    }


@pytest.mark.parametrize("block", list(all_blocks("toml")))
def test_toml_examples_load(block: str, tmp_path: Path) -> None:
    """A TOML block is a rolecall.toml, profiles.toml, discovery.toml, experiments.toml or a task, and takes effect."""
    data = tomllib.loads(block)
    if "parser" in data:
        assert Task.model_validate(data).id == data["id"]
        return
    if any(isinstance(table, dict) and "variants" in table for table in data.values()):
        assert [experiment.name for experiment in read_experiments(data).all] == list(data)
        return
    if "markers" in data:
        assert list(read_markers(data).groups) == list(data["markers"])
        return
    if "rules" in data:
        assert [rule.name for rule in read_rules(data).rules] == [rule["name"] for rule in data["rules"]]
        return
    if "profiles" in data:
        assert list(parse_profiles(data)) == list(data["profiles"])
        return
    (tmp_path / "rolecall.toml").write_text(block, encoding="utf-8")
    settings = load_settings({"config_dir": tmp_path}, {})
    assert {name: str(getattr(settings, name)) for name in data} == {name: str(value) for name, value in data.items()}


@pytest.mark.parametrize("block", list(all_blocks("python")))
def test_python_examples_compile(block: str) -> None:
    """Python examples have no syntax error and reach the default port."""
    compile(block, "example", "exec")
    assert f":{Settings.model_fields['port'].default}/v1" in block


def test_experiments() -> None:
    """The tables of experiments name every field; the shipped file has none that is active, and its examples load."""
    listed = {
        name
        for cell in column(table(page("experiments.md"), "field of an experiment"))
        for name in re.split(r" or |, ", cell)
    }
    assert listed | {"name"} == set(Experiment.model_fields)
    assert column(table(page("experiments.md"), "field of a variant")) == list(Variant.model_fields)
    text = (ROOT / "configs" / "experiments.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text) == {}
    examples = "\n".join(line[2:] for line in text.splitlines()[4:])
    assert [experiment.name for experiment in read_experiments(tomllib.loads(examples)).all] == [
        "caption-model",
        "cooler",
    ]


@pytest.mark.parametrize("block", list(all_blocks("sql")))
def test_sql_examples_are_answered(block: str, tmp_path: Path) -> None:
    """Each query of the pages is one that the log can be asked."""
    (tmp_path / "log.jsonl").write_bytes(
        encode(RequestLine(request_id="a", error="code: words", role="chat").as_dict())
    )
    with foreign_query(tmp_path / "log.jsonl", block) as (database, answer):
        assert answer.columns
        assert answer.dicts() is not None
        assert database.tally == Tally(lines=1)


def test_figures_of_the_log_are_documented() -> None:
    """The page of the log names each figure and each way of putting lines together."""
    text = page("logs.md")
    assert all(f"`{name}`" in text for name in (*FIGURES, *BY))


def test_first_screen_of_the_readme() -> None:
    """The README begins with a clone, `make run`, and a request that the shipped demo models can answer."""
    first, second, *_ = blocks(README.read_text(encoding="utf-8"), "sh")
    assert first.startswith("git clone <this repository>")
    assert first.splitlines()[-1] == "make run"
    command, *arguments = shlex.split(second)
    assert command == "curl"
    url = next(word for word in arguments if word.startswith("http"))
    body = json.loads(arguments[arguments.index("-d") + 1])
    path = url.removeprefix(f"http://127.0.0.1:{Settings.model_fields['port'].default}")
    facts = read_facts(body, path, max_image_bytes=1000)
    assert path in INFERENCE_PATHS
    assert facts.stream
    playing = _shipped_catalog().resolve(facts.model).entries
    assert any(entry.name.startswith("demo-") and facts.needs <= entry.all_capabilities for entry in playing)
    _assert_picture(body["messages"][0]["content"][1]["image_url"]["url"])


def _shipped_catalog() -> Catalog:
    text = (ROOT / "configs" / "model_registry.curated.json").read_text(encoding="utf-8")
    return Catalog(read_registry(json.loads(text)).entries)


def _assert_picture(url: str) -> None:
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG"


# -- tables


def test_every_setting_is_documented() -> None:
    """The table of settings has each setting with its variable and default, in order, and nothing else."""
    documented = [row[:3] for row in table(page("configuration.md"), "setting", "environment variable")]
    assert documented == [[name, PREFIX + name.upper(), _default(name)] for name in Settings.model_fields]


def _default(name: str) -> str:
    value = Settings.model_fields[name].default
    if name in {"config_dir", "state_dir"}:
        return "see above"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_settings_that_a_reload_changes_are_documented() -> None:
    """Those that take effect while rolecall runs are named, in order, and no others."""
    said = page("configuration.md").partition("In force at once are ")[2].partition(", for requests")[0]
    assert re.findall(r"`([a-z_]+)`", said) == sorted(LIVE)


def test_every_registry_field_is_documented() -> None:
    """The tables of registry fields have each field of an entry and of its parts."""
    documented = column(table(page("configuration.md"), "field", "meaning"))
    profile = [name for name in Profile.model_fields if name != "name"]
    parts: dict[str, type[BaseModel]] = {
        "backend_config": BackendConfig,
        "request": RequestRules,
        "history": HistoryRules,
    }
    entry = [*ModelEntry.model_fields, *(name for part, model in parts.items() for name in _names(part, model))]
    assert sorted(documented) == sorted([*profile, *entry])


def _names(prefix: str, model: type[BaseModel]) -> list[str]:
    return [f"{prefix}.{name}" for name in model.model_fields]


def test_every_field_of_a_task_is_documented() -> None:
    """The table of a task's fields has each field, and those of its parts, in their order."""
    parts: dict[str, type[BaseModel]] = {
        "variables": Variable,
        "dimensions": Dimension,
        "image": PictureRules,
        "validation": Validation,
    }
    fields_of = {
        name: _names(name if name in {"image", "validation"} else f"{name}.NAME", parts[name]) for name in parts
    }
    expected = [each for name in Task.model_fields for each in fields_of.get(name, [name])]
    assert column(table(page("configuration.md"), "field", "of a task")) == expected


def test_the_shipped_tasks_are_documented() -> None:
    """The table of tasks has those that come with rolecall, each with its role."""
    documented = dict(row[:2] for row in table(page("configuration.md"), "task", "role", "asks for"))
    assert documented == {task.id: task.role for task in load_tasks(ROOT / "configs" / "tasks").values()}


def test_the_shipped_profiles_are_documented() -> None:
    """The table of profiles shows profiles.toml as it is shipped."""
    heading = ["max_vram_mb", "gpu_count", "max_concurrent_models", "preferred_quantizations", "strategy", "bias"]
    rows = table(page("configuration.md"), "profile", *heading, "idle_unload_s")
    shipped = parse_profiles(tomllib.loads((ROOT / "configs" / "profiles.toml").read_text(encoding="utf-8")))
    assert rows == [
        [name, *(_shown(getattr(profile, field)) for field in (*heading, "idle_unload_s"))]
        for name, profile in shipped.items()
    ]


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def test_the_rules_of_discovery_are_documented() -> None:
    """The page of models has each condition and each effect of a rule, and those of the shipped file explain it."""
    assert column(table(page("models.md"), "condition", "holds if")) == list(When.model_fields)
    effects = set(Rule.model_fields) - {"name", "why", "when"}
    assert set(column(table(page("models.md"), "effect", ""))) == effects
    comments = [line for line in (ROOT / "configs" / "discovery.toml").read_text().splitlines() if line.startswith("#")]
    assert all(name in " ".join(comments) for name in (*When.model_fields, *effects))


def test_every_key_of_the_request_log_is_documented() -> None:
    """The table of the log's keys has each key, in the order in which they are written."""
    assert column(table(page("api.md"), "key", "meaning")) == [field.name for field in fields(RequestLine)]


def test_every_error_is_documented() -> None:
    """The table of errors has status, code and type of each error that rolecall answers with."""
    documented = {tuple(row[:3]) for row in table(page("api.md"), "status", "code", "type")}
    assert documented == {(str(e.status), e.code, e.type) for e in _descendants(RolecallError)}


def _descendants(cls: type[RolecallError]) -> set[type[RolecallError]]:
    return {cls}.union(*(_descendants(child) for child in cls.__subclasses__()))


async def test_every_route_is_documented(tmp_path: Path) -> None:
    """The API page names each method and path that the application answers, and no other."""
    settings = load_settings({"config_dir": tmp_path, "state_dir": tmp_path, "log_path": tmp_path / "log.jsonl"}, {})
    async with running_gateway(load_roster(settings)) as gateway:
        routes: list[Any] = create_app(gateway.services, gateway.inference, gateway.reload).routes
    served = {f"{method} {route.path.replace(':path', '')}" for route in routes for method in route.methods - {"HEAD"}}
    assert set(re.findall(r"`((?:GET|POST) /[^`]*)`", page("api.md"))) == served


async def test_every_route_of_single_requests_is_documented(tmp_path: Path) -> None:
    """The table has each method and path with the key that it needs, and no other."""
    settings = load_settings({"config_dir": tmp_path, "state_dir": tmp_path, "log_path": tmp_path / "log.jsonl"}, {})
    documented = {(row[0], row[2]) for row in table(page("vision-requests.md"), "method and path", "", "key")}
    async with running_gateway(load_roster(settings)) as gateway, single_requests(gateway) as added:
        routes = {
            (f"{m} {route.path}", route.need) for route in added.routes for m in (route.methods or set()) - {"HEAD"}
        }
    assert documented == routes


def test_every_route_of_datasets_is_documented() -> None:
    """The table has each method and path with the key that it needs, and no other."""
    rows = table(page("vision-datasets.md"), "method and path", "", "key")
    documented = {(row[0], {"any": None}.get(row[2], row[2])) for row in rows}
    routes = dataset_routes(_nothing)
    assert documented == {
        (f"{m} {route.path}", route.need) for route in routes for m in (route.methods or set()) - {"HEAD"}
    }


async def _nothing() -> Any:
    raise AssertionError("no route is called")


def test_the_lifecycle_diagram_and_states() -> None:
    """The diagram on the lifecycle page is drawn from the table of transitions; each state is explained."""
    text = page("lifecycle.md")
    assert blocks(text, "mermaid") == [diagram() + "\n"]
    assert column(table(text, "state", "meaning")) == [state.name for state in State]


# -- names of things elsewhere


def commands() -> Iterator[Any]:
    """Each rolecall command line of the pages, in a block or between backticks."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        lines = [line for kind in ("sh", "ini") for block in blocks(text, kind) for line in block.splitlines()]
        found = [found[1] for line in lines if (found := re.match(r"(?:ExecStart=)?(?:\S*/)?(rolecall .*)", line))]
        found += re.findall(r"`(rolecall [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        yield from (pytest.param(line, id=f"{path.stem}: {line.split('#')[0].strip()}") for line in found)


@pytest.mark.parametrize("line", list(commands()))
def test_documented_commands_exist(line: str) -> None:
    """A documented command line is parsed by the real command: the command, its options and arguments exist."""
    name, *arguments = shlex.split(line, comments=True)
    _parse(typer.main.get_command(command_line), name, arguments)


def _parse(command: Any, name: str, arguments: list[str]) -> None:
    try:
        context = command.make_context(name, arguments)
    except typer.Exit:  # --help
        return
    rest = [*context._protected_args, *context.args]
    if isinstance(command, TyperGroup) and rest:
        sub_name, sub, rest = command.resolve_command(context, rest)
        assert sub_name is not None
        _parse(sub, sub_name, rest)


def test_documented_make_targets_exist() -> None:
    """Each `make TARGET` of the pages is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets
    assert {"run", "test"} <= named


def test_documented_variables_exist() -> None:
    """Each environment variable of the pages names a setting."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    named = {name.removesuffix("_") for name in re.findall(rf"{PREFIX}[A-Z_]+", text)}
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_between_pages_resolve(path: Path) -> None:
    """A link to another page or section leads to a file and a heading that exist."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    broken = [link for link in links if not _leads_somewhere(path, link)]
    assert broken == []


def _leads_somewhere(path: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    return target.is_file() and (not anchor or anchor in _anchors(target))


def _anchors(path: Path) -> Mapping[str, str]:
    """The anchors of a page's headings, as GitHub makes them: no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"): heading for heading in headings}


def test_the_changelog_has_this_version() -> None:
    """The newest entry of the changelog is the version of the package."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == __version__
