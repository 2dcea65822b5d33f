"""tokenpools' contract suite on everything that this package brings."""

from fair_halves.arrivals import OfficeHours
from fair_halves.client import OnceMore
from fair_halves.policy import FairHalves
from fair_halves.router import TwoChoices

from tokenpools.testing import ArrivalsContract, ClientContract, PolicyContract, RouterContract


class TestFairHalves(PolicyContract):
    examples = {"half": FairHalves(), "tenth": FairHalves(share=0.1)}


class TestTwoChoices(RouterContract):
    examples = {"default": TwoChoices()}


class TestOfficeHours(ArrivalsContract):
    examples = {"half the day": OfficeHours(), "always": OfficeHours(open_share=1.0)}


class TestOnceMore(ClientContract):
    examples = {"default": OnceMore(), "at once": OnceMore(wait_s=0.0)}
