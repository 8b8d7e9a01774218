"""README and docs/: every Python block runs, every flag of a command exists, links lead somewhere, lines are short."""

import json
import re
import runpy
import shlex
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

import crgan
from crgan import metrics
from crgan.__main__ import main
from crgan.train import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs that the pages take for granted, from a few steps."""
    folder = tmp_path_factory.mktemp("docs")
    cfg = replace(crgan.PRESETS["quick"], steps=2, cr_start=1, eval_every=10, width=8, threads=1)
    small = metrics.Protocol("paper", groups=10, group_size=10, scale_samples=200, points=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crgan.PRESETS, "quick", cfg)
        patch.setitem(metrics.PROTOCOLS, "paper", small)
        for name, size in (("groups", 12), ("group_size", 10), ("scale_samples", 200)):
            patch.setitem(crgan.rank.__kwdefaults__, name, size)
            patch.setitem(crgan.cross_scores.__kwdefaults__, name, size)
        crgan.fit(cfg, out=folder / "runs" / "quick-seed0")
        for w, s in ((0, 0), (0, 1), (1, 0), (1, 1)):
            out = folder / "runs" / "pool" / f"cr_weight={w},seed={s}"
            crgan.fit(cfg, out=out, cr_weight=float(w), seed=4 + 2 * w + s)
        yield folder


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(page, runs, monkeypatch):
    monkeypatch.chdir(runs)
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {"__name__": "snippet"})


def test_the_notebook_runs(runs, monkeypatch):
    monkeypatch.chdir(runs)
    space: dict = {}
    for cell in json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("STEPS = 1500", "STEPS = 3"), space)
    assert space["ranking"].winner in space["models"]


def test_own_models_are_scored_and_ranked(capsys):
    runpy.run_path(str(ROOT / "examples" / "own_model.py"))["main"](steps=20, groups=20, scale_samples=300)
    printed = capsys.readouterr().out
    assert all(printed.count(f"seed {seed}") == 2 for seed in range(3))


def commands(page: Path) -> list[list[str]]:
    """The calls of crgan in a page's shell blocks and in inline code."""
    text = page.read_text()
    lines = chain(*(block.splitlines() for block in blocks(page, "sh", "text")), re.findall(r"`(crgan \w[^`]*)`", text))
    found = (re.search(r"(?:crgan |python -m crgan\.)(\w+.*)", line) for line in lines)
    calls = [shlex.split(match[1], comments=True) for match in found if match]
    return [call for call in calls if len(call) > 2 and "--help" not in call]  # the others name a command only


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES if commands(page)])
def test_commands_take_their_flags(page, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    for command, *args in commands(page):
        if command == "train":
            parse(["0" if arg == "S" else arg for arg in args])
        elif command == "sweep":
            main([command, *args, "--seeds", "0:1", "--dry-run"])  # of two --seeds the last counts
        else:
            with pytest.raises(SystemExit):
                main([command, "--help"])
            known = re.findall(r"--[\w-]+", capsys.readouterr().out)
            assert {arg for arg in args if arg.startswith("--")} <= {*known}, (command, args)


def test_lines_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    assert len((ROOT / "docs" / "notebook.md").read_text().splitlines()) <= 120
    long = [f"{page.name}:{n}" for page in PAGES for n, line in enumerate(page.open(), 1) if len(line.rstrip()) > 120]
    assert not long


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])  # mkdocs checks those of docs/
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r'\]\(([^)#]+)[^)]*\)|src="([^"]+)"', text):
        path = "".join(target)
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_published_tables_are_those_of_the_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "evidence-squares.json").read_text())
    blocks = runpy.run_path(str(ROOT / "benchmarks" / "evidence.py"))["blocks"](results)
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "results.md").read_text()
    published = re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end \1 -->", text, re.DOTALL)
    assert [(name, "\n".join(blocks[name])) for name, _ in published] == published
    assert {name for name, _ in published} == {"claims", "scores"}
