"""Training a network on kept images: minibatches, seeds, early stopping, checkpoints.

Imports torch; methods and `models/trained.py` import it inside their functions.
"""

from .checkpoint import Checkpoint
from .history import History
from .images import KeptImages, Parts, divide
from .loop import Minibatch, Plan, Task, train
from .network_state import drawn, network_arrays, require_shapes, restore_network
from .program import Program

__all__ = [
    "Checkpoint",
    "History",
    "KeptImages",
    "Minibatch",
    "Parts",
    "Plan",
    "Program",
    "Task",
    "divide",
    "drawn",
    "network_arrays",
    "require_shapes",
    "restore_network",
    "train",
]
