"""Problems of mathematics with worked solutions, in five levels.

arithmetic, algebra, calculus, proofs, research. Answers are right by construction (an equation is
made from its root, an integral from its antiderivative), and the check computes them anew.
"""

from data_pipelines.synthesis import base
from data_pipelines.synthesis.maths import algebra
from data_pipelines.synthesis.maths import arithmetic
from data_pipelines.synthesis.maths import calculus
from data_pipelines.synthesis.maths import proofs
from data_pipelines.synthesis.maths import research

VERSION = 1
LEVELS: base.ByLevel = (
    arithmetic.MAKERS,
    algebra.MAKERS,
    calculus.MAKERS,
    proofs.MAKERS,
    research.MAKERS,
)
make = base.of_level(LEVELS)
