"""llama-swap's configuration: each field as what it becomes here, and each that becomes nothing with its line."""

from __future__ import annotations

from typing import Any

import pytest

from elsewhere.reading import entries, entry, read, remarks, said, swap
from rolecall.elsewhere.tree import SourceError

LLAMA = "llama-server -m /m/x.gguf --port ${PORT}"


def config(cmd: str, **fields: Any) -> dict[str, Any]:
    """``backend_config`` of a model with that command."""
    found: dict[str, Any] = entry(swap(cmd, **fields))["backend_config"]
    return found


def test_llama_servers_options_become_fields() -> None:
    """What an entry has a field for goes there, host and port are rolecall's, the rest stays in its order."""
    cmd = (
        "/bin/llama-server --host 127.0.0.1 --port ${PORT} -m '/m/my models/Qwen3-8B-UD-Q4_K_XL-00001-of-00002.gguf' "
        "-c 8192 --alias qwen,other -ngl 99 --temp 0.6 --top-k 20 --min-p .05 -n 512 --jinja "
        "--mmproj '/m/my models/sub/mmproj.gguf' --override-kv 'a=str:b c' --parallel 2"
    )
    assert entry(swap(cmd)) == {
        "name": "m",
        "backend": "llama_cpp",
        "backend_config": {
            "model_path": "/m/my models/Qwen3-8B-UD-Q4_K_XL-00001-of-00002.gguf",
            "mmproj_path": "sub/mmproj.gguf",
            "extra_args": ["-ngl", "99", "--jinja", "--override-kv", "a=str:b c", "--parallel", "2"],
        },
        "quantization": "q4_k_xl",
        "context_length": 8192,
        "served_model_id": "qwen",
        "generation_defaults": {"temperature": 0.6, "top_k": 20, "min_p": 0.05, "max_tokens": 512},
    }


def test_values_without_a_field_stay_arguments() -> None:
    """A context of 0 is the model's own; what is no number, and an option at the end, stay as they stand."""
    assert entry(swap(f"{LLAMA} -c 32k"))["backend_config"]["extra_args"] == ["-c", "32k"]  # a letter is vLLM's
    assert entry(swap(f"{LLAMA} -c 0 -n -1 --temp warm --ctx-size all --top-k"))["backend_config"]["extra_args"] == [
        *("--temp", "warm", "--ctx-size", "all", "--top-k"),
    ]


@pytest.mark.parametrize(
    ("cmd", "told"),
    [
        (f"{LLAMA} -c 32k", "reads -c 32k as 32: write the number out"),
        (f"env A=1 {LLAMA} -b 2K", "reads -b 2K as 2: write the number out"),
        ("docker run -p ${PORT}:8080 ghcr.io/ggml-org/llama.cpp:server --ctx-size 8k", "reads --ctx-size 8k as 8"),
        (f"{LLAMA} -c 32768 --alias 7b", None),
        ("vllm serve /m/folder --port ${PORT} --max-model-len 32k", None),
    ],
)
def test_a_letter_after_a_number_is_told_of_llama_servers(cmd: str, told: str | None) -> None:
    """llama-server would take 32k for 32, which is hardly meant; vLLM knows what it means."""
    outcome = read(swap(cmd))
    assert ("takes no letters" in said(outcome)) is (told is not None)
    assert told is None or f"todo models.m.cmd: llama-server takes no letters after a number and {told}" in said(
        outcome
    )


def test_vllms_options_become_fields() -> None:
    """VLLM's too, with underscores and joined by =; of several served names the first counts."""
    cmd = (
        "/opt/vllm/bin/vllm serve /m/Qwen2.5-VL-AWQ --port ${PORT} --host 0.0.0.0 --max_model_len=16K "
        "--max-num-seqs 4 --served-model-name a b c --dtype auto --reasoning-parser qwen3 --max-model-len-x=1"
    )
    outcome = read(swap(cmd))
    assert entries(outcome) == [
        {
            "name": "m",
            "backend": "vllm",
            "backend_config": {
                "model_path": "/m/Qwen2.5-VL-AWQ",
                "extra_args": ["--dtype", "auto", "--reasoning-parser", "qwen3", "--max-model-len-x=1"],
            },
            "quantization": "awq",
            "context_length": 16384,
            "max_parallel": 4,
            "served_model_id": "a",
            "capabilities": ["text", "reasoning"],
        }
    ]
    assert outcome.settings == ['vllm_command = "/opt/vllm/bin/vllm"']


