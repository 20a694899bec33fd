"""``rolecall models search``, ``pull``, ``list --disk``, ``verify``, ``remove``, ``prune``: with a hub on loopback."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.invoke import answer, call, configured, environment, in_terminal, rolecall
from gguf_shapes import F16, write_gguf
from harness import DEADLINE_S, Rolecall, eventually, fake_entry
from hub_server import Fault, HubServer, Repo, running_hub
from model_places import model_folder
from rolecall.cli import app
from rolecall.discovery.discover import discover
from rolecall.runtime.model_store import ModelStore
from rolecall.runtime.registry import DISCOVERED
from rolecall.settings import load_settings
from simulator import nvml

pytest.importorskip("huggingface_hub", reason="pulling needs an extra: rolecall[hub]")

NAME = "acme/Tiny-4B-GGUF"
NEXT = "b" * 40
MB = 2**20


def gguf(folder: Path, elements: int, **more: object) -> bytes:
    """A GGUF of a small llama with a chat template; ``elements`` of 16 bits are its weights."""
    keys = {"context_length": 8192, "embedding_length": 64, "block_count": 1, "feed_forward_length": 128}
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        **{f"llama.{key}": number for key, number in keys.items()},
        "llama.attention.head_count": 4,
        "tokenizer.chat_template": "{{ messages }}",
        **more,
    }
    tensors = [("token_embd.weight", (64, 256), F16), ("blk.0.ffn_up.weight", (64, elements // 64), F16)]
    return write_gguf(folder / "made.gguf", metadata, tensors).read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a hub that has a model in three quantizations, and name it in the environment."""
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        sizes = {"Q2_K": 10_000, "Q4_K_M": 60_000, "Q8_0": 200_000}
        files = {f"Tiny-4B-{label}.gguf": gguf(tmp_path, size) for label, size in sizes.items()}
        server.repos[NAME] = Repo({"README.md": b"a card", **files})
        yield server


@pytest.fixture
def here(tmp_path: Path) -> tuple[str, ...]:
    """Return the options of a configuration without models."""
    return configured(tmp_path, [])


def entries(folder: Path) -> list[dict[str, Any]]:
    """Return what the discovered registry holds."""
    path = folder / "configs" / DISCOVERED
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def models(folder: Path) -> list[str]:
    """Return the files in the models folder."""
    root = folder / "state" / "models"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# --- search


def test_search_shows_what_fits_before_anything_is_fetched(hub: HubServer, here: tuple[str, ...]) -> None:
    """Each repository with the quantization that suits this machine, its license and whether it is gated."""
    hub.repos["acme/Tiny-70B-GGUF"] = Repo({"big-Q4_K_M.gguf": b"x" * 2000}, gated="manual", license=None)
    hub.repos["acme/Tiny-70B-GGUF"].listed["big-Q4_K_M.gguf"] = 10**14
    result = call("models", "search", "tiny", *here)
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head.split()[:3] == ["repository", "best", "here"]
    small, large = sorted(rows)
    assert small.split() == [NAME, "Q4_K_M", "1", "RAM", "8.0B", "apache-2.0", "open", "100"]
    assert large.split() == ["acme/Tiny-70B-GGUF", "-", "-", "no", "8.0B", "-", "gated", "100"]
    assert "profile development" in result.stderr
    assert not [each for each in hub.requests if "/resolve/" in each.path]
    listed = answer("models", "search", "tiny", *here)
    assert {each["id"]: each["best"] and each["best"]["label"] for each in listed} == {
        NAME: "Q4_K_M",
        "acme/Tiny-70B-GGUF": None,
    }


def test_search_for_nothing(hub: HubServer, here: tuple[str, ...]) -> None:
    """Nothing found is no failure, and says what else could be tried."""
    result = call("models", "search", "absent", *here)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "--all" in result.stderr


def test_one_repository_is_shown_with_all_its_models(hub: HubServer, here: tuple[str, ...]) -> None:
    """Sizes, needs by the header, and where each fits; only the beginning of one file is fetched."""
    shown = answer("models", "search", NAME, *here)
    assert [each["label"] for each in shown["models"]] == ["Q2_K", "Q4_K_M", "Q8_0"]
    assert (shown["best"], shown["license"], shown["revision"]) == ("Q4_K_M", "apache-2.0", "a" * 40)
    assert {(each["fits"], each["where"], each["guessed"]) for each in shown["models"]} == {("fits", "RAM", False)}
    assert len(hub.asked(".gguf", "hub")) == 1
    lines = call("models", "search", NAME, *here).stdout
    assert "Q4_K_M *" in lines
    assert "apache-2.0" in lines


