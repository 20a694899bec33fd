"""Datasets over HTTP, with a whole rolecall and a fake vision model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from harness import Rolecall, eventually, fake_entry
from process.test_door import ADMIN, KEY, bearer, key_row, write_keys
from rolecall.vision.jobs_places import SAMPLES_AT_A_TIME
from tagging import (
    TAGS,
    add_dataset,
    await_processed,
    photos,
    samples,
    start,
    states,
    tagging_rolecall,
    task_file,
    vision_entry,
)

SLOW = {"first_token_delay_s": 0.2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall without keys."""
    reader = fake_entry("reader", capabilities=["text"], role_priority={"read": 1})
    absent = vision_entry("absent", role_priority={}, backend_config={"model_path": "/no/such.gguf"})
    with tagging_rolecall(tmp_path_factory.mktemp("tagging"), more=[reader, absent]) as running:
        yield running


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_folder_is_tagged(server: Rolecall, tmp_path: Path) -> None:
    """From the folder to samples by tag; the job is accepted at once, and its progress ends with all of them."""
    folder = photos(tmp_path, 12)
    dataset = add_dataset(server, "all", folder)
    assert (dataset["samples"], dataset["tagged"], dataset["folder"]) == (12, 0, str(folder))
    id_ = dataset["id"]
    assert server.get(f"/datasets/{id_}")["auto_tag"]["status"] == "idle"
    accepted = start(server, id_)
    assert accepted.status_code == 202
    assert accepted.json() == {
        "dataset_id": id_,
        "status": "started",
        "message": "Tagging 12 samples by the task tags.",
    }
    seen = list(states(server, id_))
    assert all(set(state) == {"status", "processed", "total", "message"} for state in seen)
    assert {state["status"] for state in seen[:-1]} <= {"running"}
    assert seen[-1] == {"status": "complete", "processed": 12, "total": 12, "message": "Tagged 12 samples."}
    assert list(states(server, id_)) == [seen[-1]]
    found = samples(server, id_, tag="indoor")
    assert [sample["file_name"] for sample in found] == sorted(path.name for path in folder.iterdir())
    assert all(sorted(sample["tags"]) == sorted(TAGS.values()) for sample in found)
    assert {(sample["model"], sample["task"], sample["problem"]) for sample in found} == {("seer", "tags@1", None)}
    assert samples(server, id_, tag="outdoor") == []
    whole = server.get(f"/datasets/{id_}")
    assert whole["tags"] == [{"tag": tag, "count": 12} for tag in sorted(TAGS.values())]
    assert whole["auto_tag"] == seen[-1]
    lines = [line for line in server.log_lines() if line["prompt_id"] == "tags"]
    assert {(line["prompt_version"], line["status"], line["role"]) for line in lines} == {("1", 200, "tags")}


def test_the_model_is_loaded_when_it_is_needed(tmp_path: Path) -> None:
    """Neither the start nor a dataset loads it."""
    with tagging_rolecall(tmp_path / "server") as server:
        dataset = add_dataset(server, "one", photos(tmp_path / "photos", 1))
        assert server.state_of("seer") == "stopped"
        start(server, dataset["id"])
        list(states(server, dataset["id"]))
        assert server.state_of("seer") == "ready"


