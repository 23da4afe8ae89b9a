"""The flag of certificates, from the rows of `medattack certify`. No torch in here."""

from collections.abc import Iterator

import pandas as pd

from medseg_attack.checks.flags import Evidence, invalid


@invalid(
    "MA039",
    "an attack within the radius refutes the certified bound",
    "report no number of this certificate: it is a defect; report that with the command",
)
def check_soundness(rows: pd.DataFrame) -> Iterator[Evidence]:
    """MA039: on a scan that `medattack certify --check` attacks, PGD on the mean over draws of noise, in L2 within a
    radius that was asked for, gets below the bound that is certified there.

    A certificate holds for every change, with probability 1 - alpha per scan. A single scan below it is a defect of the
    certificate, of its noise or of the model's passes, such as a model that draws numbers of its own. The command
    ends with exit code 1. With no refuted scan among n the upper bound of their share is 3 / n (95 %).

    What to do: Report none of its numbers. Report the defect with the command and the versions in `run.json`.
    """
    refuted = rows[rows["refuted"] != ""].drop_duplicates(["volume", "radius"])
    for row in refuted.itertuples():
        yield Evidence(str(row.volume), f"radius {row.radius:g}: {row.refuted}")
