"""What deploy/ renders is accepted by the validator of its format, and each validator does refuse a mistake."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache
import jsonschema
import pytest
import yaml
from google.cloud.aiplatform_v1.types import CustomJob
from google.protobuf.json_format import ParseError
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from template.conftest import Render

EVERYWHERE = ["container", "vertex-ai", "cloud-run", "kubernetes", "slurm"]
PRESETS = [
    ["cpu"],
    ["gpu"],
    ["gpu-ddp"],
    ["cpu", "gpu", "gpu-ddp", "gpu-fsdp", "multi-node", "tpu", "apple", "notebook"],
]


@pytest.fixture(params=PRESETS, ids="+".join)
def project(request: pytest.FixtureRequest, render: Render) -> Path:
    return render(deploy=EVERYWHERE, presets=request.param)


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, cwd=cwd, env=inherited, capture_output=True, text=True, check=False)


def test_dockerfile_passes_hadolint(project: Path) -> None:
    ended = run("hadolint", "deploy/container/Dockerfile", cwd=project)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_hadolint_refuses_a_mistake(project: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /app\n", "utf-8")
    assert run("hadolint", "Dockerfile", cwd=tmp_path).returncode != 0


def test_image_gets_the_files_that_it_copies(render: Render) -> None:
    for deploy in (["container"], ["cloud-run"]):
        project = render(deploy=deploy)
        copied = [
            source
            for line in (project / "deploy/container/Dockerfile").read_text("utf-8").splitlines()
            if line.startswith("COPY ")
            for source in line.split()[1:-1]
        ]
        kept = [
            line[1:] for line in (project / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")
        ]
        assert copied
        assert set(copied) == set(kept)
        assert all((project / source).exists() for source in copied)


def test_scripts_pass_shellcheck(project: Path) -> None:
    scripts = [str(path) for pattern in ("*/*.sh", "*/*.sbatch") for path in (project / "deploy").glob(pattern)]
    assert len(scripts) == 4
    ended = run("shellcheck", *scripts, cwd=project)
    assert ended.returncode == 0, ended.stdout


def test_workflow_passes_the_schema(project: Path) -> None:
    schema = ("check-jsonschema", "--builtin-schema", "vendor.github-workflows")
    ended = run(*schema, ".github/workflows/ci.yml", cwd=project)
    assert ended.returncode == 0, ended.stdout
    workflow = yaml.safe_load((project / ".github/workflows/ci.yml").read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}


# Vertex AI


def parse_job(specification: dict[str, Any]) -> CustomJob:
    """Parse what `gcloud ai custom-jobs create --config` sends; unknown fields and values are refused."""
    return CustomJob.from_json(json.dumps({"displayName": "job", "jobSpec": specification}))


@pytest.fixture
def fake_gcloud(tmp_path: Path) -> Path:
    """A `gcloud` and a `kubectl` that keep their arguments and the file they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "kubectl"):
        script = folder / name
        script.write_text(
            '#!/bin/sh\nprintf "%s\\n" "$@" > "$KEEP/arguments"\n'
            'for a in "$@"; do a=${a#--*=}; [ ! -f "$a" ] || cp "$a" "$KEEP/file.yaml"; done\n',
            "utf-8",
        )
        script.chmod(0o755)
    return folder


