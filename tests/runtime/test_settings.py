"""Settings: where they come from, and that every mistake names its fix."""

import os
from pathlib import Path

import pytest

from runtime.errors import SettingsError
from runtime.pools import PoolSpec
from runtime.settings import Settings, find_data_dir, load_settings, to_environment


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder without any xnai.toml or .xnai above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_arguments_beat_the_environment_which_beats_the_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "xnai.toml").write_text('port = 1001\nhost = "::1"\nllm_model = "file"\n')
    monkeypatch.setenv("XNAI_PORT", "1002")
    monkeypatch.setenv("XNAI_HOST", "0.0.0.0")
    settings = load_settings(port=1003)
    assert (settings.port, settings.host, settings.llm_model) == (1003, "0.0.0.0", "file")


def test_file_of_the_data_directory_is_read_instead_of_the_working_directorys(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "xnai.toml").write_text("port = 1001\nsweep_s = 2\n")
    data_dir = elsewhere / "data"
    data_dir.mkdir()
    (data_dir / "xnai.toml").write_text("port = 1002\n")
    monkeypatch.setenv("XNAI_DATA_DIR", str(data_dir))
    settings = load_settings()
    assert (settings.port, settings.sweep_s) == (1002, 1.0)


def test_data_directory_is_the_nearest_dot_xnai_upwards(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().data_dir == elsewhere / "home" / ".local" / "share" / "xnai"
    (elsewhere / ".xnai").mkdir()
    (elsewhere / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(elsewhere / "a" / "b")
    assert find_data_dir() == elsewhere / ".xnai"


def test_unknown_variable_names_the_nearest_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNAI_DATABASE_ULR", "x")
    with pytest.raises(SettingsError, match=r"XNAI_DATABASE_ULR.*did you mean XNAI_DATABASE_URL"):
        load_settings()


def test_unknown_line_of_the_file_names_the_nearest_setting(elsewhere: Path) -> None:
    (elsewhere / "xnai.toml").write_text("prot = 1\n")
    with pytest.raises(SettingsError, match=r"xnai\.toml.*prot.*did you mean port"):
        load_settings()


def test_file_that_is_no_toml_is_one_line(elsewhere: Path) -> None:
    (elsewhere / "xnai.toml").write_text("port 1\n")
    with pytest.raises(SettingsError, match=r"xnai\.toml cannot be read as TOML"):
        load_settings()


def test_tables_of_pools(elsewhere: Path) -> None:
    (elsewhere / "xnai.toml").write_text('[pools.embed]\nslots = 2\ncpus = "2-3"\n[pools.probe]\n')
    assert load_settings().pools == {"embed": PoolSpec(2, 1, (2, 3)), "probe": PoolSpec()}


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("XNAI_PORT", "70000", "XNAI_PORT.*65535"),
        ("XNAI_PORT", "http", "XNAI_PORT.*integer"),
        ("XNAI_POOLS", "embed=2", "XNAI_POOLS.*SLOTSxCORES"),
        ("XNAI_DATABASE_URL", "mysql://u:secret@h/d", "XNAI_DATABASE_URL.*postgresql://"),
        ("XNAI_REDIS_URL", "secret", "XNAI_REDIS_URL.*redis://"),
        ("XNAI_API_URL", "secret", "XNAI_API_URL.*http://"),
        ("XNAI_DEAD_AFTER_S", "2", "raise dead_after_s to at least 3"),
        ("XNAI_VECTOR_BACKEND", "qdrant", "set it to faiss"),
        ("XNAI_LOG_LEVEL", "loud", "XNAI_LOG_LEVEL.*debug"),
    ],
)
def test_bad_value_names_the_setting_and_the_fix_but_no_secret(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, message: str
) -> None:
    monkeypatch.setenv(setting, value)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNAI_DATABASE_URL", "")
    assert load_settings().database_url is None


def test_secrets_are_not_in_the_representation() -> None:
    text = repr(load_settings(database_url="postgresql://u:hidden@h/d", api_key="hidden"))
    assert "hidden" not in text


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc] # which is the point


def test_child_process_builds_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        pools="embed=2x1@0+2,generate=1x2",
        kinds=("a.b", "c"),
        egress_allow="10.0.0.0/8",
        database_url="postgresql://u:p@h/d",
        grace_s=3.5,
    )
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_every_setting_has_a_description_with_bounds_for_numbers() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in {int, float}:
            bounds = {type(item).__name__ for item in field.metadata}
            assert bounds & {"Ge", "Gt"}, name
            assert "Le" in bounds, name


def test_suite_itself_runs_without_the_developers_settings() -> None:
    assert not [name for name in os.environ if name.startswith("XNAI_")]
