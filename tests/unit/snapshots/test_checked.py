"""What the config asks of a model that its snapshot shows it has not: said right after the snapshot."""

from pathlib import Path
from typing import Any

import pytest

from selfrepair.files.sealed import read_json
from selfrepair.snapshots.checked import check_model

from tiny_model import save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

ASKED: dict[str, Any] = {
    "tokens": {"prompt_length": 16},
    "ablations": {"resample": {"heads": "all"}, "zero": {"heads": [[0, 1]]}},
    "analyses": {"heads": None, "neuron_layer": None},
    "models": {"mine": {}},
}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "snapshot")
    return tmp_path / "snapshot" / "manifest.json"


def test_a_model_that_has_what_is_asked_passes(manifest: Path, tmp_path: Path) -> None:
    check_model(model_manifest=manifest, model="mine", asked=ASKED, out=tmp_path / "checked.json")
    assert read_json(tmp_path / "checked.json") == {"asked": ASKED}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("tokens", {"prompt_length": 100_000}, "tokens.prompt_length is 100000, but mine takes "),
        (
            "ablations",
            {"zero": {"heads": [[0, 1], [9, 0]]}},
            "ablations.zero.heads names [[9, 0]], but mine has layers 0 to ",
        ),
        ("analyses", {"heads": [[0, 99]], "neuron_layer": None}, "analyses.heads names [[0, 99]], but mine has "),
        ("analyses", {"heads": None, "neuron_layer": 50}, "analyses.neuron_layer is 50, but mine has layers 0 to "),
    ],
)
def test_what_a_model_has_not_is_said(
    manifest: Path, tmp_path: Path, section: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_model(
            model_manifest=manifest, model="mine", asked={**ASKED, section: values}, out=tmp_path / "checked.json"
        )
    assert words in str(caught.value)
    assert not (tmp_path / "checked.json").exists()
