"""Settings as a record: in JSON, beside those of another time, as a command line."""

import json
import shlex
from dataclasses import MISSING, asdict, fields
from typing import Any

from ganscope.config.validation import flag_of


def plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a dictionary that JSON can hold."""
    return json.loads(json.dumps(asdict(settings), default=str))


def changed(settings: Any, other: dict[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
    """Flags whose value in `settings` differs from a `plain` dictionary written earlier; a setting
    that was not known then had its default.
    """
    now = plain(settings)
    usual = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    before = json.loads(json.dumps(usual, default=str)) | other
    names = [f.name for f in fields(settings) if f.name not in ignore]
    return [flag_of(name) for name in names if now[name] != before.get(name)]


def as_command(name: str, settings: Any) -> str:
    """The command line that these settings mirror, without what is left open."""
    places, flags = [], []
    for field in fields(settings):
        value, flag = getattr(settings, field.name), flag_of(field.name)
        if value == field.default:
            continue
        if field.name in ("corpora", "corpus", "paths"):
            places += [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        elif isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for one in value if isinstance(value, tuple) else (value,):
                flags += [flag, str(one)]
    return shlex.join(["ganscope", name, *places, *flags])
