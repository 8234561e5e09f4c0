"""What the manifests, the image and the pinned versions promise."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from mer_batch.errors import ErrorBudgetExceeded, Interrupted, LeaseError, RefusedError

REPOSITORY = Path(__file__).parents[1]
MANIFESTS = sorted((REPOSITORY / "configs" / "kubernetes").glob("*.yaml"))
PINNED = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
)


def objects(kind: str) -> list[dict[str, Any]]:
    found = [o for path in MANIFESTS for o in yaml.safe_load_all(path.read_text())]
    return [o for o in found if o["kind"] == kind]


def cron_job(name: str) -> dict[str, Any]:
    (found,) = [job for job in objects("CronJob") if job["metadata"]["name"] == name]
    return found


def pods() -> Iterator[dict[str, Any]]:
    """The specification of every pod that the manifests lead to."""
    for cluster in objects("RayCluster"):
        yield cluster["spec"]["headGroupSpec"]["template"]
        for group in cluster["spec"]["workerGroupSpecs"]:
            yield group["template"]
    for job in objects("CronJob"):
        yield job["spec"]["jobTemplate"]["spec"]["template"]


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["spec"]["containers"]]


def test_the_cluster_asks_for_a_token_and_runs_the_ray_that_is_tested() -> None:
    (cluster,) = objects("RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["rayVersion"] == PINNED["ray"]


def test_nights_do_not_overlap_and_bring_the_clusters_token() -> None:
    nightly = cron_job("mer-batch-nightly")
    assert nightly["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = nightly["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    assert command[:2] == ["python", "/opt/mer_batch/submit_night.py"], "it waits for the end"
    assert command[4:] == ["mer-batch", "tag", "/etc/mer_batch/tag.yaml"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    (cluster,) = objects("RayCluster")
    named = {"name": cluster["metadata"]["name"], "key": "auth_token"}
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == named
    assert f"http://{cluster['metadata']['name']}-head-svc:8265" == command[2]


def test_a_night_is_one_for_all_pods_of_its_job_and_is_repeated_only_where_that_may_help() -> None:
    nightly = cron_job("mer-batch-nightly")
    job = nightly["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    names = re.findall(r"\$\((\w+)\)", container["command"][3])
    labels = [environment[name]["valueFrom"]["fieldRef"]["fieldPath"] for name in names]
    assert labels == [
        f"metadata.labels['batch.kubernetes.io/{label}']"
        for label in ("job-name", "controller-uid")
    ]
    final, evicted = job["podFailurePolicy"]["rules"]
    kinds = [RefusedError, ErrorBudgetExceeded, LeaseError, Interrupted]
    assert final["action"] == "FailJob"
    assert final["onExitCodes"]["containerName"] == container["name"]
    assert final["onExitCodes"]["values"] == [kind.exit_code for kind in kinds]
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert job["template"]["spec"]["restartPolicy"] == "Never", "the policy asks for it"
    assert job["backoffLimit"] > 0


def test_the_week_differs_from_the_night_in_its_hour_and_its_command_alone() -> None:
    night, week = cron_job("mer-batch-nightly"), cron_job("mer-batch-weekly")
    assert week["spec"].pop("schedule") != night["spec"].pop("schedule")
    commands = []
    for job in (night, week):
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        commands.append(container.pop("command"))
    assert commands[0][:4] == commands[1][:4]
    assert commands[1][4:] == ["mer-batch", "compact", commands[0][-1]]
    assert night["spec"] == week["spec"]


def test_nothing_claims_that_the_cluster_grows_by_itself() -> None:
    (cluster,) = objects("RayCluster")
    grows = cluster["spec"].get("enableInTreeAutoscaling", False)
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert grows or not {"minReplicas", "maxReplicas"} & set(group)


def test_no_pod_has_more_rights_than_it_needs() -> None:
    assert len(list(pods())) == 4
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["automountServiceAccountToken"] is False
    for container in containers():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert {"/tmp", "/home/mer_batch"} <= {m["mountPath"] for m in container["volumeMounts"]}


def test_nodes_have_the_time_that_a_driver_takes_to_end() -> None:
    (cluster,) = objects("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


def test_every_pod_is_behind_the_network_policy() -> None:
    (policy,) = objects("NetworkPolicy")
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert {"Ingress", "Egress"} == set(policy["spec"]["policyTypes"])
    assert all(chosen <= pod["metadata"]["labels"].items() for pod in pods())
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule.get("to", ())
              if "ipBlock" in to]  # fmt: skip
    assert all("169.254.0.0/16" in block["except"] for block in blocks), "no metadata service"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert objects("Secret") == []
    for container in containers():
        for entry in container.get("env", ()):
            if re.search("TOKEN|SECRET|KEY|PASSWORD", entry["name"]):
                assert set(entry) == {"name", "valueFrom"}
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key|auth_token:", path.read_text())


def test_what_the_manifests_run_is_a_configuration_that_is_accepted() -> None:
    from mer_batch.config import TagConfig, parse_config

    (shared,) = objects("ConfigMap")
    content = yaml.safe_load(shared["data"]["tag.yaml"])
    assert parse_config(TagConfig, content, origin="tag.yaml").output.uri.startswith("s3://")


def test_the_image_is_pinned_and_not_roots() -> None:
    lines = (REPOSITORY / "configs" / "docker" / "Dockerfile").read_text().splitlines()
    stages = [line for line in lines if line.startswith("FROM ")]
    assert stages == ["FROM python:3.11-slim AS compiled", "FROM python:3.11-slim"]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("0", "root")
    text = "\n".join(lines).replace("\\\n", "")
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    # Torch alone comes from an index of its own, which may lack what it needs; none is built in.
    torch, rest = installs
    assert "--no-deps" in torch
    assert '${TORCH_INDEX:+--index-url "$TORCH_INDEX"}' in torch
    assert "ARG TORCH_INDEX=" in lines
    assert "index" not in rest
    assert "://" not in text
    last_stage = text[text.rindex("FROM ") :]
    assert "gcc" in text and "gcc" not in last_stage, "what runs needs no compiler"
    assert "COPY --from=compiled /wheels /wheels" in last_stage
    sent = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in sent, "nothing is sent that is not named"
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for name in copied.split():
            assert (REPOSITORY / name).exists()
            assert f"!{name}" in sent


def test_every_dependency_is_pinned_to_a_version_that_is_allowed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {name.lower().replace("_", "-"): version for name, version in PINNED.items()}
    for line in [*project["dependencies"], *extras]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(names[wanted.name.lower()]), line