def test_another_profile_chooses_another_quantization(hub: HubServer, here: tuple[str, ...]) -> None:
    """What is judged best goes by the profile in force, or by the one that is named."""
    (Path(here[1]) / "profiles.toml").write_text(
        '[profiles.large]\nmax_vram_mb = 90000\nmax_concurrent_models = 1\npreferred_quantizations = ["q8_0"]\n'
        'strategy = "load_unload"\nbias = "quality"\nidle_unload_s = 60\n'
    )
    shown = answer("models", "search", NAME, "--profile", "large", *here)
    assert shown["best"] == "Q8_0"
    result = call("models", "search", NAME, "--profile", "absent", *here)
    assert result.exit_code == 2
    assert "unknown profile 'absent'" in result.stderr


def test_the_cards_that_hold_a_model_are_named(
    hub: HubServer, here: tuple[str, ...], tmp_path: Path, nvml_library: Path
) -> None:
    """Each card that holds it alone, all together where that takes all, a shorter context, or none."""
    sizes = {"Q2_K": 10**9, "Q4_K_M": 20 * 10**9, "Q8_0": 90 * 10**9}
    hub.repos[NAME].listed = {f"Tiny-4B-{label}.gguf": size for label, size in sizes.items()}
    env = {**environment(), **nvml.environment(nvml_library, nvml.TWO_16GB, tmp_path)}
    shown = json.loads(rolecall("models", "search", NAME, "--json", *here, env=env).stdout)
    assert [each["where"] for each in shown["models"]] == ["GPU 0, 1", "GPU 0 + 1", None]
    assert [each["fits"] for each in shown["models"]] == ["fits", "fits together", "too large"]
    assert shown["best"] == "Q4_K_M"


def test_search_fits_a_terminal(hub: HubServer, here: tuple[str, ...]) -> None:
    """On a narrow terminal columns move under their rows."""
    lines = in_terminal("models", "search", "tiny", *here, columns=50, kind="xterm")
    assert not any(len(line) > 60 for line in lines if NAME in line)
    assert any("license apache-2.0" in line for line in lines)


# --- pull


