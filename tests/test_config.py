"""Configurations: every fault at once, in words, and never a traceback."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mer_batch import schema
from mer_batch.config import (
    ExtractConfig,
    FeaturesConfig,
    LabelsConfig,
    LearnConfig,
    RayConfig,
    TagConfig,
    TrainingConfig,
    load_config,
    load_output_config,
    parse_config,
    take_reasons,
)
from mer_batch.errors import ConfigError
from mer_batch.feature_sets import feature_set
from tests.test_plain_yaml import BOMB

ADDRESSES_WITH_SECRETS = [
    "ray://user:xyzzy@host:1",
    "ray://xyzzy@host:1",
    "ray://host:1?token=xyzzy",
    "http://user:xyzzy@host:8265",
    "user:xyzzy@host:6379",
    "xyzzy@host:6379",
]
SMALLEST = "catalog: {uri: music}\noutput: {uri: out}\n"

same_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150
)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tag.yaml"
    path.write_text(SMALLEST)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(TagConfig, path, overrides)
    return str(caught.value)


def test_the_smallest_config_has_every_default(config_file: Path) -> None:
    config = load_config(TagConfig, config_file)
    assert (config.catalog.uri, config.output.uri) == ("music", "out")
    assert (config.catalog.id_column, config.catalog.audio_column) == ("track_id", "audio_uri")
    assert config.model.uri == "builtin"
    assert config.run_date is None
    assert config.enriched_names() == [field.name for field in schema.ENRICHED_FIELDS]


def test_the_prefix_is_put_before_every_added_column(config_file: Path) -> None:
    config = load_config(TagConfig, config_file, ["output.prefix=mer_"])
    assert config.enriched_names() == ["mer_" + field.name for field in schema.ENRICHED_FIELDS]


def test_limits_are_those_of_the_file(config_file: Path) -> None:
    config = load_config(
        TagConfig,
        config_file,
        ["audio.max_bytes=5", "audio.min_seconds=2", "audio.max_seconds=3", "audio.memory_bytes=9"],
    )
    limits = config.audio.limits()
    assert (limits.audio.max_bytes, limits.audio.min_seconds, limits.audio.max_seconds) == (5, 2, 3)
    assert limits.memory_bytes == 9


def test_all_faults_are_listed_at_once(config_file: Path) -> None:
    config_file.write_text("catalog: {url: music}\noutpt: {uri: out}\nmax_reject_rate: 2\n")
    message = refusal(config_file, "ray.num_cpus=0", "no-equals-sign", "audio.max_bytes=[")
    assert str(config_file) in message
    assert "8 faults" in message
    for fault in (
        "override='no-equals-sign' must look like section.key=value",
        "override='audio.max_bytes=[': the value is not valid YAML",
        "catalog.uri is missing",
        "key='catalog.url' must be one of catalog.uri, ",
        "did you mean 'catalog.uri'?",
        "output is missing",
        "key='outpt' must be one of catalog, output, ",
        "did you mean 'output'?",
        "max_reject_rate=2: ",
        "ray.num_cpus=0: ",
    ):
        assert fault in message


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("catalog.id_colum=x", "catalog.id_column"),
        ("audio.max_second=3", "audio.max_seconds"),
        ("storage.endpoint=http://h", "storage.endpoint_url"),
        ("max_rejct_rate=0.5", "max_reject_rate"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_closest(
    config_file: Path, override: str, meant: str
) -> None:
    assert f"did you mean {meant!r}?" in refusal(config_file, override)


@pytest.mark.parametrize(
    "override",
    [
        "catalog.uri=",
        "catalog.uri='  '",
        "catalog.format=xml",
        "catalog.changes=maybe",
        "output.prefix=a-b",
        "output.lease_seconds=1",
        "output.lease_seconds=.inf",
        "output.lease_seconds=.nan",
        "output.lease_seconds=1.0e+300",
        "audio.min_seconds=0",
        "audio.min_seconds=.nan",
        "audio.max_seconds=.inf",
        "audio.timeout_seconds=-1",
        "audio.timeout_seconds=1.0e+300",
        "audio.max_bytes=1.5",
        f"audio.max_bytes={10**30}",
        f"audio.memory_bytes={10**30}",
        f"ray.num_cpus={10**30}",
        "storage.endpoint_url=localhost:9000",
        "storage.endpoint_url=http://key:xyzzy@host",
        "storage.endpoint_url=ftp://host",
        "max_reject_rate=.nan",
        "max_reject_rate=-0.1",
        "run_date=20261122",
        "run_date=0",
        "run_date=tomorrow",
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(config_file: Path, override: str) -> None:
    assert f"\n  - {override.partition('=')[0]}=" in refusal(config_file, override)


@pytest.mark.parametrize("kind", [TagConfig, ExtractConfig, LearnConfig, LabelsConfig])
def test_every_number_has_an_upper_bound(kind: type[BaseModel]) -> None:
    described = kind.model_json_schema()
    for section in (described, *described["$defs"].values()):
        for name, key in section["properties"].items():
            for form in key.get("anyOf", [key]):
                if form.get("type") in ("integer", "number"):
                    assert {"maximum", "exclusiveMaximum"} & form.keys(), name


def test_a_number_out_of_bounds_is_refused_with_its_bound(config_file: Path) -> None:
    message = refusal(config_file, "audio.timeout_seconds=1.0e+300", f"audio.max_bytes={2**50}")
    assert "audio.timeout_seconds=1e+300: input should be less than or equal to 604800" in message
    assert f"audio.max_bytes={2**50}: input should be less than or equal to {2**40}" in message


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_a_number_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainingConfig(**{name: math.nan})


@pytest.mark.parametrize(
    "override",
    [
        "storage.endpoint_url=http://key:xyzzy@host",
        *(f"ray.address={address}" for address in ADDRESSES_WITH_SECRETS),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(config_file: Path, override: str) -> None:
    message = refusal(config_file, override)
    assert f"{override.partition('=')[0]}=" in message
    assert re.search("must not hold credentials; .* from ", message)
    assert "xyzzy" not in message
    assert "xyzzy" not in refusal(config_file, override + " : [")


@pytest.mark.parametrize("address", ADDRESSES_WITH_SECRETS)
def test_a_secret_in_ray_address_is_refused_where_it_would_be_used(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = refusal(config_file)
    assert "RAY_ADDRESS='" in message
    assert "must not hold credentials" in message
    assert "xyzzy" not in message
    with pytest.raises(ConfigError, match="RAY_ADDRESS"):
        RayConfig().cluster_address()
    config = load_config(TagConfig, config_file, ["ray.address=local"])
    assert config.ray.cluster_address() == "local"


@pytest.mark.parametrize("address", ["auto", "local", "host:6379", "[::1]:6379", "ray://host:1"])
def test_the_cluster_is_that_of_the_key_or_else_of_the_variable(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    config = load_config(TagConfig, config_file, [f"ray.address='{address}'"])
    assert config.ray.cluster_address() == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert load_config(TagConfig, config_file).ray.cluster_address() == address
    monkeypatch.delenv("RAY_ADDRESS")
    assert RayConfig().cluster_address() == "local"


def test_limits_that_no_track_can_keep_are_refused(config_file: Path) -> None:
    message = refusal(config_file, "audio.min_seconds=50", "audio.max_seconds=2")
    assert "min_seconds must be at most max_seconds=2" in message


def test_overrides_are_read_as_yaml(config_file: Path) -> None:
    config = load_config(
        TagConfig,
        config_file,
        ["run_date=2026-11-22", "ray={num_cpus: 3}", "ray.verbose=true", "catalog.uri=s3://b/k=v"],
    )
    assert config.run_date == datetime.date(2026, 11, 22)
    assert (config.ray.num_cpus, config.ray.verbose) == (3, True)
    assert config.catalog.uri == "s3://b/k=v"


def test_the_last_override_of_a_key_counts(config_file: Path) -> None:
    assert load_config(TagConfig, config_file, ["output.uri=a", "output.uri=b"]).output.uri == "b"


def test_a_section_with_nothing_in_it_keeps_its_defaults(config_file: Path) -> None:
    config_file.write_text(SMALLEST + "ray:\n  # num_cpus: 4\n")
    assert load_config(TagConfig, config_file).ray.num_cpus is None
    assert load_config(TagConfig, config_file, ["ray.num_cpus=2"]).ray.num_cpus == 2


def test_a_key_below_a_value_is_refused(config_file: Path) -> None:
    message = refusal(config_file, "catalog.uri.x=1")
    assert "override='catalog.uri.x=1': 'uri' is not a section" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "just words",
        "catalog: [",
        "catalog: {uri: a",
        "\tcatalog: x",
        "run_date: 2026-13-45",
        "x: !!python/object/apply:os.system [ls]",
        "x: !!timestamp y",
        "x: !!bool y",
        "a: &a [*a]",
        "\x07",
        "1: 2\ncatalog: {3: 4}",
        "? [a, b]\n: 1",
        "catalog: " + "[" * 3_000 + "]" * 3_000,
        SMALLEST + "output: {uri: elsewhere}\n",
        BOMB,
    ],
)
def test_what_is_no_config_is_refused_in_words(config_file: Path, text: str) -> None:
    config_file.write_text(text)
    assert str(config_file) in refusal(config_file)


def test_a_section_that_stands_twice_is_refused_with_both_lines(config_file: Path) -> None:
    config_file.write_text(SMALLEST + "output: {uri: elsewhere}\n")
    assert "key='output' must stand once, not in lines 2 and 3" in refusal(config_file)


@pytest.mark.parametrize("value", ["[" * 5_000 + "]" * 5_000, "x" * 10_000 + "["])
def test_a_value_without_end_is_refused_in_short(config_file: Path, value: str) -> None:
    assert len(refusal(config_file, f"ray.num_cpus={value}")) < 1_000


def test_a_key_below_very_many_others_is_refused(config_file: Path) -> None:
    message = refusal(config_file, "recipes.a.parameters." + "x." * 5_000 + "x=1")
    assert "must look like section.key=value" in message


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.yaml")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("catalog: {uri: Bébé}".encode("latin-1"))
    assert "cannot be read" in refusal(tmp_path / "latin.yaml")


def test_a_config_can_be_written_and_read_back(config_file: Path) -> None:
    config = load_config(TagConfig, config_file, ["run_date=2026-11-22", "output.prefix=x"])
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert parse_config(TagConfig, yaml.safe_load(text), origin="copy") == config


@same_folder
@given(override=st.text(max_size=30))
def test_any_override_is_taken_or_refused_as_a_config_error(
    config_file: Path, override: str
) -> None:
    try:
        load_config(TagConfig, config_file, [override])
    except ConfigError as error:
        assert "fault" in str(error)


@same_folder
@given(text=st.text(alphabet="abc:{}[]-#&*!|>'\" \n0129.=?%", max_size=40))
def test_any_file_is_taken_or_refused_as_a_config_error(config_file: Path, text: str) -> None:
    config_file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(TagConfig, config_file)


@same_folder
@given(
    uri=st.text(min_size=1).filter(lambda text: text == text.strip() != ""),
    rate=st.floats(0, 1),
    cpus=st.integers(1, 8_192),
)
def test_an_override_carries_any_value_of_its_type(
    config_file: Path, uri: str, rate: float, cpus: int
) -> None:
    quoted = yaml.safe_dump(uri, default_style='"', width=10**6)
    config = load_config(
        TagConfig,
        config_file,
        [f"catalog.uri={quoted}", f"max_reject_rate={rate!r}", f"ray.num_cpus={cpus}"],
    )
    assert (config.catalog.uri, config.max_reject_rate, config.ray.num_cpus) == (uri, rate, cpus)


@pytest.mark.parametrize(("name", "kind"), [("tag", TagConfig), ("extract", ExtractConfig)])
def test_the_files_that_come_along_show_every_key_with_its_default(
    name: str, kind: type[TagConfig | ExtractConfig]
) -> None:
    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    shown = yaml.safe_load(path.read_text())
    smallest = {"catalog": {"uri": "catalog.parquet"}, "output": {"uri": "out"}}
    config = parse_config(kind, smallest, origin="smallest")
    assert load_config(kind, path) == config
    left_out = {"prefix"} if name == "extract" else set()  # no column of a catalog is renamed
    for section, content in config.model_dump(mode="json").items():
        keys = set(content) - left_out if isinstance(content, dict) else None
        assert section in shown
        assert keys is None or keys == set(shown[section])


def test_readers_keep_what_they_hold_for_a_week_unless_somebody_knows_better(
    config_file: Path,
) -> None:
    assert load_config(TagConfig, config_file).compact.retention_days == 7
    words = refusal(config_file, "compact.retention_days=6")
    assert "retention_days=6 must be at least 7" in words
    assert "set compact.allow_short_retention=true" in words
    override = ["compact.retention_days=6", "compact.allow_short_retention=true"]
    assert load_config(TagConfig, config_file, override).compact.retention_days == 6
    assert "keep_runs_days" in refusal(config_file, "compact.keep_runs_days=1")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("scoring.device=gpu", "scoring.device='gpu'"),
        ("scoring.actors=-1", "scoring.actors=-1"),
        ("scoring.actors=100000", "scoring.actors=100000"),
        ("scoring.gpus_per_actor=0", "scoring.gpus_per_actor=0"),
        ("scoring.gpus_per_actor=1.5", "must be a share of one GPU or a whole number of them"),
        ("scoring.batch_segments=0", "scoring.batch_segments=0"),
        ("scoring.actor=1", "did you mean 'scoring.actors'"),
    ],
)
def test_a_scoring_pool_is_of_a_size_that_makes_sense(
    config_file: Path, override: str, words: str
) -> None:
    assert words in refusal(config_file, override)


def test_decoders_score_for_themselves_unless_a_pool_is_asked_for(config_file: Path) -> None:
    scoring = load_config(TagConfig, config_file).scoring
    assert (scoring.device, scoring.actors, scoring.wants_pool) == ("cpu", 0, False)
    for override in ("scoring.device=cuda", "scoring.actors=2"):
        assert load_config(TagConfig, config_file, [override]).scoring.wants_pool
    assert not load_config(TagConfig, config_file, ["scoring.device=auto"]).scoring.wants_pool


def test_an_output_is_that_of_tag_or_of_extract_by_the_keys_in_the_file(config_file: Path) -> None:
    assert isinstance(load_output_config(config_file), TagConfig)
    config_file.write_text(f"{config_file.read_text()}\nfeatures: {{name: paper}}\n")
    found = load_output_config(config_file, ["compact.when=never"])
    assert isinstance(found, ExtractConfig)
    assert found.compact.when == "never"
    with pytest.raises(ConfigError, match="did you mean 'compact"):
        load_output_config(config_file, ["compac.when=never"])


def test_features_follow_the_configuration() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 100"):
        FeaturesConfig(max_segments=101)
    features = FeaturesConfig(name="paper", placement="random", max_segments=3).feature_set()
    assert features == replace(feature_set("paper"), placement="random", max_segments=3)
    assert FeaturesConfig().feature_set() == feature_set("log_mel")
    with pytest.raises(ConfigError, match="must be one of log_mel, paper"):
        FeaturesConfig(name="mel").feature_set()


# ------------------------------------------------------------------ replay


@pytest.mark.parametrize(
    ("overrides", "reasons", "rest"),
    [
        (["reason=timeout"], {"timeout"}, []),
        (
            ["a.b=1", "reason=timeout, silent", "reason=empty"],
            {"timeout", "silent", "empty"},
            ["a.b=1"],
        ),
        (["reason=all"], set(schema.REASONS), []),
        (["reason=timeout,all"], set(schema.REASONS), []),
        (["reason="], set(), []),
        (["a.reason=x"], set(), ["a.reason=x"]),
        ([], set(), []),
    ],
)
def test_reasons_are_taken_out_of_the_overrides(
    overrides: list[str], reasons: set[str], rest: list[str]
) -> None:
    assert take_reasons(overrides) == (frozenset(reasons), rest)


def test_a_reason_that_is_none_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigError) as caught:
        take_reasons(["reason=time_out,silent,noise"])
    message = str(caught.value)
    assert "reason='time_out' must be one of not_found, " in message
    assert "did you mean 'timeout'?" in message
    assert "reason='noise' must be one of" in message


def test_allowed_roots_are_a_list_that_is_not_empty(config_file: Path) -> None:
    config = load_config(TagConfig, config_file, ["catalog.allowed_roots=[/music, s3://b/p]"])
    assert config.catalog.allowed_roots == ["/music", "s3://b/p"]
    assert load_config(TagConfig, config_file).catalog.allowed_roots is None
    for value in ("[]", "/music", "['']", "{a: b}"):
        assert "catalog.allowed_roots" in refusal(config_file, f"catalog.allowed_roots={value}")
