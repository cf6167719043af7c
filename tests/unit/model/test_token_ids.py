"""Token ids of every integer type and layout give one result; what is no integer, or not in the vocabulary, is refused."""

from typing import Any

import numpy as np
import pytest
import torch

import selfrepair
from selfrepair.model.model import Model
from selfrepair.model.token_ids import token_ids

from conftest import VOCAB, random_model

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def model() -> Model:
    return selfrepair.load_model(random_model("gpt2"), dtype="float64")


def read_only(ids: np.ndarray) -> np.ndarray:
    copy = ids.copy()
    copy.setflags(write=False)
    return copy


LAYOUTS = {
    **{
        f"numpy {kind}": lambda ids, kind=kind: ids.astype(kind)
        for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    },
    **{
        f"other byte order {kind}": lambda ids, kind=kind: ids.astype(f">{kind}")
        for kind in ("i2", "i4", "i8", "u2", "u4", "u8")
    },
    "backwards twice": lambda ids: ids[::-1, ::-1].copy()[::-1, ::-1],
    "every second column": lambda ids: np.repeat(ids, 2, axis=1)[:, ::2],
    "column by column": np.asfortranarray,
    "a row for all": lambda ids: np.broadcast_to(ids[0], ids.shape),
    "read only": read_only,
    "lists": lambda ids: ids.tolist(),
    "tuples": lambda ids: tuple(map(tuple, ids.tolist())),
    "arrays in a list": lambda ids: list(ids.astype(">u2")),
    **{
        f"torch {kind}": lambda ids, kind=kind: torch.from_numpy(ids.copy()).to(getattr(torch, kind))
        for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    "torch, transposed": lambda ids: torch.from_numpy(ids.T.copy()).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_integer_is_the_same_id(layout: str, model: Model, tokens: np.ndarray) -> None:
    given = LAYOUTS[layout](tokens)  # type: ignore[no-untyped-call]
    ids = token_ids(model, given, "tokens")
    assert ids.dtype == torch.int64
    assert ids.tolist() == np.asarray(given.tolist() if hasattr(given, "tolist") else given).tolist()


@pytest.mark.parametrize(
    "layout", ["numpy u2", "other byte order i4", "other byte order u8", "backwards twice", "lists"]
)
def test_ablation_takes_them_as_tokens_and_donors(
    layout: str, model: Model, tokens: np.ndarray, donors: np.ndarray
) -> None:
    change: Any = LAYOUTS[layout]
    wanted = selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2)])
    found = selfrepair.ablate_heads(model, change(tokens), change(donors), heads=[(1, 2)])
    np.testing.assert_array_equal(found["self_repair"], wanted["self_repair"])


REFUSED = {
    "float": (np.ones((2, 3)), "is float64 of shape"),
    "float16, torch": (torch.ones(2, 3, dtype=torch.float16), "is torch.float16 of shape"),
    "bfloat16, torch": (torch.ones(2, 3, dtype=torch.bfloat16), "is torch.bfloat16 of shape"),
    "bool": (np.ones((2, 3), bool), "is bool of shape"),
    "bool, torch": (torch.ones(2, 3, dtype=torch.bool), "is torch.bool of shape"),
    "bool in a list": ([[True, False], [True, True]], "is bool of shape"),
    "bool among integers": ([[1, 2], [3, True]], "is list of shape"),
    "float among integers": ([[1, 2], [3, 4.0]], "is float64 of shape"),
    "complex": (np.ones((2, 3), complex), "is complex128 of shape"),
    "text": ([["1", "2"]], "is <U1 of shape"),
    "none": ([[1, None]], "is object of shape"),
    "times": (np.zeros((2, 3), "m8[s]"), r"is timedelta64\[s\] of shape"),
    "rows of two lengths": ([[1, 2], [3]], "is list of shape"),
    "masked": (np.ma.array([[1, 2]], mask=[[False, True]]), "is MaskedArray of shape"),
    "one dimension": ([1, 2, 3], r"is int64 of shape \(3,\)"),
    "three dimensions": (np.ones((1, 2, 3), int), r"of shape \(1, 2, 3\)"),
    "no prompt": (np.ones((0, 4), int), "at least one prompt of at least two tokens"),
    "one token": (np.ones((4, 1), int), "at least one prompt of at least two tokens"),
    "negative": (np.array([[1, -1]], ">i2"), "holds ids from -1 to 1"),
    "past the end": (
        np.array([[1, VOCAB]], np.uint8),
        f"holds ids from 1 to {VOCAB}; the vocabulary .* 0 to {VOCAB - 1}",
    ),
    "wraps to a small id": (np.array([[1, 2**32 + 5]]), "holds ids from 1 to 4294967301"),
    "wraps to a negative id": (np.array([[1, 2**64 - 1]], np.uint64), "holds ids from 1 to 18446744073709551615"),
    "uint64, torch": (torch.tensor([[1, 2**63 - 1]]).to(torch.uint64), "holds ids from 1 to 9223372036854775807"),
    "larger than any": ([[1, 2**70]], "is object of shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_id_is_refused(case: str, model: Model) -> None:
    given, words = REFUSED[case]
    with pytest.raises(ValueError, match=f"^donors .*{words}"):
        token_ids(model, given, "donors")
