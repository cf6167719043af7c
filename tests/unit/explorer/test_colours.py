"""Looks of models' lines: no line of a run has that of one of the paper."""

import pytest
import yaml

from selfrepair.explorer.colours import of_models
from selfrepair.figures.style.looks import PUBLISHED

from conftest import REPOSITORY

PAPER = yaml.safe_load((REPOSITORY / "config" / "paper.yaml").read_text(encoding="utf-8"))["run"]["models"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_published_model_that_is_run_too_has_two_looks(theme: str) -> None:
    assert set(PAPER) >= set(PUBLISHED)  # otherwise this shows nothing
    found = of_models(PAPER, list(PUBLISHED), theme)
    assert (list(found["run"]), set(found["published"])) == (PAPER, set(PUBLISHED))
    assert not [model for model, look in found["run"].items() if look in found["published"].values()]


def test_a_published_look_does_not_depend_on_the_run() -> None:
    with_it, without = (of_models(run, list(PUBLISHED), "light")["published"] for run in (["gpt2-small"], ["tiny"]))
    assert with_it == without
