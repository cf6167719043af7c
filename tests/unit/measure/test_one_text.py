"""Self-repair of one text: the numbers of `ablate_heads`, beside the words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfrepair
from selfrepair.measure.one_text import parse_head

from tiny_model import save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

TEXT, DONOR = "the cat sat . a dog ran", "a dog ran . the cat sat . the cat ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("donor", "kind"), [(None, None), (DONOR, None), (None, "zero"), (DONOR, "resample")])
def test_numbers_are_those_of_ablate_heads(folder: Path, donor: str | None, kind: str | None) -> None:
    found = selfrepair.self_repair(folder, TEXT, "1.2", donor_text=donor, kind=kind)
    model = selfrepair.load_model(folder)
    words = AutoTokenizer.from_pretrained(folder)
    ids = np.array([[0, *words(TEXT, add_special_tokens=False)["input_ids"]]])
    donors = np.array([[0, *words(DONOR, add_special_tokens=False)["input_ids"]]])[:, : ids.shape[1]] if donor else None
    meant = kind or ("resample" if donor else "mean")
    wanted = selfrepair.ablate_heads(model, ids, donors, heads=[(1, 2)], kind=meant)
    for name in ("direct_effect", "logit_change", "self_repair", "self_repair_from_mlps"):
        np.testing.assert_array_equal(found[name], wanted[name].values[0, 0])
    assert [token.strip() for token in found["token"]] == ["<s>", *TEXT.split()[:-1]]
    assert [token.strip() for token in found["correct_token"]] == TEXT.split()
    assert (found.attrs["layer"], found.attrs["head"], found.attrs["ablation"]) == (1, 2, meant)
    assert found.attrs["proof_ablations"] == 1


def test_a_model_in_memory_with_its_tokenizer(folder: Path) -> None:
    wanted = selfrepair.self_repair(folder, TEXT, (0, 1), kind="zero")
    hf = AutoModelForCausalLM.from_pretrained(folder)
    for model in (hf, selfrepair.load_model(hf)):
        for tokenizer in (folder, AutoTokenizer.from_pretrained(folder)):
            found = selfrepair.self_repair(model, TEXT, "L0H1", kind="zero", tokenizer=tokenizer)
            np.testing.assert_array_equal(found["self_repair"], wanted["self_repair"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"head": "9.0"}, r"head \(layer 9, head 0\) does not exist"),
        ({"head": "first"}, "head is 'first'; wanted LAYER.HEAD, as 26.8 or L26H8"),
        ({"donor_text": "the"}, "donor_text has 2 tokens, text 8: wanted a donor at least as long"),
        ({"donor_text": DONOR, "kind": "mean"}, "donors are given, but 'mean' ablation takes none"),
        ({"kind": "resample"}, "donors"),
        ({"kind": "off"}, "'off'"),
        ({"text": ""}, "text holds a text of 1 tokens"),
        ({"tokenizer": 3}, "tokenizer is a int; wanted the folder"),
    ],
)
def test_wrong_questions_are_refused(folder: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        selfrepair.self_repair(folder, **{"text": TEXT, "head": "1.2", **asked})


def test_a_model_without_tokenizer_asks_for_one(folder: Path) -> None:
    with pytest.raises(ValueError, match="Model brings no tokenizer: name it, as tokenizer=FOLDER"):
        selfrepair.self_repair(selfrepair.load_model(folder), TEXT, "0.0")


@pytest.mark.parametrize("head", ["26.8", "L26H8", "l26h8", " 26.8 ", (26, 8)])
def test_a_head_is_read_as_people_write_it(head: Any) -> None:
    assert parse_head(head) == (26, 8)


def test_texts_in_place_of_token_ids(folder: Path) -> None:
    model = selfrepair.load_model(folder)
    texts, donors = ["the cat sat .", "a dog ran ."], ["a dog sat .", "the cat ran ."]
    reader = AutoTokenizer.from_pretrained(folder)
    ids, donor_ids = (
        [[0, *reader(text, add_special_tokens=False)["input_ids"]] for text in of] for of in (texts, donors)
    )
    wanted = selfrepair.ablate_heads(model, ids, donor_ids, [(1, 0)])
    found = selfrepair.ablate_heads(model, texts, donors, [(1, 0)], tokenizer=folder)
    np.testing.assert_array_equal(found["self_repair"].values, wanted["self_repair"].values)
    with pytest.raises(ValueError, match="tokens is text: name the model's tokenizer too"):
        selfrepair.ablate_heads(model, texts, donors)
    with pytest.raises(ValueError, match="donors is text"):
        selfrepair.ablate_heads(model, ids, donors)
