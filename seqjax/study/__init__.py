"""Studies: many models, which differ in traced numbers and in their seeds, trained as one program."""

from seqjax.study.engine import Memory as Memory
from seqjax.study.engine import Plan as Plan
from seqjax.study.engine import over_members as over_members
from seqjax.study.engine import predict_memory as predict_memory
from seqjax.study.parts import Study as Study
from seqjax.study.parts import make_plan as make_plan
from seqjax.study.parts import rung_steps as rung_steps
from seqjax.study.run import Outcome as Outcome
from seqjax.study.run import run_study as run_study
from seqjax.study.standings import Result as Result
from seqjax.study.standings import Standings as Standings
