"""deploy/mlflow is accepted by the validators of its formats, each of which does refuse a mistake."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import hcl2
import jsonschema
import pytest
import yaml
from google.appengine.api import appinfo, yaml_errors
from template.conftest import Render

from .test_deploy import cloud_run_schema, run

ANSWERS = {"google_project": "team-42", "google_region": "europe-west1", "deploy": []}


@pytest.fixture(params=["app-engine", "cloud-run"])
def place(request: pytest.FixtureRequest, render: Render) -> Path:
    return render(tracker=request.param, **ANSWERS) / "deploy" / "mlflow"


def load_app(text: str) -> appinfo.AppInfoExternal:
    return appinfo.LoadSingleAppInfo(text)


def test_app_yaml_is_accepted_and_says_what_was_answered(render: Render) -> None:
    text = (render(tracker="app-engine", **ANSWERS) / "deploy/mlflow/app.yaml").read_text("utf-8")
    app = load_app(text)
    assert app.env == "flex"
    assert app.liveness_check.path == app.readiness_check.path == "/health"
    assert app.beta_settings["cloud_sql_instances"] == "team-42:europe-west1:mlflow"
    variables = yaml.safe_load(text)["env_variables"]
    assert yaml.safe_load(text)["runtime"] == "custom"
    assert "team-42.*.r.appspot.com" in variables["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert "https://team-42.*.r.appspot.com" in variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"]


@pytest.mark.parametrize(("right", "wrong"), [("liveness_check", "livenes_check"), ("cpu: 1", "cpu: many")])
def test_validator_of_app_yaml_refuses_mistakes(right: str, wrong: str, render: Render) -> None:
    text = (render(tracker="app-engine", **ANSWERS) / "deploy/mlflow/app.yaml").read_text("utf-8")
    with pytest.raises(yaml_errors.Error):
        load_app(text.replace(right, wrong))


def test_service_of_cloud_run_is_accepted(render: Render) -> None:
    text = (render(tracker="cloud-run", **ANSWERS) / "deploy/mlflow/service.yaml").read_text("utf-8")
    jsonschema.validate(yaml.safe_load(text), cloud_run_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace("containerPort", "containerPrt")), cloud_run_schema())


def test_dockerfile_and_script_pass(place: Path) -> None:
    for command in (["hadolint", "Dockerfile"], ["shellcheck", "deploy.sh"]):
        ended = run(*command, cwd=place)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    copied = re.findall(r"^COPY (\S+)", (place / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert all((place / name).exists() for name in copied)


def test_terraform_is_read_and_its_references_exist(place: Path) -> None:
    text = (place / "terraform" / "main.tf").read_text("utf-8")
    found = hcl2.loads(text)
    resources = {
        (kind.strip('"'), name.strip('"')) for block in found["resource"] for kind in block for name in block[kind]
    }
    named = set(re.findall(r"(?<![.\w])(google_\w+)\.(\w+)(?:\.|$)", text, re.MULTILINE))
    ephemeral = {
        (kind.strip('"'), name.strip('"')) for block in found["ephemeral"] for kind in block for name in block[kind]
    }
    assert named <= resources | ephemeral
    assert len(resources) >= 15
    assert "random_password.database.result" in text
    assert not re.search(r"^\s*(password|secret_data)\s*=", text, re.MULTILINE), "would be in the state"
    with pytest.raises(Exception, match=r"Unexpected token"):
        hcl2.loads(text.replace('resource "google_sql_user"', "resource google_sql_user {{"))


def test_every_service_that_terraform_uses_is_switched_on_before(place: Path) -> None:
    text = (place / "terraform" / "main.tf").read_text("utf-8")
    services = {
        "google_app_engine_": "appengine",
        "google_artifact_registry_": "artifactregistry",
        "google_iap_": "iap",
        "google_project_iam_": "cloudresourcemanager",
        "google_secret_manager_": "secretmanager",
        "google_service_account": "iam",
        "google_sql_": "sqladmin",
    }
    for kind, service in services.items():
        if f'resource "{kind}' in text:
            assert f'"{service}.googleapis.com"' in text, f"{kind} needs {service}"
    for name in ("server", "trainer"):
        block = text.split(f'resource "google_service_account" "{name}"')[1].split("\n}")[0]
        assert "depends_on" in block


def test_nobody_reaches_the_server_before_the_proxy_stands(place: Path) -> None:
    if (place / "app.yaml").exists():
        steps = (place / "README.md").read_text("utf-8")
        assert steps.index("gcloud iap web enable") < steps.index("deploy/mlflow/deploy.sh`. The first build")
    else:
        service = yaml.safe_load((place / "service.yaml").read_text("utf-8"))
        assert service["metadata"]["annotations"]["run.googleapis.com/iap-enabled"] == "true"


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed; its format is all it adds here")
def test_terraform_is_formatted(place: Path) -> None:
    command = ["terraform", "fmt", "-check", "-diff", str(place / "terraform")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_image_installs_what_its_code_imports(place: Path) -> None:
    listed = set(re.findall(r"^([a-z][\w-]*)", (place / "requirements.txt").read_text("utf-8"), re.MULTILINE))
    imported = {
        (node.module or "").partition(".")[0]
        if isinstance(node, ast.ImportFrom)
        else node.names[0].name.partition(".")[0]
        for file in (place / "server").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    needed = {"google": "google-auth", "mlflow": "mlflow", "sqlalchemy": "mlflow", "alembic": "mlflow"}
    assert {needed[name] for name in imported & set(needed)} <= listed
    assert {"psycopg2-binary", "google-cloud-storage", "cryptography"} <= listed


def test_no_secret_is_rendered(place: Path) -> None:
    for path in place.parents[1].rglob("*"):
        if path.is_file() and path.suffix != ".py":
            for value in re.findall(r"(?:PASSWORD|TOKEN|SECRET)[\"']?[:=][ \t]*(\S+)", path.read_text("utf-8")):
                assert value.startswith(("projects/", "SECRET", "${", "$(")), f"{path}: {value}"
