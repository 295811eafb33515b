"""SisFall: falls and daily activities, by a sensor at the waist.

Sucerquia, Lopez and Vargas-Bonilla, "SisFall: A Fall and Movement Dataset", Sensors 17(1):198
(2017): 38 subjects, 23 adults (SA) and 15 elderly (SE); of the elderly only SE06 fell. Two forms
are read:

- the published folders, one a subject, with a text file for each trial (`SA01/F01_SA01_R01.txt`):
  200 lines a second, each of nine whole numbers and a semicolon, of which the first three are the
  ADXL345 accelerometer (256 a g) and the next three the ITG3200 gyroscope (16.384 a degree/s);
- `sisfall.npz`, windows made beforehand: `x` int16 [N, 128, 6] in these units at 50 a second,
  `code` [N], `subject` [N] and the names `subjects` that it counts in.

A window is 128 samples at 50 a second. Walking, jogging and stairs (D01 to D06) give all their
windows; any other trial the one in which the size of the acceleration varies most.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from motley.data.shared import shared
from motley.errors import DataError

WIDTH, CHANNELS = 128, 6
ACTIVITIES = ("walk", "jog", "stairs", "chair", "lie", "bend", "car", "stumble-or-jump", "fall")
_CODES = (0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 7)
"""Activity of D01, D02, ...; F01 to F15 are falls."""
_FALLS = 15
ACTIVITY_OF = {f"D{number:02d}": activity for number, activity in enumerate(_CODES, start=1)} | {
    f"F{number:02d}": ACTIVITIES.index("fall") for number in range(1, _FALLS + 1)
}
STEADY = ("D01", "D02", "D03", "D04", "D05", "D06")
"""Trials that give all their windows."""

ARCHIVE = "sisfall.npz"
DECIMATION = 4
"""Samples of the published 200 a second that are averaged to one."""
_COLUMNS = 9
_SCALE = np.array([1 / 256] * 3 + [np.pi / 180 / 16.384] * 3, np.float32)


@dataclass(frozen=True)
class Recording:
    """One subject's windows, in the order of recording within each code."""

    signals: npt.NDArray[np.float32]
    """[N, 128, 6]: acceleration in g, then rotation in radians a second."""
    codes: npt.NDArray[np.str_]
    """[N], e.g. `F01`."""

    @property
    def activities(self) -> npt.NDArray[np.int64]:
        """Place of each window's activity in `ACTIVITIES`, [N]."""
        return np.array([ACTIVITY_OF[code] for code in self.codes.tolist()], np.int64)


@dataclass(frozen=True)
class Archive:
    """Windows made beforehand, as in `sisfall.npz`."""

    path: Path
    signals: npt.NDArray[np.int16]
    codes: npt.NDArray[np.str_]
    owners: npt.NDArray[np.integer]
    """[N]: each window's subject, counted in `names`."""
    names: tuple[str, ...]

    @property
    def subjects(self) -> list[str]:
        """Names of all subjects, in order."""
        return sorted(self.names)

    def recording(self, subject: str) -> Recording:
        """Return one subject's windows; raise DataError when there are none."""
        known = [number for number, name in enumerate(self.names) if name == subject]
        usable = np.isin(self.codes, list(ACTIVITY_OF))
        mine = np.flatnonzero(np.isin(self.owners, known) & usable)
        if not len(mine):
            raise DataError(f"{self.path} has no windows of subject {subject!r}")
        return Recording(self.signals[mine].astype(np.float32) * _SCALE, self.codes[mine])


@dataclass(frozen=True)
class Trials:
    """The published folders; a subject's files are read when they are asked for."""

    folder: Path
    subjects: list[str]

    def recording(self, subject: str) -> Recording:
        """Return one subject's windows; raise DataError when it has none or a file is damaged."""
        signals, codes = [], []
        pattern = f"[DF][0-9][0-9]_{subject}_R[0-9][0-9].txt"
        for path in sorted((self.folder / subject).glob(pattern)):
            code = path.name[:3]
            if code in ACTIVITY_OF:
                found = cut_windows(_read_trial(path), code)
                signals.append(found)
                codes += [code] * len(found)
        if not codes:
            raise DataError(
                f"{self.folder / subject} holds no trial that is long enough for a window; "
                f"expected files as F01_{subject}_R01.txt"
            )
        return Recording(np.concatenate(signals) * _SCALE, np.array(codes))


@shared
def open_set(folder: Path) -> Archive | Trials:
    """Return what a folder holds, in either form; raise DataError when it holds neither."""
    if (folder / ARCHIVE).is_file():
        return _read_archive(folder / ARCHIVE)
    names = [path.name for path in folder.glob("S[AE][0-9][0-9]") if path.is_dir()]
    if not names:
        raise DataError(
            f"{folder} holds neither {ARCHIVE} nor folders SA01, SA02, ... of SisFall's trials; "
            f"name the folder that does"
        )
    return Trials(folder, sorted(names))


def cut_windows(trial: npt.NDArray[np.float32], code: str) -> npt.NDArray[np.float32]:
    """Return the windows [n, 128, 6] of a trial [T, 6] at 50 a second; none when it is shorter."""
    last = len(trial) - WIDTH
    if last < 0:
        return np.empty((0, WIDTH, CHANNELS), np.float32)
    starts = range(0, last + 1, WIDTH)
    if code not in STEADY:
        size = np.linalg.norm(trial[:, :3], axis=1)
        varied = np.concatenate([[0], np.cumsum(np.abs(np.diff(size, prepend=size[:1])))])
        at = int(np.argmax(varied[WIDTH:] - varied[:-WIDTH]))
        starts = range(at, at + 1)
    return np.stack([trial[start : start + WIDTH] for start in starts])


def _read_trial(path: Path) -> npt.NDArray[np.float32]:
    """Return a trial at 50 a second, [T, 6], in the sensors' own units."""
    try:
        lines = path.read_text(encoding="ascii").replace(";", "")
        values = np.loadtxt(StringIO(lines), np.float32, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected a trial of SisFall") from None
    if values.shape[1] != _COLUMNS:
        raise DataError(
            f"{path} has {values.shape[1]} numbers a line; a trial of SisFall has {_COLUMNS}"
        )
    whole = len(values) // DECIMATION * DECIMATION
    groups = values[:whole, :CHANNELS].reshape(-1, DECIMATION, CHANNELS)
    return np.asarray(groups.mean(axis=1), np.float32)


def _read_archive(path: Path) -> Archive:
    try:
        with np.load(path, allow_pickle=False) as archive:
            signals, codes = archive["x"], archive["code"]
            owners, names = archive["subject"], archive["subjects"]
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}; expected windows of SisFall") from None
    except KeyError:
        raise DataError(f"{path} is no archive of x, code, subject and subjects") from None
    expected = (len(codes), WIDTH, CHANNELS)
    if signals.shape != expected or owners.shape != codes.shape:
        raise DataError(
            f"{path} holds x {list(signals.shape)} and subject {list(owners.shape)} for "
            f"{len(codes)} codes; expected {list(expected)} and {list(codes.shape)}"
        )
    return Archive(path, signals, codes, owners, tuple(map(str, names.tolist())))
