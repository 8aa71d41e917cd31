"""Fetch the pictures of a list from the repositories that published them.

    python benchmarks/originals.py benchmarks/sites.tsv --out SITES
    python benchmarks/originals.py collect.tsv --out ORIGINALS --from /mirrors/{repository}.git

The list is a table `source label generator repository path blob`, tab-separated. A picture becomes
OUT/BLOB, its bytes as they were published: a blob's name in git is their checksum, so the same list
gives the same pictures, and what comes otherwise is refused. What is there is not fetched again.
Only the blobs of the list are transferred. Pictures that are gone are named, and the exit status is
1 then. Licences differ or are not stated: look before you pass any on.

--from: where a repository is cloned from, a folder or an address with {repository} in it.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from ganscope.files import replacing

GITHUB = "https://github.com/{repository}.git"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="address", default=GITHUB, metavar="ADDRESS")
    args = parser.parse_args()
    table = pd.read_csv(args.list, sep="\t", dtype=str, keep_default_na=False)
    if missing := {"repository", "path", "blob"} - set(table):
        sys.exit(f"originals: {args.list}: no column {sorted(missing)[0]!r}")
    if shutil.which("git") is None:
        sys.exit("originals: no git here; install it")
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = table[[not (args.out / blob).exists() for blob in table["blob"]]]
    gone: list[str] = []
    groups = wanted.groupby("repository")
    for number, (repository, rows) in enumerate(groups, 1):
        lost = fetched(args.address.replace("{repository}", str(repository)), rows, args.out)
        gone += [f"{repository}: {path}" for path in lost]
        print(f"{number} of {len(groups)} repositories: {repository}", flush=True)
    for one in gone:
        print(f"gone: {one}", file=sys.stderr)
    print(f"{len(table) - len(gone):,} of {len(table):,} pictures in {args.out}")
    if gone:
        sys.exit(1)


def fetched(address: str, rows: pd.DataFrame, out: Path) -> list[str]:
    """Write a repository's pictures, each named by its blob; returns the paths of those that it
    does not have.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = ["clone", "--quiet", "--bare", "--filter=blob:none", "--", address, folder]
        if git(*clone) is None:
            return rows["path"].tolist()
        lost = []
        for row in rows.itertuples():
            content = git(f"--git-dir={folder}", "cat-file", "blob", row.blob)
            if content is None or blob_of(content) != row.blob:
                lost.append(str(row.path))
                continue
            with replacing(out / str(row.blob)) as part:
                part.write_bytes(content)
        return lost


def git(*arguments: str) -> bytes | None:
    """What git says, None if it fails; it never asks for a password."""
    found = subprocess.run(
        ["git", *arguments],
        capture_output=True,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    return found.stdout if found.returncode == 0 else None


def blob_of(content: bytes) -> str:
    """The name that git gives to this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


if __name__ == "__main__":
    main()
