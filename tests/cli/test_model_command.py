"""`anabranch model`: what is there, and how it is made."""

from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.modeling import small
from anabranch.modeling.small import Family, Stage
from anabranch.tasks.exercises import Kind, Manner

RUN = CliRunner()
MINI = Family(hidden=16, ffn=32, layers=1, heads=2, stages=(Stage("base", 2, (Kind(2, 2, 1),), Manner()),), batch=4)


def test_the_list_says_what_is_built_and_build_builds_it(monkeypatch, tmp_path):
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(small, "FAMILIES", {"mini": MINI})
    monkeypatch.setattr(small, "NAMES", {"mini-base": ("mini", "base")})
    for name, value in {"HELD_OUT": 4, "NEW_TOKENS": 8, "THREADS": 1}.items():  # how good it is does not matter here
        monkeypatch.setattr(small, name, value)
    before = RUN.invoke(app, ["model", "list"]).output
    assert "not built" in before
    assert "smollm2-135m-instruct" in before
    built = RUN.invoke(app, ["model", "build", "mini-base"])
    assert built.exit_code == 0
    assert built.output.count("mini-base: 2 steps") == 1
    assert str(tmp_path) in built.output.replace("\n", "")
    assert "not built" not in RUN.invoke(app, ["model", "list"]).output
    again = RUN.invoke(app, ["model", "build", "mini-base"])
    assert again.output.count("mini-base: 2 steps") == 1
    assert "building" not in again.output


def test_an_unknown_model_is_one_message(capfd):
    result = RUN.invoke(app, ["model", "build", "small-bse"])
    assert result.exit_code == 2
    assert "ModelError: model 'small-bse': found no built-in model" in result.output + capfd.readouterr().err
    assert "Traceback" not in result.output
