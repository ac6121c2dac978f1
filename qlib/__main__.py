"""The command line: ``python -m qlib list | run | sensitivity | noise | show``, for scripts too."""

import argparse
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from qlib import store
from qlib.core import params, specs
from qlib.core.records import Cancelled, InvalidSpec, RunRecord, RunSpec
from qlib.core.registry import names
from qlib.export.summary import as_json, as_text
from qlib.sensitivity import profile

LISTS = ("models", "datasets", "methods", "observers", "quantizers", "allocators")
DONE, WRONG, FAULT, CANCELLED = 0, 2, 1, 130
PROG = "python -m qlib"
ABOUT = "Post-training quantization you can see. `quant-explorer` without a verb opens the app."
HELP = {  # of the fields that say nothing of themselves
    "model": "network: a key of `list models` (of timm with a tag and options, if need be: "
    "timm:NAME.TAG?img_size=96&in_chans=1), or FILE.py:BUILD, a function of your own that returns "
    "it (this runs the code in that file)",
    "data": "test images: a key of `list datasets`",
    "method": "how to quantize: a key of `list methods`",
    "weights": "file with the network's weights; FILE#KEY where it has several sets of them",
    "calib_data": "source of the calibration images (default: the training part of --data)",
    "test": "test images (default: all)",
    "classes": "file with the class folders in the network's order: a name a line, or folder,index",
}
SHAPES = {int: "N", float: "X", str: "NAME"}
METAVARS = {
    "weights": "FILE",
    "classes": "FILE",
    "calib_data": "SOURCE",
    "test": "N",
    "data": "SOURCE",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage lines."""

    def error(self, message: str) -> NoReturn:
        raise InvalidSpec(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Run the command line and return its exit code.

    0 done; 2 wrong input, one sentence on standard error; 130 cancelled.
    """
    try:
        args = _parser(prog).parse_args(argv)
        return args.do(args)
    except InvalidSpec as error:
        _say(str(error))
        return WRONG
    except (KeyboardInterrupt, Cancelled):
        _say("Cancelled; nothing was kept.")
        return CANCELLED
    except BrokenPipeError:  # the reader has had enough, as in ``list models | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE


def _print(text: str) -> None:
    """Print a result; bytes of a path that are no UTF-8 become replacement marks."""
    print(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), flush=True)


def _say(sentence: str) -> None:
    sys.stderr.write(" ".join(sentence.split()) + "\n")


# ---- what can be said ---------------------------------------------------------------------------


def _parser(prog: str = PROG) -> argparse.ArgumentParser:
    parser = _Parser(prog, description=ABOUT)
    verbs = parser.add_subparsers(
        required=True, metavar="list|run|sensitivity|noise|show", parser_class=_Parser
    )
    found = verbs.add_parser("list", help="what there is, one key a line")
    found.add_argument("what", choices=LISTS)
    found.set_defaults(do=_list)
    _add_run(verbs, "run", "quantize a network and measure it", _spec)
    _add_run(verbs, "sensitivity", "measure a run layer by layer: same options", _profile_spec)
    _add_run(verbs, "noise", "measure what noise before rounding does: same options", _noise_spec)
    show = verbs.add_parser("show", help="print a finished run")
    show.add_argument("run_dir", type=Path)
    show.set_defaults(do=_show)
    return parser


def _add_run(verbs: Any, verb: str, text: str, spec: Callable[..., RunSpec]) -> None:
    """A verb that makes a run folder from the fields of a specification."""
    run = verbs.add_parser(verb, help=text, allow_abbrev=False)
    for field in fields(RunSpec):
        _add_option(run, field)
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    run.add_argument(
        "--runs", type=Path, metavar="DIR", help="runs folder (default: $QLIB_RUNS, or ./runs)"
    )
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")
    run.set_defaults(do=_run, spec=spec)


def _add_option(parser: argparse.ArgumentParser, field: Any) -> None:
    """One option per field of `RunSpec`: default, limits and help are said there, once."""
    if field.name == "settings":
        parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                            help="a setting of the method; may be repeated")  # fmt: skip
        return
    if field.name in ("analysis", "code", "classes_digest"):  # said by the verb; found out
        return
    name, param = "--" + field.name.replace("_", "-"), params.params(RunSpec).get(field.name)
    if field.name == "keep_float":
        parser.add_argument(name, action="append", default=[], metavar="LAYER",
                            help="a layer that stays in float; may be repeated")  # fmt: skip
        return
    if param is None:
        parser.add_argument(
            name,
            required=field.default is MISSING,
            type=int if "int" in str(field.type) else str,
            metavar=METAVARS.get(field.name, "NAME"),
            help=HELP.get(field.name),
        )
        return
    text = f"{param.help} (default: {param.default})".replace("%", "%%")
    if param.type is bool:
        parser.add_argument(name, action="store_true", help=text)
    else:
        shape = "|".join(param.choices) if param.choices else SHAPES[param.type]
        parser.add_argument(name, type=param.type, default=param.default, metavar=shape, help=text)


