"""Draw the pictures of docs/idea.md, and make small copies of the default's figures for docs/figures.md.

`python docs/draw_examples.py results/smollm2-135m-instruct/wikipedia` after `make reproduce`. The pictures show one token of
one head, chosen by rule: of the head whose top tokens are repaired most, the token on which its direct effect is largest. Every
number in them is read from the run. docs/numbers.json keeps what pages say of the run; a test holds the pages to it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from selfrepair.figures.style.looks import FAINT, INK, LOOKS, PALE, SMALL_SIZE, context
from selfrepair.figures.wording import largest, measured
from selfrepair.quantities import HEAD_TOKEN, PARTS, QUANTITIES, SELECTIONS
from selfrepair.run.opened import Run, open_run

DOCS = Path(__file__).resolve().parent
MM = 1 / 25.4
WIDTH = 174 * MM
SMALL, COLOURS = 0.54, 200
"""Of a small copy of a figure: its pixels to those of the figure, along a side, and its colours."""


@dataclass(frozen=True)
class Example:
    """One token and one head of a run.

    Attributes:
        model: Name of the model.
        layer: Of the head.
        head: Its number in the layer.
        before: Text up to the token that predicts, the last words of it.
        correct: Text of the correct token.
        values: Quantities of the head on this token, logits; scales of the final norm.
        direct_effects: Of every head on this token, [layer, head], logits.
    """

    model: str
    layer: int
    head: int
    before: str
    correct: str
    values: dict[str, float]
    direct_effects: np.ndarray

    @property
    def name(self) -> str:
        """Such as L26H8."""
        return f"L{self.layer}H{self.head}"

    @property
    def parts(self) -> list[str]:
        """Names of the parts that the model has."""
        return [part for part in PARTS if part in self.values]


def read_example(run: Run) -> Example:
    """The head of largest condensed self-repair, on the token of its largest direct effect."""
    best = largest(run.heads(), "self_repair")
    layer, head = int(best["layer"]), int(best["head"])
    tokens = run.tokens(layer, head)
    token = largest(tokens, "direct_effect")
    prompt, pos = int(token["prompt"]), int(token["pos"])
    effects = run.ablations()["direct_effect"].isel(prompt=prompt, pos=pos).values
    before = "".join(run.text(prompt)[: pos + 1])
    return Example(
        run.model,
        layer,
        head,
        before[before.rindex(". ") + 2 :].strip(),
        token["correct_token"].strip(),
        {name: float(token[name]) for name in (*HEAD_TOKEN, "clean_scale", "ablated_scale") if name in token.index},
        effects.reshape(run.settings["n_layers"], run.settings["n_heads"]),
    )


def logits(value: float, *, sign: bool = False) -> str:
    """A value with two decimals and a true minus sign."""
    return f"{value:+.2f}".replace("-", "−") if sign else f"{value:.2f}".replace("-", "−")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height * MM), layout="constrained")
    return figure, figure.add_subplot()


def draw_direct_effect(example: Example) -> Figure:
    """Every head's direct effect on the token, by layer."""
    figure, axes = _figure(62)
    layers, heads = example.direct_effects.shape
    spread = (np.arange(heads) - (heads - 1) / 2) * 0.6 / heads
    where = np.add.outer(np.arange(layers), spread)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.scatter(where, example.direct_effects, s=7, color=PALE, linewidths=0)
    own = example.values["direct_effect"]
    at = where[example.layer, example.head]
    look = LOOKS["direct_effect"]
    axes.scatter([at], [own], s=30, color=look.colour, marker=look.marker, zorder=3)
    axes.annotate(
        f"{example.name} writes {logits(own)} logits\nfor “{example.correct}” by itself",
        (at, own),
        xytext=(-8, -2),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set_title(f"“{example.before} … ”  next: “{example.correct}”", loc="left", style="italic")
    axes.set_xlabel(f"layer of the head ({layers * heads} heads of {example.model}, a dot each)")
    axes.set_ylabel(QUANTITIES["direct_effect"].axis)
    axes.set_xlim(-1, layers)
    return figure


def _tint(colour: str) -> np.ndarray:
    """A light shade that hides what lies below."""
    return 1 - 0.18 * (1 - np.array(mpl.colors.to_rgb(colour)))


def _box(axes: Axes, left: float, middle: float, width: float, text: str, colour: str, *, faint: bool = False) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - 0.5),
            width,
            1.0,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="white" if faint else _tint(colour),
            edgecolor=colour,
            linestyle=(0, (3, 1.5)) if faint else "-",
            linewidth=0.9,
        )
    )
    axes.text(left + width / 2, middle, text, ha="center", va="center", linespacing=1.25)


