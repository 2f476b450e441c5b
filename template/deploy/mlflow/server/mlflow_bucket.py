"""The bucket of the server's files, with addresses by which large ones go straight to it.

MLflow signs such addresses with a private key, which the service account of a Google service does not have: every large
file would be refused (https://github.com/mlflow/mlflow/issues/21847; remove this module when that is closed).
Here Google signs for the account, which needs the role Service Account Token Creator on itself: terraform/main.tf.
"""

from __future__ import annotations

from typing import Any

import google.auth
from google.auth import impersonated_credentials
from google.auth.credentials import Credentials, Signing
from google.auth.transport.requests import Request
from google.cloud import storage
from mlflow.store.artifact.gcs_artifact_repo import GCSArtifactRepository

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


class Bucket(GCSArtifactRepository):
    """What MLflow uses for `gs://` addresses, found by the entry point in pyproject.toml."""

    def __init__(self, artifact_uri: str, client: Any = None, **options: Any) -> None:
        if client is None:
            source, project = google.auth.default(scopes=SCOPES)
            client = storage.Client(project or "unused", credentials=_that_sign(source))
        super().__init__(artifact_uri, client, **options)


def _that_sign(source: Credentials) -> Credentials:
    """Return credentials of the same account that can sign."""
    if isinstance(source, Signing):  # a key file
        return source
    source.refresh(Request())  # before, a machine's account calls itself "default"
    account = source.service_account_email
    return impersonated_credentials.Credentials(source, target_principal=account, target_scopes=SCOPES)