@pytest.mark.parametrize(
    ("arguments", "capabilities"),
    [
        ("--task embed", ["embedding"]),
        ("--task score", ["rerank"]),
        ("--runner pooling", ["embedding"]),
        ("--model-impl auto", None),
        ("--enable-auto-tool-choice", ["text", "tools"]),
    ],
)
def test_what_vllm_does_is_seen_by_its_arguments(arguments: str, capabilities: list[str] | None) -> None:
    """Models that embed and rank have the capability, tools and reasoning are found."""
    assert entry(swap(f"vllm serve --model /m/x --port ${{PORT}} {arguments}")).get("capabilities") == capabilities


@pytest.mark.parametrize(
    ("cmd", "backend", "words"),
    [
        ("vllm serve Qwen/Qwen3-8B --port ${PORT}", "vllm", ["vllm", "serve", "Qwen/Qwen3-8B", "--port", "{port}"]),
        ("llama-server -hf a/b:Q8_0 --port=9", "llama_cpp", ["llama-server", "-hf", "a/b:Q8_0", "--port={port}"]),
        ("python -m vllm.entrypoints.openai.api_server --port ${PORT}", "vllm", None),
        ("uv run vllm serve /m/x --port ${PORT}", "vllm", None),
        ('bash -c "llama-server -m /m/x.gguf --port ${PORT}"', "llama_cpp", None),
        ("koboldcpp --port ${PORT} /m/x.gguf", "koboldcpp", ["koboldcpp", "--port", "{port}", "/m/x.gguf"]),
        ("podman run -p=${PORT}:80 some/image", "custom", ["podman", "run", "-p=127.0.0.1:{port}:80", "some/image"]),
        ("/opt/TabbyAPI/start.sh ${PORT}", "start.sh", ["/opt/TabbyAPI/start.sh", "{port}"]),
        ("sd --host=0.0.0.0 --listen ${PORT}", "sd", ["sd", "--host={host}", "--listen", "{port}"]),
        ("x --api-key=secret --port ${PORT}", "x", ["x", "--port", "{port}"]),
    ],
)
def test_other_commands_stay_commands(cmd: str, backend: str, words: list[str] | None) -> None:
    """What rolecall cannot start by itself keeps its command, with rolecall's port, on loopback and without a key."""
    found = entry(swap(cmd))
    assert found["backend"] == backend
    assert words is None or found["backend_config"]["command"] == words
    assert any("{port}" in word for word in found["backend_config"]["command"])


def test_relative_paths_begin_where_the_file_lies() -> None:
    """Rolecall runs in another folder, so paths are made whole, and that is said."""
    outcome = read(swap("llama-server -m ../m/x.gguf --mmproj ./p.gguf --lora l.gguf --port ${PORT}"))
    assert entries(outcome)[0]["backend_config"] == {
        "model_path": "/etc/m/x.gguf",
        "extra_args": ["--mmproj", "/etc/swap/p.gguf", "--lora", "/etc/swap/l.gguf"],
    }
    assert entries(outcome)[0]["capabilities"] == ["text", "vision"]
    assert "the projector lies outside of the model's folder" in said(outcome)


def test_a_remark_has_the_line_of_its_word() -> None:
    """Of a command of several lines the line is told on which the word stands."""
    outcome = read(
        """
        models:
          m:
            cmd: |
              llama-server -m /m/x.gguf
              # not --api-key
              --api-key sk-secret \\
              --port ${PORT} --host 10.0.0.1
        """
    )
    assert [(line, kind) for line, kind, subject in remarks(outcome) if subject == "models.m.cmd"] == [
        (5, "changed"),
        (7, "changed"),
    ]
    assert "sk-secret" not in said(outcome) + str(entries(outcome))


