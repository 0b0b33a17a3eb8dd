"""Where there is no MultiCoCo: asks the folders of a file of cases, and runs the code of a model card.

python without_multicoco.py CASES.pt; a case is (folder, class, inputs), the first one's card is run.
"""

import contextlib
import importlib.abc
import io
import os
import re
import sys
from pathlib import Path


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("multicoco", "multicoco_kernels"):
            raise ModuleNotFoundError(f"there is no {name} here")


sys.meta_path.insert(0, Missing())

import torch  # noqa: E402
import transformers  # noqa: E402

file = Path(sys.argv[1])
answers = []
cases = torch.load(file, weights_only=True)
for folder, kind, inputs in cases:
    model = getattr(transformers, kind).from_pretrained(folder)
    answers.append(model.generate(**inputs, custom_generate=folder, trust_remote_code=True))
os.chdir(Path(cases[0][0]).parent)
[code] = re.findall(r"```python\n(.*?)```", (Path(cases[0][0]) / "README.md").read_text(), re.DOTALL)
said = io.StringIO()
with contextlib.redirect_stdout(said):
    exec(code, {})
assert "multicoco" not in sys.modules
torch.save((answers, said.getvalue()), file.with_name("answers.pt"))
