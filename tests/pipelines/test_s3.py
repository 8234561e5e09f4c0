"""The same job against a real S3 server: catalog, audio and output alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pytest
import yaml
from deltalake import DeltaTable

Run = Callable[..., Any]


@pytest.fixture
def config(s3: Any, music: Path, tmp_path: Path) -> Path:
    """A catalog in S3 whose audio URIs are partly relative to it."""
    rows = []
    for number, path in enumerate(sorted(music.iterdir())):
        s3.upload_file(str(path), s3.bucket, f"lib/audio/{path.name}")
        base = "audio" if number % 2 else f"s3://{s3.bucket}/lib/audio"
        rows.append(f"{number},{base}/{path.name}\n")
    rows.append("99,audio/none.mp3\n")
    body = "track_id,audio_uri\n" + "".join(rows)
    s3.put_object(Bucket=s3.bucket, Key="lib/catalog.csv", Body=body.encode())
    content = {
        "catalog": {"uri": f"s3://{s3.bucket}/lib/catalog.csv"},
        "output": {"uri": f"s3://{s3.bucket}/out"},
        "storage": {"endpoint_url": s3.endpoint, "region": "us-east-1"},
        "max_reject_rate": 0.2,
    }
    path = tmp_path / "tag.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_catalog_audio_and_output_in_s3(s3: Any, config: Path, run_cli: Run) -> None:
    first = run_cli("tag", config)
    assert first.returncode == 0, first.stderr
    filesystem = pafs.S3FileSystem(
        endpoint_override=s3.endpoint.removeprefix("http://"), scheme="http", region="us-east-1"
    )
    (marker,) = [key for key in keys(s3, "out/enriched/") if key.endswith("_SUCCESS")]
    night = f"{s3.bucket}/{marker.rpartition('/')[0]}"
    enriched = pads.dataset(night, filesystem=filesystem, format="parquet").to_table()
    statuses = dict(
        zip(enriched["track_id"].to_pylist(), enriched["tag_status"].to_pylist(), strict=True)
    )
    assert statuses == {**dict.fromkeys(range(8), "scored"), 99: "not_found"}
    options = {
        "AWS_ENDPOINT_URL": s3.endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test-key-id", "AWS_SECRET_ACCESS_KEY": "test-secret-word",
    }  # fmt: skip
    assert len(DeltaTable(f"s3://{s3.bucket}/out/scores", storage_options=options).file_uris()) >= 1
    etags = {
        o["ETag"].strip('"')
        for o in s3.list_objects_v2(Bucket=s3.bucket, Prefix="lib/audio")["Contents"]
    }
    scores = pads.dataset(
        f"{s3.bucket}/out/scores/{run_ids(s3)[0]}", filesystem=filesystem, format="parquet"
    )
    assert set(scores.to_table()["audio_version"].to_pylist()) == etags

    second = run_cli("tag", config)
    assert second.returncode == 0, second.stderr
    assert "nothing to decode" in second.stdout
    # A replaced object has another etag, an appeared one is no longer missing.
    replacement = s3.get_object(Bucket=s3.bucket, Key="lib/audio/calm-1.mp3")["Body"].read()
    s3.put_object(Bucket=s3.bucket, Key="lib/audio/joyful-1.mp3", Body=replacement)
    s3.put_object(Bucket=s3.bucket, Key="lib/audio/none.mp3", Body=replacement)
    third = run_cli("tag", config)
    assert third.returncode == 0, third.stderr
    assert "2 tracks decoded" in third.stdout
    # The keys as printed in tables and logs must not hold what opens the store.
    everything = first.stdout + first.stderr + third.stdout + third.stderr
    for key in keys(s3, "out/runs/"):
        everything += s3.get_object(Bucket=s3.bucket, Key=key)["Body"].read().decode()
    assert "test-secret-word" not in everything


def test_a_folder_of_audio_in_s3_is_a_catalog(s3: Any, config: Path, run_cli: Run) -> None:
    done = run_cli("tag", config, f"catalog.uri=s3://{s3.bucket}/lib/audio")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(
        s3.get_object(Bucket=s3.bucket, Key=f"out/runs/{run_ids(s3)[0]}/manifest.json")[
            "Body"
        ].read()
    )
    assert manifest["totals"] == {"n_scored": 8, "n_rejected": {}}


@pytest.mark.parametrize(
    "override, words",
    [
        ("output.uri=s3://no-such-bucket/out", "NoSuchBucket"),
        ("catalog.uri=s3://no-such-bucket/catalog.csv", "no-such-bucket"),
        ("storage.endpoint_url=http://127.0.0.1:9", "check the endpoint"),
        ("model.uri=s3://no-such-bucket/model", "no-such-bucket/model"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_before_work(
    config: Path, run_cli: Run, override: str, words: str
) -> None:
    refused = run_cli("tag", config, override, "storage.patience_seconds=2")
    assert refused.returncode == 2
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "test-secret-word" not in refused.stderr


def keys(s3: Any, prefix: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def run_ids(s3: Any) -> list[str]:
    return sorted({key.split("/")[2] for key in keys(s3, "out/runs/2")})
