"""A look as a program and as a command that repeat it."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from layerscope.bundled import BUNDLED
from layerscope.looking.options import LookOptions
from layerscope.model.options import OpenOptions
from layerscope.probing.opening import lens_names
from layerscope.serving.models import ServedModel
from layerscope.serving.options import ServeOptions
from layerscope.serving.schemas import Code, LookAsked
from layerscope.serving.service import look_options

_SPELLED = {"lenses": "--lens"}
_FROM_HERE = "Run it in the folder in which the server was started, if its model or lenses were given by a path."


def code_of(asked: LookAsked, served: ServedModel, options: ServeOptions) -> Code:
    """What repeats a look elsewhere."""
    given = _given(asked, options)
    shell, why_not = _shell(served, asked.text, given)
    return Code(python=_python(served, asked.text, given), shell=shell, note=why_not or _FROM_HERE)


def _given(asked: LookAsked, options: ServeOptions) -> dict[str, Any]:
    """Options that are not as they are by default, of the look and of the server's models."""
    wanted, usual = look_options(asked, options), LookOptions()
    opening = {field.name for field in fields(OpenOptions)}
    values = {f.name: getattr(options if f.name in opening else wanted, f.name) for f in fields(LookOptions)}
    values["lens_dir"] = None if options.lens_dir is None else str(options.lens_dir)
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def _python(served: ServedModel, text: str, given: Mapping[str, Any]) -> str:
    arguments = [] if served.as_written == str(BUNDLED) else [repr(served.as_written)]
    arguments.append(f"text={text!r}" if not arguments else repr(text))
    arguments += [f"{name}={value!r}" for name, value in given.items()]
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"import layerscope\n\nlook = layerscope.look(\n{lines})\nprint(look)\n"


def _shell(served: ServedModel, text: str, given: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The command, or why there is none."""
    words = ["layerscope", "look"]
    for name, value in given.items():
        option = _SPELLED.get(name, f"--{name.replace('_', '-')}")
        if name == "track" and not isinstance(value, str):
            if any("," in word for word in value):
                return None, "A shell's --track splits words at commas, so a word that holds one cannot be given."
            value = ",".join(value)
        if name == "lenses":
            value = ",".join(lens_names(value))
        words.append(option if value is True else f"{option}={value}")
    words += ["--", served.as_written, text]
    if any("\0" in word for word in words):
        return None, "A shell cannot pass a text that holds a NUL character."
    return shlex.join(words), None
