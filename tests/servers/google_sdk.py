"""The emulators that the Google Cloud SDK brings: jars, run by Java."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from tests.servers.process import missing

HOW = (
    "install the Google Cloud SDK and Java, then `gcloud components install beta pubsub-emulator "
    "cloud-firestore-emulator`"
)
PLACES = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "~/google-cloud-sdk",
    "/opt/google-cloud-sdk",
)


def java_with(jar: str) -> list[str]:
    """The beginning of the command that runs a jar below the SDK's folder `platform`; its main class follows.

    Without Java or the jar, the test is skipped. The heap is small, because many of these may run at once.
    """
    java, found = shutil.which("java"), find_jar(jar)
    if java is None or found is None:
        missing("an emulator of Google's", HOW)
    return [java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-cp", str(found)]


@functools.cache
def find_jar(jar: str) -> Path | None:
    """Below the SDK's folder: CLOUDSDK_ROOT_DIR, if that is set; else that of `gcloud`, or one of the usual places."""
    if root := os.environ.get("CLOUDSDK_ROOT_DIR"):
        roots = [Path(root)]
    else:
        gcloud = shutil.which("gcloud")
        roots = [Path(gcloud).resolve().parents[1]] if gcloud else []
        roots += [Path(place).expanduser() for place in PLACES]
    return next((found for each in roots for found in sorted(each.glob(f"platform/{jar}"))), None)
