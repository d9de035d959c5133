"""Bilevel algorithms: hypergradient oracles; each module is imported when one of its names is first asked for."""

from typing import TYPE_CHECKING

from hypergrad.lazy import on_first_use

if TYPE_CHECKING:
    from hypergrad.solvers.bilevel.amigo import AmIGO as AmIGO
    from hypergrad.solvers.bilevel.auto import Auto as Auto
    from hypergrad.solvers.bilevel.blocks import Block as Block
    from hypergrad.solvers.bilevel.bo_rep import BOREP as BOREP
    from hypergrad.solvers.bilevel.bo_rep import EpochSGD as EpochSGD
    from hypergrad.solvers.bilevel.bo_rep import NormalizedMomentum as NormalizedMomentum
    from hypergrad.solvers.bilevel.bome import BOME as BOME
    from hypergrad.solvers.bilevel.bsa import BSA as BSA
    from hypergrad.solvers.bilevel.bsvrb import BSVRBv1 as BSVRBv1
    from hypergrad.solvers.bilevel.bsvrb import BSVRBv2 as BSVRBv2
    from hypergrad.solvers.bilevel.choosing import choose as choose
    from hypergrad.solvers.bilevel.compiler import Compiled as Compiled
    from hypergrad.solvers.bilevel.direct import Direct as Direct
    from hypergrad.solvers.bilevel.f2sa import F2SA as F2SA
    from hypergrad.solvers.bilevel.forward import ForwardMode as ForwardMode
    from hypergrad.solvers.bilevel.fsla import FSLA as FSLA
    from hypergrad.solvers.bilevel.hoag import HOAG as HOAG
    from hypergrad.solvers.bilevel.implicit import Implicit as Implicit
    from hypergrad.solvers.bilevel.lv_hba import LVHBA as LVHBA
    from hypergrad.solvers.bilevel.maid import MAID as MAID
    from hypergrad.solvers.bilevel.mrbo import MRBO as MRBO
    from hypergrad.solvers.bilevel.plan import Choice as Choice
    from hypergrad.solvers.bilevel.plan import Forecast as Forecast
    from hypergrad.solvers.bilevel.plan import Plan as Plan
    from hypergrad.solvers.bilevel.pzobo import PZOBO as PZOBO
    from hypergrad.solvers.bilevel.routed import Routed as Routed
    from hypergrad.solvers.bilevel.saba import SABA as SABA
    from hypergrad.solvers.bilevel.scheduled import Scheduled as Scheduled
    from hypergrad.solvers.bilevel.soba import SOBA as SOBA
    from hypergrad.solvers.bilevel.spaba import SPABA as SPABA
    from hypergrad.solvers.bilevel.srba import SRBA as SRBA
    from hypergrad.solvers.bilevel.stocbio import StocBiO as StocBiO
    from hypergrad.solvers.bilevel.sustain import SUSTAIN as SUSTAIN
    from hypergrad.solvers.bilevel.ttsa import TTSA as TTSA
    from hypergrad.solvers.bilevel.unrolled import Unrolled as Unrolled
    from hypergrad.solvers.bilevel.vrbo import VRBO as VRBO
    from hypergrad.solvers.bilevel.zeroth_order import ZerothOrder as ZerothOrder
    from hypergrad.solvers.bilevel.zord import ZoRD as ZoRD

NAMES = {
    "amigo": ("AmIGO",),
    "auto": ("Auto",),
    "blocks": ("Block",),
    "bo_rep": ("BOREP", "EpochSGD", "NormalizedMomentum"),
    "bome": ("BOME",),
    "bsa": ("BSA",),
    "bsvrb": ("BSVRBv1", "BSVRBv2"),
    "choosing": ("choose",),
    "compiler": ("Compiled",),
    "direct": ("Direct",),
    "f2sa": ("F2SA",),
    "forward": ("ForwardMode",),
    "fsla": ("FSLA",),
    "hoag": ("HOAG",),
    "implicit": ("Implicit",),
    "lv_hba": ("LVHBA",),
    "maid": ("MAID",),
    "mrbo": ("MRBO",),
    "plan": ("Choice", "Forecast", "Plan"),
    "pzobo": ("PZOBO",),
    "routed": ("Routed",),
    "saba": ("SABA",),
    "scheduled": ("Scheduled",),
    "soba": ("SOBA",),
    "spaba": ("SPABA",),
    "srba": ("SRBA",),
    "stocbio": ("StocBiO",),
    "sustain": ("SUSTAIN",),
    "ttsa": ("TTSA",),
    "unrolled": ("Unrolled",),
    "vrbo": ("VRBO",),
    "zeroth_order": ("ZerothOrder",),
    "zord": ("ZoRD",),
}
"""Module to its public names: the same as above, where they are imported for type checkers."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_first_use(__name__, {f"{__name__}.{module}": names for module, names in NAMES.items()})
