"""Films: how a user rates them, and which genres they are of; MovieLens, latest, small.

Source: Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, cast

from hushtune.common.tasks.packaged.frames import read_frame
from hushtune.common.tasks.rows import RawRow

COLUMNS: Final[Mapping[str, str]] = {
    "rater": "category",
    "title": "category",
    "genres": "category",
    "year": "number",
    "liked": "category",
}
GENRES: Final = (
    *("Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "IMAX", "Musical", "Mystery", "Romance", "Sci-Fi"),
    *("Thriller", "War", "Western"),
)
_NO_GENRE: Final = "(no genres listed)"
_LIKED: Final = 4.0  # of 5 stars, from here on
_MOST_LIKED: Final = 5
_FEWEST: Final = 5  # ratings from which a rater is known
_RATERS: Final = (
    *((2.9, "very strict"), (3.35, "strict"), (3.75, "balanced"), (4.1, "generous")),
    (float("inf"), "very generous"),
)
"""What a rater is called whose ratings are below so many stars on average."""
_FIRST_DECADE: Final = 1950  # older films are few: one site

Rating = Mapping[str, Any]


def read_ratings(folder: Path, *, users_are_sites: bool = False) -> Iterator[RawRow]:
    """Each rating in 0.5..5: the film, and what the user had liked before.

    ``liked`` are at most five titles to which the user had given four stars or more at an earlier
    time, the best and of these the latest first, joined by semicolons; null where there is none.
    ``rater`` says how the user had rated on average until then; null before the fifth rating. The
    group is the user. Sites are users too, or none.
    """
    path = _path(folder)
    for user, ratings in _by_user(path).items():
        best: list[Rating] = []
        earlier: list[float] = []
        for _, at_once in groupby(sorted(ratings, key=_when), key=lambda row: row["timestamp"]):
            found = list(at_once)  # nothing rated in the same second is earlier
            liked = "; ".join(str(film["title"]) for film in best) or None
            for row in found:
                cells = {
                    "rater": _rater(earlier),
                    "title": row["title"],
                    "genres": row["genres"],
                    "year": _year(row),
                    "liked": liked,
                }
                text = json.dumps(cells, ensure_ascii=False)
                site = f"user {user}" if users_are_sites else None
                yield RawRow(text, str(row["rating"]), site, f"{path}:{row['rownames']}", user)
            earlier += [row["rating"] for row in found]
            good = [row for row in found if row["rating"] >= _LIKED]
            best = sorted([*best, *good], key=_best_first)[:_MOST_LIKED]


def read_ratings_of_users(folder: Path) -> Iterator[RawRow]:
    """The same with each user a site."""
    return read_ratings(folder, users_are_sites=True)


def read_genres(folder: Path) -> Iterator[RawRow]:
    """Each film's title and year with its genres, joined by bars; a site a decade."""
    seen: set[int] = set()
    for rating in read_frame(_path(folder)):
        film, year = cast(int, rating["movieId"]), _year(rating)
        if film in seen or year is None or rating["title"] is None:
            continue
        seen.add(film)
        genres = sorted(set(str(rating["genres"]).split("|")) - {_NO_GENRE})
        site = f"{year // 10 * 10}s" if year >= _FIRST_DECADE else f"before {_FIRST_DECADE}"
        place = f"{_path(folder)}:{rating['rownames']}"
        yield RawRow(f"{rating['title']} ({year})", "|".join(genres) or "|", site, place)


def _path(folder: Path) -> Path:
    return folder / "dslabs" / "movielens.pkl.compress"


def _by_user(path: Path) -> Mapping[str, list[Rating]]:
    """Ratings by user, in the order of the table; films without a title (7 rows) are left out."""
    users: dict[str, list[Rating]] = {}
    for rating in read_frame(path):
        if rating["title"] is not None:
            users.setdefault(str(rating["userId"]), []).append(rating)
    return users


def _rater(earlier: Sequence[float]) -> str | None:
    """In words, which a sentence encoder tells apart as it does not numbers."""
    if len(earlier) < _FEWEST:
        return None
    mean = sum(earlier) / len(earlier)
    return next(name for below, name in _RATERS if mean < below)


def _when(row: Rating) -> tuple[int, int]:
    return row["timestamp"], row["movieId"]


def _best_first(row: Rating) -> tuple[float, int, int]:
    return -row["rating"], -row["timestamp"], row["movieId"]


def _year(rating: Mapping[str, Any]) -> int | None:
    return None if rating["year"] is None else int(rating["year"])