def draw_ablation(example: Example) -> Figure:
    """The two runs that are compared: the model as it is, and with the head's output replaced."""
    figure, axes = _figure(58)
    axes.set_axis_off()
    axes.set_xlim(0, 17.4)
    axes.set_ylim(0, 5.7)
    values = example.values
    colours = {part: LOOKS[part].colour for part in PARTS}
    head = LOOKS["direct_effect"].colour
    rows = {
        "clean run": (4.35, values["direct_effect"], values["clean_scale"]),
        "ablated run": (1.35, values["ablated_direct_effect"], values["ablated_scale"]),
    }
    for name, (y, effect, scale) in rows.items():
        ablated = name == "ablated run"
        axes.text(0, y + 0.95, name, weight="bold", va="center")
        axes.annotate(
            "", (14.4, y), (0, y), arrowprops={"arrowstyle": "-|>", "color": FAINT, "linewidth": 1.4}, zorder=0
        )
        _box(axes, 0.5, y, 2.3, f"layers before\n{example.layer}", FAINT)
        _box(axes, 3.2, y, 2.7, f"{example.name}\nwrites {logits(effect)}", head, faint=ablated)
        _box(axes, 6.3, y, 2.3, "later heads", colours["self_repair_from_heads"])
        _box(axes, 9.0, y, 2.3, "later MLPs", colours["self_repair_from_mlps"])
        _box(axes, 11.7, y, 2.3, f"final norm\ndivides by {scale:.1f}", colours["self_repair_from_layernorm"])
        axes.text(14.6, y, f"logit of “{example.correct}”", va="center", weight="bold")
    axes.annotate(
        "from another prompt",
        (4.55, 0.83),
        (4.55, 0.1),
        ha="center",
        va="center",
        size=SMALL_SIZE,
        color=FAINT,
        arrowprops={"arrowstyle": "-|>", "color": FAINT, "linewidth": 0.8},
    )
    axes.text(1.65, 3.05, "the same in both", ha="center", va="center", size=SMALL_SIZE, color=FAINT)
    for x, part in zip((7.45, 10.15, 12.85), (name for name in PARTS if "postnorms" not in name), strict=True):
        axes.text(x, 3.05, f"{logits(values[part], sign=True)}", ha="center", va="center", color=INK, weight="bold")
        axes.text(x, 2.67, "repaired", ha="center", va="center", size=SMALL_SIZE, color=FAINT)
    removed = values["ablated_direct_effect"] - values["direct_effect"]
    axes.text(4.55, 3.05, logits(removed, sign=True), ha="center", va="center", weight="bold")
    axes.text(4.55, 2.67, "removed", ha="center", va="center", size=SMALL_SIZE, color=FAINT)
    axes.text(14.6, 3.05, logits(values["logit_change"], sign=True), va="center", weight="bold")
    axes.text(14.6, 2.67, "logit change", va="center", size=SMALL_SIZE, color=FAINT)
    return figure


def draw_parts(example: Example) -> Figure:
    """From what is removed to the logit change, part by part."""
    figure, axes = _figure(66)
    values = example.values
    removed = values["ablated_direct_effect"] - values["direct_effect"]
    steps = [("removed with\nthe head", removed, LOOKS["direct_effect"].colour)]
    steps += [
        (
            QUANTITIES[part].label.replace("self-repair from ", "other " if part.endswith("heads") else ""),
            values[part],
            LOOKS[part].colour,
        )
        for part in example.parts
    ]
    steps = [(name.replace("LayerNorm", "final norm"), value, colour) for name, value, colour in steps]
    level = 0.0
    for at, (_, value, colour) in enumerate(steps):
        axes.bar(at, value, bottom=level, width=0.62, color=colour)
        top = max(level, level + value)
        axes.text(at, top + 0.12, logits(value, sign=True), ha="center", va="bottom", weight="bold")
        level += value
        axes.plot([at + 0.31, at + 0.69], [level, level], color=FAINT, linewidth=0.8)
    change = values["logit_change"]
    at = len(steps)
    axes.bar(at, change, width=0.62, color=LOOKS["logit_change"].colour)
    axes.text(at, 0.12, logits(change, sign=True), ha="center", va="bottom", weight="bold")
    axes.annotate("", (at + 0.5, removed), (at + 0.5, change), arrowprops={"arrowstyle": "<->", "color": INK})
    axes.text(
        at + 0.58,
        (removed + change) / 2,
        f"self-repair\n{logits(values['self_repair'], sign=True)}",
        va="center",
        weight="bold",
    )
    axes.hlines(removed, 0.31, at + 0.5, color=FAINT, linewidth=0.6, linestyle=(0, (2, 2)))
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_xticks([*range(at + 1)], [*(name for name, _, _ in steps), "logit change"])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, at + 1.5)
    axes.set_ylim(min(removed, 0) - 0.4, 0.9)
    axes.set_ylabel(f"logit of “{example.correct}” (logits)")
    return figure