def test_macros_are_filled_in() -> None:
    """Macros in macros, a model's own before a global one, types kept, its name, and the environment."""
    text = """
        macros:
          a: 1024
          b: "--ctx-size ${a}"
          path: ${env.MODELS}/x.gguf
          server: "# the newest\\nllama-server"
        models:
          m:
            macros: {a: 2048, warm: 0.5, on: true}
            cmd: ${server} -m ${path} ${b} --alias ${MODEL_ID} --port ${PORT} --flag ${on}
            filters: {setParams: {temperature: "${warm}", note: "at ${warm}"}}
        """
    found = entry(text, MODELS="/m")
    assert (found["backend_config"]["model_path"], found["context_length"]) == ("/m/x.gguf", 2048)
    assert found["backend_config"]["extra_args"] == ["--flag", "true"]
    assert found["request"]["set"] == {"temperature": 0.5, "note": "at 0.5"}
    assert found["served_model_id"] == "m"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "models: {m: {cmd: 'x ${nope} ${PORT}'}}",
            "line 1: models.m.cmd uses the macro 'nope', which is not declared",
        ),
        ("macros: {a: '${b}', b: c}\nmodels: {m: {cmd: '${a} ${PORT}'}}", "line 2: models.m.cmd uses the macro 'b'"),
        ("models: {m: {cmd: '${env.NOPE} ${PORT}'}}", "needs the environment variable NOPE, which is not set: set it"),
        (
            "macros:\n  a0: xxxxxxxxxxxxxxxx\n"
            + "".join(f'  a{n}: "{f"${{a{n - 1}}}" * 9}"\n' for n in range(1, 9))
            + "models: {m: {cmd: '${a8}'}}",
            "grows beyond 65536 characters by the macro",
        ),
        ("models: {m: {ttl: 5}}\npeers: {}", "line 1: models.m has no cmd"),
        ("models: {m: {cmd: ' '}}", "models.m.cmd is empty"),
        ("models: {m: {cmd: 'x \"y ${PORT}'}}", "models.m.cmd cannot be split: No closing quotation"),
        ("models: {m: {cmd: [x]}}", "models.m.cmd must be a text, not a list"),
        ("models: {m: {cmd: x}, n: 3}", "line 1: models.n must be a mapping, not a number"),
        ("models: 3", "line 1: models must be a mapping, not a number"),
        (swap(LLAMA, ttl="soon"), "models.m.ttl must be a number, not a text"),
        (swap(LLAMA, env=["A"]), "models.m.env must be NAME=value"),
        (swap(LLAMA, aliases=[{"a": 1}]), "models.m.aliases must be a list of texts, not of a mapping"),
        (swap(LLAMA, filters=3), "models.m.filters must be a mapping, not a number"),
        (swap(LLAMA, proxy="localhost:9"), "models.m.proxy is no address"),
        (swap(LLAMA, proxy="http://h:port"), "models.m.proxy is no address"),
        (swap(LLAMA, capabilities={"context": -4}), "gives no valid context_length"),
        ("groups: {g: {swap: maybe, members: []}}\nmodels: {}", "groups.g.swap must be true or false, not a text"),
        ("peers: {p: {models: [a]}}", "line 1: peers.p.proxy must be an address that begins with http"),
        ("peers: {p: {proxy: 'http://h'}}", "peers.p names no models"),
    ],
)
def test_what_llama_swap_would_refuse_is_refused(text: str, words: str) -> None:
    """Nothing is imported of a file that makes no sense; the line, the way to it and the reason are told."""
    with pytest.raises(SourceError) as raised:
        read(text)
    assert words in str(raised.value)


def test_all_problems_are_told_together() -> None:
    """One look at the file is enough: every problem is told, in the order of the lines."""
    with pytest.raises(SourceError) as raised:
        read("models:\n  a: {cmd: '${x}'}\n  b: {ttl: 1}\n  c: 3\n")
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["line 2", "line 3", "line 4"]


def test_times_and_limits() -> None:
    """ttl, globalTTL, healthCheckTimeout and concurrencyLimit become the fields of the entry."""
    text = """
        globalTTL: 600
        healthCheckTimeout: 5
        models:
          a: {cmd: "llama-server -m /a.gguf --port ${PORT}", ttl: 0, concurrencyLimit: 3}
          b: {cmd: "llama-server -m /b.gguf --port ${PORT}", ttl: -1, healthCheckTimeout: 300}
        """
    a, b = entries(read(text))
    assert (a["idle_unload_s"], a["load_timeout_s"], a["max_parallel"]) == (0, 15, 3)
    assert (b["idle_unload_s"], b["load_timeout_s"]) == (600, 300)


