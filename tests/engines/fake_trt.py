"""A stand-in for the module `tensorrt` that computes with ONNX Runtime on the memory and streams of `FakeDriver`.

It insists on what TensorRT insists on: strong typing in version 10, profiles, shapes and addresses before a run,
scratch memory, a plain run before a capture, and a context that is left alone once it was captured.
"""

from __future__ import annotations

import enum
import json
import math
import types
from functools import cached_property

import numpy as np
import onnx

from styleclip_rt.engines.device_memory import host_view

DTYPES = {1: "FLOAT", 10: "HALF", 7: "INT64", 6: "INT32", 3: "INT8", 2: "UINT8", 9: "BOOL"}
MAGIC = b"FAKEPLAN"


def make(driver, version="11.4.0.25", name="tensorrt"):
    """The module. `log`: what happened; `refuse`: texts that make a step fail; `noise`: added to every output."""
    trt = types.ModuleType(name)
    trt.__version__ = version
    trt.driver, trt.log, trt.refuse, trt.noise = driver, [], {}, 0.0
    trt.ILogger, trt.IProgressMonitor = ILogger, IProgressMonitor
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    trt.BuilderFlag = types.SimpleNamespace(TF32="TF32")
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE="WORKSPACE")
    trt.TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user")
    trt.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="eager")
    trt.Builder = lambda logger: Builder(trt, logger)
    trt.OnnxParser = lambda network, logger: OnnxParser(trt, network, logger)
    trt.Runtime = lambda logger: Runtime(trt, logger)
    return trt


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class Network:
    def __init__(self, flags):
        self.flags, self.model, self.name = flags, None, "unnamed"

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    def get_input(self, index):
        value = self.model.graph.input[index]
        return types.SimpleNamespace(name=value.name, shape=dims(value))


def dims(value):
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


class OnnxParser:
    def __init__(self, trt, network, logger):
        self.trt, self.network, self.errors = trt, network, []

    def parse(self, data):
        self.trt.log.append("parse")
        try:
            self.network.model = onnx.load_from_string(data)
            onnx.checker.check_model(self.network.model)
        except Exception as error:
            self.errors.append(f"Failed to parse:\n{type(error).__name__}")
            return False
        if "parse" in self.trt.refuse:
            self.errors.append(self.trt.refuse["parse"])
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        text = self.errors[index]
        return types.SimpleNamespace(desc=lambda: text, node_name=lambda: "conv_1", node_operator=lambda: "Conv")


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"t"


class Config:
    def __init__(self, trt):
        self.trt, self.profiles, self.flags, self.pools, self.timings = trt, [], {"TF32"}, {}, None
        self.progress_monitor, self.builder_optimization_level = None, None

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.ranges)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timings = cache
        return not cache.data.startswith(b"other card")


class Profile:
    def __init__(self):
        self.ranges = {}

    def set_shape(self, name, low, best, high):
        self.ranges[name] = [list(low), list(best), list(high)]


class Builder:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def create_network(self, flags):
        if self.trt.__version__.startswith("10."):
            assert flags == 2, "TensorRT 10 builds a weakly typed network without its flag"
        return Network(flags)

    def create_builder_config(self):
        self.config = Config(self.trt)
        self.trt.configs = [*getattr(self.trt, "configs", []), self.config]
        return self.config

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        self.trt.log.append("build")
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("tactics", None, 3)
            for step in range(3):
                if not monitor.step_complete("tactics", step):
                    return None
            monitor.phase_finish("tactics")
        if "build" in self.trt.refuse:
            self.logger.log(ILogger.Severity.WARNING, "slow")
            self.logger.log(ILogger.Severity.ERROR, self.trt.refuse["build"])
            return None
        head = json.dumps(config.profiles).encode()
        return MAGIC + len(head).to_bytes(4, "little") + head + network.model.SerializeToString()


class Runtime:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan):
        self.trt.log.append("deserialize")
        assert plan.startswith(MAGIC), "a plan that was not built here reached the deserialiser"
        if "deserialize" in self.trt.refuse:
            self.logger.log(ILogger.Severity.ERROR, self.trt.refuse["deserialize"])
            return None
        size = int.from_bytes(plan[8:12], "little")
        return Engine(self.trt, self.logger, json.loads(plan[12 : 12 + size]), plan[12 + size :])