def _spec(args: argparse.Namespace) -> RunSpec:
    settings = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidSpec(f"--set takes NAME=VALUE, such as --set steps=500; got {text!r}.")
        settings[name.strip()] = value.strip()
    given = {f.name: getattr(args, f.name) for f in fields(RunSpec) if hasattr(args, f.name)}
    given |= {"settings": settings, "keep_float": tuple(args.keep_float)}
    return specs.absolute(specs.checked(RunSpec(**given)))


def _profile_spec(args: argparse.Namespace) -> RunSpec:
    spec = _spec(args)
    return replace(profile.spec_of(spec), test=spec.test or profile.IMAGES)


def _noise_spec(args: argparse.Namespace) -> RunSpec:
    spec = _spec(args)  # first: what is wrong is said before arrays are loaded
    from qlib.noise import profile as noise_profile

    return replace(noise_profile.spec_of(spec), test=spec.test or noise_profile.IMAGES)


# ---- what is done -------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    known = {"models": specs.model_keys, "datasets": specs.dataset_keys}
    keys = known[args.what]() if args.what in known else names(args.what)
    print("\n".join(keys), flush=True)
    return DONE


def _run(args: argparse.Namespace) -> int:
    spec = args.spec(args)
    if args.threads is not None and args.threads < 1:
        raise InvalidSpec(f"--threads must be at least 1; got {args.threads}.")
    runs = (args.runs or store.runs_dir()).expanduser().absolute()
    with store.private(runs, spec.key) as folder, _only_ours_on_stdout():
        try:
            record = _work(spec, folder, runs, args.threads)
        except InvalidSpec as error:
            raise InvalidSpec(f"{error}{_kept(folder, runs / f'.failed-{spec.key}')}") from None
        except Cancelled:
            raise
        except Exception as error:
            return _fault(error, spec, runs)
        run_dir = store.finish(folder, runs, spec.key)
    for doubt in record.doubts:
        _say(f"Careful: {doubt['text']} {doubt['remedy']}")
    text = json.dumps(as_json(record, run_dir)) if args.json else as_text(record, run_dir)
    _print(text)
    return DONE


def _work(spec: RunSpec, folder: Path, runs: Path, threads: int | None) -> RunRecord:
    # both before torch is loaded: it reads them once
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn about themselves, not about the input
    from qlib.jobs.progress import Progress
    from qlib.pipeline.run import run

    progress = Progress(sys.stderr)
    with store.EventLog(folder) as log:

        def report(event: Any) -> None:
            log(event)
            progress(event)

        try:
            return run(spec, report, folder, [runs, store.demo_dir()])
        finally:
            progress.close()


def _kept(folder: Path, place: Path) -> str:
    """Keep what a refused run had finished; where it is, in words."""
    if not any(file.name != "events.jsonl" for file in folder.iterdir()):
        return ""
    shutil.rmtree(place, ignore_errors=True)
    folder.rename(place)
    return f" What was finished is in {place}."


def _fault(error: Exception, spec: RunSpec, runs: Path) -> int:
    """Our own mistake: a sentence, and the details in a file for whoever mends it."""
    from qlib.worker import sentence

    details = runs / ".last-fault.txt"
    with suppress(OSError):
        details.write_text("".join(traceback.format_exception(error)))
    _say(f"{sentence(error, None, spec, runs)} (details: {details})")
    return FAULT


@contextmanager
def _only_ours_on_stdout() -> Iterator[None]:
    """Whatever libraries print in here, from C too, goes to standard error instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _show(args: argparse.Namespace) -> int:
    folder = args.run_dir.expanduser().absolute()
    _print(as_text(store.load(folder), folder))
    return DONE


def start(prog: str = PROG) -> int:
    """Run `main` as a process of its own, which tidies up when it is told to end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off in scripts
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidy up, then go
    return main(prog=prog)


if __name__ == "__main__":
    sys.exit(start())
