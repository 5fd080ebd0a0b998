"""Property tests of rewrite rules (needs hypothesis: ``pip install egraph-opt[test]``).

``check_rules(group).raise_on_failure()`` in a test is all a pack of rules needs: see :func:`check_rule`.
"""

from egraph_opt.errors import BackendMissing

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise BackendMissing("egraph_opt.testing needs hypothesis: pip install egraph-opt[test]") from error

from egraph_opt.testing.checking import check_rule, check_rules, programs
from egraph_opt.testing.growth import programs_of
from egraph_opt.testing.report import CheckReport, RuleCheckFailed, RuleReport
from egraph_opt.testing.reproduction import Counterexample
from egraph_opt.testing.strategies import extents, index_maps, tensors
from egraph_opt.testing.trial import Trial, replay
from egraph_opt.testing.values import drawn_values

__all__ = [
    "CheckReport",
    "Counterexample",
    "RuleCheckFailed",
    "RuleReport",
    "Trial",
    "check_rule",
    "check_rules",
    "drawn_values",
    "extents",
    "index_maps",
    "programs",
    "programs_of",
    "replay",
    "tensors",
]