def shrink(figures: Path, out: Path) -> None:
    """Small copies of a run's figures: fewer pixels and colours."""
    out.mkdir(exist_ok=True)
    for path in sorted(figures.glob("*.png")):
        with Image.open(path) as image:
            size = (round(image.width * SMALL), round(image.height * SMALL))
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            few = small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(out / path.name, optimize=True)


def quoted(run: Run, example: Example) -> dict[str, list[str]]:
    """What pages say of the run, as it stands there, by page; tests/unit/test_docs.py looks for it."""
    model, layers = {selection: run.model_mean(selection=selection) for selection in SELECTIONS}, run.layers()
    control = run.table("selection_control_model").set_index("choice")
    donors = run.table("donor_noise")
    types = [
        measured(run.table("ablation_type", kind).query("selection == 'top'").iloc[0], "self_repair")
        for kind in run.kinds
    ]
    checks = run.table("checks")
    pair = run.table("repair_pairs").query("by == 'mlp'").query("layer == 10 and head == 8 and by_layer == 11").iloc[0]
    heads = run.heads()
    share = "pooled_repair_fraction"
    return {
        "idea.md": [
            example.name,
            f"{example.before} **{example.correct}**",
            *(logits(value).lstrip("−") for name, value in example.values.items() if name in (*HEAD_TOKEN,) and value),
            logits(example.values["ablated_direct_effect"]),
            *(f"{example.values[name]:.1f}" for name in ("clean_scale", "ablated_scale")),
            logits(example.values["direct_effect"] - example.values["ablated_direct_effect"]),
        ],
        "limits.md": [
            f"{measured(model['top'], 'self_repair')} on top tokens",
            f"{measured(model['all'], 'self_repair').replace(' logits', '')} on all",
            f"{control[share]['removed']:.0%} where the same donor chooses and measures",
            f"{control[share]['other_donor']:.0%} where another chooses",
            f"{control[share]['top']:.0%} by direct effect",
            f"{control[share]['absolute']:.0%} by the size of the direct effect",
            f"{types[0].split(' ')[0]}, {types[1].split(' ')[0]} and {types[2].split(' ')[0]} logits in {example.name}",
            f"{donors['donor_share'].min():.0%} to {donors['donor_share'].max():.0%}".replace("%", "", 1),
            f"{100 * donors['averaged_donor_share'].min():.1f} to {donors['averaged_donor_share'].max():.0%}",
            f"L10H8 to MLP 11: {measured(pair, 'repair', 'logits')}",
            measured(largest(layers, "self_repair"), "self_repair"),
            f"{(heads['self_repair_low'] > 0).sum()} heads are above zero and {(heads['self_repair_high'] < 0).sum()} below",
            f"{checks['repeated'].sum()} ablations, {checks['numbers'].sum():,} numbers",
            f"at most {checks['largest_difference'].max():.0e} logits".replace("e-0", "e-"),
            f"{run.settings['n_tokens']:,} tokens of {run.settings['n_prompts']} prompts",
        ],
    }


def main(folder: Path) -> None:
    """Write all of docs that is made of a run."""
    run = open_run(folder)
    example = read_example(run)
    pictures = {"direct_effect": draw_direct_effect, "ablation": draw_ablation, "parts": draw_parts}
    with context():
        for name, draw in pictures.items():
            draw(example).savefig(DOCS / f"idea_{name}.svg", metadata={"Date": None})
    numbers = json.dumps(quoted(run, example), indent=1, ensure_ascii=False)
    (DOCS / "numbers.json").write_text(f"{numbers}\n", encoding="utf-8")
    shrink(folder / "figures", DOCS / "figures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="results/{model}/{corpus} of a finished run of the default")
    main(parser.parse_args().run)
