"""Variables that are almost settings: with a letter too many, too few or wrong, or with two swapped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

#: Two letters of a short name make it another word: HOME is not HOST.
_LONG = 8


def misspelt(given: Iterable[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """``(variable, intended setting)`` of the variables within two letters of a setting's name, in upper case."""
    names = {name.upper() for name in known}
    for name in sorted({name.upper() for name in given} - names):
        best = min(names, key=lambda setting: (distance(name, setting), setting))
        if distance(name, best) <= (2 if len(best) >= _LONG else 1):
            yield name, best


def distance(one: str, other: str, most: int = 3) -> int:
    """Edits between two words (optimal string alignment); ``most`` when there are as many or more."""
    if abs(len(one) - len(other)) >= most:
        return most
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, against in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != against))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == against:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) >= most:
            return most
    return min(row[-1], most)
