"""`selfrepair ablate`: heads of a model ablated on one text, without a workflow."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from selfrepair.commands.options import Json, examples
from selfrepair.commands.output import console, number, print_json, print_table, quoted, say, signed, table
from selfrepair.commands.quantities import heading, parts_of
from selfrepair.model.head_names import parse_head
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.snapshots.names import CONFIG
from selfrepair.workflow.config import RESULTS
from selfrepair.workflow.machine import memory_mb, shortage

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair")
MODELS = RESULTS / "snapshots" / "models"
FLOAT32 = 4
"""Bytes of a weight."""
MEANING = {
    "resample": "the head writes what it writes in the donor text",
    "mean": "the head writes its average over this text",
    "zero": "the head writes nothing",
}


@examples(
    'selfrepair ablate --model smollm2-135m-instruct --head 26.8 --text "A cat."',
    'selfrepair ablate --model models/mine --head 20.6 --text "A cat." --json',
    'selfrepair ablate --model mine --head 20.6 --text "A cat" --donor-text "A dog"',
)
def ablate(
    model: Annotated[
        str, typer.Option(help="Folder of a model with its tokenizer; or the name of a model that a run has taken.")
    ],
    text: Annotated[str, typer.Option(help="The text; a BOS token goes before it where the tokenizer has one.")],
    head: Annotated[list[str], typer.Option(help="A head, as 26.8 or L26H8; may be given again.")],
    donor_text: Annotated[
        str | None, typer.Option(help="Another text, as long or longer: the head writes what it writes there.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="resample, mean or zero. Left out: resample with a donor text, else mean.")
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device, such as cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Ablate heads on one text, one at a time, and say token by token what the rest of the model makes up for.

    Needs no run: a folder as save_pretrained of transformers writes it will do. With one text a head is replaced by its own
    average over it, which keeps what it writes everywhere and takes what it says of each token. Runs and the paper resample:
    give a --donor-text for that.
    """
    heads = [parse_head(each) for each in head]
    _check_kind(kind, donor_text)
    for option, given in (("--text", text), ("--donor-text", donor_text or "")):
        _check_text(option, given)
    folder = find_model(model)
    _check_shape(folder, heads)
    from transformers.utils.logging import disable_progress_bar

    import selfrepair
    from selfrepair.model.texts import text_reader

    reader = text_reader(folder)
    ids = reader.ids(text, "--text")[0]
    disable_progress_bar()
    loaded = selfrepair.load_model(folder, device=_device(device))
    found = [
        selfrepair.self_repair(loaded, text, each, donor_text=donor_text, kind=kind, tokenizer=reader) for each in heads
    ]
    if as_json:
        print_json({"model": folder, "kind": found[0].attrs["ablation"], "heads": [_as_json(each) for each in found]})
        return
    out = console()
    kind = found[0].attrs["ablation"]
    say(out, f"{folder}, {kind} ablation: {MEANING[kind]}. In logits of the next token.")
    tokens = spelled(reader, ids)
    for each in found:
        _show(out, each, tokens)
    out.print()
    say(out, _proof(found))


def find_model(name: str) -> Path:
    """The folder of a model: as it is named, or the snapshot of that name below results/.

    Raises:
        ValueError: There is none, or it has no tokenizer.
    """
    from selfrepair.snapshots.encoding import TOKENIZER, TOKENIZER_CONFIG

    for folder in (Path(name), MODELS / name):
        if (folder / CONFIG).is_file():
            break
    else:
        known = ", ".join(sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}")))
        raise ValueError(
            f"--model {name}: neither it nor {MODELS / name} is a folder with a {CONFIG}; name a folder that save_pretrained "
            f"wrote, or a model that a run here has taken{known and f': {known}'}"
        )
    for file in (TOKENIZER, TOKENIZER_CONFIG):
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder} has no tokenizer ({file}): save it beside the model (tokenizer.save_pretrained), as a fast "
                "tokenizer of transformers writes it"
            )
    return folder