def test_what_is_not_there(server: Rolecall) -> None:
    """An unknown dataset is 404 everywhere, whatever its id looks like."""
    for id_ in ("99999", "abc", "-1", "1.5", "9" * 19, "9" * 5000, "%00", "..%2f..%2fetc"):
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("POST", "/rescan"), ("GET", "/samples"), ("GET", "/samples/1"),
            ("GET", "/samples/1/thumbnail"), ("POST", "/auto-tag"), ("DELETE", "/auto-tag"),
            ("GET", "/auto-tag/progress"),
        ):  # fmt: skip
            answer = server.http.request(method, f"/datasets/{id_}{path}")
            assert answer.status_code in ({404, 400} if id_ == "%00" else {404}), (method, id_, path)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "x"}, "folder"),
        ({"folder": "/tmp"}, "name"),
        ({"name": "", "folder": "/tmp"}, "name"),
        ({"name": "x" * 201, "folder": "/tmp"}, "name"),
        ({"name": "x", "folder": "/no/such"}, "folder"),
        ({"name": "x", "folder": "relative"}, "folder"),
        ({"name": "x", "folder": "/tmp/../etc"}, "folder"),
        ({"name": "x", "folder": 7}, "folder"),
        ({"name": "x", "folder": "/tmp", "more": 1}, "more"),
    ],
)
def test_a_dataset_that_cannot_be(server: Rolecall, body: dict[str, Any], param: str) -> None:
    """The field at fault is named."""
    assert error_of(server.http.post("/datasets", json=body), 400)["param"] == param


def test_bodies_that_are_none(server: Rolecall, tmp_path: Path) -> None:
    """No JSON, no object, another type: none of it is a 500; a form of another page cannot send one."""
    id_ = add_dataset(server, "bodies", photos(tmp_path, 1))["id"]
    sample = samples(server, id_)[0]["id"]
    json_type = {"content-type": "application/json"}
    for method, path in (
        ("POST", "/datasets"),
        ("PATCH", f"/datasets/{id_}/samples/{sample}"),
        ("POST", f"/datasets/{id_}/auto-tag"),
    ):
        for content in (b"{", b"[]", b"7", b'{"task":' + b"[" * 2000):
            error_of(server.http.request(method, path, content=content, headers=json_type), 400)
        plain = {"content-type": "text/plain"}
        error_of(server.http.request(method, path, content=b"{}", headers=plain), 415)
        error_of(server.http.request(method, path, content=b" " * 2**21, headers=json_type), 413)


def test_a_name_is_taken_once(server: Rolecall, tmp_path: Path) -> None:
    """The second dataset of a name is a conflict that no client tries again."""
    add_dataset(server, "twice", photos(tmp_path, 1))
    answer = server.http.post("/datasets", json={"name": "twice", "folder": str(tmp_path)})
    assert error_of(answer, 409)["code"] == "conflict"
    assert answer.headers["x-should-retry"] == "false"


def test_a_folder_without_pictures(server: Rolecall, tmp_path: Path) -> None:
    """It is a dataset without samples, which is tagged at once; pictures that come later are found by a rescan."""
    id_ = add_dataset(server, "nothing", tmp_path)["id"]
    assert start(server, id_).status_code == 202
    assert list(states(server, id_))[-1] == {
        "status": "complete",
        "processed": 0,
        "total": 0,
        "message": "There are no pictures.",
    }
    photos(tmp_path, 2)
    assert server.http.post(f"/datasets/{id_}/rescan").json()["samples"] == 2
    assert server.get("/datasets")["data"][-1]["samples"] == 2


