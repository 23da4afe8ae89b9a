"""Hearts in two phases, in the layout of ACDC."""

from pathlib import Path

import nibabel
import numpy as np

ORGANS = {"rv": 1, "myo": 2, "lv": 3}


def write_heart(root: Path, patients: int) -> Path:
    """Bright discs on a dark ground: larger in frame 1 (ED) than in frame 5 (ES)."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for n in range(1, patients + 1):
        folder = root / f"patient{n:03}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 5\nGroup: NOR\nHeight: 170\nNbFrame: 10\nWeight: 70\n")
        for frame, radius in ((1, 8 + n % 3), (5, 5 + n % 2)):
            distance = np.hypot(rows - 16, columns - 16)
            label = np.select([distance < radius, distance < radius + 3], [ORGANS["lv"], ORGANS["myo"]], 0)
            label[2:6, 2:6] = ORGANS["rv"]
            image = 100.0 * label + rng.normal(0, 5, label.shape)
            for name, array in (("", image.astype(np.float32)), ("_gt", label.astype(np.uint8))):
                scan = nibabel.Nifti1Image(np.stack([array, array], -1), np.diag([1.5, 1.5, 10, 1]))
                nibabel.save(scan, folder / f"patient{n:03}_frame{frame:02}{name}.nii.gz")
    return root
