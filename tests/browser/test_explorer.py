"""The explorer as its reader meets it: by pointer, by keyboard, by ear; on a desk and on a phone, in light and in dark."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page
from unit.explorer import reading
from workflow.running import REPOSITORY, Space

from browser.conftest import Open, go, settle
from selfrepair.explorer import payload, write_explorer
from selfrepair.explorer.page import html
from selfrepair.explorer.payload import RunFiles

pytestmark = pytest.mark.filterwarnings("error")

VIEWS = ("#overview", "#head", "#token")
NAME = re.compile(r"L(\d+)H(\d+)")


def shown(value: float, digits: int = 3) -> str:
    """A number as the page writes it."""
    if not np.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    return ("−" if value < 0 and float(text) else "") + text


def with_interval(row: pd.Series, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return shown(row[name]) + ("" if not np.isfinite(low) else f" {shown(low)} to {shown(high)}")


def cells(page: Page, caption: str) -> list[list[str]]:
    """Rows of a table by its caption."""
    return page.evaluate(
        """caption => {
          const table = [...document.querySelectorAll("main table")].find((each) => each.caption.textContent === caption);
          return [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent));
        }""",
        caption,
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_every_view_fits_its_width_and_is_silent(open_page: Open, width: int, theme: str) -> None:
    page = open_page(width=width, theme=theme)
    for view in VIEWS:
        go(page, view)
        assert page.locator("main .card").count() >= 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        # Charts are drawn, and as wide as they may be.
        plots = page.evaluate(
            "[...document.querySelectorAll('.plot')].map(plot => { const drawn = plot.querySelector('svg, canvas');"
            "return drawn ? [drawn.getBoundingClientRect().width, plot.getBoundingClientRect().width] : [0, 1]; })"
        )
        assert plots
        assert all(0.8 * room < drawn <= room + 1 for drawn, room in plots), (view, plots)
        # No name in a legend is cut off.
        over = page.evaluate(
            "[...document.querySelectorAll('.plot svg .role-legend-label text')].filter(text =>"
            "text.getBoundingClientRect().right > text.closest('svg').getBoundingClientRect().right)"
            ".map(text => text.textContent)"
        )
        assert not over, view


@pytest.mark.parametrize("view", VIEWS)
def test_every_link_leads_where_it_says(open_page: Open, view: str) -> None:
    page = open_page(view)
    links = page.evaluate(
        """() => { document.querySelectorAll("details").forEach((each) => each.querySelector("summary").click());
          return [...document.querySelectorAll("a[href]")].map((link) => [link.getAttribute("href"), link.textContent]); }"""
    )
    page.wait_for_function("[...document.querySelectorAll('details')].every((each) => each.querySelector('table'))")
    links = dict(
        page.evaluate(
            "[...document.querySelectorAll('a[href]')].map((link) => [link.getAttribute('href'), link.textContent])"
        )
    )
    assert len(links) >= 9
    for href, text in links.items():
        assert href.startswith("#"), f"{text!r} leads off the page, to {href}"
        go(page, href)
        named, query = href[1:].split("?") if "?" in href else (href[1:], "")
        given = dict(part.split("=") for part in query.split("&")) if query else {}
        title = page.locator("h1").inner_text()
        active = page.locator("nav [aria-current]").inner_text()
        assert active.lower() == named, href
        if found := NAME.search(text):
            assert found.group() in title, f"{text!r} leads to {title!r}"
        if "head" in given:
            assert "L{}H{}".format(*given["head"].split(".")) in title
        if "token" in given:
            prompt, pos = given["token"].split(".")
            assert page.locator(f".prompt .token.here[data-pos='{pos}']").count() == 1
            assert page.locator("h2", has_text=re.compile(rf"^Prompt {prompt}$")).count() == 1
        # And the address says the same again.
        assert page.evaluate("location.hash") == href


def test_a_click_on_a_map_or_a_dot_opens_what_is_there(open_page: Open) -> None:
    page = open_page()
    cell = page.locator(".card").first.locator("svg path[aria-roledescription='rect mark'], svg .mark-rect path").nth(3)
    cell.click()
    settle(page)
    page.wait_for_function("location.hash.startsWith('#head')")
    settle(page)
    head = NAME.search(page.locator("h1").inner_text())
    assert head is not None
    dots = page.locator(".chart[aria-label*='a dot a token'] canvas")
    dots.scroll_into_view_if_needed()
    box = dots.bounding_box()
    assert box is not None
    # Somewhere in the cloud there is a dot.
    for x in np.linspace(0.2, 0.9, 60):
        for y in np.linspace(0.2, 0.8, 20):
            if page.evaluate("location.hash").startswith("#token"):
                break
            page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    assert page.evaluate("location.hash").startswith("#token")
    settle(page)
    assert head.group() in page.locator("h1").inner_text()


@pytest.fixture(scope="module")
def heads(finished: Space) -> dict[str, pd.DataFrame]:
    return {
        kind: pd.read_parquet(finished.run / "tables" / kind / "heads.parquet") for kind in ("resample", "mean", "zero")
    }


@pytest.mark.parametrize("kind", ["resample", "mean", "zero"])
def test_numbers_of_heads_are_those_of_the_tables(open_page: Open, heads: dict[str, pd.DataFrame], kind: str) -> None:
    page = open_page()
    table = heads[kind]
    for (layer, head), rows in table.groupby(["layer", "head"]):
        go(page, f"#head?kind={kind}&head={layer}.{head}")
        top, every = (rows[rows["selection"] == selection].iloc[0] for selection in ("top", "all"))
        found = cells(page, f"Numbers of L{layer}H{head}")
        names = [name for name in table if f"{name}_low" in table]
        assert len(found) == len(names)
        wanted = sorted([with_interval(top, name), with_interval(every, name)] for name in names)
        assert sorted([row[1:] for row in found]) == wanted
    # And all of them in the overview, of either selection.
    for selection in ("top", "all"):
        go(page, f"#overview?kind={kind}&selection={selection}&quantity=logit_change")
        page.locator("summary", has_text="As a table").first.click()
        page.wait_for_selector("details[open] table")
        rows = table[table["selection"] == selection]
        wanted = {
            f"L{row['layer']}H{row['head']}": with_interval(row, "logit_change").replace(" ", " (", 1) + ")"
            for _, row in rows.iterrows()
        }
        assert dict(cells(page, "logit change (logits), heads of tiny")) == wanted


def ablations(finished: Space, kind: str) -> dict[str, np.ndarray]:
    shards = sorted((finished.run / "ablations" / kind).glob("*.h5"))
    found: dict[str, list[np.ndarray]] = {}
    for shard in shards:
        with h5py.File(shard) as file:
            for name in ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair"):
                found.setdefault(name, []).append(file[name][...].astype(float))
            found.setdefault("scale_ratio", []).append(
                file["clean_scale"][...] / file["ablated_scale"][...].astype(float)
            )
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


LABELS = {
    "direct_effect": "direct effect",
    "ablated_direct_effect": "ablated direct effect",
    "logit_change": "logit change",
    "self_repair": "self-repair",
    "scale_ratio": "clean / ablated final scale",
}


def test_values_of_tokens_are_those_of_the_ablations(open_page: Open, finished: Space) -> None:
    page = open_page()
    for kind, row, prompt, pos in (("resample", 5, 2, 7), ("resample", 0, 7, 14), ("zero", 3, 4, 0), ("mean", 7, 0, 3)):
        values = ablations(finished, kind)
        layer, head = divmod(row, 4)
        go(page, f"#token?kind={kind}&head={layer}.{head}&token={prompt}.{pos}")
        found = dict(cells(page, f"Values of L{layer}H{head} on this token"))
        for name, label in LABELS.items():
            assert found[label] == shown(np.rint(values[name][row, prompt, pos] / 0.001) * 0.001), name
        # So does every token in the text say it, to who hears it.
        said = page.evaluate(
            "[...document.querySelectorAll('.prompt a.token')].map(each => each.getAttribute('aria-label'))"
        )
        assert len(said) == values["self_repair"].shape[2]
        for at, text in enumerate(said):
            assert f"self-repair {shown(np.rint(values['self_repair'][row, prompt, at] / 0.001) * 0.001)}" in text


def test_best_tokens_are_sorted_by_what_is_asked_for(open_page: Open, finished: Space) -> None:
    page = open_page("#head?head=1.2")
    effects = ablations(finished, "resample")["direct_effect"][6].ravel()
    best = [row[2] for row in cells(page, "Best tokens of L1H2")]
    assert best == [shown(value) for value in np.rint(np.sort(effects)[::-1][: len(best)] / 0.001) * 0.001]
    page.get_by_role("button", name="self-repair", exact=True).click()
    settle(page)
    page.wait_for_function("location.hash.includes('sort=self_repair')")
    settle(page)
    read = [float(row[4].replace("−", "-")) for row in cells(page, "Best tokens of L1H2")]
    assert read == sorted(read, reverse=True)
    page.get_by_role("button", name="self-repair", exact=False).first.click()
    page.wait_for_function("location.hash.includes('sort=-self_repair')")
    settle(page)
    assert [float(row[4].replace("−", "-")) for row in cells(page, "Best tokens of L1H2")] == sorted(read)


def test_back_and_forward_lead_through_what_was_seen(open_page: Open) -> None:
    page = open_page()
    seen = []
    for address in ("#overview?quantity=direct_effect", "#head?head=0.1", "#token?head=0.1&token=3.4"):
        go(page, address)
        seen.append(page.locator("h1").inner_text())
    page.go_back()
    page.wait_for_function("title => document.querySelector('h1').innerText === title", arg=seen[1])
    page.go_back()
    page.wait_for_function("title => document.querySelector('h1').innerText === title", arg=seen[0])
    assert page.locator("select[name=quantity]").input_value() == "direct_effect"
    page.go_forward()
    page.go_forward()
    page.wait_for_function("title => document.querySelector('h1').innerText === title", arg=seen[2])
    # A link that was sent shows the same to who opens it.
    other = open_page(page.evaluate("location.hash"))
    assert other.locator("main").inner_text() == page.locator("main").inner_text()


@pytest.mark.parametrize(
    "address", ["#nothing", "#head?head=99.1", "#head?head=x", "#token?token=900.3", "#token?kind=none&run=no/ne"]
)
def test_an_address_that_names_nothing_leads_to_something(open_page: Open, address: str) -> None:
    page = open_page(address)
    assert page.locator("h1").inner_text()
    assert page.locator("main a[href]").count() > 0


def test_all_can_be_reached_by_keyboard(open_page: Open) -> None:
    page = open_page()

    def tab_to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no way to {selector} by the tabulator")

    tab_to(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(".chart[role=application]")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    told = page.locator("#said").inner_text()
    found = NAME.search(told)
    assert found is not None
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash.startsWith('#head')")
    settle(page)
    assert page.locator("h1").inner_text().startswith(found.group())
    tab_to(".chart[role=application]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    told = page.locator("#said").inner_text()
    place = re.search(r"prompt (\d+), position (\d+)", told)
    assert place is not None
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash.startsWith('#token')")
    settle(page)
    assert page.locator(".prompt .token.here").get_attribute("data-pos") == place.group(2)
    tab_to(".prompt a.token")
    page.keyboard.press("ArrowRight" if int(place.group(2)) < 14 else "ArrowLeft")
    here = page.evaluate("document.activeElement.dataset.pos")
    page.keyboard.press("Enter")
    page.wait_for_function("pos => document.querySelector('.prompt .token.here')?.dataset.pos === pos", arg=here)
    settle(page)
    # The focus stays where the reader is.
    assert page.evaluate("document.activeElement.dataset.pos") == here


def test_light_and_dark_are_the_system_s_until_the_reader_says_otherwise(open_page: Open) -> None:
    page = open_page("#head", theme="dark")
    ground = "getComputedStyle(document.querySelector('.card')).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Use light colours").click()
    settle(page)
    light = page.evaluate(ground)
    assert (dark, light) == ("rgb(22, 25, 31)", "rgb(255, 255, 255)")
    page.get_by_role("button", name="Use dark colours").click()
    settle(page)
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(open_page: Open, axe: str, theme: str, width: int) -> None:
    page = open_page(theme=theme, width=width)
    page.evaluate(axe)
    for view in VIEWS:
        go(page, view)
        for summary in page.locator("summary").all():
            summary.click()
        found: dict[str, Any] = page.evaluate("axe.run({ resultTypes: ['violations'] })")
        serious = [
            f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious, "\n".join([view, *serious])


def saved(page: Page, button: Any) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        button.click()
    page.wait_for_timeout(150)  # Chromium drops what goes beyond ten downloads a second
    path = waiting.value.path()
    return waiting.value.suggested_filename, Path(path).read_bytes()


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_saved_is_whole(open_page: Open, view: str) -> None:
    page = open_page(view)
    seen = []
    for button in page.locator(".save").all():
        name, content = saved(page, button)
        seen.append(name)
        if name.endswith(".png"):
            picture = matplotlib.image.imread(io.BytesIO(content), format="png")
            assert min(picture.shape[:2]) > 40, name
            assert np.ptp(picture[..., :3]) > 0.4, name  # not of one colour
        elif name.endswith(".svg"):
            root = ElementTree.fromstring(content)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert sum(1 for _ in root.iter()) > 20, name
        else:
            rows = list(csv.reader(io.StringIO(content.decode("utf-8"))))
            assert len(rows) > 2, name
            assert len({len(row) for row in rows}) == 1, name
    assert len(seen) == len(set(seen)) >= 9
    assert {name.rsplit(".", 1)[1] for name in seen} == {"png", "svg", "csv"}


def test_saved_tables_are_the_tables(open_page: Open, heads: dict[str, pd.DataFrame]) -> None:
    page = open_page("#overview?quantity=self_repair&models=tiny/words")
    table = heads["resample"]
    _, content = saved(page, page.get_by_role("button", name="Save self-repair (logits), heads of tiny as CSV"))
    found = pd.read_csv(io.BytesIO(content))
    wanted = table[table["selection"] == "top"].reset_index(drop=True)[list(found)]
    pd.testing.assert_frame_equal(found, wanted, check_exact=True, check_dtype=False)
    go(page, "#head?head=1.1")
    _, content = saved(page, page.get_by_role("button", name="Save numbers of L1H1 as CSV"))
    row = table[(table["layer"] == 1) & (table["head"] == 1) & (table["selection"] == "all")].iloc[0]
    for _, line in pd.read_csv(io.BytesIO(content)).iterrows():
        assert [line["all"], line["all_low"], line["all_high"]] == [
            row[line["quantity"] + end] for end in ("", "_low", "_high")
        ]


def test_texts_that_would_be_markup_do_nothing(open_page: Open, explorer: Path, tmp_path: Path) -> None:
    """Wherever a token may stand: text, list, dots, tooltips, tables."""
    content = reading.content(explorer.read_text(encoding="utf-8"))
    nasty = [
        *(
            "</script><script>window.harmed = 1</script>",
            '<img src=x onerror="window.harmed = 1">',
            "<b>bold</b>",
            "&lt;",
        ),
        *("  ", "\n", "\u200b\u202e", "{{harm}}", "${harm}", ["E2 80"]),
    ]
    run = content["runs"][0]
    run["pieces"] = [nasty[at % len(nasty)] for at in range(len(run["pieces"]))]
    assert len(run["pieces"]) >= 7
    file = tmp_path / "nasty.html"
    file.write_text(html(content), encoding="utf-8")
    page = open_page("#token", file=file)
    for view in VIEWS:
        go(page, view)
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("window.harmed") is None
        assert page.locator("main b, main img, main script").count() == 0
    text = page.locator(".prompt").inner_text()
    assert "<img src=x onerror=" in text
    assert "<b>bold</b>" in text
    assert "↵" in text
    go(page, "#head")
    box = page.locator("canvas").first.bounding_box()
    assert box is not None
    for x in np.linspace(0.1, 0.95, 60):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.35 * box["height"])
    assert page.evaluate("window.harmed") is None


def tiny_files(finished: Space) -> RunFiles:
    run = finished.run
    tables = {name: run / "tables" / "resample" / f"{name}.parquet" for name in ("heads", "layers", "model")}
    return RunFiles(
        model="tiny",
        corpus="words",
        kinds=["resample"],
        tables={"resample": tables},
        shards={"resample": sorted((run / "ablations" / "resample").glob("*.h5"))},
        thresholds=run / "thresholds.h5",
        tokens=run / "tokens.h5",
        chosen_heads=run / "chosen_heads.json",
        snapshot=finished.work / "results" / "snapshots" / "models" / "tiny",
    )


def test_a_sample_says_so_and_shows_best_tokens_of_other_prompts(
    open_page: Open, finished: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "BUDGET", 2_500)
    file, files = tmp_path / "sampled.html", tiny_files(finished)
    published = REPOSITORY / "resources" / "published" / "self_repair_by_head.csv"
    write_explorer([files], published=published, out=file)
    run = reading.content(file.read_text(encoding="utf-8"))["runs"][0]
    held = set(run["prompts"])
    assert 1 <= len(held) < 8
    page = open_page("#head?head=1.0", file=file)
    assert f"a sample of {len(held)} prompts of 8" in page.locator("main").inner_text()
    prompt, pos = next(place for place in run["kinds"]["resample"]["best"][4] if place[0] not in held)
    go(page, f"#token?head=1.0&token={prompt}.{pos}")
    assert "not in the page's sample" in page.locator("main").inner_text()
    assert page.locator(".prompt .token.here").get_attribute("data-pos") == str(pos)
    value = ablations(finished, "resample")["self_repair"][4, prompt, pos]
    assert dict(cells(page, "Values of L1H0 on this token"))["self-repair"] == shown(np.rint(value / 0.001) * 0.001)


def test_two_models_stand_side_by_side(open_page: Open, finished: Space, tmp_path: Path) -> None:
    file, files = tmp_path / "two.html", tiny_files(finished)
    published = REPOSITORY / "resources" / "published" / "self_repair_by_head.csv"
    write_explorer([files, replace(files, model="other")], published=published, out=file)
    page = open_page("#overview", file=file)
    titles = page.locator(".maps h2").all_inner_texts()
    assert [title.split(" on ")[0] for title in titles[:2]] == ["tiny", "other"]
    assert len(titles) == 6
    page.get_by_role("checkbox", name="GPT-2 medium published").uncheck()
    page.wait_for_function("document.querySelectorAll('.maps h2').length === 5")
    settle(page)
    go(page, "#head?run=other/words&head=0.2")
    assert "of other on words" in page.locator("h1").inner_text()
    page.locator("select[name=run]").select_option("tiny/words")
    page.wait_for_function("document.querySelector('h1').innerText.includes('of tiny on words')")
    settle(page)


def test_a_published_model_that_is_run_too_has_two_lines(open_page: Open, finished: Space, tmp_path: Path) -> None:
    """By the key that the paper's files have, and by the name that the page gives it."""
    file, files = tmp_path / "same.html", tiny_files(finished)
    published = REPOSITORY / "resources" / "published" / "self_repair_by_head.csv"
    write_explorer(
        [replace(files, model=model) for model in ("gpt2-small", "Pythia-160M")], published=published, out=file
    )
    page = open_page("#overview", file=file)
    _, content = saved(page, page.get_by_role("button", name="Save self-repair (logits) by layer as CSV"))
    series = pd.read_csv(io.BytesIO(content)).groupby("model", sort=False)["layer"]
    theirs = [f"{name}, published" for name in ("Pythia-160M", "Pythia-410M", "GPT-2 small", "GPT-2 medium")]
    assert sorted(series.groups) == sorted(["gpt2-small", "Pythia-160M", *theirs])
    assert all(layers.is_unique for _, layers in series)
    lines = page.locator(".chart[aria-label*='by layer'] path[aria-roledescription='line mark']")
    looks = lines.evaluate_all(
        "all => all.map(line => [line.getAttribute('stroke'), line.getAttribute('stroke-dasharray')].join(' '))"
    )
    assert len(set(looks)) == len(looks) == 6
    # Nor is what is saved of the one called as what is saved of the other.
    names = page.locator(".save").evaluate_all("all => all.map(button => button.getAttribute('aria-label'))")
    assert len(set(names)) == len(names)


