"""``egraph-opt profile``: measure a bundle on the GPU of this machine."""

import argparse
from pathlib import Path

from egraph_opt.errors import InputRejected, UsageError

SUMMARY = "measure a bundle on this machine's GPU"
DESCRIPTION = """\
Time every library call and every kernel of a bundle, after each kernel was held against float64. Needs Python, numpy
and torch. A bundle holds code that runs on the GPU: profile only bundles of people you trust. What is in the database
already is not measured again, so an interrupted run goes on where it was."""
EXAMPLES = (
    "egraph-opt profile model.bundle -o H200.db",
    "egraph-opt profile model.bundle -o H200-tf32.db --tf32      products with 10 bits of mantissa",
    "egraph-opt profile model.bundle -o guess.db --device roofline   static costs in the place of measurements",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what egraph-opt plan wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="GPU.db", help="the profile database")
    parser.add_argument(
        "--device",
        choices=("cuda", "host", "roofline"),
        default="cuda",
        help="cuda: the GPU here (default); host: the processor in its place, which checks everything but speed;"
        " roofline: static costs of a described GPU, nothing is measured",
    )
    parser.add_argument("--tf32", action="store_true", help="let the GPU's libraries use TF32")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def run(options: argparse.Namespace) -> int:
    """Measure and report what failed."""
    from egraph_opt.cli.progress import shown
    from egraph_opt.extract.profile import Profile
    from egraph_opt.gpu import profiling
    from egraph_opt.gpu.devices import device_of, roofline_key
    from egraph_opt.gpu.files import MODE, Bundle

    bundle = Bundle.read(options.bundle)
    if options.output.is_dir() or not options.output.parent.is_dir():
        raise UsageError(f"the database cannot be written to {options.output}")
    with shown(quiet=options.quiet, every_event=options.verbose > 0) as progress:
        if options.device == "roofline":
            profile = Profile(options.output, roofline_key(bundle.architecture), MODE)
            failures: list[str] = []
            profiling.estimate(bundle, profile)
        else:
            device = device_of(options.device, bundle.architecture, tf32=options.tf32)
            profile = Profile(options.output, device.key, MODE)
            failures = profiling.measure(bundle, device, profile, progress=progress)
    if profile.warning:
        raise InputRejected(profile.warning)
    if not options.quiet:
        for failure in failures:
            print(f"failed: {failure}")
        done = "estimated, not measured" if options.device == "roofline" else "measured"
        print(f"{len(bundle.works) - len(failures)} of {len(bundle.works)} ways {done}; device: {profile.device}")
        print(f"written: {options.output}")
    return 0
