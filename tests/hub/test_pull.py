"""Models onto the disk: whole and verified, through every way in which that can break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hub_server import Fault, HubServer, Repo

pytest.importorskip("huggingface_hub", reason="pulling needs an extra: rolecall[hub]")

from huggingface_hub import constants

from harness import eventually
from rolecall.core.hub_listing import choices, wanted
from rolecall.hub.client import Hub
from rolecall.hub.download import NoRoom
from rolecall.hub.failures import HubError, HubInterruption, WrongContent
from rolecall.hub.keeping import leftovers, outdated, problems, remove, sweep
from rolecall.hub.pull import missing_bytes, pull
from rolecall.runtime.model_store import NOTE, ModelStore, Pulled

NAME = "acme/Tiny-GGUF"
MODEL = bytes(range(256)) * 400
"""102,400 bytes; what a "server" sends in one piece arrives in several."""
PROJECTOR = b"p" * 5000
NEXT = "b" * 40


class Puller:
    """Pulls from a hub into a folder, with pauses recorded instead of made."""

    def __init__(self, server: HubServer, folder: Path) -> None:
        self.server, self.store = server, ModelStore(folder)
        self.pauses: list[float] = []
        self.reports: list[tuple[str, str, int, int]] = []
        self.hub = Hub(wait=lambda seconds, _why: self.pauses.append(seconds))

    def __call__(self, name: str = "Q4_0", repository: str = NAME) -> Pulled:
        found = self.hub.repository(repository)
        return pull(self.hub, self.store, found, wanted(choices(found.files), name), self._report)

    def missing(self, name: str = "Q4_0") -> int:
        found = self.hub.repository(NAME)
        return missing_bytes(self.store, found, wanted(choices(found.files), name))

    def _report(self, *progress: object) -> None:
        self.reports.append(progress)  # type: ignore[arg-type] # as it comes

    def files(self) -> list[str]:
        """All files below the folder."""
        return sorted(
            str(path.relative_to(self.store.folder)) for path in self.store.folder.rglob("*") if path.is_file()
        )


def ignored(_what: str, _path: str, _done: int, _total: int) -> None:
    """A report to nobody."""


@pytest.fixture
def puller(hub: HubServer, tmp_path: Path) -> Puller:
    files = {"tiny-Q4_0.gguf": MODEL, "mmproj-F16.gguf": PROJECTOR, "tiny-Q8_0.gguf": MODEL[::-1] * 2}
    hub.repos[NAME] = Repo(files)
    return Puller(hub, tmp_path / "models")


def test_a_model_lies_by_organisation_name_and_revision_with_its_projector(puller: Puller) -> None:
    """Files are called as in the repository, a note says what they are, and no part is left."""
    pulled = puller()
    folder = puller.store.folder / "acme" / "Tiny-GGUF" / ("a" * 40)
    assert pulled.folder == folder
    assert (folder / "tiny-Q4_0.gguf").read_bytes() == MODEL
    assert (folder / "mmproj-F16.gguf").read_bytes() == PROJECTOR
    assert sorted(path.name for path in folder.iterdir()) == [NOTE, "mmproj-F16.gguf", "tiny-Q4_0.gguf"]
    assert leftovers(puller.store) == []
    (noted,) = puller.store.pulled()
    assert noted == pulled
    assert (noted.repository, noted.license, noted.ref) == (NAME, "apache-2.0", "main")
    assert list(problems(noted, noted.models[0], ignored)) == []


def test_progress_is_told_to_the_last_byte(puller: Puller) -> None:
    """How many bytes there are of how many, first while they come, then while they are checked."""
    puller()
    of_model = [each for each in puller.reports if each[1] == "tiny-Q4_0.gguf"]
    assert of_model[0] == ("fetching", "tiny-Q4_0.gguf", 0, len(MODEL))
    assert ("fetching", "tiny-Q4_0.gguf", len(MODEL), len(MODEL)) in of_model
    assert of_model[-1] == ("checking", "tiny-Q4_0.gguf", len(MODEL), len(MODEL))


def test_what_is_here_is_not_fetched_again(puller: Puller, hub: HubServer) -> None:
    """A second pull fetches nothing; another quantization brings itself alone, and both are noted."""
    puller()
    before = len(hub.asked(".gguf"))
    puller()
    assert len(hub.asked(".gguf")) == before
    assert puller.missing() == 0
    both = puller("Q8_0")
    assert [model.label for model in both.models] == ["Q4_0", "Q8_0"]
    assert hub.asked("mmproj-F16.gguf") == [None]


def test_split_models_are_pulled_whole(puller: Puller, hub: HubServer) -> None:
    """All parts come, into the folder that they have in the repository."""
    parts = [f"BF16/tiny-BF16-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub.repos[NAME].files.update({part: MODEL + bytes([at]) for at, part in enumerate(parts)})
    pulled = puller("BF16")
    assert [file.path for file in pulled.models[0].files] == parts
    assert all((pulled.folder / part).read_bytes() == MODEL + bytes([at]) for at, part in enumerate(parts))


# --- what breaks off


def test_a_cut_in_the_middle_is_gone_on_with(puller: Puller, hub: HubServer) -> None:
    """The rest is asked for from where it broke off, as often as that takes."""
    hub.fault("tiny-Q4_0.gguf", Fault(times=2, cut_after=40_000))
    pulled = puller()
    assert (pulled.folder / "tiny-Q4_0.gguf").read_bytes() == MODEL
    assert hub.asked("tiny-Q4_0.gguf") == [None, "bytes=40000-", "bytes=80000-"]
    assert puller.pauses == [0.5, 0.5], "pauses do not grow while something comes"


def test_a_pull_that_breaks_off_is_gone_on_with_by_the_next(puller: Puller, hub: HubServer) -> None:
    """What came is kept, nothing is noted, and the next pull asks for the rest alone."""
    hub.fault("tiny-Q4_0.gguf", Fault(cut_after=30_000))
    hub.fault("tiny-Q4_0.gguf", Fault(times=5, status=503))
    with pytest.raises(HubInterruption, match="is in trouble"):
        puller()
    assert puller.store.pulled() == []
    assert puller.missing() == len(MODEL) - 30_000 + len(PROJECTOR)
    hub.faults.clear()
    hub.requests.clear()
    pulled = puller()
    assert hub.asked("tiny-Q4_0.gguf") == ["bytes=30000-"]
    assert (pulled.folder / "tiny-Q4_0.gguf").read_bytes() == MODEL


def test_a_slow_hub_is_asked_again(puller: Puller, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence counts as a break; what came before it is kept."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    slow = Puller(hub, puller.store.folder)
    hub.fault("mmproj-F16.gguf", Fault(pause_s=1.0))
    pulled = slow()
    assert (pulled.folder / "mmproj-F16.gguf").read_bytes() == PROJECTOR
    assert slow.pauses == [0.5]


def test_a_server_without_ranges_begins_anew(puller: Puller, hub: HubServer) -> None:
    """A whole file where the rest was asked for replaces the part."""
    hub.fault("tiny-Q4_0.gguf", Fault(cut_after=30_000))
    hub.fault("tiny-Q4_0.gguf", Fault(ranges=False))
    pulled = puller()
    assert (pulled.folder / "tiny-Q4_0.gguf").read_bytes() == MODEL


def test_a_busy_host_of_contents_is_waited_for(puller: Puller, hub: HubServer) -> None:
    """429 with Retry-After counts for contents as well."""
    hub.fault("tiny-Q4_0.gguf", Fault(times=2, status=429, headers={"Retry-After": "3"}))
    puller()
    assert puller.pauses == [3.0, 3.0]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_host_of_contents_that_refuses(puller: Puller, hub: HubServer, status: int) -> None:
    """A refusal ends it at once, and says what was refused."""
    hub.fault("tiny-Q4_0.gguf", Fault(status=status))
    with pytest.raises(HubError) as refused:
        puller()
    assert not isinstance(refused.value, HubInterruption)
    assert puller.pauses == []
    assert puller.store.pulled() == []
    assert list(puller.store.parts()) == []


# --- wrong contents


def test_a_wrong_hash_is_found_and_nothing_of_it_is_kept(puller: Puller, hub: HubServer) -> None:
    """Content of the right length that is not what the repository lists is no model."""
    hub.fault("tiny-Q4_0.gguf", Fault(content=b"x" * len(MODEL)))
    with pytest.raises(WrongContent, match=r"has the hash .* instead of .*Pull again"):
        puller()
    assert puller.files() == []
    assert puller().models[0].label == "Q4_0"


def test_small_files_are_verified_by_gits_name(puller: Puller, hub: HubServer) -> None:
    """What is no large file has no SHA-256, and is verified all the same."""
    hub.repos["acme/folder"] = Repo({"config.json": b'{"a":1}', "model.safetensors": MODEL})
    hub.fault("config.json", Fault(content=b'{"a":2}'))
    with pytest.raises(WrongContent, match="has the hash"):
        puller("safetensors", "acme/folder")
    pulled = puller("safetensors", "acme/folder")
    assert pulled.path(pulled.models[0]) == pulled.folder
    assert (pulled.folder / "config.json").read_bytes() == b'{"a":1}'


@pytest.mark.parametrize("listed", [len(MODEL) - 100, len(MODEL) + 100])
def test_a_listing_that_lies_about_sizes(puller: Puller, hub: HubServer, listed: int) -> None:
    """A file that is longer or shorter than listed is told before it is written."""
    hub.repos[NAME].listed["tiny-Q4_0.gguf"] = listed
    with pytest.raises(WrongContent, match=f"with {listed} bytes, and {len(MODEL)} are served"):
        puller()
    assert puller.files() == []


def test_a_listing_that_lies_about_sizes_in_the_middle_of_a_pull(puller: Puller, hub: HubServer) -> None:
    """A part that is longer than the whole is no part."""
    hub.fault("tiny-Q4_0.gguf", Fault(cut_after=80_000))
    hub.fault("tiny-Q4_0.gguf", Fault(times=5, status=503))
    with pytest.raises(HubInterruption):
        puller()
    hub.faults.clear()
    hub.repos[NAME].files["tiny-Q4_0.gguf"] = MODEL[:60_000]
    hub.repos[NAME].listed["tiny-Q4_0.gguf"] = 60_000
    hub.repos[NAME].hashes["tiny-Q4_0.gguf"] = puller.store.parts()[0].path.stem
    with pytest.raises(WrongContent, match="has the hash"):
        puller()
    assert puller.store.parts() == []


# --- the disk


def test_too_little_room_is_told_before_anything_is_fetched(puller: Puller, hub: HubServer) -> None:
    """What is to come is compared with what is free, and ways out are named."""
    hub.repos[NAME].listed["tiny-Q4_0.gguf"] = 10**15
    with pytest.raises(NoRoom, match=r"931322.6 GB are to come, and .* are free .* models_dir"):
        puller()
    assert hub.asked("tiny-Q4_0.gguf") == []
    assert puller.files() == []


def test_a_folder_that_cannot_be_written(puller: Puller) -> None:
    """A file in the place of the folder is told by its name."""
    puller.store.folder.write_text("a file")
    with pytest.raises(HubError, match="Not a directory"):
        puller()


def test_files_of_a_pull_that_ended_before_its_note_are_taken_if_they_are_right(puller: Puller, hub: HubServer) -> None:
    """Without a note nothing counts as here; a right file is not fetched again, a wrong one is."""
    folder = puller.store.revision_folder(NAME, "a" * 40)
    folder.mkdir(parents=True)
    (folder / "tiny-Q4_0.gguf").write_bytes(MODEL)
    (folder / "mmproj-F16.gguf").write_bytes(PROJECTOR[::-1] + b"x")
    assert [each.paths[0].name for each in leftovers(puller.store)] == ["mmproj-F16.gguf", "tiny-Q4_0.gguf"]
    puller()
    assert hub.asked("tiny-Q4_0.gguf") == []
    assert (folder / "mmproj-F16.gguf").read_bytes() == PROJECTOR
    assert leftovers(puller.store) == []


def test_two_at_a_time_are_one_too_many(puller: Puller, hub: HubServer) -> None:
    """Whoever comes second is told so, and neither damages the other's files."""
    hub.fault("mmproj-F16.gguf", Fault(pause_s=0.05))
    done: list[Pulled] = []
    first = threading.Thread(target=lambda: done.append(puller()))
    first.start()
    eventually(lambda: hub.asked("mmproj-F16.gguf"))
    with pytest.raises(HubError, match="another process is pulling or removing"):
        Puller(hub, puller.store.folder)()
    first.join()
    assert list(problems(done[0], done[0].models[0], ignored)) == []


