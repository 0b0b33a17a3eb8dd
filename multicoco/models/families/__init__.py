"""Model families: how images become tokens and tensors, which inputs a model takes, its positions and its features.

One file a family, named in `multicoco.registry`.
"""

from multicoco.data.collate import ImageInputs
from multicoco.models.families.family import (
    Embedded,
    Embedding,
    Family,
    Keeping,
    Tile,
    check_form,
    family_of,
)

__all__ = ["Embedded", "Embedding", "Family", "ImageInputs", "Keeping", "Tile", "check_form", "family_of"]
