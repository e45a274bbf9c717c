"""Shapes are checked where signatures have some, and what has none runs as it is written.

jaxtyping wraps every function of the modules that it is given, and one within a function anew whenever that runs: a
quarter of the tests' time, for types that mypy has checked. Under the checker named here it wraps functions with a
shape in their signature and dataclasses with one in a field, and nothing else. Whoever imports this before the
modules does so; the checker's name is part of that of the compiled modules, so those that are checked throughout lie
apart.
"""

import ast
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import beartype
from jaxtyping import _import_hook
from jaxtyping._import_hook import JaxtypingTransformer, Typechecker

Node = TypeVar("Node", ast.FunctionDef, ast.ClassDef)
OURS = Typechecker("shape_checks.checked").get_hash()


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which refuses arguments of another type.

    jaxtyping has a function checked whose arguments are those of the one in hand, and, after the call, another that has
    the result among them and as its own. By then the arguments have been looked at, and their sizes are remembered.
    """
    returned = function.__annotations__.get("return", Any)
    if returned is not Any:
        function.__annotations__ = {"return": returned}
    return beartype(function)


class OnlyShapes(JaxtypingTransformer):
    """Leaves out what has no shape, where the checker is that of this module."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self._shapes = {
            name.asname or name.name
            for part in node.body
            if isinstance(part, ast.ImportFrom) and part.module == "jaxtyping"
            for name in part.names
        }
        return super().visit_Module(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        own = node.args
        arguments = [*own.posonlyargs, *own.args, own.vararg, *own.kwonlyargs, own.kwarg]
        if self._is_checked([node.returns, *(one.annotation for one in arguments if one is not None)]):
            return super().visit_FunctionDef(node)
        return self._as_written(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        if node.bases or self._is_checked(fields):  # a base may have fields of its own
            return super().visit_ClassDef(node)
        return self._as_written(node)

    def _is_checked(self, annotations: list[ast.expr | None]) -> bool:
        named = {part.id for one in annotations if one for part in ast.walk(one) if isinstance(part, ast.Name)}
        return self._typechecker.get_hash() != OURS or not named.isdisjoint(self._shapes)

    def _as_written(self, node: Node) -> Node:
        self._parents.append(node)
        self.generic_visit(node)
        self._parents.pop()
        return node


_import_hook.JaxtypingTransformer = OnlyShapes
