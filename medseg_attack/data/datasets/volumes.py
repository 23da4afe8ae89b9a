"""Volumes in NIfTI files, as data sets of several: one plane of slices for all, and what their headers leave open."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from medseg_attack.data.cohort.notes import notes_on_scans
from medseg_attack.data.datasets.source import ScanFile
from medseg_attack.data.formats.leaving_out import offering
from medseg_attack.data.formats.nifti_header import PLANES, load_nifti
from medseg_attack.data.formats.scan import Scan
from medseg_attack.errors import InputError, nearest, plural

ACQUIRED = "acquired"
Pairs: TypeAlias = Mapping[str, tuple[tuple[Path, ...], Path]]  # the files of the image and the mask of each scan


@dataclass(frozen=True)
class Survey:
    """The result of a look at all headers.

    Attributes:
        plane: axial, coronal, sagittal, or "acquired" if each scan has its own.
        channels: of each scan.
        notes: a sentence each.
    """

    plane: str
    channels: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def scan_plane(self) -> str:
        """The plane as `formats.nifti.read_pair` takes it."""
        return "" if self.plane == ACQUIRED else self.plane


def require_plane(plane: str) -> None:
    """Refuses a plane that there is not.

    Raises:
        InputError: it is none of axial, coronal, sagittal, acquired and "".
    """
    known = (*PLANES, ACQUIRED)
    if plane and plane not in known:
        raise InputError(
            f"--plane: expected axial, coronal, sagittal or acquired, got {plane!r}; {nearest(plane, known)}"
        )


def survey(pairs: Pairs, plane: str = "") -> Survey:
    """The plane of all scans: the one asked for, else that in which most were acquired, axial in doubt.

    Args:
        pairs: the files of each scan, of which the image's first counts.
        plane: axial, coronal, sagittal, acquired, or "".

    Raises:
        InputError: a file is not NIfTI, or its header cannot be used.
    """
    headers = {}
    for name, (paths, _) in pairs.items():
        with offering(name):
            headers[name] = load_nifti(paths[0])[1]
    acquired = {name: header.acquired for name, header in headers.items()}
    votes = Counter(own for own in acquired.values() if own)
    most = max(votes.values(), default=0)
    best = [name for name in ("axial", "coronal", "sagittal") if votes[name] == most]
    chosen = plane or best[0]
    notes = notes_on_scans({name: header.notes for name, header in headers.items()})
    others = [name for name, own in acquired.items() if own not in ("", chosen)]
    if chosen != ACQUIRED and others and not plane:
        kinds = ", ".join(f"{n} {own}" for own, n in sorted(votes.items()) if own != chosen)
        notes += (
            f"slices are {chosen}, in which plane {votes[chosen]} of {plural(len(pairs), 'scan')} seem to have been "
            f"acquired, unlike {', '.join(others[:3])}{', ...' if len(others) > 3 else ''} ({kinds}); --plane chooses "
            "another, or acquired for each scan's own",
        )
    return Survey(chosen, {name: header.channels for name, header in headers.items()}, notes)


def scan_files(
    pairs: Pairs, groups: Mapping[str, str], parts: Mapping[str, str], read: Callable[..., Scan]
) -> tuple[ScanFile, ...]:
    """The scans, sorted by id; `read` takes the name, the files of the image and the mask of one."""
    return tuple(
        ScanFile(
            name, groups[name], files[0], (*files, mask), partial(read, name, files, mask), len(files), parts[name]
        )
        for name, (files, mask) in sorted(pairs.items())
    )
