"""What a run over many pictures tells of itself while it goes on."""

from __future__ import annotations

from pathlib import Path

import httpx
import orjson

from fakes import chat_client
from rolecall.settings import shipped
from rolecall.vision.ask import Asker
from rolecall.vision.batch import Batch, Wishes
from rolecall.vision.batch_earlier import Earlier
from rolecall.vision.batch_record import Key, Record
from rolecall.vision.plan import Chosen, Stage, plan
from rolecall.vision.tasks import load_tasks
from rolecall.vision.writers import open_output
from vision.pictures import folder

LIMIT = {"error": {"message": "The key had its 3 requests.", "code": "rate_limit_exceeded"}}
ANSWER = {"choices": [{"message": {"content": "A boat."}, "finish_reason": "stop"}], "model": "m"}


class Notes:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, stage: Stage) -> None:
        """Note a stage."""
        self.told.append(f"begin {stage.tasks}")

    def earlier(self, record_key: Key) -> None:
        """Note an earlier record."""
        self.told.append(f"earlier {record_key}")

    def finished(self, record: Record) -> None:
        """Note a record."""
        self.told.append(f"finished {record.value}")

    def waiting(self, reason: str, pause_s: float) -> None:
        """Note a wait."""
        self.told.append(f"waiting {pause_s} {reason}")


async def test_an_answer_without_words_is_written_once(tmp_path: Path) -> None:
    """Nothing of it goes into a sidecar, so that a run with sidecars that goes on finds it there already."""
    task = load_tasks(shipped("tasks"))["keywords"]
    task = task.model_copy(update={"validation": task.validation.model_copy(update={"empty": ("NOTHING",)})})
    pictures, out, notes = sorted(folder(tmp_path / "p", 1).iterdir()), tmp_path / "out.jsonl", Notes()
    made = plan([("keywords", "keywords")], {"keywords": Chosen("m", loaded=True)}, None)
    async with chat_client(lambda _: "Nothing.") as client:
        for resume in (False, True):
            output = open_output(out, resume=resume)
            earlier = Earlier(output.records(), sidecars=True)
            batch = Batch(
                Asker(client), {"keywords": task}, made, output, notes, wishes=Wishes(sidecars=True), earlier=earlier
            )
            await batch.run(pictures)
            output.close()
    assert [each.split()[0] for each in notes.told] == ["begin", "finished", "begin", "earlier"]
    assert len(out.read_text().splitlines()) == 1


async def test_why_a_question_waits_is_told(tmp_path: Path) -> None:
    """Each time before a pause, with the server's words and the seconds that it named."""
    refusals = [httpx.Response(429, json=LIMIT, headers={"retry-after": "0.01"}) for _ in range(2)]

    def served(request: httpx.Request) -> httpx.Response:
        assert orjson.loads(request.content)["model"] == "role:caption"
        return refusals.pop() if refusals else httpx.Response(200, json=ANSWER)

    tasks = {"caption": load_tasks(shipped("tasks"))["caption"]}
    output, notes = open_output(tmp_path / "out.jsonl", resume=False), Notes()
    async with httpx.AsyncClient(transport=httpx.MockTransport(served), base_url="http://rolecall") as client:
        made = plan([("caption", "caption")], {"caption": Chosen("m", loaded=True)}, None)
        batch = Batch(Asker(client, patience_s=0), tasks, made, output, notes)
        await batch.run(sorted(folder(tmp_path / "p", 1).iterdir()))
    output.close()
    wait = "waiting 0.01 The key had its 3 requests."
    assert notes.told == ["begin ('caption',)", wait, wait, "finished A boat."]