def test_tags_of_a_person(server: Rolecall, tmp_path: Path) -> None:
    """They are merged with a model's, and stay when it tags again; what was taken away does not come back."""
    id_ = add_dataset(server, "mine", photos(tmp_path, 1))["id"]
    path = f"/datasets/{id_}/samples/{samples(server, id_)[0]['id']}"
    assert server.http.patch(path, json={"add": [" holiday ", "dark"]}).json()["tags"] == ["holiday", "dark"]
    start(server, id_)
    list(states(server, id_))
    sample = server.get(path)
    assert sample["tags"] == ["holiday", "dark", "indoor", "sharp"]
    assert sample["own_tags"] == ["holiday", "dark"]
    assert server.http.patch(path, json={"remove": ["sharp"]}).json()["tags"] == ["holiday", "dark", "indoor"]
    start(server, id_, again=True)
    list(states(server, id_))
    assert server.get(path)["tags"] == ["holiday", "dark", "indoor"]
    assert server.http.patch(path, json={"tags": ["only"]}).json()["tags"] == ["only"]
    assert server.http.patch(path, json={"tags": []}).json()["tags"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tags": "dark"},
        {"tags": [1]},
        {"tags": [""]},
        {"tags": ["x" * 101]},
        {"tags": ["a"], "add": ["b"]},
        {"add": None},
        {"tags": [f"t{number}" for number in range(201)]},
        {"name": "x"},
    ],
)
def test_tags_that_are_none(server: Rolecall, tmp_path: Path, body: dict[str, Any]) -> None:
    """They are refused, and change nothing."""
    if not any(each["name"] == "refused" for each in server.get("/datasets")["data"]):
        add_dataset(server, "refused", photos(tmp_path, 1))
    id_ = next(each["id"] for each in server.get("/datasets")["data"] if each["name"] == "refused")
    (sample,) = samples(server, id_)
    error_of(server.http.patch(f"/datasets/{id_}/samples/{sample['id']}", json=body), 400)
    assert samples(server, id_) == [sample]


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "offset=-1", "offset=" + "9" * 30, "failed=x"])
def test_queries_that_make_no_sense(server: Rolecall, query: str) -> None:
    """They are named in the error."""
    assert error_of(server.http.get(f"/datasets/1/samples?{query}"), 400)["param"] == query.split("=", maxsplit=1)[0]


def test_samples_in_parts(server: Rolecall, tmp_path: Path) -> None:
    """``limit`` and ``offset`` cut the list, whose length is told."""
    id_ = add_dataset(server, "parts", photos(tmp_path, 5))["id"]
    part = server.get(f"/datasets/{id_}/samples", limit=2, offset=3)
    assert ([each["file_name"] for each in part["data"]], part["total"]) == (["IMG_0004.jpg", "IMG_0005.jpg"], 5)
    assert server.get(f"/datasets/{id_}/samples", offset=9)["data"] == []


def test_names_of_any_kind(server: Rolecall, tmp_path: Path) -> None:
    """Markup, quotes and other scripts in file names and tags come out as they are, in JSON."""
    photos(tmp_path, 1)
    name = "<img src=x onerror=alert(1)> \"'é漢 .jpg"
    (tmp_path / "IMG_0001.jpg").rename(tmp_path / name)
    id_ = add_dataset(server, "odd", tmp_path)["id"]
    (sample,) = samples(server, id_)
    assert sample["file_name"] == name
    tag = "<script>alert(1)</script>"
    path = f"/datasets/{id_}/samples/{sample['id']}"
    assert server.http.patch(path, json={"add": [tag]}).json()["tags"] == [tag]
    assert [each["id"] for each in samples(server, id_, tag=tag)] == [sample["id"]]