# --- revisions


def renewed(hub: HubServer, **files: bytes) -> None:
    """Let the repository have a newer revision, with some files changed."""
    hub.repos[NAME] = Repo({**hub.repos[NAME].files, **files}, revision=NEXT)


def test_a_new_revision_shares_what_has_not_changed(puller: Puller, hub: HubServer) -> None:
    """Content that is here is not fetched again, and takes no room twice; removing one leaves the other."""
    old = puller()
    hub.requests.clear()
    renewed(hub, **{"mmproj-F16.gguf": PROJECTOR + b"2"})
    new = puller()
    assert hub.asked("tiny-Q4_0.gguf") == []
    assert (new.folder / "tiny-Q4_0.gguf").samefile(old.folder / "tiny-Q4_0.gguf")
    (stale,) = outdated(puller.store, ())
    assert stale == (old, old.models[0])
    assert outdated(puller.store, [old.path(old.models[0])]) == []
    assert remove(puller.store, *stale) == len(PROJECTOR)
    assert not old.folder.exists()
    assert list(problems(new, new.models[0], ignored)) == []


def test_a_part_goes_on_in_the_next_revision(puller: Puller, hub: HubServer) -> None:
    """A repository that changes between two attempts does not cost what came of a file that is the same."""
    hub.fault("tiny-Q4_0.gguf", Fault(cut_after=30_000))
    hub.fault("tiny-Q4_0.gguf", Fault(times=5, status=503))
    with pytest.raises(HubInterruption):
        puller()
    hub.faults.clear()
    hub.requests.clear()
    renewed(hub)
    puller()
    assert hub.asked("tiny-Q4_0.gguf") == ["bytes=30000-"]


