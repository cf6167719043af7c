"""Numbers come out of the page's format as they went in, to the step; tables exactly; nothing breaks out of its script."""

import json

import numpy as np
import pandas as pd
import pytest

from selfrepair.explorer.packing import MISSING, STEP, Stored, as_json, pack, records, remainders, to_steps
from unit.explorer.reading import unpack, values

pytestmark = pytest.mark.filterwarnings("error")

PARTS = ("heads", "mlps", "norm")
STORED = [
    *(Stored(name) for name in ("direct", "change", *PARTS)),
    Stored("repair", plus=PARTS),
    Stored("ablated", plus=("direct", "change"), minus=("repair",)),
]


def measured(rng: np.random.Generator, size: int, scale: float) -> dict[str, np.ndarray]:
    """Quantities that fulfil the identity, but for rounding."""
    of = {name: (rng.standard_cauchy(size) * scale).astype(np.float32) for name in ("direct", "change", *PARTS)}
    of["repair"] = sum(of[part] for part in PARTS)
    of["ablated"] = of["direct"] + of["change"] - of["repair"]
    return of


@pytest.mark.parametrize("scale", [1e-4, 0.1, 3.0, 50.0])
def test_every_quantity_is_its_own_rounding(rng: np.random.Generator, scale: float) -> None:
    """Sums too: they are not sums of rounded parts."""
    of = measured(rng, 3000, scale)
    of["mlps"][5] = of["repair"][5] = np.nan
    steps = {name: to_steps(value) for name, value in of.items()}
    text = pack(list(remainders(steps, STORED).values()))
    kind = {"stored": [[each.name, each.plus, each.minus] for each in STORED]}
    found, rest = values(kind, text, 3000)
    assert not rest
    for name, value in of.items():
        np.testing.assert_array_equal(found[name], np.rint(value.astype(float) / STEP), err_msg=name)
    assert np.isnan(found["mlps"][5])
    assert not np.isnan(found["heads"]).any()


def test_whole_numbers_of_every_size_come_back() -> None:
    numbers = np.array([0, 1, -1, 127, -128, 255, 256, -65536, 2**30, -(2**30), MISSING])
    [found] = unpack(pack([numbers]), len(numbers))
    np.testing.assert_array_equal(found[:-1], numbers[:-1])
    assert np.isnan(found[-1])
    several = unpack(pack([numbers, numbers[::-1].copy(), np.zeros(len(numbers), int)]), len(numbers))
    np.testing.assert_array_equal(several[1], found[::-1])
    np.testing.assert_array_equal(several[2], 0)


def test_small_numbers_take_little(rng: np.random.Generator) -> None:
    """Fewer than two bytes a value of the sizes that direct effects have."""
    assert len(pack([to_steps(rng.normal(size=4000) * 0.05)])) < 1.5 * 4000


def test_tables_keep_every_number() -> None:
    table = pd.DataFrame(
        {
            "value": [0.1 + 0.2, 1e-300, -np.pi],
            "single": np.array([0.1, 2.5, np.nan], np.float32),
            "count": pd.array([3, None, 5], dtype="Int64"),
            "text": ["a", None, "</script>"],
        }
    )
    found = json.loads(as_json(records(table)))
    assert found["columns"] == list(table.columns)
    assert [row[0] for row in found["rows"]] == table["value"].tolist()
    assert found["rows"][0][1] == float(np.float32(0.1))
    assert [row[2] for row in found["rows"]] == [3, None, 5]
    assert [row[3] for row in found["rows"]] == ["a", None, "</script>"]
    assert found["rows"][2][1] is None


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "\u2028\u2029", "]]>", '"\\'])
def test_no_text_ends_the_script_that_holds_it(text: str) -> None:
    written = as_json({text: [text]})
    assert not set("<\u2028\u2029") & set(written)
    assert json.loads(written) == {text: [text]}
