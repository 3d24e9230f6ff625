# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""How the bundle meets a user at the command line: misspelled arguments are refused, mistakes cost one line."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from .configuration import check_overrides, check_workflow, read_configuration
from .errors import BundleError, did_you_mean, is_out_of_memory, one_line
from .files import check_path

#: Arguments of ``python -m monai.bundle run`` itself.
_RUN_ARGUMENTS = {"run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"}
#: How Fire tells a name from a value, such as a negative number.
_FLAG = re.compile(r"--|-[a-zA-Z]")
#: How MONAI begins to tell of an expression that fails, whose text it puts into another line.
_FAILED = "Failed to evaluate ConfigExpression:"
#: How Python calls what is no file, such as an expression of a configuration.
_TEXTS = ("<string>", "<unknown>")
_SCRIPTS = Path(__file__).resolve().parent


def prepare_command_line(arguments: Sequence[str] | None = None) -> None:
    """Check the overrides of this command line, and from now on report mistakes in one line.

    MONAI silently takes an override of a key that no configuration has, so that ``--iteratons 100`` trains 6000
    iterations. Under another program than ``monai.bundle`` nothing is checked.

    Args:
        arguments: the command line, by default that of this process.

    Raises:
        BundleError: when an override names a key that none of the configuration files has, or is None.
    """
    silence_libraries()
    arguments = sys.argv if arguments is None else arguments
    if not _is_bundle_command(arguments):
        return
    sys.excepthook = report_in_one_line
    for name, word in _named_arguments(arguments[1:]):
        if name.endswith(("_dir", "_file", "_path")) and name != "config_file":
            check_path(name, word)
            # MONAI takes false for the logging_file.
            if name not in _RUN_ARGUMENTS and isinstance(DefaultParseValue(word), (int, float)):
                raise BundleError(f"--{name} {word} is read as a number or a truth value: write a path as ./{word}.")
        elif "#" in word and "#" not in str(DefaultParseValue(word)):
            raise BundleError(f"--{name} {word} would be cut off at its #: write it without.")
    given = _arguments_of_run(arguments)
    if given is None:
        return
    tracker = _tracker_settings(given)
    names = [name for name in given if name not in _RUN_ARGUMENTS and name not in tracker]
    check_overrides({name: given[name] for name in names}, given["config_file"], arguments=_RUN_ARGUMENTS)
    for name in names:
        if given[name] is None:
            raise BundleError(f"--{name} None would change nothing, as MONAI leaves it out: write --{name} '$None'.")


def check_run_id(arguments: Sequence[str] | None = None) -> None:
    """Refuse to run a key of the configuration that is no workflow.

    Args:
        arguments: the command line, by default that of this process; under another program nothing is checked.

    Raises:
        BundleError: for a key that holds something else; MONAI would build it, and do nothing.
    """
    arguments = sys.argv if arguments is None else arguments
    given = _arguments_of_run(arguments)
    if given is not None:
        sys.excepthook = report_in_one_line
        check_workflow(_workflow_of(arguments, given), ConfigParser.load_config_files(given["config_file"]))


