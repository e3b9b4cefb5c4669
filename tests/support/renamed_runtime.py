"""A pytest plugin: ONNX Runtime with one of its private parts renamed, as a later version may have it.

`METERKIT_TEST_RENAMED` names it: a private attribute in ONNX Runtime's Python source (`_sess`), or a member of its
native module (`InferenceSession.run`, `EPFail`). All else of ONNX Runtime is as it is, and so is what it does.
"""

import importlib.abc
import importlib.machinery
import os
import re
import sys
from types import CodeType, ModuleType

COLLECTION = "onnxruntime.capi.onnxruntime_inference_collection"
RENAMED = "renamed_by_a_later_version"


class Renaming(importlib.machinery.SourceFileLoader):
    """Loads ONNX Runtime's Python source with a name replaced by another."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the loader's own signature
        name = os.environ["METERKIT_TEST_RENAMED"]
        source = self.get_data(self.path).decode()
        old = f"C.{name}" if name == "EPFail" else name.replace("InferenceSession", "_sess")
        new = f"{old.rpartition('.')[0]}.{RENAMED}".removeprefix(".")
        changed, times = re.subn(rf"(?<!\w){re.escape(old)}(?!\w)", new, source)
        if times == 0:
            raise LookupError(f"{old} is nowhere in ONNX Runtime's source")
        return compile(changed, self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        name = os.environ["METERKIT_TEST_RENAMED"]
        if name.startswith("_"):
            return
        owner, member = (module.C, name) if "." not in name else (module.C.InferenceSession, name.split(".")[1])
        setattr(owner, RENAMED, getattr(owner, member))
        delattr(owner, member)


class Finder(importlib.abc.MetaPathFinder):
    """Finds that one module, and leaves all others to those who find them otherwise."""

    def find_spec(self, fullname, path, target=None):
        if fullname != COLLECTION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        spec.loader = Renaming(fullname, spec.origin)
        return spec


if "onnxruntime" in sys.modules:
    raise RuntimeError("too late: onnxruntime is imported already")
sys.meta_path.insert(0, Finder())