class RuntimeConfig:
    strategy = dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class Engine:
    def __init__(self, trt, logger, profiles, data):
        self.trt, self.logger, self.profiles, self.data = trt, logger, profiles, data
        model = onnx.load_from_string(data)
        self.inputs = {value.name: value for value in model.graph.input}
        self.outputs = {value.name: value for value in model.graph.output}
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), max(1, len(profiles))

    @cached_property
    def session(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(self.data, options, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return "in" if name in self.inputs else "out"

    def get_tensor_shape(self, name):
        return dims(self.tensors[name])

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name=DTYPES[self.tensors[name].type.tensor_type.elem_type])

    def get_tensor_profile_shape(self, name, profile):
        return self.profiles[profile][name]

    def create_runtime_config(self):
        return RuntimeConfig()

    def create_execution_context(self, how):
        self.trt.log.append("context")
        return Context(self, how)


class Context:
    SCRATCH = 512

    def __init__(self, engine, how):
        self.engine, self.trt, self.how = engine, engine.trt, how
        self.profile, self.shapes, self.addresses, self.scratch = None, {}, {}, (0, 0)
        self.warm, self.frozen = False, False

    def touch(self):
        assert not self.frozen, "a context was changed after it was captured: replays are undefined"

    def set_optimization_profile_async(self, index, stream):
        self.touch()
        self.profile = index
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        self.touch()
        if self.profile is None:
            return False
        if self.engine.profiles and name in self.engine.profiles[self.profile]:
            low, _, high = self.engine.profiles[self.profile][name]
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                return False
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self):
        assert set(self.shapes) == set(self.engine.inputs)
        return self.SCRATCH

    def set_device_memory(self, address, size):
        self.touch()
        self.scratch = (address, size)

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        sizes = {}
        for key, shape in self.shapes.items():
            for dim, size in zip(self.engine.inputs[key].type.tensor_type.shape.dim, shape, strict=True):
                sizes[dim.dim_param] = size
        shape = self.engine.outputs[name].type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, -1) for d in shape)

    def set_tensor_address(self, name, address):
        self.touch()
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream):
        return "capture" not in self.trt.refuse

    def execute_async_v3(self, stream):
        driver = self.trt.driver
        with driver.lock:
            if "run" in self.trt.refuse or set(self.addresses) != set(self.engine.tensors):
                self.engine.logger.log(ILogger.Severity.ERROR, self.trt.refuse.get("run", "addresses are missing"))
                return False
            capturing = driver.streams[stream].capture is not None
            if capturing and not self.warm:
                return False
            self.warm, self.frozen = True, self.frozen or capturing
            addresses, scratch = dict(self.addresses), self.scratch
            shapes = {name: self.get_tensor_shape(name) for name in self.engine.tensors}
            self.trt.log.append("capture" if capturing else "execute")
            driver.enqueue(stream, lambda: self.compute(addresses, shapes, scratch))
            return True

    def compute(self, addresses, shapes, scratch):
        driver = self.trt.driver
        dtypes = {name: np.dtype(NUMPY[self.engine.get_tensor_dtype(name).name]) for name in addresses}
        sizes = {name: math.prod(shapes[name]) * dtypes[name].itemsize for name in addresses}
        blocks = [*((addresses[name], size) for name, size in sizes.items()), (scratch[0], self.SCRATCH)]
        if not all(driver.inside(address, size) for address, size in blocks):
            return driver.ILLEGAL
        views = {name: host_view(addresses[name], shapes[name], dtypes[name].name) for name in addresses}
        outputs = list(self.engine.outputs)
        try:
            results = self.engine.session.run(outputs, {name: views[name].copy() for name in self.engine.inputs})
        except Exception:
            return driver.ILLEGAL
        for name, result in zip(outputs, results, strict=True):
            noise = np.asarray(self.trt.noise * 40 if result.dtype == np.uint8 else self.trt.noise).astype(result.dtype)
            views[name][...] = result + noise
        return None


NUMPY = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}
NUMPY |= {name: name.lower() for name in ("INT64", "INT32", "INT8", "UINT8")}