def merged_configuration(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Put the configuration files and overrides of this command line into one.

    Args:
        arguments: the command line, by default that of this process.

    Returns:
        the configuration before anything in it is evaluated, without the names of a tracked run, which are settings of
        MONAI; None under another program than ``monai.bundle run``.
    """
    arguments = sys.argv if arguments is None else arguments
    given = _arguments_of_run(arguments)
    if given is None:
        return None
    tracker = set(_tracker_settings(given)) - {"output_dir"}
    overrides = {name: value for name, value in given.items() if name not in _RUN_ARGUMENTS and name not in tracker}
    return dict(read_configuration(given["config_file"], overrides).get())


def _tracker_settings(given: Mapping[str, Any]) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
    return settings if "tracking" in given else {}


def _matters(record: logging.LogRecord) -> bool:
    """Not that configuration files lie in several folders, nor that the bundle sets up its logging itself."""
    return not record.getMessage().startswith(("Not all config files are in", "Logging file is set to False"))


def silence_libraries() -> None:
    """Keep libraries from warning of what their user can do nothing about."""
    # Whenever MONAI makes a loader: the GPU decoder of DICOM is not installed.
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader", category=UserWarning)
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    logging.getLogger("monai.bundle.workflows").addFilter(_matters)
    # A list of fonts that another matplotlib has left: the font that comes with it does.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def check_arguments(name: str, command: Callable[..., Any], words: Sequence[str]) -> None:
    """Refuse arguments of a command of Fire that it does not have, or that come twice.

    Args:
        name: name of the command.
        command: its function; one that takes any keyword checks them itself.
        words: the command line behind the name.

    Raises:
        BundleError: for the first argument that the function does not have or that is given twice, a value without a
            name too many, one of which Fire would take the part behind a # for a comment, or a list with a space in it.
    """
    for word in words:
        value = word.partition("=")[2] if _FLAG.match(word) else word
        if "#" in value and "#" not in str(DefaultParseValue(value)):
            raise BundleError(f"{value} would be cut off at its #: write a path as ./{value}, a text as '\"{value}\"'.")
    for word, following in pairwise(words):
        if (word.endswith(",") and not _FLAG.match(following)) or following.startswith(","):
            raise BundleError(f"{word} {following} are two arguments: leave out the space beside the comma.")
    words = list(words)[: words.index("--") if "--" in words else None]
    named = [option for option, _ in _named_arguments(words)]
    if (repeated := next((option for option in named if named.count(option) > 1), None)) is not None:
        raise BundleError(f"--{repeated} is given twice: give it once, several values with commas between them.")
    parameters = inspect.signature(command).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = {*parameters, *(f"no{parameter}" for parameter in parameters), "help", "h"}
    positional, is_value = 0, False
    for word in words:
        if not _FLAG.match(word):
            positional += not is_value
            is_value = False
            continue
        flag, equals, _ = word.lstrip("-").partition("=")
        flag = flag.replace("-", "_")
        if flag not in known and not (len(flag) == 1 and any(parameter.startswith(flag) for parameter in parameters)):
            hint = did_you_mean(flag, parameters, prefix="--") or f" It takes {', '.join(parameters)}."
            raise BundleError(f"--{flag} is no argument of {name}.{hint}")
        is_value = not equals
    if positional > len(parameters):
        raise BundleError(f"{name} takes {', '.join(parameters)}, got {positional} values without a name.")


def _is_bundle_command(arguments: Sequence[str]) -> bool:
    return bool(arguments) and Path(arguments[0]).parent.name == "bundle"


def _arguments_of_run(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Give the arguments of ``monai.bundle run``, those of its args_file below the named ones; None elsewhere."""
    if not _is_bundle_command(arguments):
        return None
    given = {name: DefaultParseValue(value) for name, value in _named_arguments(arguments[1:])}
    if (file := given.pop("args_file", None)) is not None:
        try:
            given = {**ConfigParser.load_config_file(file), **given}
        # The readers of JSON and YAML have errors of their own.
        except Exception as error:
            raise BundleError(f"args_file {file} cannot be read: {one_line(error)}") from error
    return given if "config_file" in given else None


def _workflow_of(arguments: Sequence[str], given: Mapping[str, Any]) -> str:
    """Give the name behind ``run``, which MONAI takes by its place or by ``--run_id``; run itself without one."""
    by_place = arguments[2:3] if arguments[1:2] == ["run"] else []
    return str(given.get("run_id") or next((word for word in by_place if not _FLAG.match(word)), "run"))


def _named_arguments(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Read names as Fire does: -name is --name, --a-b is --a_b, one without a value is true, --noname false."""
    for i, argument in enumerate(arguments):
        if not _FLAG.match(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not equals:
            alone = i + 1 == len(arguments) or _FLAG.match(arguments[i + 1]) is not None
            value = "True" if alone else arguments[i + 1]
            if alone and name.startswith("no") and name not in _RUN_ARGUMENTS:
                name, value = name[2:], "False"
        yield name, value


def report_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report a user's mistake in one line, and anything else with its traceback; an exception hook.

    Args:
        kind: class of the exception.
        error: the exception.
        trace: its traceback.
    """
    if issubclass(kind, KeyboardInterrupt):
        line = (
            "stopped; a training goes on with --resume true once an iteration is done, "
            "an inference with --skip_existing true; an evaluation begins anew with --overwrite true"
        )
    elif (mistake := describe_mistake(error)) is not None:
        line = f"error: {mistake}"
    else:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"{line}\n")
    _let_threads_end()


def describe_mistake(error: BaseException) -> str | None:
    """Put a mistake into one line, also one that MONAI wraps into other exceptions.

    A mistake is a :class:`BundleError`, a ValueError that an argument check of this bundle raised, a file or folder
    that the system refuses, an argument that a configured object does not take, a class or a key that a configuration
    names and that is not there, an expression in it that fails, or a device whose memory is not enough.

    Args:
        error: what was raised.

    Returns:
        the line, None for what is no mistake.
    """
    component = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BundleError) or (isinstance(cause, ValueError) and _raised_here(cause)):
            return str(cause)
        if is_out_of_memory(cause):
            return (
                "the memory of the device is not enough: begin a training anew with a smaller patch_size or batch "
                "size, or segment with another sw_batch_size, stitching_device cpu or whole_volume false; a prediction "
                "goes on by --skip_existing true, a study by the same command with sw_batch_size or stitching_device."
            )
        if isinstance(cause, ModuleNotFoundError) and str(cause).startswith("Cannot locate class"):
            return f"the configuration names what is not there: {one_line(cause)}"
        if isinstance(cause, ValueError) and str(cause).startswith("the referring item"):
            return f"the configuration refers to what is not there: {one_line(cause)}"
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror}"
        if isinstance(cause, SyntaxError) and cause.filename in _TEXTS:
            return f"an expression of the configuration is no Python, {cause.msg}: {(cause.text or '').strip()}"
        if str(cause).startswith(_FAILED) and (reason := cause.__cause__) is not None and _raised_in_text(reason):
            expression = str(cause).removeprefix(_FAILED).strip()
            return (
                f"the expression {expression} of the configuration fails: {type(reason).__name__}: {one_line(reason)}"
            )
        if component is not None and isinstance(cause, (TypeError, ValueError)):
            hint = "; a number takes a decimal point, as in 0.5" if _is_comparison_with_tuple(cause) else ""
            return f"{component} cannot be made from its configuration: {cause}{hint}"
        found = re.match(r"Failed to instantiate component '([^']+)'", str(cause))
        component = found.group(1) if found else component
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn mistakes that MONAI wraps into its own errors back into errors of one line.

    Raises:
        BundleError: for what :func:`describe_mistake` knows; anything else goes on as it is.
    """
    try:
        yield
    except Exception as error:
        mistake = describe_mistake(error)
        if mistake is None:
            raise
        raise BundleError(mistake) from error


def _let_threads_end() -> None:
    """Give the pool that still reads volumes the time to end: torch aborts the process when it is cut off."""
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):
            thread.join(timeout=10)


def _is_comparison_with_tuple(error: BaseException) -> bool:
    """Return whether a check of a range met what a decimal comma becomes at the command line."""
    return re.search(r"not supported between instances of .*'tuple'", str(error)) is not None


def _raised_in_text(error: BaseException) -> bool:
    """Return whether an expression failed by itself, and not in the code that it calls."""
    return traceback.extract_tb(error.__traceback__)[-1].filename in _TEXTS


def _raised_here(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    # What zip, an unpacking or NumPy find wrong is no check of an argument.
    return (
        bool(frames)
        and _SCRIPTS in Path(frames[-1].filename).resolve().parents
        and (frames[-1].line or "").startswith("raise ")
    )
