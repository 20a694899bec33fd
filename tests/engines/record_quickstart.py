"""Records the terminal session of docs/quickstart.md: run it again when the output of ``rolecall init`` changes.

``make record`` calls it. The home is a new folder whose path is as long as ``/home/you``, as which it is shown, so that
tables come out as they stood. It needs port 8100.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated_models import write_models
from rolecall.demo.gguf import make_demo_models
from rolecall.runtime.ports import holder, is_free

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
BEGIN, END = "<!-- recorded by `make record`: -->\n", "<!-- end of what was recorded -->\n"
SHOWN_HOME = "/home/you"
COLUMNS = 110
PORT = 8100
WITHIN_S = 120
URL = f"127.0.0.1:{PORT}/v1"
JSON = "-H 'content-type: application/json'"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
CHATS = (
    ("chat", '"hello"'),
    ("code", '"hello"'),
    (
        "caption",
        (
            '[{"type":"text","text":"what is it?"},\n'
            f'  {{"type":"image_url","image_url":{{"url":"data:image/png;base64,{PIXEL}"}}}}]'
        ),
    ),
)


def commands() -> list[str]:
    """Return what is typed, in order; ``serve`` goes to the background."""
    asked = [
        f'curl -s {URL}/chat/completions {JSON} -d \'{{"model":"role:{role}","messages":[{{"role":"user",'
        f'"content":{content}}}]}}\' | grep -o \'"content":"[^"]*"\''
        for role, content in CHATS
    ]
    embedded = (
        f'curl -s {URL}/embeddings {JSON} -d \'{{"model":"role:embedding","input":"a cat"}}\' | '
        "grep -o '\"embedding\":\\[[^,]*,[^,]*,'"
    )
    return ["find ~/models -type f | sort", "rolecall init --yes ~/models", "rolecall serve &", *asked, embedded]


def record() -> str:
    """Run the commands one after the other and return what a terminal would have shown."""
    if not is_free("127.0.0.1", PORT):
        raise SystemExit(f"port {PORT} is taken by {holder(PORT)}, and the session shows it: end that first")
    home = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))  # its name is made below
    place = home.with_name(home.name[: len(SHOWN_HOME) - len("/tmp/")])
    home.rename(place)
    try:
        write_models(place / "models", _demo(place))
        shutil.rmtree(place / "demo")
        return _typed(place)
    finally:
        shutil.rmtree(place)


def _demo(place: Path) -> Path:
    make_demo_models(place / "demo")
    return place / "demo"


def _typed(home: Path) -> str:
    lines = []
    dropped = ("HF_", "XDG_", "LLAMA_CACHE", "OLLAMA_", "HUGGINGFACE_", "CHAT_PROXY_", "COLUMNS")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    variables |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb"}
    server = None
    try:
        for command in commands():
            lines.append(f"$ {command}")
            if command.endswith("&"):
                server = subprocess.Popen(
                    ["rolecall", "serve"], env=variables, cwd=home, stderr=subprocess.PIPE, text=True
                )
                lines += _until_ready(server)
            else:
                lines += _shown(command, home, variables)
    finally:
        if server:
            server.terminate()
            server.wait(WITHIN_S)
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    return text.replace(str(home), SHOWN_HOME)


def _until_ready(server: subprocess.Popen[str]) -> list[str]:
    lines = []
    deadline = time.monotonic() + WITHIN_S
    assert server.stderr is not None
    for line in server.stderr:
        lines.append(line.rstrip("\n"))
        if " ready at " in line or time.monotonic() > deadline:
            break
    return lines


def _shown(command: str, home: Path, variables: dict[str, str]) -> list[str]:
    """Run a command on a terminal of `COLUMNS` columns, which ``script`` makes, and return its lines."""
    inner = f"stty cols {COLUMNS}; cd; {command}"
    done = subprocess.run(
        ["script", "-qec", inner, "/dev/null"],
        env={**variables, "SHELL": "/bin/bash"},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    return done.stdout.replace("\r\n", "\n").rstrip("\n").split("\n")


def main() -> None:
    """Put a new recording into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    session = record()
    PAGE.write_text(f"{before}{BEGIN}\n```text\n{session}```\n\n{END}{after}", encoding="utf-8")
    sys.stdout.write(re.sub(r"(?m)^", "  ", session))


if __name__ == "__main__":
    main()
