"""One page over a folder of results: what was run, when, how the policies did, and links to reports and figures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from sim.analysis.summary import ALL
from sim.errors import InputError, RunError
from sim.records.result_folder import read_manifest, read_summary

_DEEPEST = 3
_MOST_POLICIES = 6
_NO_LINKS = "<span class=soft>tokenpools report RESULT</span>"


@dataclass(frozen=True, slots=True)
class Listed:
    """A result as the page shows it.

    Attributes
    ----------
    attained : of each policy, the share of all requests offered that met their objective, None where it is not known.
    links : what there is to look at, by name.
    problem : why it cannot be read; empty where it can.
    """

    place: str
    title: str = ""
    started: str = ""
    runs: int = 0
    failed: int = 0
    attained: Mapping[str, float | None] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def results_in(folder: Path) -> list[Listed]:
    """Return the results in a folder and the folders below it, the latest first.

    Raises
    ------
    InputError : there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "is no folder", "give a folder of results, e.g. results")
    found = [_listed(one, folder) for one in _folders(folder, _DEEPEST)]
    return sorted(found, key=lambda one: (one.started, one.place), reverse=True)


def _folders(folder: Path, deep: int) -> Iterator[Path]:
    if (folder / "manifest.json").is_file():
        yield folder
        return
    if deep:
        for one in sorted(folder.iterdir()):
            if one.is_dir() and not one.is_symlink() and not one.name.startswith("."):
                yield from _folders(one, deep - 1)


def _listed(result: Path, above: Path) -> Listed:
    place = result.relative_to(above).as_posix()
    try:
        manifest = read_manifest(result)
        rows = read_summary(result, manifest)
    except (InputError, RunError) as error:
        return Listed(place, problem=str(error))
    cells = manifest["cells"]
    attained: dict[str, float | None] = {}
    for row in rows:
        policy, share = str(row["policy"]), row.get("slo_attainment")
        if row["tenant"] == ALL and policy not in attained:
            attained[policy] = float(share) if isinstance(share, int | float) and share == share else None
    links = {"report": f"{place}/report.html"} if (result / "report.html").is_file() else {}
    pictures = sorted((result / "plots").glob("*.svg")) + sorted((result / "plots").glob("*.png"))
    links |= {one.stem: f"{place}/plots/{one.name}" for one in pictures[:20]}
    title = manifest["scenario"].get("title") or place
    return Listed(
        place, str(title), str(manifest.get("started", "")), len(cells), sum("error" in one for one in cells),
        dict(list(attained.items())[:_MOST_POLICIES]), links,
    )


def index_html(results: list[Listed], folder: str) -> str:
    """Return the page; links are relative to the folder."""
    nothing = "<tr><td colspan=5 class=soft>No results here yet: tokenpools run SCENARIO</td></tr>"
    rows = "".join(map(_row, results)) or nothing
    page = (files("sim.analysis") / "report_assets" / "results_index.html").read_text(encoding="utf-8")
    counted = f"{len(results)} result{'' if len(results) == 1 else 's'} in {folder}"
    return page.replace("{{counted}}", html.escape(counted)).replace("{{rows}}", rows)


def _row(one: Listed) -> str:
    if one.problem:
        cells = f"<td colspan=4 class=bad>{html.escape(one.problem)}</td>"
        return f"<tr><th scope=row>{html.escape(one.place)}</th>{cells}</tr>"
    shown = "".join(
        f"<li><span>{html.escape(policy)}</span> {_meter(share)}</li>" for policy, share in one.attained.items()
    )
    links = " ".join(f'<a href="{html.escape(quote(to))}">{html.escape(name)}</a>' for name, to in one.links.items())
    failed = f" <span class=bad>{one.failed} failed</span>" if one.failed else ""
    return (
        f"<tr><th scope=row>{html.escape(one.title)}<small>{html.escape(one.place)}</small></th>"
        f"<td>{html.escape(one.started.replace('T', ' ').removesuffix('Z'))}</td><td class=n>{one.runs}{failed}</td>"
        f"<td><ul>{shown}</ul></td><td class=links>{links or _NO_LINKS}</td></tr>"
    )


def _meter(share: float | None) -> str:
    if share is None:
        return "<span class=soft>no objective</span>"
    return f'<meter min=0 max=1 value="{share:.4f}">{share:.1%}</meter> {share:.1%}'


def write_index(folder: Path, out: Path | None = None) -> tuple[Path, int]:
    """Write the page, into the folder unless told otherwise, and return where it is and how many results it lists.

    Raises
    ------
    InputError : there is no such folder; RunError : the page cannot be written.
    """
    results = results_in(folder)
    path = folder / "index.html" if out is None else out
    if path.resolve().parent != folder.resolve():
        raise InputError("--out", f"{path} is not in {folder}, and its links would lead nowhere", "give a name in it")
    try:
        path.write_text(index_html(results, folder.name or str(folder)), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path, len(results)