def test_the_address_of_an_engine() -> None:
    """A command without ${PORT} has the port of its proxy or its own; a proxy elsewhere is a server of others."""
    assert config("koboldcpp /m/x.gguf", proxy="http://127.0.0.1:5001")["port"] == 5001
    assert config("koboldcpp --port 5002 /m/x.gguf")["port"] == 5002
    assert entries(read(swap("koboldcpp /m/x.gguf") + "\n")) == []
    elsewhere = entry(swap("ssh host koboldcpp ${PORT}", proxy="http://10.0.0.9:5001/", env=["A=1"]))
    assert (elsewhere["backend"], elsewhere["backend_config"]) == ("openai", {"base_url": "http://10.0.0.9:5001/v1"})
    outcome = read(swap(LLAMA, proxy="http://127.0.0.1:${PORT}/sub"))
    assert "lost models.m.proxy: engines are asked at 127.0.0.1, under /v1" in said(outcome)


def test_health_checks() -> None:
    """A command is asked where llama-swap asked; an engine of rolecall's at its own place."""
    assert config("x ${PORT}", checkEndpoint="v1/models")["health_path"] == "/v1/models"
    assert "health_path" not in config("x ${PORT}", checkEndpoint="/health")
    assert "rolecall waits until an engine answers 200" in said(read(swap("x ${PORT}", checkEndpoint="none")))
    assert "this engine is asked at /health" in said(read(swap(LLAMA, checkEndpoint="/v1/models")))


def test_variables_of_an_engine() -> None:
    """Variables go to the entry, GPUs into its own field; a secret only with a word about it, or not at all."""
    env = ["CUDA_VISIBLE_DEVICES=0, 2", "HF_TOKEN=hf_abc", "OTHER_KEY=${env.OTHER_KEY}", "A=b=c"]
    outcome = read(swap(f"env B=1 C=2 {LLAMA}", env=env), OTHER_KEY="not to be read")
    (found,) = entries(outcome)
    assert found["gpus"] == [0, 2]
    assert found["backend_config"]["env"] == {"B": "1", "C": "2", "HF_TOKEN": "hf_abc", "A": "b=c"}
    assert "the value of HF_TOKEN stands in the registry in plain text now" in said(outcome)
    assert "${env.OTHER_KEY} is secret and was not copied: put OTHER_KEY into backend_config.env" in said(outcome)
    assert entry(swap(LLAMA, env=["CUDA_VISIBLE_DEVICES=-1"]))["backend_config"]["env"] == {
        "CUDA_VISIBLE_DEVICES": "-1"
    }


def test_a_secret_in_a_command_is_not_filled_in() -> None:
    """A secret variable stays a name in the command, and a person is told."""
    outcome = read(swap("docker run -e HF_TOKEN=${env.HF_TOKEN} -p ${PORT}:80 x"), HF_TOKEN="hf_abc")
    assert "hf_abc" not in str(entries(outcome))
    assert "${env.HF_TOKEN} is secret and was not filled in" in said(outcome)


def test_what_a_model_is_and_can() -> None:
    """Name, description, metadata and capabilities of the list are carried over."""
    capabilities = {"in": ["text", "image", "audio"], "out": ["text", "image"], "tools": True, "reranker": False}
    outcome = read(
        swap(LLAMA, name="M", description="d", metadata={"a": [1]}, capabilities={**capabilities, "context": 9})
    )
    (found,) = entries(outcome)
    assert (found["display_name"], found["metadata"]) == ("M", {"description": "d", "a": [1]})
    assert (found["capabilities"], found["context_length"]) == (["text", "vision", "audio", "tools"], 9)
    assert "rolecall has no endpoint for images that a model makes" in said(outcome)
    assert entry(swap(f"{LLAMA} --rerank", capabilities={"reranker": True}))["capabilities"] == ["rerank"]


