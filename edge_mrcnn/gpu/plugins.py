"""One generic TensorRT plugin, driven by `OpSpec`: fields, creation, output types and shapes, formats, serialisation.

It stands in where the C++ library is not, which a pip-installed TensorRT has no headers to build: the same inputs,
outputs, fields and formats, so that an engine built with either runs with the other. What it does when the engine runs
is in `enqueue.py`; nothing here touches a GPU, so that engines can be built without one.

Class-based `IPluginV3` and `IPluginCreatorV3One` are the only form that TensorRT 10.3 to 11 and TensorRT-RTX share.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_mrcnn.errors import EdgeMrcnnError, PluginError
from edge_mrcnn.gpu.enqueue import Enqueuer
from edge_mrcnn.gpu.library import load_plugins, missing_creators
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi, describe
from edge_mrcnn.ops import DOMAIN, OPS, VERSION, AttributeKind, OpSpec

_log = logging.getLogger(__name__)

_FIELD_TYPES: Mapping[AttributeKind, tuple[str, Any]] = {
    "int": ("INT32", np.int32),
    "ints": ("INT32", np.int32),
    "float": ("FLOAT32", np.float32),
    "floats": ("FLOAT32", np.float32),
    "string": ("CHAR", np.int8),
}
"""TensorRT's type of a plugin field and NumPy's of its data."""


def register_plugins(api: TensorRtApi) -> list[Any]:
    """Give TensorRT a plugin for each op: the C++ library's where there is one, else this module's.

    Returns:
        The creators registered here; TensorRT does not own them, so keep them as long as anything uses the plugins.

    Raises:
        PluginError: The library does not load, or TensorRT refused a plugin.
    """
    library = load_plugins(api)
    registry = api.module.get_plugin_registry()
    registered = []
    for name in missing_creators(registry):
        creator = _creator_class(api)(OPS[name])
        if not registry.register_creator(creator, DOMAIN):
            raise PluginError(f"{describe(api.flavour)} {api.version} refused the plugin {DOMAIN}.{name} {VERSION}")
        registered.append(creator)
    if registered:
        _log.info("plugins in Python, their kernels compiled by NVRTC: %s", ", ".join(c.name for c in registered))
    elif library is None:
        _log.info("plugins: those that are registered already")
    return registered


def read_field(field: Any, kind: AttributeKind) -> Any:
    """Value of a plugin field.

    Args:
        field: TensorRT's `PluginField`; the parser hands integers over as INT32 or INT64 and strings as CHAR.
        kind: The attribute's.
    """
    data = field.data
    if kind == "string":
        raw = data.encode() if isinstance(data, str) else bytes(np.asarray(data).tobytes())
        return raw.rstrip(b"\0").decode()
    values = np.asarray(data).ravel()
    if kind in ("ints", "floats"):
        return [v.item() for v in values]
    return values[0].item()


def field_data(value: Any, kind: AttributeKind) -> np.ndarray:
    """Data of the plugin field for an attribute's value."""
    if kind == "string":
        return np.array(list(value.encode()), np.int8)
    return np.array(value, _FIELD_TYPES[kind][1], ndmin=1)


