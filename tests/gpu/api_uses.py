"""Which attributes of TensorRT's Python API a source file touches, read from its syntax tree.

A use is a path that begins at the module, such as `("OnnxParser", "()", "get_error", "()", "desc")`; `"()"` is a call.
Paths begin at `....module` and `trt`, at parameters and attributes whose names are in `INSTANCES`, and go on through
local names. What is reached in another way is not seen.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

Path = tuple[str, ...]

INSTANCES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "desc": "PluginTensorDesc",
    "engine": "ICudaEngine",
    "field": "PluginField",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "tensor": "ITensor",
}
"""What TensorRT's objects are called where they come as an argument or lie in an attribute."""

ARGUMENTS = {("get_output_shapes", "builder"): "IExprBuilder"}
"""Arguments of a function for which `INSTANCES` would be wrong."""

MIXINS = {
    "_Plugin": ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime"),
    "_Creator": ("IPluginCreatorV3One",),
}
"""Classes that get TensorRT's as further bases when they are used: their public methods are those of the bases."""

ROOT: Path = ()
CALL = "()"


@dataclass(frozen=True)
class Use:
    """One use of the API: any of the paths has to exist."""

    line: int
    paths: tuple[Path, ...]


def find_uses(source: str) -> list[Use]:
    """Every use of TensorRT's API in a source text."""
    finder = _Finder()
    tree = ast.parse(source)
    finder.learn_attributes(tree)
    finder.visit(tree)
    return finder.uses


class _Finder(ast.NodeVisitor):
    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.scopes: list[dict[str, Path | None]] = [{"trt": ROOT}]
        self.foreign_attributes: set[str] = set()

    def learn_attributes(self, tree: ast.AST) -> None:
        """Note the attributes that bear the name of a TensorRT object and are declared to be something else."""
        for node in ast.walk(tree):
            declared = node.body if isinstance(node, ast.ClassDef) else [node]
            for item in declared:
                if isinstance(item, ast.AnnAssign) and not _may_be_tensorrt(item.annotation):
                    target = item.target
                    if isinstance(target, ast.Attribute):
                        self.foreign_attributes.add(target.attr)
                    elif isinstance(target, ast.Name) and isinstance(node, ast.ClassDef):
                        self.foreign_attributes.add(target.id)

    def path_of(self, node: ast.expr) -> Path | None:
        """The path of an expression, None for one that is not TensorRT's."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Call):
            base = self.path_of(node.func)
            return None if base is None else (*base, CALL)
        if isinstance(node, ast.Attribute):
            return self._attribute_path(node)
        if isinstance(node, ast.IfExp):
            return self.path_of(node.body) or self.path_of(node.orelse)
        return self.path_of(node.value) if isinstance(node, ast.NamedExpr) else None

    def _attribute_path(self, node: ast.Attribute) -> Path | None:
        if node.attr == "module":
            return ROOT
        base = self.path_of(node.value)
        if base is not None:
            return (*base, node.attr)
        if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            return None
        return None if node.attr in self.foreign_attributes else _by_name(node.attr)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        path = self.path_of(node)
        base = self.path_of(node.value)
        if base is not None and path:
            self.uses.append(Use(node.lineno, (path,)))

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
                base = self.path_of(owner)
                if base is not None:
                    self.uses.append(Use(node.lineno, ((*base, name),)))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, Path | None] = {}
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            known = ARGUMENTS.get((node.name, argument.arg))
            by_name = (known, CALL) if known else _by_name(argument.arg)
            scope[argument.arg] = by_name if _may_be_tensorrt(argument.annotation) else None
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = [path for path in map(self.path_of, node.bases) if path]
        bases += [(name,) for name in MIXINS.get(node.name, ())]
        for item in node.body if bases else ():
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                self.uses.append(Use(item.lineno, tuple((*base, item.name) for base in bases)))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if node.value is not None:
            self._bind(node.target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self._bind_loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind_loop(node.target, node.iter)
        self.generic_visit(node)

    def _visit_comprehension_first(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        """The element is written before the names it uses are bound."""
        self.scopes.append({})
        for generator in node.generators:
            self.visit(generator)
        for element in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(element)
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _visit_comprehension_first  # noqa: N815

    def _bind_loop(self, target: ast.expr, iterable: ast.expr) -> None:
        if isinstance(iterable, (ast.GeneratorExp, ast.ListComp)):
            self._bind(target, iterable.elt)
        else:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    self.scopes[-1][name.id] = None

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            path = self.path_of(value)
            self.scopes[-1][target.id] = _by_name(target.id) if path is None and _is_opaque(value) else path
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=False):
                self._bind(one, part)
        else:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    self.scopes[-1][name.id] = _by_name(name.id) if _is_opaque(value) else None


def _by_name(name: str) -> Path | None:
    if name == "trt":
        return ROOT
    known = INSTANCES.get(name.lstrip("_"))
    return (known, CALL) if known else None


def _may_be_tensorrt(annotation: ast.expr | None) -> bool:
    return annotation is None or ast.unparse(annotation) in ("Any", "Any | None")


def _is_opaque(value: ast.expr) -> bool:
    """Whether the value comes from somewhere else in our code, and so may be TensorRT's."""
    if not isinstance(value, ast.Call):
        return isinstance(value, ast.Subscript)
    name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
    return not name.lstrip("_")[:1].isupper()
