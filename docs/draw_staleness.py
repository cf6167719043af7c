"""Write the tables of docs/staleness.md: which rules each key of the config and each module of the package make stale.

`make docs` runs it. The tables are those that tests/workflow/test_staleness.py holds the workflow to (tests/workflow/stale.py);
a test holds the page to them.
"""

import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "staleness.md"
MOST = 3
"""Tables and figures that are named one by one; more are counted."""

sys.path.insert(0, str(REPOSITORY / "tests"))

from workflow import stale  # noqa: E402

ORDER = (
    *("snapshot_model", "check_model", "check_published", "snapshot_corpus", "tokenize_corpus", "check_prompts"),
    *("cache_activations", "average_activations", "find_thresholds", "ablate_heads", "choose_heads"),
    *(
        "freeze_layernorm",
        "measure_neurons",
        "measure_donor_noise",
        "move_residual",
        "reinforce_heads",
        "ablate_layers",
    ),
    "project_other_donor",
)
"""Rules that make neither tables nor figures, each after those whose results it reads."""


WHOLE = {
    "snapshot_model": stale.FROM_MODEL,
    "snapshot_corpus": stale.FROM_CORPUS,
    "tokenize_corpus": stale.FROM_TOKENS,
    "cache_activations": stale.FROM_ACTIVATIONS,
}
"""Rules that all others follow, but those before them."""


def in_words(rules: Collection[str]) -> str:
    """Some rules as the page names them: all that are neither tables nor figures, then these, by name or by number."""
    rules, parts = set(rules), list[str]()
    for first, jobs in WHOLE.items():
        if jobs.keys() <= rules:
            before = [f"`{rule}`" for rule in ORDER if rule in rules - jobs.keys()]
            return f"{', '.join([*before, f'`{first}`'])} and all that comes after it"
    parts.append(", ".join(f"`{rule}`" for rule in ORDER if rule in rules))
    tables = stale.TABLES | {"tabulate_checks"}
    for kind, prefix, every in (("tables", "tabulate_", tables), ("figures", "draw_", stale.FIGURES)):
        some = sorted(rule for rule in every if rule in rules)
        names = ", ".join(f"`{rule.removeprefix(prefix)}`" for rule in some)
        if some:
            one = f"{kind[:-1] if len(some) == 1 else kind} {names}"
            parts.append(
                f"all {kind}" if len(some) == len(every) else one if len(some) <= MOST else f"{len(some)} {kind}"
            )
    if any("all_models" in rule or "models_" in rule for rule in rules):
        parts.append("what shows all models")
    if "write_findings" in rules:
        parts.append("findings")
    if stale.EXPLORER in rules:
        parts.append("the explorer")
    return "; ".join(part for part in parts if part) or "nothing"


def keys() -> Iterator[str]:
    """Rows of the table of the config's keys; keys that make the same stale stand together."""
    rows: dict[str, list[str]] = {}
    for key, (_, jobs) in stale.KEYS.items():
        # A key that adds a shard: rules with a job less than there were before keep those of shards that are there.
        adds = jobs.items() if key == "tokens.prompts" else ()
        new = [rule for rule in ORDER for of, n in adds if rule == of and n < stale.FROM_ACTIVATIONS.get(rule, 0)]
        words = in_words(jobs.keys() - set(new))
        if new:
            words = f"of new shards {', '.join(f'`{rule}`' for rule in new)}; {words}"
        rows.setdefault(words, []).append(f"`{key.replace('*', 'NAME')}`")
    yield "| key | what is made again |"
    yield "|---|---|"
    for words, names in rows.items():
        yield f"| {', '.join(names)} | {words} |"


def modules() -> Iterator[str]:
    """Rows of the table of the package's modules; those that make the same stale stand together."""
    rows: dict[str, list[str]] = {}
    for module, rules in sorted(stale.USERS.items()):
        if not module.endswith("__init__.py"):
            rows.setdefault(in_words(rules), []).append(f"`{module}`")
    yield "| module of `srcpkg/selfrepair/` | rules that run it |"
    yield "|---|---|"
    for words, names in sorted(rows.items(), key=lambda row: row[1]):
        yield f"| {', '.join(names)} | {words} |"


def drawn(text: str) -> str:
    """The page with its tables made anew."""
    for name, rows in (("keys", keys()), ("modules", modules())):
        block = f"<!-- drawn: {name} -->\n" + "\n".join(rows) + "\n<!-- end -->"
        text, count = re.subn(rf"<!-- drawn: {name} -->\n.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ValueError(f"docs/staleness.md has {count} places for {name}")
    return text


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
