"""`load_examples` under the name that scripts written against version 0.1 import it by."""

from multicoco.data.sources import load_examples as load_examples
