"""Label numbering of the BraTS editions: one number has had several meanings over the years.

Sources: Menze 2015 (10.1109/TMI.2014.2377694) for 2012 to 2016; Bakas 2018 (arXiv 1811.02629) and Baid 2021 (arXiv
2107.02314) for 2017 to 2021; Adewole 2023 (arXiv 2305.19369) and Kazerooni 2023 (arXiv 2305.17033) for 2023; de Verdier
2024 (arXiv 2405.18368) for adult gliomas after treatment, 2024; Kazerooni 2024 (arXiv 2404.15009) for children, 2024;
Antonelli 2022 (10.1038/s41467-022-30695-9) for the Medical Segmentation Decathlon.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from hpc_tumor.errors import DataError, unknown
from hpc_tumor.vocabulary import plural, series

NCR, ED, ET, CAVITY = 1, 2, 3, 4  # values in a store


@dataclass(frozen=True)
class Edition:
    """Label numbering of one edition.

    Attributes:
        name: value of `--labels`.
        values: from a number in the file to the value in the store.
        words: from a number in the file to the edition's own term.
    """

    name: str
    values: Mapping[int, int]
    words: Mapping[int, str]

    @property
    def meaning(self) -> str:
        """Name and numbering, as text for messages."""
        return f"{self.name} ({', '.join(f'{number} {word}' for number, word in self.words.items())})"

    def number(self, value: int) -> int:
        """Return the edition's number for a value of the store, the first if it has several."""
        return next((number for number, own in self.values.items() if own == value), value)


EDITIONS: dict[str, Edition] = {
    edition.name: edition
    for edition in (
        Edition("brats-2012-2016", {1: NCR, 2: ED, 3: NCR, 4: ET}, {1: "NCR", 2: "ED", 3: "NET", 4: "ET"}),
        Edition("brats-2017-2021", {1: NCR, 2: ED, 4: ET}, {1: "NCR/NET", 2: "ED", 4: "ET"}),
        Edition("brats-2023", {1: NCR, 2: ED, 3: ET}, {1: "NCR/NET", 2: "ED", 3: "ET"}),
        Edition(
            "brats-2024", {1: NCR, 2: ED, 3: ET, 4: CAVITY}, {1: "NCR/NET", 2: "ED", 3: "ET", 4: "resection cavity"}
        ),
        Edition("brats-ped-2024", {1: ET, 2: NCR, 3: NCR, 4: ED}, {1: "ET", 2: "NET", 3: "cyst", 4: "ED"}),
        Edition("msd", {1: ED, 2: NCR, 3: ET}, {1: "ED", 2: "NCR/NET", 3: "ET"}),
    )
}
DEFAULT_EDITION = EDITIONS["brats-2017-2021"]

# Pattern of case names, edition as text, and its numbering; None if cases of these names have several numberings. For
# BraTS-GLI, 2024 only added a number to those of 2023.
_NAMES: tuple[tuple[str, str, str | None], ...] = (
    (r"BraTS20_", "BraTS 2020", "brats-2017-2021"),
    (r"BraTS2021_", "BraTS 2021", "brats-2017-2021"),
    (r"BraTS19_", "BraTS 2019", "brats-2017-2021"),
    (r"Brats18_", "BraTS 2018", "brats-2017-2021"),
    (r"Brats17_", "BraTS 2017", "brats-2017-2021"),
    (r"BraTS-GLI-", "BraTS 2023 or later", "brats-2024"),
    (r"BraTS-SSA-", "BraTS 2023 or later", "brats-2023"),
    (r"brats_(2013|tcia)_", "BraTS 2012 to 2016", "brats-2012-2016"),
    (r"BRATS_\d{3}$", "named as in the Decathlon", None),
)
_OTHERS = re.compile(r"BraTS-([A-Za-z]+)-", re.IGNORECASE)  # children, meningioma, metastases …


@dataclass(frozen=True)
class NamedEdition:
    """Edition of a case according to its name.

    Attributes:
        title: the edition as text.
        edition: its numbering; None if the name does not determine it.
        usual: True if the numbers 1, 2 and 4 can be read as in 2017 to 2021, which most data uses.
    """

    title: str
    edition: Edition | None
    usual: bool = False


def edition_of(case: str) -> NamedEdition:
    """Return the edition of a case according to its name."""
    for pattern, title, name in _NAMES:
        if re.match(pattern, case, re.IGNORECASE):
            return NamedEdition(title, EDITIONS[name] if name else None)
    if other := _OTHERS.match(case):
        return NamedEdition(f"BraTS-{other[1]} 2023 or later", None)
    return NamedEdition("unknown edition", None, usual=True)


class UncertainLabels(DataError):  # noqa: N818
    """The meaning of the numbers in a segmentation is ambiguous."""


def get_edition(name: str) -> Edition:
    """Return the edition named `name`. Raises UsageError if it is unknown."""
    if name not in EDITIONS:
        raise unknown("edition for --labels", name, EDITIONS)
    return EDITIONS[name]


def resolve_edition(
    case: str, numbers: Collection[int], requested: str | None = None, usual: Edition = DEFAULT_EDITION
) -> Edition:
    """Return the edition that defines the `numbers` in a case's segmentation (without 0).

    Args:
        requested: edition from `--labels`, used if the case's name determines none, or one that lacks a number.
        usual: edition assumed otherwise. The default is not assumed for names that have several numberings.

    Raises UncertainLabels, which names the possible editions.
    """
    named = edition_of(case)
    assumed = usual if named.usual or usual is not DEFAULT_EDITION or not numbers else None
    choices = [named.edition, EDITIONS[requested]] if requested else [named.edition or assumed]
    for edition in choices:
        if edition is not None and set(numbers) <= set(edition.values):
            return edition
    why = named.title if named.edition is None else f"{named.title} has {_listed(named.edition.values)}"
    if requested:
        why += f", --labels {requested} {_listed(EDITIONS[requested].values)}"
    possible = [edition.meaning for edition in EDITIONS.values() if set(numbers) <= set(edition.values)]
    raise UncertainLabels(
        f"has the {plural(len(numbers), 'label')} {_listed(numbers)}, whose meaning is ambiguous ({why})."
        f" Set the edition with --labels: {' or '.join(possible)}."
    )


def _listed(numbers: Iterable[int]) -> str:
    return series([str(number) for number in sorted(numbers)])
