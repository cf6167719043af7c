"""The style of figures: looks, ranges, inputs, footers and saving."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from selfrepair.figures.style import looks, ranges
from unit.figures.shared import draw, labelled, make_heads, make_tables, written

pytestmark = pytest.mark.filterwarnings("error")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    figure = draw("repair_breakdown")
    assert written(figure, tmp_path, "a") == written(figure, tmp_path, "b")


def test_png_is_300_dpi_and_svg_keeps_its_text(tmp_path):
    png, svg = written(draw("self_repair_by_layer"), tmp_path, "figure")
    assert int.from_bytes(png[16:20], "big") == pytest.approx(84 / 25.4 * 300, abs=1)
    assert b">self-repair (logits)</text>" in svg
    assert b"<dc:date>" not in svg


def test_mark_outside_counts_each_point_once():
    ax = Figure().subplots()
    ax.set(xlim=(0, 1), ylim=(0, 2.1))
    counts = ranges.mark_outside(ax, [0.5, 3, 3, -1, 0.5, np.nan], [5, 5, 1, 1, 1, 9], "black")
    assert counts == ["2 above 2.1", "1 right of 1", "1 left of 0"]
    (above, *_) = labelled(ax, "_outside")
    assert list(above.get_xdata()) == [0.5, 1]
    assert list(above.get_ydata()) == [2.1, 2.1]
    assert ranges.mark_outside(ax, [0.5], [0.5], "black") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.r_[np.linspace(0, 1, 200), 50.0], (-0.03, 1.03)),
        (np.linspace(-1, 1, 11), (-1.1, 1.1)),
        ([3.0, np.nan, 3.0], (2.4, 3.6)),
        ([np.nan], (-0.6, 0.6)),
    ],
)
def test_bulk_range(values, expected):
    low, high = ranges.bulk_range(values)
    assert (low, high) == pytest.approx(expected, abs=0.025)


def test_bulk_range_keeps_what_must_be_seen():
    low, high = ranges.bulk_range(np.linspace(0, 1, 100), include=[0.0, [7.0, np.nan]])
    assert low <= 0
    assert high >= 7


def test_missing_selection_is_named():
    heads = make_heads()
    heads = heads[heads["selection"] == "top"]
    with pytest.raises(ValueError, match="no rows of selection 'all'"):
        draw("effect_vs_logit_change", {"heads_mean": heads})


def test_settings_must_be_there_and_agree():
    tables = make_tables()["mlp_repair"]
    tables["layers"].attrs["n_prompts"] = 41
    with pytest.raises(ValueError, match="different runs \\(n_prompts 40 and 41\\)"):
        draw("mlp_repair", tables)
    del tables["layers"].attrs["n_prompts"]
    with pytest.raises(ValueError, match="table 'layers' has no n_prompts in its attributes"):
        draw("mlp_repair", tables)


def test_footer_tells_donors_and_left_out_positions():
    tables = make_tables()["repair_breakdown"]
    tables["layers"].attrs.update(donors=4, first_position=1)
    footer = draw("repair_breakdown", tables).get_supxlabel()
    assert "resample (4 donors) ablation" in footer
    assert "position 0 left out" in footer


def test_looks_can_be_told_apart():
    own = [*looks.LOOKS.values()]
    assert len({(look.colour, str(look.dash)) for look in own}) == len(own)
    published = [look for _, look in looks.PUBLISHED.values()]
    assert len({look.marker for look in published}) == len(published)
