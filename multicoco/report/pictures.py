"""Pictures as thumbnails in the page, within a budget."""

import base64
import io

from PIL import Image

from multicoco.data.example import ImageSource, load_image
from multicoco.errors import UserError

BUDGET = 14_000_000  # bytes of the page, whose other parts take some of its 20 MB
SIDE = 224  # pixels, the most
_QUALITY = 65


def data_url(image: Image.Image, quality: int) -> str:
    """A picture within a page, as WebP of a quality of 0 to 100."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


class Thumbnails:
    """Data URLs by their number, each picture once.

    Attributes:
        room: in bytes.
        urls: of those that were taken in.
        left_out: how many there was no room for.
        broken: how many could not be read.
    """

    def __init__(self, budget: int = BUDGET):
        self.room, self.budget = budget, budget
        self.urls: list[str] = []
        self.left_out, self.broken = 0, 0
        self._numbers: dict[str | bytes, int | None] = {}

    def number(self, source: ImageSource) -> int | None:
        """Of a picture's URL; None if it is left out or broken."""
        place = source if isinstance(source, bytes) else str(source)
        if place not in self._numbers:
            self._numbers[place] = self._take_in(source)
        return self._numbers[place]

    def _take_in(self, source: ImageSource) -> int | None:
        if self.budget <= 0:  # the picture is not even opened
            self.left_out += 1
            return None
        try:
            image = load_image(source)
        except UserError:
            self.broken += 1
            return None
        image.thumbnail((SIDE, SIDE))
        url = data_url(image, _QUALITY)
        self.budget -= len(url)
        if self.budget < 0:
            self.left_out += 1
            return None
        self.urls.append(url)
        return len(self.urls) - 1
