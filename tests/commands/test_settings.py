"""The reference of the settings: how a page is made, and that docs/settings.md is the page of today."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dcpo_async.commands.settings import HEAD, settings_reference
from dcpo_async.config import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


class Documented(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Inner(Documented):
    """What is inside."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A part
    of the whole."""
    kind: Literal["a", "b"] = "a"
    """One | the other."""


class Item(Documented):
    """One of several."""

    word: str
    """What it says."""


class Holder(Documented):
    """What has several."""

    items: tuple[Item, ...] = ()
    """All of them."""


class WithTables(Documented):
    """A run of parts."""

    holder: Holder = Holder()


class Outer(Documented):
    """All of it."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """How many."""
    inner: Inner = Inner()
    place: Path = Path("here")
    """Where."""


def test_a_page_has_a_table_of_the_own_fields_and_one_of_each_section() -> None:
    head = "| name | type | default | what it does |\n|---|---|---|---|\n"
    assert settings_reference(Outer) == (
        f"{HEAD}\n## The run\n\nAll of it.\n\n{head}"
        "| `steps` | integer ≥ 1 or none | `none` | How many. |\n"
        '| `place` | path | `"here"` | Where. |\n'
        f"\n## `[inner]`\n\nWhat is inside.\n\n{head}"
        "| `inner.share` | number > 0, ≤ 1 | `0.5` | A part of the whole. |\n"
        '| `inner.kind` | `"a"` or `"b"` | `"a"` | One \\| the other. |\n'
    )


def test_tables_of_a_list_are_described_behind_the_section_that_has_them() -> None:
    head = "| name | type | default | what it does |\n|---|---|---|---|\n"
    assert settings_reference(WithTables).endswith(
        f"## `[holder]`\n\nWhat has several.\n\n{head}| `holder.items` | tables | `[]` | All of them. |\n"
        f"\n## `[[holder.items]]`\n\nOne of several.\n\n{head}"
        "| `holder.items.word` | text | must be given | What it says. |\n"
    )


def test_the_page_in_docs_is_up_to_date() -> None:
    assert PAGE.read_text() == settings_reference(RunConfig), (
        "docs/settings.md is not what dcpo_async/config says; run: dcpo settings > docs/settings.md"
    )
