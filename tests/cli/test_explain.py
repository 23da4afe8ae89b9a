"""`medattack ls flags` and `medattack explain CODE`."""

import json

from helpers.command import medattack

from medseg_attack.checks.explanations import explanations


def test_every_flag_is_listed() -> None:
    rows = json.loads(medattack("ls", "flags", "--json").stdout)
    assert [row["code"] for row in rows] == list(explanations())
    assert "MA007" in medattack("ls", "flags").stdout


def test_every_flag_is_explained() -> None:
    for code in explanations():
        flag = json.loads(medattack("explain", code, "--json").stdout)
        assert all(flag.values())
    text = " ".join(medattack("explain", "ma007").stdout.split())
    assert text.startswith("MA007 upper bound on robustness - more steps would do more Raised if: the second half")
    assert "What to do: Raise `steps` until the numbers stand still" in text


def test_a_code_that_is_none_is_answered_with_the_nearest() -> None:
    assert "did you mean" in medattack("explain", "MA0007", code=2).stderr