def test_thumbnails(server: Rolecall, tmp_path: Path) -> None:
    """They are JPEGs that a browser keeps; one that it has already is not sent again."""
    photos(tmp_path, 1)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    id_ = add_dataset(server, "thumbnails", tmp_path)["id"]
    good, broken = samples(server, id_)
    answer = server.http.get(good["thumbnail"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(answer.content)).format == "JPEG"
    path = good["thumbnail"].partition("?")[0]
    plain = server.http.get(path)
    assert plain.headers["cache-control"] == "private, no-cache"
    assert server.http.get(path, headers={"if-none-match": plain.headers["etag"]}).status_code == 304
    assert error_of(server.http.get(broken["thumbnail"]), 400)["code"] == "invalid_image"
    assert error_of(server.http.get(path, params={"size": "9999"}), 400)["param"] == "size"


def test_a_file_that_became_a_link(server: Rolecall, tmp_path: Path) -> None:
    """It is neither shown nor sent to a model."""
    folder = photos(tmp_path / "photos", 2)
    secret = photos(tmp_path / "secret", 1) / "IMG_0001.jpg"
    id_ = add_dataset(server, "links", folder)["id"]
    (folder / "IMG_0001.jpg").unlink()
    (folder / "IMG_0001.jpg").symlink_to(secret)
    linked, _ = samples(server, id_)
    assert "symbolic link" in error_of(server.http.get(linked["thumbnail"]), 400)["message"]
    start(server, id_)
    assert list(states(server, id_))[-1]["message"] == "Tagged 1 of 2 samples; 1 could not be tagged."
    (failed,) = samples(server, id_, failed=1)
    assert "symbolic link" in failed["problem"]


def test_a_removed_dataset_leaves_its_files(server: Rolecall, tmp_path: Path) -> None:
    """Only the record goes."""
    folder = photos(tmp_path, 3)
    id_ = add_dataset(server, "gone", folder)["id"]
    assert server.http.delete(f"/datasets/{id_}").json() == {"id": id_, "object": "dataset", "deleted": True}
    error_of(server.http.get(f"/datasets/{id_}"), 404)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("body", "word"),
    [({"task": "tegs"}, "did you mean"), ({"task": "caption"}, "gives no tags"), ({"again": "yes"}, "again")],
)
def test_a_job_that_cannot_be(server: Rolecall, tmp_path: Path, body: dict[str, Any], word: str) -> None:
    """An unknown task, one that gives no tags, a field of another kind."""
    names = {each["name"]: each["id"] for each in server.get("/datasets")["data"]}
    id_ = names.get("cannot") or add_dataset(server, "cannot", photos(tmp_path, 1))["id"]
    assert word in error_of(start(server, id_, **body), 400)["message"].lower()


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("reader", 400, "unsupported_input"),
        ("role:read", 400, "unsupported_input"),
        ("nobody", 404, "model_not_found"),
        ("role:nobody", 404, "model_not_found"),
    ],
)
def test_a_model_that_cannot_see_or_is_not_there(
    server: Rolecall, tmp_path: Path, model: str, status: int, code: str
) -> None:
    """It is refused before a job begins, and names the field; what the job before it came to stays."""
    id_ = add_dataset(server, f"for {model}", photos(tmp_path, 1))["id"]
    error = error_of(start(server, id_, model=model), status)
    assert (error["code"], error["param"]) == (code, "model")
    assert server.get(f"/datasets/{id_}")["auto_tag"]["message"] == "Not tagged yet."
    assert server.state_of("reader") == "stopped"


def test_a_role_whose_models_cannot_see(tmp_path: Path) -> None:
    """Where no model is named, it is the task's role that is looked at; a fallback of it that sees will do."""
    blind = fake_entry("blind", role_priority={"tags": 50})
    with tagging_rolecall(tmp_path / "one", more=[blind]) as server:
        id_ = add_dataset(server, "one", photos(tmp_path / "photos", 1))["id"]
        assert start(server, id_).status_code == 202
        assert list(states(server, id_))[-1]["status"] == "complete"
    seer = vision_entry(role_priority={"other": 1})
    for fallback, status in (([], 400), (["seer"], 202)):
        made = Rolecall(tmp_path / f"{status}", (blind, seer))
        (made.config_dir / "tasks").mkdir()
        (made.config_dir / "tasks" / "tags.toml").write_text(task_file(), encoding="utf-8")
        with (made.config_dir / "rolecall.toml").open("a", encoding="utf-8") as file:
            file.write(f"[roles.tags]\nfallback = {fallback}\n")
        with made as server:
            id_ = add_dataset(server, "one", photos(tmp_path / "photos", 1))["id"]
            answer = start(server, id_)
            assert answer.status_code == status, answer.text
            if status == 400:
                assert "No model of the role 'tags' can serve this request. blind: lacks vision." in answer.text


