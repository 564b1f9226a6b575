"""A model in the formats of others."""

from pathlib import Path

from beit_jax.weights import stablehlo
from beit_jax.weights.pytorch.export_folder import (
    Exported,
    held_out_metrics,
    in_dialect,
    write_folder,
)
from beit_jax.weights.pytorch.names import DIALECTS

FORMATS = (*DIALECTS, stablehlo.FORMAT)


def write_export(
    model, folder: Path, format: str, name: str = ''
) -> tuple[Exported, dict[str, str]]:
    """Writes a `Model` into a new folder; name: of its repository on the hub, if it gets one.

    Returns:
      what was written, and {name of a file of it: its SHA-256}.

    Raises:
      RequestError: there is something already, or the library has no such model.
    """
    metrics = held_out_metrics(model.path)
    if format == stablehlo.FORMAT:
        weights, notes = stablehlo.flat(model.params), list(model.notes)
        exported = Exported(format, model.architecture, weights, notes)
        given = model, model.programs(), model.dtype, metrics
        return exported, stablehlo.write_folder(folder, *given)
    exported = in_dialect(model, format)
    return exported, write_folder(folder, exported, model, metrics, name)
