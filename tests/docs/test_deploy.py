"""What can be said of the packages in deploy/ without a container engine or a running systemd."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from pyimgano import cli
from pyimgano.service.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with what it is given."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def parsed(words: list[str]) -> dict[str, Any]:
    """Return what `pyimgano serve` understands of its words; an unknown one is an error."""
    command = cli._command("serve")
    return command.make_context("serve", words).params


def yaml_of(name: str) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_container_runs_the_service_without_rights() -> None:
    known = steps()
    last = max(number for number, (step, _) in enumerate(known) if step == "FROM")
    final = known[last:]
    assert [given for step, given in final if step == "USER"] == ["10001"]
    names = [step for step, _ in final]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    entry = json.loads(dict(final)["ENTRYPOINT"])
    assert entry[:2] == ["pyimgano", "serve"]
    assert parsed(entry[2:])["host"] == "0.0.0.0"
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for step, given in known:
        if step == "COPY" and not given.startswith("--from="):
            for name in given.split()[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored, name
    installs = " ".join(given for step, given in known if step == "RUN")
    assert "pip install -c constraints.txt '.[serve]'" in installs
    check = json.loads(dict(final)["HEALTHCHECK"].partition(" CMD ")[2])
    compile(check[2], "HEALTHCHECK", "exec")


def test_compose_gives_commands_what_they_take() -> None:
    compose = yaml_of("compose.yaml")
    services = compose["services"]
    assert set(services) == {"serve", "prometheus", "mosquitto"}
    serve = services["serve"]
    entry = json.loads(dict(steps())["ENTRYPOINT"])
    given = parsed([*entry[2:], *serve["command"]])
    assert given["models"] == ("lid=/models/lid",)
    assert given["api_key_file"] == Path("/run/secrets/api-key")
    assert serve["build"]["dockerfile"] == "deploy/Dockerfile"
    for one in services.values():
        assert one["read_only"] is True and one["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in one["ports"])
        for volume in one["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./") and source != "./models":
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("./"):
                assert source in compose["volumes"]


def test_prometheus_reads_metrics_that_exist() -> None:
    config = yaml_of("prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["serve:8000"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/api-key"
    text = Metrics().text().decode()
    known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    for rule in yaml_of("alerts.yml")["groups"][0]["rules"]:
        for name in re.findall(r"pyimgano_\w+", rule["expr"]):
            assert {name, name.removesuffix("_bucket")} & known, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say() -> None:
    subprocess.run(["promtool", "check", "rules", str(DEPLOY / "alerts.yml")], check=True)


def unit() -> dict[str, str]:
    lines = (DEPLOY / "pyimgano-serve.service").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {one[0]: one[1] for one in pairs}


def test_the_unit_starts_what_exists() -> None:
    found = unit()
    words = shlex.split(found["ExecStart"].replace("$MODELS", "--model lid=/models/lid"))
    assert words[:2] == ["/opt/pyimgano/bin/pyimgano", "serve"]
    given = parsed(words[2:])
    assert given["host"] == "127.0.0.1"
    assert float(found["TimeoutStopSec"]) > given["grace"]
    assert found["DynamicUser"] == "yes" and found["ProtectSystem"] == "strict"
    assert found["NoNewPrivileges"] == "yes" and found["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    text = (DEPLOY / "pyimgano-serve.service").read_text(encoding="utf-8")
    program = shutil.which("true")
    copy = tmp_path / "pyimgano-serve.service"
    copy.write_text(text.replace("/opt/pyimgano/bin/pyimgano", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "pyimgano-serve" not in done.stderr, done.stderr


def test_a_wrong_word_would_be_found() -> None:
    with pytest.raises(click.UsageError):
        parsed(["--no-such-option"])
