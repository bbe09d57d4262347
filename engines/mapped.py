"""An embedding model whose weights lie in a file that is mapped, not copied into each process.

onnxruntime unpacks a model's stored weights to float32 on the heap, 130 MB a process. The copy made
here keeps them unpacked on disk: the kernel shares the pages and may drop them. A forward pass is
about a fifth slower, since mapped weights are not rearranged for the processor's matrix kernels;
the numbers are those of the original.
"""

import shutil
import tempfile
from pathlib import Path

from engines import seals
from engines.files import sync_directory
from engines.models import EmbedModelFiles

MODEL, WEIGHTS = "model.onnx", "model.data"
SMALLEST_BYTES = "1024"


def mapped_model(files: EmbedModelFiles, models_dir: Path) -> Path:
    """The model with its weights beside it; made once a model and onnxruntime, about a second.

    Two processes that make it at once each make their own, the first rename stays. Raises
    ModelDamaged for a copy that was altered since, OSError when it cannot be written.
    """
    import onnxruntime as ort

    folder = models_dir / f"{files.name}-{files.digest[:16]}-mapped-{ort.__version__}"
    if not folder.is_dir():
        _make(files.onnx, folder)
    for name in (WEIGHTS, MODEL):
        seals.verify(folder / name, expected=None, seals_dir=models_dir / "seals")
    return folder / MODEL


def _make(source: Path, folder: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".mapping-", dir=folder.parent))
    try:
        _save(source, scratch / MODEL)
        sync_directory(scratch)
        scratch.chmod(0o755)
        if not folder.is_dir():
            scratch.rename(folder)
            sync_directory(folder.parent)
    except OSError:
        # Lost to another process that made the same: its copy is as good.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save(source: Path, target: Path) -> None:
    """Have onnxruntime write what it unpacked."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", WEIGHTS)
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", SMALLEST_BYTES)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