def test_a_model_that_cannot_be_used_now_ends_the_job(server: Rolecall, tmp_path: Path) -> None:
    """Its files may come yet, so the job begins; it says what is missing, and asks no second time."""
    id_ = add_dataset(server, "no file", photos(tmp_path, 30))["id"]
    assert start(server, id_, model="absent").status_code == 202
    last = list(states(server, id_))[-1]
    assert (last["status"], "'absent'" in last["message"]) == ("error", True)
    assert last["processed"] == 0


# -- while a job runs


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall whose model takes 0.2 s for a picture."""
    task = task_file(fake=SLOW)
    with tagging_rolecall(tmp_path_factory.mktemp("slow"), task=task) as running:
        yield running


def test_two_jobs_on_one_dataset(slow: Rolecall, tmp_path: Path) -> None:
    """The second is refused with 409; watching is for any number, and cancelling ends it for all of them."""
    id_ = add_dataset(slow, "busy", photos(tmp_path, 200))["id"]
    assert start(slow, id_).status_code == 202
    assert error_of(start(slow, id_), 409)["code"] == "job_running"
    watching = states(slow, id_)
    assert next(watching)["status"] == "running"
    await_processed(slow, id_, 4)
    cancelled = slow.http.delete(f"/datasets/{id_}/auto-tag").json()
    assert (cancelled["dataset_id"], cancelled["status"]) == (id_, "idle")
    assert 4 <= cancelled["processed"] < 200
    assert list(watching)[-1]["message"] == cancelled["message"]
    assert slow.get(f"/datasets/{id_}")["tagged"] >= cancelled["processed"]
    slow.await_in_flight("seer", 0)
    assert slow.http.delete(f"/datasets/{id_}/auto-tag").status_code == 200
    assert slow.http.delete(f"/datasets/{id_}").status_code == 200


def test_a_dataset_that_is_removed_ends_its_job(slow: Rolecall, tmp_path: Path) -> None:
    """And the engine's work with it."""
    id_ = add_dataset(slow, "removed", photos(tmp_path, 100))["id"]
    start(slow, id_)
    await_processed(slow, id_, 1)
    assert slow.http.delete(f"/datasets/{id_}").status_code == 200
    slow.await_in_flight("seer", 0)
    error_of(slow.http.get(f"/datasets/{id_}/auto-tag/progress"), 404)


def test_a_client_that_leaves_ends_no_job(slow: Rolecall, tmp_path: Path) -> None:
    """Who watched a part of it can watch again."""
    id_ = add_dataset(slow, "left", photos(tmp_path, 12))["id"]
    start(slow, id_)
    first = states(slow, id_)
    next(first)
    first.close()  # type: ignore[attr-defined]
    assert list(states(slow, id_))[-1]["status"] == "complete"


# -- ends and faults


def test_a_restart_goes_on(tmp_path: Path) -> None:
    """After SIGTERM the next start tags what is missing, by itself, and no sample twice."""
    folder = photos(tmp_path / "photos", 60)
    task = task_file(fake=SLOW)
    with tagging_rolecall(tmp_path / "server", task=task) as server:
        id_ = add_dataset(server, "one", folder)["id"]
        start(server, id_)
        await_processed(server, id_, 8)
        watching = states(server, id_)
        assert next(watching)["status"] == "running"
        assert server.stop() == 0
        assert {state["status"] for state in watching} <= {"running"}
    with tagging_rolecall(tmp_path / "server", task=task) as server:
        seen = list(states(server, id_))
        assert seen[0]["status"] == "running"
        assert seen[0]["processed"] >= 8
        assert seen[-1] == {"status": "complete", "processed": 60, "total": 60, "message": "Tagged 60 samples."}

        def answered() -> int:
            return sum(line["status"] == 200 and line["prompt_id"] == "tags" for line in server.log_lines())

        eventually(lambda: answered() >= 60)
        assert answered() <= 60 + SAMPLES_AT_A_TIME


