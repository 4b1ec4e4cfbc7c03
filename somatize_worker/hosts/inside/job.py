"""Start of a Python job: ``python <this file> <control folder>``, with the Python of the job's own environment.

Only the standard library is imported here, since nothing else need be in that environment, and as little of it as can
be before user code runs: ``json`` and ``inspect`` cost as much as the interpreter's own start. The control folder holds
a description of what to run (as ``marshal`` writes it: both sides are the same Python) and gets ``result.json``: the
entry function's value, or how it failed. The traceback of a failure shows the user's frames alone, with paths as the
user wrote them.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

RESULT = "result.json"
DESCRIPTION = "job.marshal"
INPUT = "input.json"
PARAMS = "params.json"

_VALUE_LIMIT_CHARS = 4 << 20
_VALUE_LIMIT_LEVELS = 100


class Refused(Exception):
    """The entry point cannot be run or its value not be kept; the message says it all, so no traceback is shown."""


def main(control: str) -> None:
    """Run the job; ends the process unless all went well."""
    with open(os.path.join(control, DESCRIPTION), "rb") as description:
        job = marshal.load(description)
    _settle(job)
    try:
        value = None
        if job["script"]:
            _script(job)
        else:
            value = _function(job, control)
        _write(control, {"ok": True, "value": value})
    except SystemExit as ending:
        _write(control, _about_exit(ending.code))
        raise
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        _write(control, {"ok": False, "error": str(error), "error_type": "somatize_worker.errors.InvalidJob"})
        sys.exit(1)
    except BaseException as error:
        _write(control, _about_failure(error, job["root"]))
        sys.exit(1)


def _settle(job: dict[str, Any]) -> None:
    """Limits, output and import path, as the user's code should find them."""
    import faulthandler

    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])
    if job["processes"]:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        ceiling = job["processes"] if hard == resource.RLIM_INFINITY else min(job["processes"], hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (ceiling, ceiling))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]  # the interpreter's own streams: TextIOWrapper
            line_buffering=True, errors="backslashreplace"
        )
    os.environ["PYTHONUNBUFFERED"] = "1"  # for other Python processes that the job starts: their lines come at once
    faulthandler.enable()
    sys.path[0] = job["root"]  # was this file's folder


def _script(job: dict[str, Any]) -> None:
    """Run a file as Python itself would, with the job's folder importable too."""
    path = os.path.join(job["root"], job["script"])
    folder = os.path.dirname(path)
    if folder != job["root"]:
        sys.path.insert(0, folder)
    sys.argv = [path]
    module = _as_main(path)
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _as_main(path: str) -> ModuleType:
    """A ``__main__`` that is the user's, so that pickle and multiprocessing find what the script defines."""
    module = type(sys)("__main__")
    vars(module).update(__builtins__=__builtins__, __file__=path)
    sys.modules["__main__"] = module
    return module


def _function(job: dict[str, Any], control: str) -> Any:
    sys.argv = [job["module"]]
    function = _find(job["module"], job["function"])
    given: tuple[Any, ...] = ()
    if job["input"]:
        import json

        with open(os.path.join(control, INPUT), encoding="utf-8") as file:
            given = (json.load(file),)
    positional, keywords = _arguments(_parameters(function), job["function"], job["params"], given)
    value = function(*positional, **keywords)
    if type(value).__name__ == "coroutine":
        import asyncio

        value = asyncio.run(value)
    return _checked(value, job["function"])


