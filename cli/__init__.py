"""The command line: one thin module per command, each a mirror of its settings in
`ganscope.config`.

Nothing here imports torch until a command really runs: `--help` and mistyped options answer at
once.
"""

import _thread
import builtins
import errno
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer
from rich.markup import escape
from typer.core import TyperArgument, TyperCommand, TyperOption

from ganscope.cli import (
    arms_race,
    audit,
    benchmark,
    check,
    demo,
    diversity,
    export,
    generate,
    inspect,
    latent,
    list,
    play,
    project,
    scan,
    serve,
    spectra,
    train_detector,
    train_generator,
    trust,
)
from ganscope.cli.streams import ReaderGone, prepare_streams
from ganscope.errors import GanscopeError, GanscopeWarning, ToldElsewhere, escaped
from ganscope.files import FULL, full, gone
from ganscope.launched import place
from ganscope.memory import keep_freed_memory

PATIENCE = 3.0
"""Seconds that the other processes of a run leave it to the first to say what is wrong."""

SHARED = ("generate", "train-generator", "train-detector")
"""Commands that several processes can share, as `torchrun` starts them."""

app = typer.Typer(
    name="ganscope",
    help="Make fakes with GANs, train detectors on them, check photos, benchmark detectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "[bold]The whole circle[/bold]: ganscope generate --n 10000 && ganscope train-detector && "
        "ganscope check photo.jpg"
    ),
)
app.command("generate")(generate.generate)
app.command("train-detector")(train_detector.train_detector)
app.command("check")(check.check)
app.command("scan")(scan.scan)
app.command("inspect")(inspect.inspect)
app.add_typer(trust.app, name="trust")
app.command("benchmark")(benchmark.benchmark)
app.command("train-generator")(train_generator.train_generator)
app.command("arms-race")(arms_race.arms_race)
app.command("diversity")(diversity.diversity)
app.add_typer(latent.app, name="latent")
app.command("spectra")(spectra.spectra)
app.command("audit")(audit.audit)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("play")(play.play)
app.command("project")(project.project)
app.command("list")(list.list_things)
app.command("demo")(demo.demo)


class _Command(TyperCommand):
    """A command whose help is shown as it is written: no paragraph is broken where the source is,
    and nothing in brackets is taken for markup.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.help = escape(_reflowed(self.help or ""))
        for one in self.params:
            if isinstance(one, TyperOption | TyperArgument):
                one.help = escape(one.help or "")


def _reflowed(text: str) -> str:
    """Text for terminals of any width: each paragraph that is not indented on one line."""
    lines = builtins.list[str]()
    for line in text.splitlines():
        goes_on = lines and lines[-1].strip() and line.strip() and not line.startswith(" ")
        lines[-1:] = [f"{lines[-1]} {line}"] if goes_on else [*lines[-1:], line]
    return "\n".join(lines)


for _group in (app, *(group.typer_instance for group in app.registered_groups)):
    for _one in _group.registered_commands if _group else ():
        _one.cls = _Command


def _version(wanted: bool) -> None:
    if wanted:
        import ganscope

        print(f"ganscope {ganscope.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Make fakes with GANs, train detectors on them, check photos, benchmark detectors."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and context.invoked_subcommand not in SHARED:
        raise GanscopeError(
            f"{context.invoked_subcommand} runs in one process; start it without accelerate launch "
            "or torchrun"
        )


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as a line; libraries' are about code, which is no user's business."""
    if place()[0] and sys.argv[1:2] != ["generate"]:
        return  # the first process of a training says the same; of a corpus each makes a part
    if issubclass(category, GanscopeWarning):
        _say(message)


def _say(what: Exception | str) -> None:
    """One line on standard error, also of a name that has line ends."""
    line = escaped(str(what)).replace("\n", "\\n")
    print(f"ganscope: {line}", file=sys.stderr)


AGAIN = 0.05
"""Seconds after which a signal that was lost comes again."""
GO_ON = ("generate", "train-detector", "train-generator", "arms-race", "benchmark", "scan")
"""Commands that keep what they have done when they are stopped."""


def _what_now(words: "builtins.list[str]") -> str:
    """What becomes of a command that was stopped."""
    name = next((word for word in words if not word.startswith("-")), "")
    if name == "check" and any(word.startswith("--csv") for word in words):
        return "the same command given again goes on"
    if name in GO_ON and ("--no-cache" not in words or "--train" in words):
        return "the same command given again goes on"
    if name in ("serve", "play"):
        return "nobody is answered any more"
    if name == "demo":
        return "name another folder with --out to begin anew"
    return "the same command given again begins anew"


@contextmanager
def _terminating() -> "Iterator[builtins.list[int]]":
    """SIGTERM ends the block as Ctrl-C does, so that what is half is put away, which a second one
    does not disturb; neither is lost, wherever it comes. Yields the signals that came.
    """
    came: builtins.list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    main_process = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() != main_process:  # a worker that was forked has nothing to put away
            os._exit(128 + number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        came.append(number)
        raise KeyboardInterrupt

    def lost(what: "sys.UnraisableHookArgs") -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            told(what)
            return
        # It came where Python passes over what is raised, as in the call of a weak reference.
        if came:
            signal.signal(signal.SIGTERM, stop)
        number = signal.SIGTERM if came else signal.SIGINT
        again = threading.Timer(AGAIN, _thread.interrupt_main, [number])
        again.daemon = True
        again.start()

    before, told = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = lost
    try:
        yield came
    finally:
        sys.unraisablehook = told
        signal.signal(signal.SIGTERM, before)


def _about_disk(error: OSError) -> GanscopeError | None:
    """The line about a disk that is full, or a folder that went while a command wrote there; None
    for what is no such circumstance.
    """
    if error.errno in FULL:
        return full(error.filename or "a file", error)
    name = error.filename if isinstance(error.filename, str) else ""
    if isinstance(error, FileNotFoundError) and name and not Path(name).parent.is_dir():
        return gone(Path(name).parent)
    if error.errno == errno.EROFS:
        return GanscopeError(f"{name or 'a file'}: cannot be written ({error.strerror})")
    return None


def main() -> None:
    """Run the `ganscope` command: 0 done, 1 a check failed, 2 the user's mistake, 3 unreadable
    files, 130 and 143 stopped.
    """
    with _terminating() as came:
        try:
            _main(came)
        except KeyboardInterrupt:  # before or after the command itself, which tells typer of it
            _stopped(143 if came else 130)


def _stopped(status: int) -> NoReturn:
    print(f"ganscope: stopped; {_what_now(sys.argv[1:])}", file=sys.stderr)
    sys.exit(status)


def _main(came: "builtins.list[int]") -> None:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what goes wrong is said in our own line
    warnings.showwarning = _say_warning
    keep_freed_memory()
    prepare_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what fails only now has failed, too
    except ToldElsewhere:
        sys.exit(2)
    except GanscopeError as error:
        if place()[0]:
            time.sleep(PATIENCE)  # the first process says it, too, and ends the others
        _say(error)
        sys.exit(2)
    except OSError as error:
        said = _about_disk(error)
        if said is None:
            raise
        _say(said)
        sys.exit(2)
    except ReaderGone:
        sys.exit(141)  # as a shell says it
    except SystemExit as end:
        if end.code in (130, 143):  # typer's word for Ctrl-C, and a command's own
            _stopped(143 if came else end.code)
        raise
