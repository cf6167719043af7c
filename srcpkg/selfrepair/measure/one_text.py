"""Self-repair of one head on one text: what a person tries first."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfrepair.measure.ablations import ablate_heads
from selfrepair.model.head_names import parse_head
from selfrepair.model.loading import load_model
from selfrepair.model.model import Model
from selfrepair.model.texts import text_reader


def self_repair(
    model: Any,
    text: str,
    head: str | tuple[int, int],
    *,
    donor_text: str | None = None,
    kind: str | None = None,
    tokenizer: Any = None,
) -> pd.DataFrame:
    """Ablate one head on one text, and say token by token what the rest of the model makes up for.

    Args:
        model: A model's folder (a snapshot, or one that save_pretrained wrote with its tokenizer); or what `load_model` returns
            or takes, with a ``tokenizer``, which a TransformerBridge brings along.
        text: The text.
        head: (layer, head), or "26.8", or "L26H8"; counted from 0.
        donor_text: Another text, at least as long in tokens, whose activations take the head's place: resample ablation, as in
            the paper. It is cut to the length of ``text``.
        kind: "resample", "mean" or "zero". Left out: "resample" with a donor; otherwise "mean", the head's own average over
            the text, which keeps what it writes everywhere and takes what it says of each token.
        tokenizer: The model's folder, or a fast tokenizer of transformers.

    Returns:
        A row a position that predicts the next token: ``pos``, ``token`` (text of the token there), ``correct_token`` (of the
        one that follows), and every quantity of docs/definitions.md, in logits. Its ``attrs`` say the head, the kind, and how
        far repeated ablations by plain runs of the whole model were off.

    Raises:
        ValueError: No tokenizer, a donor that is too short or is given for another kind, a head that does not exist, and what
            `load_model` and `ablate_heads` raise.

    Example:
        >>> import selfrepair
        >>> folder = f"results/snapshots/models/{selfrepair.open_run('results').model}"  # or any other model's folder
        >>> table = selfrepair.self_repair(folder, "the cat sat on a dog", "0.1", donor_text="a dog ran and the cat sat")
        >>> list(table.columns[:4])
        ['pos', 'token', 'correct_token', 'direct_effect']
        >>> parts = table.filter(regex="^self_repair_from_(heads|mlps|layernorm)$").sum(axis=1)
        >>> bool((abs(table["self_repair"] - parts) < 1e-3).all())
        True
    """
    layer_head = parse_head(head)
    reader = text_reader(_tokenizer_of(model) if tokenizer is None else tokenizer)
    kind = kind or ("mean" if donor_text is None else "resample")
    ids = reader.ids(text, "text")
    donors = None
    if donor_text is not None:
        donors = reader.ids(donor_text, "donor_text")[:, : ids.shape[1]]
        if donors.shape != ids.shape:
            raise ValueError(
                f"donor_text has {donors.shape[1]} tokens, text {ids.shape[1]}: wanted a donor at least as long as the text"
            )
    loaded = model if isinstance(model, Model) else load_model(model)
    found = ablate_heads(loaded, ids, donors, heads=[layer_head], kind=kind)
    one = found.isel(head=0, prompt=0)
    pieces = reader.pieces(ids[0].tolist())
    columns: dict[str, Any] = {"pos": np.arange(len(pieces) - 1), "token": pieces[:-1], "correct_token": pieces[1:]}
    columns |= {str(name): of.values for name, of in one.data_vars.items() if of.dims == ("pos",)}
    table = pd.DataFrame(columns)
    table.attrs = {"layer": layer_head[0], "head": layer_head[1], "ablation": kind, **found.attrs}
    return table


def _tokenizer_of(model: Any) -> Any:
    if isinstance(model, str | Path):
        return model
    if (brought := getattr(model, "tokenizer", None)) is not None:
        return brought
    raise ValueError(
        f"{type(model).__name__} brings no tokenizer: name it, as tokenizer=FOLDER of the model, or a fast tokenizer of "
        "transformers"
    )