def page_of(explorer: Path, file: Path, **settings: list[float]) -> Path:
    """The tiny run's page, with its run once for each value of a setting, on texts "0", "1" and so on."""
    content = reading.content(explorer.read_text(encoding="utf-8"))
    [run], [(name, values)] = content["runs"], settings.items()
    content["runs"] = [
        {**run, "id": f"tiny/{at}", "corpus": str(at), "settings": {**run["settings"], name: value}}
        for at, value in enumerate(values)
    ]
    file.write_text(html(content), encoding="utf-8")
    return file


def test_positions_that_count_nowhere_are_among_no_tokens(
    open_page: Open, explorer: Path, finished: Space, tmp_path: Path
) -> None:
    page = open_page("#head?head=1.0", file=page_of(explorer, tmp_path / "from_2.html", first_position=[2]))
    counted = ablations(finished, "resample")["scale_ratio"][4, :, 2:]
    _, content = saved(page, page.get_by_role("button", name="a dot a token as CSV"))
    dots = pd.read_csv(io.BytesIO(content))
    assert (len(dots), dots["pos"].min()) == (counted.size, 2)
    assert f"{counted.size} of all 8 prompts, from position 2 on." in page.locator("main").inner_text()
    button = page.get_by_role("button", name="Save Clean over ablated scale of the final norm for L1H0 as CSV")
    _, content = saved(page, button)
    bins = pd.read_csv(io.BytesIO(content)).query("group == 'all tokens'")
    assert bins["n"].sum() == counted.size
    # Its range is theirs too.
    ends = np.quantile(np.rint(counted / 0.001) * 0.001, [0.005, 0.995], method="lower")
    np.testing.assert_allclose(bins["high"].max() - 1, max(*np.abs(ends - 1), 0.005), rtol=1e-6)
    # In its text such a token is shown, as what it is.
    go(page, "#token?head=1.0&token=2.1")
    assert "No statistic counts this position." in page.locator("main").inner_text()
    go(page, "#token?head=1.0&token=2.2")
    assert "No statistic counts this position." not in page.locator("main").inner_text()


def test_the_share_of_top_tokens_is_not_rounded(open_page: Open, explorer: Path, tmp_path: Path) -> None:
    fractions = [0.025, 0.005, 0.002, 0.02, 0.07, 0.1, 1.0]
    page = open_page("#overview", file=page_of(explorer, tmp_path / "fractions.html", top_fraction=fractions))
    notes = page.locator(".maps .note").all_inner_texts()
    found = [found.group(1) for note in notes if (found := re.search("means over the (.+) top tokens", note))]
    assert found == [f"{100 * fraction:g}%" for fraction in fractions]
    for at, fraction in enumerate(fractions[:3]):
        go(page, f"#head?run=tiny/{at}&head=1.0")
        assert f"Top tokens: the {100 * fraction:g}% with" in page.locator("main").inner_text()