def test_fields_without_a_counterpart_are_told() -> None:
    """Each is told with its line and what there is instead; unknown ones too, and those that say nothing are not."""
    text = """
        logLevel: debug
        ui: {}
        x-mine: {}
        newSetting: 1
        models:
          m:
            cmd: llama-server -m /m/x.gguf --port ${PORT}
            cmdStop: kill ${PID}
            unlisted: true
            sendLoadingState: false
            newField: 1
            filters: {newFilter: 1, stripParams: "a"}
        hooks: {on_stop: {}}
        routing: {scheduler: {use: fifo}}
        """
    assert remarks(read(text)) == [
        (1, "lost", "logLevel"),
        (2, "lost", "ui"),
        (4, "lost", "newSetting"),
        (6, "changed", "models"),
        (8, "lost", "models.m.cmdStop"),
        (9, "lost", "models.m.unlisted"),
        (11, "lost", "models.m.newField"),
        (12, "lost", "models.m.filters.newFilter"),
        (13, "lost", "hooks.on_stop"),
        (14, "lost", "routing.scheduler"),
    ]


def test_the_program_that_most_use_becomes_a_setting() -> None:
    """Of two builds the one that more models use is the setting's, the other one stays a command."""
    models = {
        name: {"cmd": f"/{build}/llama-server -m /m/{name}.gguf --port ${{PORT}}"}
        for name, build in (("a", "x"), ("b", "y"), ("c", "y"))
    }
    import json

    outcome = read(json.dumps({"models": models}))
    assert ["command" in found["backend_config"] for found in entries(outcome)] == [True, False, False]
    assert entries(outcome)[0]["backend_config"]["model_path"] == "/m/a.gguf"
    assert outcome.settings == ['llama_server = "/y/llama-server"']
    outcome = read(swap("llama-server-b9000 -m /m/x.gguf --port ${PORT}"))
    assert outcome.settings == ['llama_server = "llama-server-b9000"']


def test_a_password_in_an_address_is_told() -> None:
    """An address with a password is carried over, and it is said that the password came along."""
    outcome = read("peers: {p: {proxy: 'http://me:pw@h', models: [a], newField: 1}}")
    assert "the password in its base_url stands in the registry in plain text now" in said(outcome)
    assert "peers.p.newField" in said(outcome)
    assert "api_key_env" not in str(entries(read("peers: {p: {proxy: 'http://h', apiKey: none, models: [a]}}")))


def test_an_engine_far_away_gets_no_command() -> None:
    """A proxy on another host makes an entry of a server there, also for a llama-server with a model's file."""
    outcome = read(swap(LLAMA, proxy="http://10.0.0.9:${PORT}"))
    assert "engines are asked at 127.0.0.1" in said(outcome)
    outcome = read(swap("llama-server --host 10.1.1.1 --api-key-file k -m /m/x.gguf --port ${PORT}"))
    assert "--host 10.1.1.1 was left out" in said(outcome)
    assert "--api-key-file was left out" in said(outcome)


def test_selectors_of_one_and_of_none() -> None:
    """A selector of one model is a role without a setting, one without models is nothing."""
    text = """
        models:
          m: {cmd: "llama-server -m /m/x.gguf --port ${PORT}"}
        selectors:
          One Model: {strategy: warm, targets: [m]}
          none: {targets: []}
          two words: {strategy: warm, targets: [m, m2]}
          both: {strategy: warm, targets: [m, p/a]}
        peers:
          p: {proxy: "http://h", models: [a, m]}
        """
    outcome = read(text)
    assert entries(outcome)[0]["role_priority"] == {"one model": 90, "two words": 90, "both": 90}
    assert [found.get("model_aliases") for found in entries(outcome)] == [None, ["a"], None]
    assert outcome.settings == ["[roles.both]\nquality_tolerance = 10"]


@pytest.mark.parametrize(("members", "pinned"), [("[m]", [True]), ("[m, n]", [None, None])])
def test_a_persistent_group_that_swaps(members: str, pinned: list[bool | None]) -> None:
    """One model alone is swapped for nothing, so it is pinned; of several, that is left out and told."""
    listed = "".join(f"\n  {name}: {{cmd: '{LLAMA}'}}" for name in members.strip("[]").split(", "))
    outcome = read(f"models:{listed}\ngroups:\n  g: {{persistent: true, members: {members}}}\n")
    assert [each.get("pinned") for each in entries(outcome)] == pinned
    lost = [remark.text for remark in outcome.remarks if remark.kind == "lost" and remark.subject == "groups.g"]
    assert ["persistent was left out" in text for text in lost] == ([] if pinned == [True] else [True])