# --- kept in order


def test_damage_is_found_and_mended(puller: Puller) -> None:
    """A flipped byte, a missing file and a shorter one are told apart."""
    pulled = puller()
    model, projector = (pulled.folder / name for name in ("tiny-Q4_0.gguf", "mmproj-F16.gguf"))
    model.write_bytes(b"\1" + MODEL[1:])
    projector.unlink()
    wrong = list(problems(pulled, pulled.models[0], ignored))
    assert len(wrong) == 2
    assert "has the hash" in wrong[0]
    assert wrong[1].endswith("is missing")
    model.write_bytes(MODEL[1:])
    assert "has 102399 bytes instead of 102400" in next(problems(pulled, pulled.models[0], ignored))
    again = puller()
    assert list(problems(again, again.models[0], ignored)) == []


def test_a_shared_projector_stays_with_the_model_that_is_left(puller: Puller) -> None:
    """Removing one quantization takes its file alone; with the last one everything goes."""
    puller()
    both = puller("Q8_0")
    remove(puller.store, both, both.models[0])
    (rest,) = puller.store.pulled()
    assert sorted(path.name for path in rest.folder.iterdir()) == [NOTE, "mmproj-F16.gguf", "tiny-Q8_0.gguf"]
    remove(puller.store, rest, rest.models[0])
    assert not (puller.store.folder / "acme").exists()


