"""Recurrent cells, one file each. A file here that defines ``CELL`` is a registered, tested cell by existing."""

import importlib
import pkgutil

from seqjax.cells.base import Cell as Cell

_MODULES = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]

CELLS: dict[str, Cell] = {module.CELL.name: module.CELL for module in _MODULES if hasattr(module, "CELL")}
