"""Compose, Kubernetes, Prometheus and Grafana files: their schemas, and how they fit together."""

from __future__ import annotations

import importlib.util
import plistlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from motley.runfile import parse

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
yaml = pytest.importorskip("yaml", reason="PyYAML is not here")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def options_of(module: str, command: str) -> set[str]:
    """Return the options of a command as the command line knows them."""
    from typer.main import get_command

    app = importlib.import_module(module).app
    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {word for option in commands[command].params for word in option.opts}


def test_the_compose_file_fits_its_schema(tmp_path: Path) -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not here")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, COMPOSE / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text((COMPOSE / "compose.yaml").read_text().replace("cap_drop", "cap_dropp"))
    assert subprocess.run([*command, broken], capture_output=True).returncode == 1


def test_the_kubernetes_file_fits_its_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not here")
    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/server.yaml").read_text()))
    assert {"StatefulSet", "Service", "Namespace"} <= {found["kind"] for found in documents}
    for found in documents:
        for version in ("1.29", "1.34"):
            validate.validate(found, version, strict=True)
    (pod,) = (f["spec"]["template"]["spec"] for f in documents if f["kind"] == "StatefulSet")
    pod["containers"][0]["ports"][0]["containerPort"] = "many"
    with pytest.raises(validate.ValidationError):
        validate.validate(next(f for f in documents if f["kind"] == "StatefulSet"), "1.29")


def test_kubernetes_ports_and_users_are_those_of_the_image() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/server.yaml").read_text()))
    (pod,) = (f["spec"]["template"]["spec"] for f in documents if f["kind"] == "StatefulSet")
    image = (ROOT / "deploy/container/server.Dockerfile").read_text()
    exposed = re.search(r"^EXPOSE (.+)$", image, flags=re.M)
    assert exposed
    ports = {str(port["containerPort"]) for port in pod["containers"][0]["ports"]}
    assert ports == set(exposed[1].split())
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in image
    names = {port["name"] for port in pod["containers"][0]["ports"]}
    wanted = {port["targetPort"] for f in documents if f["kind"] == "Service"
              for port in f["spec"]["ports"]}  # fmt: skip
    assert wanted <= names


def test_the_parts_of_the_compose_file_fit_each_other() -> None:
    services = read(COMPOSE / "compose.yaml")["services"]
    run = parse((COMPOSE / "run.toml").read_text(), "run.toml")
    tiers = {tier.name for tier in run.tiers}
    clients = [name for name in services if "MOTLEY_NAME" in services[name].get("environment", {})]
    assert len(clients) == run.clients.expected == 3
    tokens = services["tokens"]["entrypoint"]
    known = options_of("fedclient.cli", "start")
    for index, name in enumerate(clients):
        command = services[name]["command"]
        assert command[command.index("--tier") + 1] in tiers
        assert f"client={index}" in command[-1]
        assert {word for word in command if word.startswith("--")} <= known
        assert name in tokens
        assert services[name]["environment"]["MOTLEY_TOKEN_FILE"] == f"{tokens[1]}/{name}"
    for name in ("fedserver", *clients):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]


def test_prometheus_asks_where_the_server_answers() -> None:
    (job,) = read(COMPOSE / "prometheus.yml")["scrape_configs"]
    ((target,),) = (entry["targets"] for entry in job["static_configs"])
    services = read(COMPOSE / "compose.yaml")["services"]
    host, _, port = target.partition(":")
    assert services[host]["command"] == ["--metrics", f"0.0.0.0:{port}"]
    (source,) = read(COMPOSE / "grafana/datasources/prometheus.yml")["datasources"]
    assert source["url"].removeprefix("http://").partition(":")[0] in services
    mounts = services["grafana"]["volumes"]
    (provider,) = read(COMPOSE / "grafana/dashboards/motley.yml")["providers"]
    assert any(provider["options"]["path"].startswith(mount.split(":")[1]) for mount in mounts)


def test_the_mac_starts_a_command_that_exists() -> None:
    content = plistlib.loads((ROOT / "deploy/macos/org.motley.fedclient.plist").read_bytes())
    words = content["ProgramArguments"]
    assert {word for word in words if word.startswith("--")} <= options_of("fedclient.cli", "start")