class _Plugin:
    """What a plugin does, free of TensorRT's base classes, which `_plugin_class` adds."""

    def __init__(self, api: TensorRtApi, op: OpSpec, attributes: Mapping[str, Any]) -> None:
        _initialise_bases(self)
        self.api, self.op, self.attributes = api, op, dict(attributes)
        # On the instance: as class attributes TensorRT does not see them, and parsing dies.
        self.num_outputs = len(op.outputs)
        self.plugin_name, self.plugin_version, self.plugin_namespace = op.name, VERSION, DOMAIN
        self._enqueuer = Enqueuer(api, op, self.attributes)

    def clone(self) -> Any:
        return type(self)(self.api, self.op, self.attributes)

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        specs = self.op.expand_inputs(self.op.levels(len(input_types)))
        by_name = {spec.dtype: given for spec, given in zip(specs, input_types, strict=True)}
        by_name["int32"] = self.api.module.int32
        by_name.setdefault("float32", self.api.module.float32)
        return [by_name[spec.dtype] for spec in self.op.outputs]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        product = self.api.module.DimensionOperation.PROD
        shapes = self.op.output_shapes(
            [[shape[i] for i in range(len(shape))] for shape in inputs],
            self.attributes,
            multiply=lambda a, b: builder.operation(product, a, b),
            constant=builder.constant,
        )
        return [self.api.module.DimsExprs(list(shape)) for shape in shapes]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
        trt, specs = self.api.module, self._specs(num_inputs)
        linear, channels_last = trt.TensorFormat.LINEAR, trt.TensorFormat.HWC8
        desc, spec = tensors[position].desc, specs[position]
        if spec.dtype != "features":
            return bool(desc.format == linear and desc.type == (trt.int32 if spec.dtype == "int32" else trt.float32))
        position_of_first = next(i for i, other in enumerate(specs) if other.dtype == "features")
        first = tensors[position_of_first].desc
        if desc.type not in (trt.float32, trt.float16) or desc.type != first.type:
            return False
        if position < num_inputs and desc.format != first.format:  # the output's layout is free
            return False
        maps = len(spec.shape) == 4
        return bool(desc.format == linear or (desc.format == channels_last and desc.type == trt.float16 and maps))

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Nothing depends on the shapes before they are known for good."""

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._enqueuer.forget()

    def attach_to_context(self, context: Any) -> Any:
        attached = self.clone()
        try:
            attached._enqueuer.prepare()
        except EdgeMrcnnError as error:  # enqueue tries again, and raises it where it reaches the caller
            _log.debug("%s cannot load its kernels yet: %s", self.op.name, error)
        return attached

    def set_tactic(self, tactic: int) -> None:
        """There is one way to compute it."""

    def get_valid_tactics(self) -> list[int]:
        return []

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return self._enqueuer.workspace_bytes(inputs, outputs)

    def get_fields_to_serialize(self) -> Any:
        self._serialised = make_fields(self.api, self.op, self.attributes)
        return self.api.module.PluginFieldCollection(self._serialised)

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        try:
            self._enqueuer.run(input_desc, output_desc, inputs, outputs, workspace, stream)
        except Exception as error:
            # TensorRT turns it into a failed execution and keeps the reason to itself.
            _log.error("%s: %s", self.op.name, error, exc_info=not isinstance(error, EdgeMrcnnError))
            raise

    def _specs(self, num_inputs: int) -> list[Any]:
        return [*self.op.expand_inputs(self.op.levels(num_inputs)), *self.op.outputs]


class _Creator:
    """Makes plugins of one op, in the parser and when an engine is loaded; `_creator_class` adds the base class."""

    def __init__(self, api: TensorRtApi, op: OpSpec) -> None:
        _initialise_bases(self)
        self.api, self.op = api, op
        self.name, self.plugin_version, self.plugin_namespace = op.name, VERSION, DOMAIN
        self._declared = make_fields(api, op, None)
        self.field_names = api.module.PluginFieldCollection(self._declared)

    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
        return _plugin_class(self.api)(self.api, self.op, read_fields(self.op, fields))


def _initialise_bases(instance: Any) -> None:
    """Run the constructors of TensorRT's base classes, which `super()` would not reach."""
    bases: tuple[Any, ...] = type(instance).__bases__[1:]
    for base in bases:
        base.__init__(instance)


def read_fields(op: OpSpec, fields: Any) -> dict[str, Any]:
    """Attributes of an op from the plugin fields TensorRT hands over.

    Raises:
        PluginError: One is missing or of another kind.
    """
    kinds = {attribute.name: attribute.kind for attribute in op.attributes}
    attributes = {field.name: read_field(field, kinds[field.name]) for field in fields if field.name in kinds}
    op.check_attributes(attributes)
    return attributes


def make_fields(api: TensorRtApi, op: OpSpec, attributes: Mapping[str, Any] | None) -> list[Any]:
    """Plugin fields that hold an op's attributes; `read_fields` gives the attributes back.

    Args:
        api: Whose fields to make.
        op: The op.
        attributes: Values of its attributes; None makes fields without data, as a declaration.
    """
    fields = []
    for attribute in op.attributes:
        type_name, dtype = _FIELD_TYPES[attribute.kind]
        data = np.array([], dtype) if attributes is None else field_data(attributes[attribute.name], attribute.kind)
        fields.append(api.module.PluginField(attribute.name, data, getattr(api.module.PluginFieldType, type_name)))
    return fields


@functools.cache
def _plugin_class(api: TensorRtApi) -> type:
    trt = api.module
    bases = (_Plugin, trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    return type("Plugin", bases, {})


@functools.cache
def _creator_class(api: TensorRtApi) -> Any:
    creator = type("Creator", (_Creator, api.module.IPluginCreatorV3One), {})
    return functools.partial(creator, api)
