"""Settings: what the environment may say."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_lab.errors import SettingsError
from foundry_lab.settings import Settings


def test_nothing_set_means_the_documented_defaults() -> None:
    """An empty environment, and one of empty strings, give the defaults of the README."""
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"FOUNDRY_TIMEOUT": " ", "FOUNDRY_MODEL": ""}) == Settings()
    assert (Settings().timeout, Settings().retries, Settings().log_level) == (30, 3, "INFO")


def test_every_variable_arrives() -> None:
    """Each FOUNDRY_ variable ends in its own field."""
    assert Settings.from_environment(
        {
            "FOUNDRY_MODEL": "phi-4-mini",
            "FOUNDRY_TIMEOUT": "2.5",
            "FOUNDRY_RETRIES": "0",
            "FOUNDRY_LOG_LEVEL": "debug",
            "FOUNDRY_ENDPOINT": "http://127.0.0.1:5000/catalogs/local/v1/",
            "FOUNDRY_API_KEY": "secret",
            "FOUNDRY_MODEL_DIR": "models/mine",
        }
    ) == Settings(
        model="phi-4-mini",
        timeout=2.5,
        retries=0,
        log_level="DEBUG",
        endpoint="http://127.0.0.1:5000/catalogs/local",
        api_key="secret",
        model_dir=Path("models/mine").resolve(),
    )


LEFT_TO_HTTPX = pytest.mark.skipif(
    "UNDER_HTTPX2" in os.environ, reason="httpx2 takes it, and finds no such host when it connects"
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("FOUNDRY_TIMEOUT", "soon"),
        ("FOUNDRY_TIMEOUT", "0"),
        ("FOUNDRY_TIMEOUT", "nan"),
        ("FOUNDRY_TIMEOUT", "inf"),
        ("FOUNDRY_RETRIES", "-1"),
        ("FOUNDRY_RETRIES", "2.5"),
        ("FOUNDRY_LOG_LEVEL", "loud"),
        ("FOUNDRY_RETRIES", "9" * 5000),
        ("FOUNDRY_ENDPOINT", "127.0.0.1:5000"),
        ("FOUNDRY_ENDPOINT", "http://127.0.0.1:port"),
        ("FOUNDRY_ENDPOINT", "http://127.0.0.1:99999"),
        ("FOUNDRY_ENDPOINT", "http://[::1"),
        pytest.param("FOUNDRY_ENDPOINT", "http://xn--/", marks=LEFT_TO_HTTPX),
        ("FOUNDRY_ENDPOINT", "http:///v1"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, text: str) -> None:
    """What can't be used is refused with the variable's name and the value."""
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.from_environment({name: text})
    assert text in str(caught.value)


@given(st.text(max_size=20))
def test_any_timeout_is_positive_seconds_or_refused(text: str) -> None:
    """No text whatever becomes a timeout that isn't a positive, finite number."""
    try:
        settings = Settings.from_environment({"FOUNDRY_TIMEOUT": text})
    except SettingsError:
        return
    assert 0 < settings.timeout < float("inf")


def test_a_key_never_shows() -> None:
    """Neither the record's repr nor the error for a key in the URL repeats the secret."""
    assert "s3cret" not in repr(Settings(api_key="s3cret"))
    for name, text in (
        ("FOUNDRY_ENDPOINT", "https://me:s3cret@host"),
        ("FOUNDRY_API_KEY", "s3cret\ns3cret"),
        ("FOUNDRY_API_KEY", "s3crét"),
    ):
        with pytest.raises(SettingsError, match="FOUNDRY_API_KEY") as caught:
            Settings.from_environment({name: text})
        assert "s3cr" not in str(caught.value)


def test_an_odd_home_folder_is_no_crash() -> None:
    """~nobody may be unknown on this machine; the path is then taken as it stands."""
    settings = Settings.from_environment({"FOUNDRY_MODEL_DIR": "~no-such-user/model"})
    assert settings.model_dir == Path("~no-such-user/model").resolve()


@pytest.mark.parametrize("key", ["s3cret\n", "two words", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    """However it came: httpx's own error would print it."""
    with pytest.raises(SettingsError, match="FOUNDRY_API_KEY") as caught:
        Settings(api_key=key)
    assert key.strip() not in str(caught.value)