def spelled(reader: Any, ids: Any) -> list[str]:
    """Tokens to be shown: what each adds to the text, and the bytes of those that spell a part of a character.

    Args:
        reader: A `selfrepair.model.texts.TextReader`.
        ids: Token ids, in the order of the text.
    """
    from selfrepair.snapshots.encoding import byte_symbols

    bytes_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    found = reader.pieces(ids.tolist())
    for at, number_ in enumerate(ids.tolist()):
        if not found[at]:
            raw = str(reader.tokenizer.id_to_token(number_))
            of_bytes = all(symbol in bytes_of for symbol in raw) and not raw.startswith("<")
            found[at] = bytes(map(bytes_of.__getitem__, raw)).decode("utf-8", "backslashreplace") if of_bytes else raw
    return found


def _check_kind(kind: str | None, donor_text: str | None) -> None:
    if kind is not None and kind not in ABLATION_KINDS:
        raise ValueError(f"--kind is {kind!r}: wanted one of {', '.join(ABLATION_KINDS)}")
    if kind == "resample" and donor_text is None:
        raise ValueError("--kind resample wants a --donor-text: another text, as long or longer")
    if kind in ("mean", "zero") and donor_text is not None:
        raise ValueError(f"--kind {kind} takes no --donor-text: leave one of the two out")


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} is not UTF-8: convert it (iconv -t UTF-8)") from None


def _check_shape(folder: Path, heads: list[tuple[int, int]]) -> None:
    """Refuse a head that the model does not have, and a model that memory does not hold, before it is loaded."""
    from selfrepair.snapshots.shapes import shape_of_folder

    shape = shape_of_folder(folder)
    for layer, head in heads:
        if shape is not None and not (layer < shape.layers and head < shape.heads):
            raise ValueError(
                f"no head {layer}.{head}: {folder} has layers 0 to {shape.layers - 1} of heads 0 to {shape.heads - 1}"
            )
    if len(set(heads)) < len(heads):
        raise ValueError("a head is named twice: name each once")
    if shape is not None and (needed := shape.parameters * FLOAT32 // 10**6) > (has := memory_mb()):
        raise ValueError(
            shortage(f"{folder} in float32", "memory", needed, has, "use a smaller model, or a larger machine")
        )


def _device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(
            f"--device {name} is none that torch has here: leave it out for cpu; `selfrepair doctor` says what torch sees"
        ) from None
    return name


def _show(out: Console, of_head: "pd.DataFrame", tokens: list[str]) -> None:
    columns = [*SHOWN, *parts_of(of_head.columns)]
    words = ("pos", "token", "next\ntoken")
    title = f"L{of_head.attrs['layer']}H{of_head.attrs['head']}"
    rows = table(*words, *map(heading, columns), left=3, tokens=words[1:], title=title)
    for _, row in of_head.iterrows():
        at = int(row["pos"])
        cells = [signed(row[name]) if name == "self_repair" else number(row[name]) for name in columns]
        rows.add_row(str(at), quoted(tokens[at]), quoted(tokens[at + 1]), *cells)
    rows.add_section()
    rows.add_row("sum", "", "", *(number(of_head[name].sum()) for name in columns))
    out.print()
    print_table(out, rows, [heading(name) for name in columns[len(SHOWN) :]])


def _proof(found: "list[pd.DataFrame]") -> str:
    repeated, numbers = (sum(each.attrs[f"proof_{name}"] for each in found) for name in ("ablations", "numbers"))
    largest = max(each.attrs["proof_largest_difference"] for each in found)
    return (
        f"Proof: {repeated} of {len(found)} ablations were repeated by plain runs of the whole model; of {numbers} numbers "
        f"none was off by more than {largest:.1g} logits."
    )


def _as_json(of_head: "pd.DataFrame") -> dict[str, Any]:
    attrs = of_head.attrs
    proof = {name: attrs[f"proof_{name}"] for name in ("ablations", "numbers", "largest_difference")}
    return {"layer": attrs["layer"], "head": attrs["head"], "tokens": of_head.to_dict("records"), "proof": proof}