def submit(project: Path, script: str, gcloud: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a script with the fake gcloud, and return the file that it would have sent."""
    path = f"{gcloud}{os.pathsep}{os.environ['PATH']}"
    ended = run(f"deploy/{script}", *arguments, cwd=project, KEEP=str(gcloud), **{"PATH": path, **environment})
    assert ended.returncode == 0, ended.stderr
    return yaml.safe_load((gcloud / "file.yaml").read_text("utf-8"))


SETTINGS = {
    "IMAGE": "asia-docker.pkg.dev/p/r/i:1",
    "BUCKET": "bucket-1",
    "REGION": "asia-northeast1",
    "VOLUME": "claim-1",
}


def test_vertex_job_is_accepted_with_any_argument(project: Path, fake_gcloud: Path) -> None:
    arguments = ["-o", "task.lr=1e-3", "a, 'b' \"c\"", "--x={y: 1}", "日本", "# no comment"]
    job = parse_job(submit(project, "vertex-ai/submit.sh", fake_gcloud, *arguments, **SETTINGS))
    container = job.job_spec.worker_pool_specs[0].container_spec
    assert container.image_uri == SETTINGS["IMAGE"]
    assert container.args[0] == "fit"
    assert list(container.args[-len(arguments) :]) == arguments
    assert "runs_dir=/gcs/bucket-1/my-project/runs" in container.args
    assert "--region=asia-northeast1" in (fake_gcloud / "arguments").read_text("utf-8")


def test_vertex_job_asks_for_the_machine_of_the_preset(render: Render) -> None:
    for preset, accelerators in (("cpu", 0), ("gpu", 1), ("gpu-ddp", 2), ("gpu-fsdp", 2)):
        project = render(deploy=EVERYWHERE, presets=[preset])
        specification = yaml.safe_load((project / "deploy/vertex-ai/job.yaml").read_text("utf-8"))
        (pool,) = specification["workerPoolSpecs"]
        assert pool["machineSpec"].get("acceleratorCount", 0) == accelerators
        assert (preset in pool["containerSpec"]["args"]) == (accelerators > 0)


def test_vertex_validator_refuses_mistakes(render: Render) -> None:
    good = yaml.safe_load((render(deploy=EVERYWHERE) / "deploy/vertex-ai/job.yaml").read_text("utf-8"))
    for section, key, value in (("machineSpec", "machineTyp", "x"), ("machineSpec", "acceleratorType", "NVIDIA_L5")):
        bad = copy.deepcopy(good)
        bad["workerPoolSpecs"][0][section][key] = value
        with pytest.raises(ParseError):
            parse_job(bad)


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("vertex-ai/submit.sh", ["IMAGE", "BUCKET", "REGION"]),
        ("cloud-run/deploy.sh", ["IMAGE", "BUCKET", "REGION", "CHECKPOINT"]),
        ("kubernetes/submit.sh", ["IMAGE", "VOLUME"]),
    ],
)
def test_scripts_say_what_is_not_set(script: str, names: list[str], render: Render) -> None:
    project = render(deploy=EVERYWHERE)
    for name in names:
        settings = {key: value for key, value in {**SETTINGS, "CHECKPOINT": "x"}.items() if key != name}
        ended = run(f"deploy/{script}", cwd=project, **settings)
        assert ended.returncode != 0
        assert f"{name}: is not set: " in ended.stderr


# Kubernetes


def parse_train_job(specification: dict[str, Any]) -> TrainerV1alpha1TrainJob:
    """Parse a TrainJob; what the model would drop without a word is refused too."""
    job = TrainerV1alpha1TrainJob.from_dict(specification)
    assert job.to_dict() == specification
    return job


def test_train_job_is_accepted_with_any_argument(project: Path, fake_gcloud: Path) -> None:
    arguments = ["-o", "task.lr=1e-3", "a, 'b' \"c\"", "--x={y: 1}", "日本", "# no comment"]
    job = parse_train_job(submit(project, "kubernetes/submit.sh", fake_gcloud, *arguments, **SETTINGS, NAME="again"))
    trainer = job.spec.trainer
    assert (job.metadata.name, trainer.image, trainer.command) == ("again", SETTINGS["IMAGE"], ["torchrun"])
    assert trainer.args[:3] == ["-m", "my_project", "fit"]
    assert trainer.args[-len(arguments) :] == arguments
    assert "runs_dir=/runs/again" in trainer.args  # a job started again by this name goes on with its own run
    assert trainer.args[trainer.args.index("--resume") + 1] == "auto"
    assert "claim-1" in json.dumps(job.to_dict())
    assert "@" not in json.dumps(job.to_dict())


def test_train_job_is_named_anew_each_time(render: Render, fake_gcloud: Path) -> None:
    project = render(deploy=["kubernetes"], package_name="a" * 40)
    job = parse_train_job(submit(project, "kubernetes/submit.sh", fake_gcloud, **SETTINGS))
    assert len(f"{job.metadata.name}-node-0-0-12345") <= 63  # what Kubernetes makes of it, and what it allows


def test_train_job_asks_for_the_machine_of_the_preset(render: Render) -> None:
    for preset, nodes, gpus in (("cpu", 1, 0), ("gpu", 1, 1), ("gpu-ddp", 1, 2), ("multi-node", 2, 2)):
        project = render(deploy=EVERYWHERE, presets=[preset], slack=preset == "cpu")
        specification = yaml.safe_load((project / "deploy/kubernetes/job.yaml").read_text("utf-8"))
        trainer = parse_train_job(specification).spec.trainer
        assert (trainer.num_nodes, trainer.num_proc_per_node) == (nodes, max(1, gpus))
        limits = specification["spec"]["trainer"]["resourcesPerNode"].get("limits", {})
        assert limits.get("nvidia.com/gpu", "0") == str(gpus)
        assert preset in trainer.args
        assert [variable.name for variable in trainer.env or []] == ["SLACK_WEBHOOK_URL"] * (preset == "cpu")


def test_validator_of_train_jobs_refuses_mistakes(render: Render) -> None:
    good = yaml.safe_load((render(deploy=EVERYWHERE) / "deploy/kubernetes/job.yaml").read_text("utf-8"))
    for key, value, error in (("numNode", 2, AssertionError), ("numNodes", "two", ValueError)):
        bad = copy.deepcopy(good)
        bad["spec"]["trainer"][key] = value
        with pytest.raises(error):
            parse_train_job(bad)


# Cloud Run


def cloud_run_schema() -> dict[str, Any]:
    """Turn Google's description of the Cloud Run API, which its client brings along, into a strict JSON schema."""
    folder = Path(googleapiclient.discovery_cache.__file__).parent
    described = json.loads((folder / "documents" / "run.v1.json").read_text("utf-8"))["schemas"]

    def strict(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return {"$ref": f"#/$defs/{node['$ref']}"}
        kept: dict[str, Any] = {} if node["type"] == "any" else {"type": node["type"]}
        if "enum" in node:
            kept["enum"] = node["enum"]
        if "items" in node:
            kept["items"] = strict(node["items"])
        if "properties" in node:
            kept["properties"] = {name: strict(value) for name, value in node["properties"].items()}
            kept["additionalProperties"] = False
        elif "additionalProperties" in node:
            kept["additionalProperties"] = strict(node["additionalProperties"])
        return kept

    return {"$defs": {name: strict(schema) for name, schema in described.items()}, "$ref": "#/$defs/Service"}


def test_cloud_run_service_is_accepted(project: Path, fake_gcloud: Path) -> None:
    service = submit_service(project, fake_gcloud)
    jsonschema.validate(service, cloud_run_schema())
    (container,) = service["spec"]["template"]["spec"]["containers"]
    assert container["image"] == SETTINGS["IMAGE"]
    assert container["env"] == [{"name": "CHECKPOINT", "value": "/models/demo/best.ckpt"}]
    assert "@" not in json.dumps(service)


def submit_service(project: Path, gcloud: Path) -> dict[str, Any]:
    path = f"{gcloud}{os.pathsep}{os.environ['PATH']}"
    script = gcloud / "gcloud"
    script.write_text('#!/bin/sh\ncp "$4" "$KEEP/file.yaml"\n', "utf-8")
    settings = {**SETTINGS, "CHECKPOINT": "demo/best.ckpt", "PATH": path, "KEEP": str(gcloud)}
    ended = run("deploy/cloud-run/deploy.sh", cwd=project, **settings)
    assert ended.returncode == 0, ended.stderr
    return yaml.safe_load((gcloud / "file.yaml").read_text("utf-8"))


def test_cloud_run_validator_refuses_mistakes(render: Render) -> None:
    good = yaml.safe_load((render(deploy=EVERYWHERE) / "deploy/cloud-run/service.yaml").read_text("utf-8"))
    for key, value in (("livenessProb", {}), ("ports", {"containerPort": 8080}), ("image", 1)):
        bad = copy.deepcopy(good)
        bad["spec"]["template"]["spec"]["containers"][0][key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, cloud_run_schema())


# Slurm


def test_slurm_asks_for_the_machine_of_the_preset(render: Render) -> None:
    for preset, nodes, gpus in (("cpu", 1, None), ("gpu", 1, 1), ("gpu-ddp", 1, 2), ("multi-node", 2, 2)):
        script = (render(deploy=EVERYWHERE, presets=[preset]) / "deploy/slurm/train.sbatch").read_text("utf-8")
        options = dict(line[10:].partition("=")[::2] for line in script.splitlines() if line.startswith("#SBATCH --"))
        assert int(options["nodes"]) == nodes
        assert options.get("gpus-per-node") == (None if gpus is None else str(gpus))
        assert "requeue" in options
        assert ("signal" in options) == (preset != "multi-node")


def slurm_answers() -> bool:
    return bool(shutil.which("scontrol")) and " UP" in subprocess.getoutput("scontrol ping")


@pytest.mark.skipif(not slurm_answers(), reason="no Slurm answers on this machine")
def test_slurm_accepts_the_script(render: Render) -> None:
    project = render(deploy=EVERYWHERE, presets=["cpu"])
    ended = run("sbatch", "--test-only", "--cpus-per-task=1", "deploy/slurm/train.sbatch", cwd=project)
    assert ended.returncode == 0, ended.stderr
