"""The table of `medattack compare --visibility`: what an attack costs, beside how visible it is."""

import pandas as pd

from medseg_attack.report.sheet import Sheet, number
from medseg_attack.report.tables.summaries import budget


def visibility_sheet(table: pd.DataFrame) -> Sheet:
    """Drop of Dice and visibility, a row per run.

    Args:
        table: of `stats.scores.summary`, joined with `stats.visible_changes.visible`.
    """
    columns = ["model", "attack", "loss", "eps", "drop", "SSIM", "in body", "least", "PSNR dB", "noise"]
    rows = [
        [
            *(str(row[name]) for name in ("model", "attack", "loss")),
            budget(row),
            number(row["drop"]),
            *(number(row[name]) for name in ("ssim", "ssim_body", "ssim_min")),
            number(row["psnr"], 1),
            number(row["noise_units"], 2),
        ]
        for _, row in table.iterrows()
    ]
    caption = (
        "SSIM: structural similarity with the untouched slice, Gaussian windows of 11 pixels, 1 if equal; in body: "
        "over pixels brighter than 0.1 of the window; least: of a slice. noise: root mean square of the change in "
        "standard deviations of the scan's own noise. Means over patients, of the values that the files hold."
    )
    return Sheet("Visibility", columns, rows, caption, left=4)
