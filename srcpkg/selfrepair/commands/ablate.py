"""`selfrepair ablate`: heads of a model ablated on one text, without a workflow."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from selfrepair.commands.options import Json, examples, parse_head
from selfrepair.commands.output import console, number, print_json, quoted, table
from selfrepair.quantities import HEAD_TOKEN, PARTS, held
from selfrepair.snapshots.names import CONFIG
from selfrepair.workflow.config import RESULTS

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from selfrepair.snapshots.encoding import Encoder

MODELS = RESULTS / "snapshots" / "models"
MEANING = {
    "zero": "the head writes nothing",
    "mean": "the head writes its mean over this text",
    "resample": "the head writes what it writes in the donor text",
}


@examples(
    'selfrepair ablate --model smollm2-135m-instruct --head 26.8 --text "The cat sat."',
    'selfrepair ablate --model models/mine --head 20.6 --head 20.7 --text "The cat sat." --json',
)
def ablate(
    model: Annotated[
        str,
        typer.Option(help="Folder of a model, as save_pretrained writes it; or the name of a snapshot of a run."),
    ],
    text: Annotated[str, typer.Option(help="The text; a BOS token goes before it where the tokenizer has one.")],
    head: Annotated[list[str], typer.Option(help="A head, as 26.8 or L26H8; may be given again.")],
    donor_text: Annotated[
        str | None, typer.Option(help="Text that a head's output is taken from: ablation by resampling, as in the paper.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="resample, mean or zero. Left out: resample with a donor text, else zero.")
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Ablate heads on one text, one at a time, and print what becomes of each next token's logit.

    Needs no run: a model folder will do. Zero ablation, the default, depends on nothing but the text, but is far from what
    the model ever sees; resampling is what runs and the paper use, and wants --donor-text of as many tokens.
    """
    heads = [parse_head(each) for each in head]
    kind = kind or ("zero" if donor_text is None else "resample")
    folder = find_model(model)
    encoder = _encoder(folder)
    ids = encode(encoder, text, "--text")
    donors = None if donor_text is None else _as_long(encode(encoder, donor_text, "--donor-text"), len(ids))

    import selfrepair

    loaded = selfrepair.load_model(folder, device=_device(device))
    found = selfrepair.ablate_heads(loaded, ids[None], None if donors is None else donors[None], heads=heads, kind=kind)
    tokens = token_texts(encoder, ids)
    if as_json:
        print_json(_as_json(found, tokens, str(folder), kind))
    else:
        _show(found, tokens, folder, kind)


def find_model(name: str) -> Path:
    """The folder of a model: as it is named, or the snapshot of that name below results/.

    Raises:
        ValueError: There is none.
    """
    for folder in (Path(name), MODELS / name):
        if (folder / CONFIG).is_file():
            return folder
    known = sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))
    there = f"; snapshots here: {', '.join(known)}" if known else ""
    raise ValueError(
        f"--model {name} is no folder with a {CONFIG}, nor is {MODELS / name}: name a folder that save_pretrained wrote, or a "
        f"snapshot of a run{there}"
    )


def encode(encoder: Encoder, text: str, option: str) -> np.ndarray:
    """Token ids of a text, BOS before it where the tokenizer has one.

    Raises:
        ValueError: No text, or one that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} is not UTF-8: convert it (iconv -t UTF-8)") from None
    [ids] = encoder.encode([text])
    bos = [encoder.bos[1]] if encoder.bos else []
    found = np.array([*bos, *ids.tolist()], dtype=np.int64)
    if len(found) < 2:
        raise ValueError(f"{option} {text!r} gives {len(found)} tokens: wanted two at least, one that predicts another")
    return found


def _as_long(donor: np.ndarray, n_tokens: int) -> np.ndarray:
    if len(donor) < n_tokens:
        raise ValueError(
            f"--donor-text has {len(donor)} tokens, --text {n_tokens}: give a donor text that is as long; what is beyond is "
            "left out"
        )
    return donor[:n_tokens]


def _encoder(folder: Path) -> Encoder:
    if not (folder / TOKENIZER).is_file():
        raise ValueError(
            f"{folder} has no tokenizer ({TOKENIZER}): save it beside the model with save_pretrained, or take a snapshot by a run"
        )
    encoder = read_encoder(folder)
    check_vocabulary(encoder, model_vocabulary(folder), str(folder))
    return encoder


def _device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(
            f"--device {name} is none that torch has here: leave it out for cpu; `selfrepair doctor` says what torch sees"
        ) from None
    return name


def _show(found: xr.Dataset, tokens: list[str], folder: Path, kind: str) -> None:
    out = console()
    parts = {"heads": PARTS[0], "MLPs": PARTS[1], "post-norms": PARTS[2], "norm": PARTS[3]}
    parts = {label: name for label, name in parts.items() if name in found}
    out.print(f"{folder}, {kind} ablation: {MEANING[kind]}. Logits of the token that follows.", soft_wrap=True)
    for row in range(found.sizes["head"]):
        of_head = found.isel(head=row, prompt=0)
        name = f"L{int(of_head['layer'])}H{int(of_head['head_index'])}"
        columns = ("pos", "token", "next token", "direct effect", "logit change", "self-repair", *parts)
        rows = table(*columns, left=3, title=name)
        for pos in range(found.sizes["pos"]):
            at = of_head.isel(pos=pos)
            values = [at[each].item() for each in ("direct_effect", "logit_change", "self_repair", *parts.values())]
            cells = [number(value) for value in values]
            repair = Text(cells[2], style="cyan" if values[2] > 0 else "red")
            rows.add_row(str(pos), quoted(tokens[pos]), quoted(tokens[pos + 1]), *cells[:2], repair, *cells[3:])
        out.print(rows)
        out.print(_in_words(of_head), soft_wrap=True)
    out.print(_proof(found), soft_wrap=True)


def _in_words(of_head: xr.Dataset) -> str:
    total = {name: float(of_head[name].sum()) for name in ("direct_effect", "ablated_direct_effect", "self_repair")}
    removed = total["direct_effect"] - total["ablated_direct_effect"]
    n_tokens = of_head.sizes["pos"]
    return (
        f"Over these {n_tokens} tokens, ablation removes {number(removed)} logits of direct effect, and {number(total['self_repair'])} "
        "come back as self-repair."
    )


def _proof(found: xr.Dataset) -> str:
    proof = found.attrs
    return (
        f"Proof: {proof['proof_ablations']} of {found.sizes['head']} ablations repeated by plain runs of the whole model, "
        f"{proof['proof_numbers']} numbers compared, largest difference {proof['proof_largest_difference']:.1g} logits."
    )


def _as_json(found: xr.Dataset, tokens: list[str], folder: str, kind: str) -> dict[str, Any]:
    names = held(HEAD_TOKEN, found)
    return {
        "model": folder,
        "kind": kind,
        "tokens": tokens,
        "heads": [
            {
                "layer": int(found["layer"][row]),
                "head": int(found["head_index"][row]),
                "by_token": [
                    {
                        "pos": pos,
                        "token": tokens[pos],
                        "next_token": tokens[pos + 1],
                        **{name: found[name].values[row, 0, pos] for name in names},
                    }
                    for pos in range(found.sizes["pos"])
                ],
            }
            for row in range(found.sizes["head"])
        ],
        "proof": {name: found.attrs[f"proof_{name}"] for name in ("ablations", "numbers", "largest_difference")},
    }