def test_what_broken_pulls_left_is_swept(puller: Puller, hub: HubServer) -> None:
    """Parts and files without a note go, but not while somebody pulls."""
    hub.fault("mmproj-F16.gguf", Fault(cut_after=100))
    hub.fault("mmproj-F16.gguf", Fault(times=-1, status=404))
    with pytest.raises(HubError):
        puller()
    left = leftovers(puller.store)
    assert [each.what for each in left] == [f"{NAME}, a part", f"{NAME}, of a pull that ended between two files"]
    with puller.store.held(NAME):
        assert [sweep(puller.store, each) for each in left] == [None, None]
    assert sum(sweep(puller.store, each) or 0 for each in left) == len(MODEL) + 100
    assert leftovers(puller.store) == []
    assert not (puller.store.folder / "acme").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda _text: "[]",
        lambda text: text.replace("tiny-Q4_0.gguf", "../../../../etc/passwd"),
        lambda text: text.replace('"version": 1', '"version": 9'),
        lambda text: text.replace('"format": "gguf"', '"format": "exe"'),
    ],
)
def test_a_note_that_makes_no_sense_is_none(puller: Puller, damage: Callable[[str], str]) -> None:
    """Files that only a broken note knows are leftovers, and another pull mends it."""
    note = puller().folder / NOTE
    note.write_text(damage(note.read_text()))
    assert puller.store.pulled() == []
    assert len(leftovers(puller.store)) == 3
    puller()
    assert [each.repository for each in puller.store.pulled()] == [NAME]


def test_a_repository_without_an_organisation(puller: Puller, hub: HubServer) -> None:
    """The few that have none lie below ``_``."""
    hub.repos["tiny"] = Repo({"config.json": b"{}", "a.gguf": b"x" * 100})
    pulled = puller("a", "tiny")
    assert pulled.folder == puller.store.folder / "_" / "tiny" / ("a" * 40)
    part = puller.store.part("tiny", pulled.models[0].files[0])
    part.parent.mkdir()
    part.write_bytes(b"x")
    assert puller.store.parts()[0].repository == "tiny"


def test_what_became_a_model_meanwhile_is_not_swept(puller: Puller) -> None:
    """A pull that is at work between two files ends while somebody is asked: its first file is part of a model then."""
    pulled = puller()
    note = puller.store.note(pulled).read_bytes()
    puller.store.note(pulled).unlink()
    left = leftovers(puller.store)
    assert left
    puller.store.note(pulled).write_bytes(note)
    assert [sweep(puller.store, each) for each in left] == [0] * len(left)
    assert list(problems(pulled, pulled.models[0], ignored)) == []