def _find(module_name: str, function_name: str) -> Any:
    try:
        __import__(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise Refused(
                f"the entry point's module {module_name!r} is neither among the job's files nor in its requirements "
                f"(there is no {error.name!r})"
            ) from None
        raise
    target = module = sys.modules[module_name]
    for name in function_name.split("."):
        if not hasattr(target, name):
            known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
            raise Refused(
                f"the entry point {module_name}:{function_name} does not exist: {module_name} has no {name!r}, "
                f"but {', '.join(known[:10]) or 'no functions at all'}"
            )
        target = getattr(target, name)
    if not callable(target):
        raise Refused(f"the entry point {module_name}:{function_name} is no function but a {type(target).__name__}")
    return target


def _parameters(function: Any) -> dict[str, tuple[str, bool]]:
    """Name of each parameter to (its kind as ``inspect`` names it, whether it has no default)."""
    special = hasattr(function, "__wrapped__") or hasattr(function, "__signature__")
    if special or type(function) is not type(_parameters):
        import inspect

        signature = inspect.signature(function)
        return {name: (one.kind.name, one.default is one.empty) for name, one in signature.parameters.items()}
    code = function.__code__
    by_position, by_keyword = code.co_argcount, code.co_kwonlyargcount
    without_default = by_position - len(function.__defaults__ or ())
    names = iter(code.co_varnames)
    found = {}
    for index in range(by_position):
        kind = "POSITIONAL_ONLY" if index < code.co_posonlyargcount else "POSITIONAL_OR_KEYWORD"
        found[next(names)] = (kind, index < without_default)
    for _ in range(by_keyword):
        name = next(names)
        found[name] = ("KEYWORD_ONLY", name not in (function.__kwdefaults__ or {}))
    for flag, kind in ((0x04, "VAR_POSITIONAL"), (0x08, "VAR_KEYWORD")):  # inspect.CO_VARARGS, CO_VARKEYWORDS
        if code.co_flags & flag:
            found[next(names)] = (kind, False)
    return found


def _arguments(
    parameters: dict[str, tuple[str, bool]], name: str, params: dict[str, Any], given: tuple[Any, ...]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments: the params that it accepts, and the input (``given``: one item, or none).

    The input goes to the parameter ``input_data``, else to the first one without a default that no param fills.
    """
    kinds = {key: kind for key, (kind, _) in parameters.items()}
    by_name = {key for key, kind in kinds.items() if kind in ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")}
    any_name = "VAR_KEYWORD" in kinds.values()
    keywords = {key: value for key, value in params.items() if key in by_name or any_name}
    required = [key for key, (kind, needed) in parameters.items() if needed and not kind.startswith("VAR_")]
    positional: list[Any] = []
    if "input_data" in by_name:
        if given or ("input_data" in required and "input_data" not in keywords):
            keywords["input_data"] = given[0] if given else None
    elif given:
        free = [key for key in required if key not in keywords and kinds[key] != "KEYWORD_ONLY"]
        if not free and any_name:
            keywords["input_data"] = given[0]
        elif not free:
            _note(f"{name}() takes no input data: name a parameter `input_data`")
        elif kinds[free[0]] == "POSITIONAL_ONLY":
            positional.append(given[0])
            required.remove(free[0])
        else:
            keywords[free[0]] = given[0]
    _check_arguments(name, params, keywords, required)
    return positional, keywords


def _check_arguments(name: str, params: dict[str, Any], keywords: dict[str, Any], required: list[str]) -> None:
    missing = [key for key in required if key not in keywords]
    if missing:
        raise Refused(
            f"{name}() needs {', '.join(missing)}: give it in the job's params (there are "
            f"{', '.join(sorted(params)) or 'none'}) or as its input data"
        )
    ignored = sorted(params.keys() - keywords.keys())
    if ignored:
        _note(f"{name}() does not take the params {', '.join(ignored)}")


def _note(text: str) -> None:
    sys.stderr.write(f"somatize: {text}\n")


def _checked(value: Any, name: str) -> Any:
    """The value as JSON would give it back; NaN and infinities become null, arrays lists."""
    if value is None:
        return None
    import json

    try:
        text = json.dumps(value, default=_plain)
        if len(text) > _VALUE_LIMIT_CHARS:
            raise ValueError(f"{len(text)} characters of JSON are too many, {_VALUE_LIMIT_CHARS} are allowed")
        plain = json.loads(text, parse_constant=lambda _: None)
        if not _fits(plain, _VALUE_LIMIT_LEVELS):
            raise ValueError(f"it is nested more than {_VALUE_LIMIT_LEVELS} levels deep")
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(
            f"{name}() returned what a result cannot hold ({error}): return numbers, texts, lists and dictionaries of "
            "them, and write everything else to files under outputs/"
        ) from None
    return plain


def _fits(value: Any, levels: int) -> bool:
    """Whether data are nested at most so many levels deep."""
    if not isinstance(value, (dict, list)):
        return True
    return levels > 0 and all(
        _fits(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's and torch's arrays and numbers
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} is in it")


def _about_exit(code: Any) -> dict[str, Any]:
    if code is None or code == 0:
        return {"ok": True, "value": None}
    said = f"with status {code}" if isinstance(code, int) else f"saying {str(code)!r}"
    return {"ok": False, "error": f"the job exited {said}", "error_type": "builtins.SystemExit"}


def _about_failure(error: BaseException, root: str) -> dict[str, Any]:
    """Show the traceback without our frames, and describe it for the worker."""
    import traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames)).replace(root + os.sep, "")
    if sys.excepthook is sys.__excepthook__:
        sys.stderr.write(text)
    else:
        sys.excepthook(type(error), error, frames)
    said = "".join(traceback.format_exception_only(type(error), error)).strip()
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}, line {error.lineno}".replace(root + os.sep, "")
        said = f"{type(error).__name__}: {error.msg} ({place})"
    return {
        "ok": False,
        "error": said,
        "error_type": _name(type(error)),
        "error_mro": [_name(kind) for kind in type(error).__mro__],
        "traceback": text,
    }


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _write(control: str, result: dict[str, Any]) -> None:
    if result == {"ok": True, "value": None}:
        text = '{"ok": true, "value": null}'
    else:
        import json

        text = json.dumps(result)
    path = os.path.join(control, RESULT)
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.tmp", path)


if __name__ == "__main__":
    main(sys.argv[1])
