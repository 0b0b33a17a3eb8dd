"""SIM-CoT's decoder on CODI, as Wei et al. 2025 (arXiv:2509.20317) have it: the teacher's reasoning is to be readable
from the student's thoughts, step by step."""

from multicoco.config.section import MethodKeys
from multicoco.methods.codi import CODI
from multicoco.methods.sim_cot import SimCoT


class CODISimCoT(SimCoT, CODI):
    """CODI's rows, stage and loss, to which that of the decoder is added."""

    @classmethod
    def sections(cls) -> dict[str, type[MethodKeys]]:
        return CODI.sections() | SimCoT.sections()