def test_a_pull_ends_with_a_registered_model(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """The best for the profile is taken, verified and registered under its name and that of its repository."""
    result = call("models", "pull", NAME, *here)
    assert result.exit_code == 0, result.output
    assert "license" in result.stdout
    assert "registered  tiny-4b_(" in result.stdout
    (entry,) = entries(tmp_path)
    path = Path(entry["backend_config"]["model_path"])
    assert path == tmp_path / "state" / "models" / NAME / ("a" * 40) / "Tiny-4B-Q4_K_M.gguf"
    assert path.read_bytes() == hub.repos[NAME].files[path.name]
    assert entry["model_aliases"] == [f"{NAME}:Q4_K_M"]
    assert (entry["license"], entry["source_provider"]) == ("apache-2.0", "rolecall")
    assert entry["metadata"]["discovered"]["repository"] == NAME
    assert [each["name"] for each in answer("models", "list", *here)] == [entry["name"]]


def test_a_pull_keeps_a_broken_registry(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """What was there before is copied, and the pull says so."""
    path = tmp_path / "configs" / DISCOVERED
    path.write_text("[{")
    told = call("models", "pull", f"{NAME}:Q2_K", *here)
    assert told.exit_code == 0, told.output
    assert "the earlier registry was broken" in " ".join(told.stdout.split())
    (backup,) = path.parent.glob(f"{DISCOVERED}.*.bak")
    assert backup.read_text() == "[{"
    path.write_text("7,")
    made = answer("models", "pull", f"{NAME}:Q8_0", *here)
    assert Path(made["backup"]).read_text() == "7,"
    assert "is not JSON" in made["problem"]


def test_what_is_no_model_ends_with_1(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """Files that are whole and verified, and that no engine could load, are told, and their bytes stay."""
    hub.repos[NAME].files["Odd-Q4_0.gguf"] = b"no GGUF" * 1000
    told = call("models", "pull", f"{NAME}:Odd-Q4_0.gguf", *here)
    assert told.exit_code == 1
    assert "not registered" in told.stdout
    told = call("models", "pull", f"{NAME}:Odd-Q4_0.gguf", "--json", *here)
    assert told.exit_code == 1
    assert json.loads(told.stdout)["entry"] is None
    assert entries(tmp_path) == []


def test_a_pull_says_at_once_what_it_looks_at(hub: HubServer, here: tuple[str, ...]) -> None:
    """On stderr, before the hub has answered; not beside JSON. What could not be read is guessed, and that is said."""
    read = [f"looking at {NAME}", "reading the beginning of Tiny-4B-Q2_K.gguf"]
    assert call("models", "pull", NAME, "--dry-run", *here).stderr.splitlines() == read
    assert call("models", "pull", NAME, "--dry-run", "--json", *here).stderr == ""
    assert call("models", "pull", "acme/absent", *here).stderr.splitlines()[0] == "looking at acme/absent"
    hub.fault("Tiny-4B-Q2_K.gguf", Fault(times=-1, status=404))
    told = call("models", "pull", NAME, "--dry-run", *here)
    assert told.stderr.splitlines()[-1].endswith("what it needs is guessed by the sizes of its files")
    assert " about " in told.stdout


def test_what_is_named_is_pulled(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """A quantization, a file, and the address of a page name a model; --json says all of it."""
    made = answer("models", "pull", f"{NAME}:q8_0", *here)
    assert (made["model"]["label"], made["pulled"], made["missing_bytes"], made["reason"]) == ("Q8_0", True, 0, None)
    assert made["entry"] == entries(tmp_path)[0]
    assert answer("models", "pull", f"{hub.url}/{NAME}:Tiny-4B-Q2_K.gguf", *here)["model"]["label"] == "Q2_K"
    assert len(entries(tmp_path)) == 2


def test_a_folder_for_vllm_is_one_model(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """Configuration, tokenizer and weights come together, and are registered for vLLM under the repository's name."""
    made = model_folder(tmp_path / "theirs", parts=2)
    hub.repos["acme/Tiny-Talk-4B"] = Repo({path.name: path.read_bytes() for path in made.iterdir()})
    pulled = answer("models", "pull", "acme/Tiny-Talk-4B", *here)
    assert (pulled["name"], pulled["model"]["guessed"]) == ("tiny-talk-4b_(BF16)", True)
    assert (pulled["entry"]["backend"], pulled["entry"]["model_aliases"]) == ("vllm", ["acme/Tiny-Talk-4B"])
    folder = Path(pulled["entry"]["backend_config"]["model_path"])
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == sorted(
        path.name for path in made.iterdir()
    )
    assert answer("models", "verify", "acme/Tiny-Talk-4B", *here)[0]["ok"]
    assert answer("models", "remove", pulled["name"], "--yes", *here)["names"] == [pulled["name"]]
    assert models(tmp_path) == []


def test_a_dry_run_changes_nothing(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """The plan names size, need, folder and license; nothing is written."""
    result = call("models", "pull", NAME, "--dry-run", *here)
    assert result.exit_code == 0
    for word in (f"{NAME}:Q4_K_M", "apache-2.0", "needs", "folder", "free"):
        assert word in result.stdout
    assert not answer("models", "pull", NAME, "--dry-run", *here)["pulled"]
    assert (models(tmp_path), entries(tmp_path)) == ([], [])


def test_models_lie_where_the_setting_says(hub: HubServer, tmp_path: Path) -> None:
    """``models_dir`` is another place, such as another disk."""
    here = configured(tmp_path, [], f'models_dir = "{tmp_path / "elsewhere"}"')
    assert call("models", "pull", NAME, *here).exit_code == 0
    assert (tmp_path / "elsewhere" / NAME / ("a" * 40) / "Tiny-4B-Q4_K_M.gguf").exists()


def test_a_name_that_a_person_uses_stays_theirs(hub: HubServer, tmp_path: Path) -> None:
    """A curated entry of another file keeps its name, and the pulled model has one of its own."""
    here = configured(tmp_path, [fake_entry("tiny-4b_(Q4_K_M)", backend_config={"model_path": "/elsewhere.gguf"})])
    made = answer("models", "pull", NAME, *here)
    assert made["name"] == "tiny-4b-acme_(Q4_K_M)"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (f"{NAME}:Q5_0", "there is no Q5_0; it has Q2_K, Q4_K_M, Q8_0"),
        ("acme/absent", "has no model acme/absent, or it is private"),
        ("acme/papers", "has no models that are run here"),
        ("acme/huge", "nothing of acme/huge fits this machine"),
        ("acme/hostile", "nothing is fetched"),
        ("no name", "is no name of a repository"),
        ("acme/gated", "accept them at"),
    ],
)
def test_what_cannot_be_pulled(hub: HubServer, here: tuple[str, ...], tmp_path: Path, model: str, reason: str) -> None:
    """Each refusal names its reason and ends with 1; stdout is left to results."""
    hub.repos["acme/papers"] = Repo({"README.md": b"words"})
    hub.repos["acme/huge"] = Repo({"m-Q4_K_M.gguf": b"x" * 2000}, listed={"m-Q4_K_M.gguf": 10**14})
    hub.repos["acme/hostile"] = Repo({"../../x-Q4_K_M.gguf": b"x" * 2000})
    hub.repos["acme/gated"] = Repo(dict(hub.repos[NAME].files), gated="auto")
    result = call("models", "pull", model, "--json", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert reason in result.stderr
    assert entries(tmp_path) == []


def test_what_does_not_fit_is_pulled_if_it_is_named(hub: HubServer, here: tuple[str, ...]) -> None:
    """A person may know better, and is told."""
    (Path(here[1]) / "rolecall.toml").write_text("max_vram_mb = 20")
    refused = call("models", "pull", NAME, *here)
    assert refused.exit_code == 1
    assert f"name one to pull it nevertheless: {NAME}:Q2_K" in refused.stderr
    result = call("models", "pull", f"{NAME}:Q2_K", *here)
    assert result.exit_code == 0
    assert "too much for profile development" in result.stdout
    assert "not served until it does" in result.stdout


def test_a_new_revision_takes_over_the_name(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """The entry goes on under its name with the new file; the old one is pruned when that is asked for."""
    call("models", "pull", NAME, *here)
    (before,) = entries(tmp_path)
    files = hub.repos[NAME].files
    changed = {**files, "Tiny-4B-Q4_K_M.gguf": gguf(tmp_path, 64_000)}
    hub.repos[NAME] = Repo(changed, revision=NEXT)
    assert call("models", "pull", NAME, *here).exit_code == 0
    (after,) = entries(tmp_path)
    assert after["name"] == before["name"]
    assert NEXT in after["backend_config"]["model_path"]
    dry = answer("models", "prune", "--dry-run", *here)
    assert [each["what"] for each in dry["found"]] == [f"{NAME} Q4_K_M"]
    assert len(models(tmp_path)) == 4
    freed = answer("models", "prune", "--yes", *here)["freed_bytes"]
    assert freed == len(files["Tiny-4B-Q4_K_M.gguf"])
    assert all(NEXT in path for path in models(tmp_path))
    assert [each["revision"] for each in answer("models", "list", "--disk", *here)] == [NEXT]


def test_a_scan_sees_what_was_pulled_as_the_pull_did(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """A registry that was lost is made again; one that is there stays as it is."""
    call("models", "pull", NAME, *here)
    before = entries(tmp_path)
    empty = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    assert not answer("models", "scan", *here, env=empty)["written"]
    (tmp_path / "configs" / DISCOVERED).unlink()
    assert answer("models", "scan", *here, env=empty)["written"]
    assert entries(tmp_path) == before


def test_a_terminal_sees_how_far_it_is(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """Bars stand there while something comes, and are gone at the end; a busy hub is told."""
    hub.fault("Tiny-4B-Q8_0.gguf", Fault(pause_s=0.002))
    hub.fault(f"/api/models/{NAME}", Fault(status=503))
    text = "\n".join(in_terminal("models", "pull", f"{NAME}:Q8_0", *here, columns=120, kind="xterm"))
    assert "fetching Tiny-4B-Q8_0.gguf" in text
    assert "is in trouble (503): try again later; going on in 0.5 s" in text
    assert "registered" in text
    assert len(entries(tmp_path)) == 1


def test_a_file_without_a_hash_is_told(hub: HubServer, here: tuple[str, ...]) -> None:
    """Where the hub lists none, nobody is told that contents were compared."""
    hub.repos[NAME].hashes["Tiny-4B-Q8_0.gguf"] = "none"
    result = call("models", "pull", f"{NAME}:Q8_0", *here)
    assert result.exit_code == 0
    assert "Tiny-4B-Q8_0.gguf: its length alone will be compared" in result.stdout


def test_a_scan_that_began_before_a_pull_keeps_what_that_registered(
    hub: HubServer, here: tuple[str, ...], tmp_path: Path
) -> None:
    """Whoever writes the discovered registry keeps what was added after it was read."""
    settings = load_settings({"config_dir": Path(here[1]), "state_dir": Path(here[3])}, {})
    scan = discover(settings, {}, tmp_path, known=False)
    call("models", "pull", NAME, *here)
    before = entries(tmp_path)
    scan.write()
    assert entries(tmp_path) == before != []


# --- broken off


def process(*arguments: str, limit_kb: int | None = None, **more: str) -> subprocess.Popen[str]:
    """Start the command line as a process of its own, which may write files of so many kB at the most."""
    argv = [sys.executable, "-m", "rolecall", *arguments]
    if limit_kb is not None:
        argv = ["bash", "-c", f"ulimit -f {limit_kb}; exec {shlex.join(argv)}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv, env=environment(**more), **pipes)


def test_ctrl_c_leaves_what_came_and_says_so(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """It ends with 130, nothing is registered, and the next pull asks for the rest alone."""
    name = "Tiny-4B-Q8_0.gguf"
    hub.fault(name, Fault(pause_s=0.02))
    pulling = process("models", "pull", f"{NAME}:Q8_0", *here)
    partial = tmp_path / "state" / "models" / "acme" / "Tiny-4B-GGUF" / ".partial"
    eventually(lambda: any(path.stat().st_size > 10_000 for path in partial.glob("*.part")))
    pulling.send_signal(signal.SIGINT)
    _, told = pulling.communicate(timeout=DEADLINE_S)
    assert pulling.returncode == 130, told
    assert "interrupted: nothing was registered" in told
    assert "the same command goes on" in told
    assert "Traceback" not in told
    (part,) = partial.glob("*.part")
    kept = part.stat().st_size
    assert 10_000 < kept < len(hub.repos[NAME].files[name])
    assert entries(tmp_path) == []
    hub.faults.clear()
    hub.requests.clear()
    assert rolecall("models", "pull", f"{NAME}:Q8_0", *here).returncode == 0
    assert f"bytes={kept}-" in hub.asked(name)
    assert len(entries(tmp_path)) == 1


def test_a_full_disk_leaves_what_came(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """The write that fails ends it with 1 and the way on; nothing is half registered, and the rest comes later."""
    pulling = process("models", "pull", f"{NAME}:Q8_0", *here, limit_kb=64)
    _, told = pulling.communicate(timeout=DEADLINE_S)
    assert pulling.returncode == 1, told
    assert "there is no more room for" in told
    assert "nothing was registered; 65536 bytes of 433216 bytes are kept" in told
    assert (entries(tmp_path), answer("models", "list", "--disk", *here)) == ([], [])
    hub.requests.clear()
    assert call("models", "pull", f"{NAME}:Q8_0", *here).exit_code == 0
    assert "bytes=65536-" in hub.asked("Tiny-4B-Q8_0.gguf")
    assert answer("models", "verify", *here)[0]["ok"]


def test_offline_says_so(hub: HubServer, here: tuple[str, ...]) -> None:
    """With HF_HUB_OFFLINE nobody is asked, and what is here is named."""
    for words in (("search", "tiny"), ("pull", NAME)):
        result = rolecall("models", *words, *here, env=environment(HF_HUB_OFFLINE="1"))
        assert result.returncode == 1
        assert "HF_HUB_OFFLINE is set, so nothing is fetched" in result.stderr
    assert hub.requests == []
    assert rolecall("models", "list", "--disk", *here, env=environment(HF_HUB_OFFLINE="1")).returncode == 0


def test_without_the_library_it_is_named(here: tuple[str, ...], tmp_path: Path) -> None:
    """Where the extra is not installed, the command says how to install it."""
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('absent', name='huggingface_hub')")
    result = rolecall("models", "pull", NAME, *here, env=environment(PYTHONPATH=str(tmp_path)))
    assert result.returncode == 1
    assert "pip install 'rolecall[hub]'" in result.stderr


def test_the_library_is_imported_by_those_who_need_it() -> None:
    """Neither the server nor other commands wait for it."""
    code = "import sys, rolecall.cli.models, rolecall.gateway.server; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=DEADLINE_S).returncode == 0


# --- kept in order


def test_what_lies_on_the_disk_is_listed(hub: HubServer, here: tuple[str, ...]) -> None:
    """With size, revision, license and the names by which the registry knows it; leftovers are counted."""
    assert "0 models" in call("models", "list", "--disk", *here).stderr
    call("models", "pull", NAME, *here)
    (row,) = answer("models", "list", "--disk", *here)
    assert (row["repository"], row["label"], row["license"]) == (NAME, "Q4_K_M", "apache-2.0")
    assert row["size_bytes"] == len(hub.repos[NAME].files["Tiny-4B-Q4_K_M.gguf"])
    assert row["names"] == [answer("models", "list", *here)[0]["name"]]
    result = call("models", "list", "--disk", *here)
    assert NAME in result.stdout
    assert ": 1 model, " in result.stderr


def test_a_note_with_half_a_character_is_listed(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """A note that an earlier rolecall wrote, or anybody, can be printed."""
    answer("models", "pull", NAME, *here)
    (note,) = (path for path in (tmp_path / "state" / "models").rglob("*.json") if "apache-2.0" in path.read_text())
    note.write_text(note.read_text().replace("apache-2.0", "a\\ud800b"))
    assert [each["license"] for each in answer("models", "list", "--disk", *here)] == ["a\ud800b"]


def test_damage_ends_verify_with_1(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """A file that changed is named with both hashes, and what brings it anew."""
    made = answer("models", "pull", NAME, *here)
    assert call("models", "verify", *here).exit_code == 0
    assert call("models", "verify", made["name"], *here).exit_code == 0
    path = Path(made["entry"]["backend_config"]["model_path"])
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    result = call("models", "verify", NAME, *here)
    assert result.exit_code == 1
    assert "has the hash" in result.stdout
    assert "models pull" in result.stdout
    assert call("models", "verify", "absent", *here).exit_code == 1


def test_remove_asks(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """No answer and a no change nothing; a yes takes files and entry away."""
    name = answer("models", "pull", NAME, *here)["name"]
    asked = ["models", "remove", name, *here]
    assert "--yes does not ask" in call(*asked).stderr
    refused = CliRunner().invoke(app, asked, input="n\n")
    assert refused.exit_code == 1
    assert "Tiny-4B-Q4_K_M.gguf" in refused.stderr
    assert len(entries(tmp_path)) == 1
    assert CliRunner().invoke(app, asked, input="y\n").exit_code == 0
    assert (entries(tmp_path), models(tmp_path)) == ([], [])


def test_a_removed_model_takes_nothing_of_others_with_it(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """Of a repository one quantization goes alone; its name alone means all of them."""
    for label in ("Q2_K", "Q4_K_M"):
        call("models", "pull", f"{NAME}:{label}", *here)
    gone = answer("models", "remove", f"{NAME}:q2_k", "--yes", *here)
    assert gone["removed"] == [f"{NAME}:Q2_K"]
    assert [each["label"] for each in answer("models", "list", "--disk", *here)] == ["Q4_K_M"]
    assert len(entries(tmp_path)) == 1
    call("models", "pull", f"{NAME}:Q2_K", *here)
    assert len(answer("models", "remove", NAME, "--yes", *here)["removed"]) == 2
    assert models(tmp_path) == []


def test_what_was_not_pulled_is_not_removed(hub: HubServer, tmp_path: Path) -> None:
    """Files that somebody else put there are theirs."""
    theirs = tmp_path / "theirs.gguf"
    theirs.write_bytes(b"GGUF")
    here = configured(tmp_path, [{"name": "x", "backend": "llama_cpp", "backend_config": {"model_path": str(theirs)}}])
    result = call("models", "remove", "x", "--yes", *here)
    assert result.exit_code == 1
    assert f"{theirs} is left to whoever put it there" in result.stderr
    assert "no model y was pulled" in call("models", "remove", "y", "--yes", *here).stderr
    assert theirs.exists()


def test_a_curated_entry_stays(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """What a person wrote is not taken out, and its owner is told."""
    made = answer("models", "pull", NAME, *here)
    curated = Path(here[1]) / "model_registry.curated.json"
    curated.write_text(json.dumps([{"name": made["name"], "backend": "llama_cpp", "roles": ["mine"]}]))
    assert call("models", "remove", made["name"], "--yes", *here).exit_code == 0
    assert len(json.loads(curated.read_text())) == 1


def test_a_running_model_is_not_removed(hub: HubServer, tmp_path: Path) -> None:
    """A rolecall that is there is asked, and the refusal says what to do."""
    with Rolecall(tmp_path, []) as server:
        here = ("--config-dir", str(server.config_dir), "--state-dir", str(server.state))
        name = answer("models", "pull", NAME, *here)["name"]
        stub = fake_entry(name)
        stub["backend_config"]["model_path"] = entries_of(server)[0]["backend_config"]["model_path"]
        (server.config_dir / "model_registry.curated.json").write_text(json.dumps([stub]))
        eventually(lambda: call("load", name, "--url", server.base_url).exit_code == 0)
        result = call("models", "remove", name, "--yes", "--url", server.base_url, *here)
        assert result.exit_code == 1
        assert f"{name} is running: `rolecall unload '{name}'` first" in result.stderr
        assert call("unload", name, "--url", server.base_url).exit_code == 0
        assert call("models", "remove", name, "--yes", "--url", server.base_url, *here).exit_code == 0


def test_a_model_that_runs_elsewhere_is_not_removed(hub: HubServer, tmp_path: Path) -> None:
    """A rolecall that is not where the settings say has written down in the state folder what it runs."""
    with Rolecall(tmp_path, []) as server:
        here = ("--config-dir", str(server.config_dir), "--state-dir", str(server.state))
        name = answer("models", "pull", NAME, *here)["name"]
        path = Path(entries_of(server)[0]["backend_config"]["model_path"])
        stub = fake_entry(name)
        stub["backend_config"]["model_path"] = str(path)
        (server.config_dir / "model_registry.curated.json").write_text(json.dumps([stub]))
        eventually(lambda: call("load", name, "--url", server.base_url).exit_code == 0)
        unreachable = {"CHAT_PROXY_PORT": "9"}
        result = call("models", "remove", name, "--yes", *here, env=unreachable)
        assert result.exit_code == 1
        assert f"`rolecall unload '{name}'` first, with --url" in result.stderr
        assert path.exists()
        assert call("unload", name, "--url", server.base_url).exit_code == 0
        assert call("models", "remove", name, "--yes", *here, env=unreachable).exit_code == 0
        assert not path.exists()


def entries_of(server: Rolecall) -> list[dict[str, Any]]:
    """Return the discovered entries of a running rolecall."""
    found: list[dict[str, Any]] = json.loads((server.config_dir / DISCOVERED).read_text())
    return found


def test_prune_takes_what_broken_pulls_left(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """Parts are listed with their size, and go when that is confirmed."""
    assert "no old revisions" in call("models", "prune", *here).stdout
    part = tmp_path / "state" / "models" / "acme" / "x" / ".partial" / f"{'c' * 64}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * MB)
    result = call("models", "prune", *here)
    assert result.exit_code == 1
    assert "acme/x, a part" in result.stdout
    assert part.exists()
    assert "1.0 MB are free again" in call("models", "prune", "--yes", *here).stdout
    assert not os.listdir(tmp_path / "state" / "models")  # noqa: PTH208 - no more than names


def test_a_model_that_is_being_pulled_is_not_removed(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """Neither from the disk nor from the registry; afterwards it is, from both."""
    name = answer("models", "pull", NAME, *here)["name"]
    with ModelStore(tmp_path / "state" / "models").held(NAME):
        result = call("models", "remove", name, "--yes", *here)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "another process pulls or removes models of this repository" in result.stderr
    assert [entry["name"] for entry in entries(tmp_path)] == [name]
    assert answer("models", "verify", name, *here)[0]["ok"]
    assert answer("models", "remove", name, "--yes", *here)["names"] == [name]
    assert (models(tmp_path), entries(tmp_path)) == ([], [])


def test_prune_says_what_is_being_pulled(hub: HubServer, here: tuple[str, ...], tmp_path: Path) -> None:
    """A part that a pull is working on stays, and is told."""
    models = tmp_path / "state" / "models"
    part = models / "acme" / "x" / ".partial" / f"{'c' * 64}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    with ModelStore(models).held("acme/x"):
        result = call("models", "prune", "--yes", *here)
        told = answer("models", "prune", "--yes", *here)
    assert "acme/x is being pulled, so it stays" in result.stderr
    assert told["being_pulled"] == ["acme/x, a part"]
    assert part.exists()