def test_a_sigkill_loses_nothing(tmp_path: Path) -> None:
    """After kill -9 in the middle every sample has its tags once the next process is through."""
    folder = photos(tmp_path / "photos", 60)
    task = task_file(fake=SLOW)
    server = tagging_rolecall(tmp_path / "server", task=task)
    with server:
        id_ = add_dataset(server, "one", folder)["id"]
        start(server, id_)
        await_processed(server, id_, 8)
        server.kill()
    with tagging_rolecall(tmp_path / "server", task=task) as server:
        assert list(states(server, id_))[-1]["processed"] == 60
        assert {tuple(sorted(each["tags"])) for each in samples(server, id_)} == {tuple(sorted(TAGS.values()))}
        assert server.get(f"/datasets/{id_}")["tagged"] == 60


def test_an_engine_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    """It starts anew, and the job ends with the samples tagged; what failed is told of each."""
    with tagging_rolecall(tmp_path / "server", "--crash-after-requests", "13") as server:
        id_ = add_dataset(server, "one", photos(tmp_path / "photos", 40))["id"]
        start(server, id_)
        last = list(states(server, id_))[-1]
        assert (last["status"], last["processed"]) == ("complete", 40)
        failed = samples(server, id_, failed=1)
        assert all(sample["problem"] for sample in failed)
        assert server.get(f"/datasets/{id_}")["tagged"] == 40 - len(failed)
        assert len(failed) <= 4


@pytest.mark.parametrize("answer", ["I like it!", "{}", '{"lighting": "purple"}'])
def test_a_model_that_answers_rubbish(tmp_path: Path, answer: str) -> None:
    """Nothing of it becomes a tag, and each sample says why."""
    with tagging_rolecall(tmp_path / "server", task=task_file(answer)) as server:
        id_ = add_dataset(server, "one", photos(tmp_path / "photos", 3))["id"]
        start(server, id_)
        last = list(states(server, id_))[-1]
        assert last["message"] == "Tagged 0 of 3 samples; 3 could not be tagged."
        assert all(sample["tags"] == [] and "seer" in sample["problem"] for sample in samples(server, id_))


def test_a_file_that_another_process_holds(tmp_path: Path) -> None:
    """Datasets are unavailable then, and all else works; they are back when it lets go."""
    import subprocess
    import sys

    from vision.test_datasets_store import HOLDER

    server = tagging_rolecall(tmp_path / "server")
    (server.state / "datasets").mkdir(parents=True)
    argv = [sys.executable, "-c", HOLDER, str(server.state / "datasets" / "datasets.duckdb")]
    with server, subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        error = error_of(server.http.get("/datasets"), 503)
        assert error["code"] == "datasets_unavailable"
        assert "held by another process" in error["message"]
        assert server.chat("seer").status_code == 200
        holder.kill()
        eventually(lambda: server.http.get("/datasets").status_code == 200)


def test_a_server_without_datasets_holds_nothing_for_them(server: Rolecall, tmp_path: Path) -> None:
    """What they need is loaded with the first request for them."""
    with tagging_rolecall(tmp_path / "server") as fresh:

        def loaded() -> set[str]:
            maps = Path(f"/proc/{fresh.process.pid}/maps").read_text()
            return {name for name in ("duckdb", "_imaging") if name in maps}

        fresh.chat("seer")
        fresh.http.get("/ui/datasets")
        assert loaded() == set()
        fresh.get("/datasets")
        assert loaded() == {"duckdb", "_imaging"}


# -- keys


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with keys."""
    folder = tmp_path_factory.mktemp("guarded")
    made = tagging_rolecall(folder, settings={"api_keys_file": "keys.json"})
    write_keys(made.config_dir / "keys.json", key_row("user", KEY), key_row("boss", ADMIN, scopes=["admin"]))
    with made as running:
        yield running


def test_who_may_do_what(guarded: Rolecall, tmp_path: Path) -> None:
    """Without a key nothing but the page is shown; only an admin's key registers and removes folders."""
    body = {"name": "one", "folder": str(photos(tmp_path, 2))}
    error_of(guarded.http.get("/datasets"), 401)
    error_of(guarded.http.post("/datasets", json=body, headers=bearer(KEY)), 403)
    id_ = guarded.http.post("/datasets", json=body, headers=bearer(ADMIN)).json()["id"]
    for path in ("", "/samples", "/auto-tag/progress"):
        error_of(guarded.http.get(f"/datasets/{id_}{path}"), 401)
    user = guarded.http.get(f"/datasets/{id_}", headers=bearer(KEY)).json()
    assert "folder" not in user
    assert guarded.http.get("/datasets", headers=bearer(KEY)).json()["may_register"] is False
    assert guarded.http.get("/datasets", headers=bearer(ADMIN)).json()["data"][0]["folder"] == str(tmp_path)
    error_of(guarded.http.delete(f"/datasets/{id_}", headers=bearer(KEY)), 403)
    error_of(guarded.http.post(f"/datasets/{id_}/auto-tag", headers=bearer(ADMIN)), 403)
    for path in ("/ui/datasets", "/ui/static/shared.css"):
        assert guarded.http.get(path).status_code == 200
    error_of(guarded.http.get("/ui/static/none.js"), 404)


def test_a_job_asks_on_behalf_of_its_key(guarded: Rolecall, tmp_path: Path) -> None:
    """The log names the key that started it; a key that is revoked ends it."""
    made = guarded.http.post(
        "/datasets", json={"name": "two", "folder": str(photos(tmp_path, 2))}, headers=bearer(ADMIN)
    )
    id_ = made.json()["id"]
    assert guarded.http.post(f"/datasets/{id_}/auto-tag", headers=bearer(KEY)).status_code == 202
    assert list(states(guarded, id_, headers=bearer(KEY)))[-1]["status"] == "complete"
    lines = [line for line in guarded.log_lines() if line["prompt_id"] == "tags"]
    assert {line["key"] for line in lines} == {"user"}


def test_a_job_that_waits_for_the_limit_of_its_key(tmp_path: Path) -> None:
    """Its progress says so, on the way and in between; meanwhile a job of another key has all places."""
    made = tagging_rolecall(tmp_path / "server", settings={"api_keys_file": "keys.json"})
    few = key_row("few", "rc-few", requests_per_minute=2)
    write_keys(made.config_dir / "keys.json", few, key_row("user", KEY), key_row("boss", ADMIN, scopes=["admin"]))
    with made as server:
        slow, fast = (
            add_dataset(server, name, photos(tmp_path / name, 30), headers=bearer(ADMIN))["id"]
            for name in ("slow", "fast")
        )
        assert server.http.post(f"/datasets/{slow}/auto-tag", headers=bearer("rc-few")).status_code == 202
        waiting = "Tagging... 2/30, waiting for the limit of the key 'few'"
        seen = states(server, slow, headers=bearer(KEY))
        assert next(state for state in seen if "waiting" in state["message"] and state["processed"] == 2) == {
            "status": "running",
            "processed": 2,
            "total": 30,
            "message": waiting,
        }
        assert server.http.post(f"/datasets/{fast}/auto-tag", headers=bearer(KEY)).status_code == 202
        assert list(states(server, fast, headers=bearer(KEY)))[-1]["message"] == "Tagged 30 samples."
        ended = server.http.delete(f"/datasets/{slow}/auto-tag", headers=bearer(KEY)).json()
        assert (ended["status"], ended["message"]) == ("idle", "Cancelled: 2 of 30 samples are done.")


def test_a_page_of_another_site_reads_nothing(server: Rolecall) -> None:
    """Nor can it start anything."""
    foreign = {"origin": "https://evil.example", "content-type": "application/json"}
    assert error_of(server.http.get("/datasets", headers=foreign), 403)["code"] == "origin_not_allowed"
    error_of(server.http.post("/datasets", content=b"{}", headers=foreign), 403)
