"""Small changes made to the code on purpose, one at a time: which of them do the tests not see?

    python benchmarks/mutations.py --known                             # those that were not seen once
    python benchmarks/mutations.py --modules=loss,optim --count=20     # drawn at random, 20 of each module

Changes an operator, a comparison, a constant, a dtype; leaves out a term, a keyword (a mask, a precision), an inner
call (a maximum, a clip, a stop_gradient). A change is made to a copy of the package in a temporary folder, and the test
files that stand for the module run there, up to the first failure, in a fork of one process that has loaded JAX and
TensorFlow once and keeps what is compiled. In the end every test that saw a change runs without any. What survives is
printed, to be read: harmless, or a test is missing.
"""

import argparse
import ast
import collections
import contextlib
import importlib
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import zlib

from harmless_changes import HARMLESS
from known_changes import KNOWN

ROOT = pathlib.Path(__file__).parent.parent
COPIED = ("barlow_jax", "benchmarks", "configs", "docs", "tests", "pyproject.toml", "README.md")
COPIED += ("train.py", "linear_eval.py")

_FAULTS = [  # of a file whose tests wait for reading threads
    "data/test_faults.py::test_unreadable_images_are_replaced_by_the_next",
    "data/test_faults.py::test_evaluation_masks_what_it_cannot_read",
]
_STEPS = "objectives/test_steps.py::"
TESTS = {  # module: the test files that stand for it, the cheapest first
    "loss": ["test_loss.py"],
    "optim": ["test_optim.py", "test_pretrain.py"],
    "metrics.accuracy": ["metrics/test_accuracy.py"],
    "metrics.embeddings": ["metrics/test_embeddings.py"],
    "metrics.neighbours": ["metrics/test_neighbours.py"],
    "metrics.ranks": ["metrics/test_ranks.py"],
    "augment": ["test_augment.py", "test_views.py"],
    "sharding": [
        "test_sharding.py",
        "test_views.py",
        "test_pretrain.py",
        "run/test_compilation_cache.py::test_deterministic_is_an_option_of_gpus_and_reaches_the_compiler",
    ],
    "pretrain": [
        "training/test_nonfinite.py",
        "test_pretrain.py",
        f"{_STEPS}test_a_step_shows_the_terms_of_its_objective",
    ],
    "model": [
        "networks/test_resnet.py",
        "test_pretrain.py",
        f"{_STEPS}test_a_predictor_is_of_the_first_view_and_of_training_alone",
        f"{_STEPS}test_a_projector_without_batch_norm_is_its_matrices_and_relus",
    ],
    "ops.color": ["ops/test_ops.py", "test_augment.py"],
    "ops.image": ["ops/test_ops.py", "test_augment.py"],
    "networks.resnet": ["networks/test_resnet.py"],
    "networks.convnet": [
        "networks/test_resnet.py",
        "test_precision.py::test_on_accelerators_it_is_what_it_is_on_a_cpu",
    ],
    "networks.convnext": ["networks/test_convnext.py"],
    "networks.vit": ["networks/test_vit.py", "test_vit_runs.py"],
    "networks.windows": ["networks/test_windows.py", "networks/test_vit.py"],
    "objectives.__init__": ["objectives/test_objectives.py", "objectives/test_steps.py"],
    "objectives.ablations": ["objectives/test_objectives.py"],
    "objectives.lejepa": ["objectives/test_objectives.py"],
    "objectives.mixed": ["objectives/test_objectives.py"],
    "objectives.normalize": ["objectives/test_objectives.py"],
    "objectives.nt_xent": ["objectives/test_objectives.py"],
    "objectives.vicreg": ["objectives/test_objectives.py"],
    "networks.batch_norm": ["networks/test_batch_norm.py", "networks/test_resnet.py"],
    "training.microbatches": ["training/test_microbatches.py"],
    "training.nonfinite": ["training/test_nonfinite.py"],
    "training.loss_scale": ["training/test_nonfinite.py"],
    "training.averaging": ["training/test_averaging.py"],
    "training.drawn": ["training/test_drawn.py"],
    "training.feed": ["training/test_feed.py"],
    "training.presets": ["training/test_presets.py"],
    "training.first_fault": ["training/test_first_fault.py", "training/test_nonfinite.py"],
    "training.viewing": ["test_experiment.py", "training/test_feed.py", "training/test_drawn.py"],
    "evaluation.features": ["evaluation/test_features.py"],
    "evaluation.heads": ["evaluation/test_heads.py"],
    "evaluation.classify": ["evaluation/test_classify.py", "evaluation/test_classify_official.py"],
    "evaluation.svm": ["test_transfer.py"],
    "evaluation.clusters": ["evaluation/test_clusters.py"],
    "evaluation.label_next": ["evaluation/test_clusters.py"],
    "evaluation.pairs": ["evaluation/test_pairs.py"],
    "evaluation.nearest": ["evaluation/test_clusters.py", "test_explore.py"],
    "evaluation.maps": ["evaluation/test_maps.py"],
    "results.measured": ["results/test_verdict.py", "results/test_watching.py"],
    "results.verdict": ["results/test_verdict.py"],
    "data.boxes": ["data/test_boxes.py", "data/test_pipeline.py"],
    "data.order": ["data/test_order.py"],
    "data.pixels": ["data/test_pixels.py", "data/test_exif.py"],
    "data.levels": ["data/test_sensors.py", "data/test_pixels.py"],
    "data.sensors": ["data/test_sensors.py"],
    "data.mapped": ["data/test_mapped.py"],
    "data.window": [
        *("data/test_pipeline_reduced.py", "data/test_pipeline_evaluation.py", "data/test_pixels.py"),
        "data/test_exif.py",
    ],
    "data.decode": [
        "data/test_pipeline_reduced.py",
        "data/test_pipeline_evaluation.py",
        *_FAULTS,
        "data/test_pixels.py",
    ],
    "data.pipeline": ["data/test_pipeline.py", "data/test_pipeline_evaluation.py", *_FAULTS],
    "data.records": ["data/test_records.py", "data/test_protocol.py::test_a_fingerprint_follows_the_pixels"],
    "data.listed": ["data/test_listed.py"],
    "data.sources": ["data/test_sources.py", "data/test_protocol.py"],
    "data.walk": ["data/test_walk.py", "data/test_sources.py", "data/test_kept.py", "data/test_paths.py"],
    "data.kept": ["data/test_kept.py"],
    "data.paths": ["data/test_paths.py", "data/test_protocol.py"],
    "data.kinds": ["data/test_kinds.py"],
    "data.digits": ["data/test_digits.py"],
    "data.fingerprint": ["data/test_protocol.py", "data/test_sources.py"],
    "data.readers": ["data/test_pipeline.py", *_FAULTS],
    "data.voc": ["data/test_voc.py"],
    "run.checkpoint": ["run/test_checkpoint.py", "run/test_checkpoint_faults.py"],
    "run.manifest": ["run/test_checkpoint.py", "run/test_checkpoint_faults.py", "run/test_owners.py"],
    "weights.naming": ["weights/test_files.py"],
    "weights.files": ["weights/test_files.py", "weights/test_finite.py"],
    "weights.file_arrays": ["weights/test_files.py", "weights/test_safetensors_reader.py"],
    "weights.finite": ["weights/test_finite.py"],
    "weights.peers": ["weights/test_peers.py", "weights/test_files.py"],
    "weights.pickle_machine": ["weights/test_pickle_machine.py", "weights/test_files.py"],
    "weights.pickle_objects": ["weights/test_pickle_machine.py", "weights/test_files.py"],
    "weights.pickle_reader": ["weights/test_pickle_machine.py", "weights/test_files.py"],
    "weights.pickle_writer": ["weights/test_files.py"],
    "weights.safetensors_reader": ["weights/test_safetensors_reader.py"],
    "weights.as_run": ["weights/test_as_run.py"],
    "export": ["test_export.py", "weights/test_hub.py", "weights/test_finite.py"],
}

NAMES = ["loss", "networks", "model", "optim", "pretrain", "training", "ops", "augment", "sharding", "data"]
NAMES += ["objectives", "evaluation", "results", "metrics", "run", "weights", "export"]

BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.Pow: "*"}
BINARY |= {ast.BitAnd: "|", ast.BitOr: "&"}
COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
INNER = {"maximum", "minimum", "clip", "stop_gradient", "where", "abs", "floor", "round", "sqrt", "square"}


class Edits(ast.NodeVisitor):
    """All single changes of a module: (first, last) places in its text and what stands there instead."""

    def __init__(self, text):
        self.text, self.found = text, []
        self.lines = [0]
        for line in text.encode().split(b"\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)
        self.visit(ast.parse(text))

    def span(self, node):
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[node.end_lineno - 1] + node.end_col_offset

    def source(self, node):
        return ast.get_source_segment(self.text, node)

    def put(self, node, new):
        self.found.append((*self.span(node), f"({new})"))

    def visit_FunctionDef(self, node):
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:  # neither the annotations nor the decorators
            self.visit(statement)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_Raise(self, node):
        """What a refusal says is for its own tests."""

    def visit_JoinedStr(self, node):
        """Text."""

    def visit_BinOp(self, node):
        left, right = self.source(node.left), self.source(node.right)
        if type(node.op) in BINARY and not isinstance(node.left, ast.JoinedStr):
            self.put(node, f"({left}) {BINARY[type(node.op)]} ({right})")
        if isinstance(node.op, (ast.Add, ast.Sub)):
            self.put(node, left)
        self.generic_visit(node)

    def visit_Compare(self, node):
        if len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
            left, right = self.source(node.left), self.source(node.comparators[0])
            self.put(node, f"({left}) {COMPARED[type(node.ops[0])]} ({right})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        self.put(node, self.source(node.operand))
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self.put(node, self.source(node.body))
        self.put(node, self.source(node.orelse))
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.put(node, not node.value)
        elif isinstance(node.value, int):
            self.put(node, node.value + 1)
        elif isinstance(node.value, float):
            self.put(node, node.value * 1.1 if node.value else 0.1)

    def visit_Attribute(self, node):
        if node.attr == "float32" and self.source(node.value) == "jnp":
            self.put(node, "jnp.bfloat16")
        self.generic_visit(node)

    def visit_Call(self, node):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in INNER:
            for argument in node.args[1:] if name == "where" and len(node.args) == 3 else node.args[:1]:
                self.put(node, self.source(argument))
        function, arguments = self.source(node.func), [*node.args, *node.keywords]
        for keyword in node.keywords:
            kept = ", ".join(self.source(a) for a in arguments if a is not keyword)
            self.put(node, f"{function}({kept})")
        self.generic_visit(node)


def path_of(module):
    return pathlib.Path("barlow_jax", *module.split(".")).with_suffix(".py")


def modules_of(name):
    """The modules of a name: itself, or all of a room."""
    return [module for module in TESTS if module == name or module.startswith(f"{name}.")]


def drawn(names, count, seed):
    """So many changes of each name, in turn: (name, module, line, old, new, the module's text with it, test files).

    What is drawn of a name depends on nothing but the seed and its modules' text, and more of it hold fewer.
    """
    texts = {module: (ROOT / path_of(module)).read_text() for name in names for module in modules_of(name)}
    edits = {}
    for name in names:
        found = [(module, *edit) for module in modules_of(name) for edit in sorted(set(Edits(texts[module]).found))]
        random.Random(f"{seed} {name}").shuffle(found)
        edits[name] = found[:count]
    for place in range(count):
        for name in names:
            for module, first, last, new in edits[name][place : place + 1]:
                encoded = texts[module].encode()
                after = (encoded[:first] + new.encode() + encoded[last:]).decode()
                line, old = encoded[:first].count(b"\n") + 1, encoded[first:last].decode()
                yield name, module, line, old, new, after, TESTS[module]


def known(names):
    for module, old, new, test in KNOWN:
        for name in names:
            if module in modules_of(name):
                text = (ROOT / path_of(module)).read_text()
                if text.count(old) < 1:
                    raise SystemExit(f"{path_of(module)} no longer holds {old!r}; mend KNOWN.")
                line = text[: text.index(old)].count("\n") + 1
                yield name, module, line, old, new, text.replace(old, new, 1), [test]


def warm(folder, compiled):
    """What every test process would load and compile again: loaded once here, and compiled once for all."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(folder)}
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name in ("pytest", "jax", "flax.nnx", "optax", "ml_collections", "orbax.checkpoint", "tensorflow", "PIL.Image"):
        importlib.import_module(name)


class FirstFailure:
    """A plugin of pytest that writes down which test, or file, failed first."""

    def __init__(self, path):
        self.path = path

    def pytest_runtest_logreport(self, report):
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report):
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid)


def run_tests(folder, tests, limit, *options):
    """What failed first, "no end" after so many seconds, or None: in a fork of this process, and all it started."""
    failure = folder / "failure"
    failure.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            for stream in (1, 2):
                os.dup2(os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.path[0] = str(folder)
            words = ["-x", "-q", "-p", "no:cacheprovider", *options, *tests]
            code = int(sys.modules["pytest"].main(words, plugins=[FirstFailure(failure)]))
        finally:
            os._exit(code)
    try:
        for _ in range(int(limit / 0.05)):  # counted, so that time for which all of it is stopped is none
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return None if status == 0 else failure.read_text() if failure.exists() else "no test"
            time.sleep(0.05)
        return "no end"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def first_failure(folder, module, text, tests, limit):
    """`run_tests` with this text as the module."""
    changed = folder / path_of(module)
    before, times = changed.read_text(), (changed.stat().st_atime, changed.stat().st_mtime)
    changed.write_text(text)
    os.utime(changed, (0, 0))  # never the time that a compiled file was made for
    sys.dont_write_bytecode = True
    try:
        return run_tests(folder, tests, limit)
    finally:
        sys.dont_write_bytecode = False
        changed.write_text(before)
        os.utime(changed, times)


def check_sound(folder, killers, limit):
    """Ends the program if a test that saw a change, or a file that could not be loaded, fails without any."""
    tests, files = ({k for k in killers if ("::" in k) == of_test} for of_test in (True, False))
    for some, options in ((tests, ()), (files, ("--collect-only",))):
        failed = run_tests(folder, sorted(some), limit, *options) if some else None
        if failed:
            print((folder / "output").read_text()[-3000:])
            raise SystemExit(f"{failed}: fails without any change as well.")


def one_line(text):
    return " ".join(text.split())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", default=",".join(NAMES), help=f"Rooms, or of {', '.join(TESTS)}.")
    parser.add_argument("--count", type=int, default=20, help="Changes of each of them.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--minutes", type=float, default=1e9, help="No change is begun after so many.")
    parser.add_argument("--limit", type=float, default=300, help="Seconds for the tests of a change.")
    parser.add_argument("--log", type=pathlib.Path, help="A file to add results to; what it says was seen is not run.")
    parser.add_argument("--compiled", help="A folder that keeps compiled programs for the next run.")
    parser.add_argument("--known", action="store_true", help="Those that no test saw once, instead of drawn ones.")
    options = parser.parse_args()
    options.modules = options.modules.split(",")
    unknown = [name for name in options.modules if not modules_of(name)]
    if unknown:
        parser.error(f"--modules has {', '.join(unknown)}; take rooms, or some of {', '.join(TESTS)}.")
    return options


def harmless(module, line, new):
    """Why nothing comes of a change, or None."""
    text = (ROOT / path_of(module)).read_text().splitlines()[line - 1].strip()
    return next((why for *what, why in HARMLESS if what == [module, text, one_line(new)]), None)


def seen_before(log):
    """{change: the test} of the lines of a log that say that a test failed; what had no end may have been starved."""
    lines = log.read_text().splitlines() if log and log.exists() else []
    seen = [line for line in lines if line.startswith(SEEN) and not line.endswith("[no end]")]
    return dict(line[len(SEEN) :].rsplit("  [", 1) for line in seen)


SEEN, LEFT, HARM = "seen      ", "harmless  ", "SURVIVED  "


def main():
    options, begin = arguments(), time.monotonic()
    changes = known(options.modules) if options.known else drawn(options.modules, options.count, options.seed)
    counts, before, killers = {}, seen_before(options.log), set()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, folder / part)
        warm(folder, options.compiled or folder / "compiled")
        for name, module, line, old, new, text, tests in changes:
            if time.monotonic() - begin > 60 * options.minutes:
                break
            change = f"{path_of(module)}:{line}  {one_line(old)}  ->  {one_line(new)}  {zlib.crc32(text.encode()):08x}"
            failed = before[change].removesuffix("]") if change in before else None
            if failed is None:
                tests = [f"tests/{test}" for test in tests]
                failed = first_failure(folder, module, text, tests, options.limit)
                why = harmless(module, line, new)
                word, about = (SEEN, failed) if failed else (LEFT, why) if why else (HARM, "")
                print(said := f"{word}{change}  [{about}]", flush=True)
                if options.log:
                    with options.log.open("a") as log:
                        log.write(said + "\n")
            else:
                word = SEEN
            killers |= {failed} - {None, "no end", "no test"}
            counts.setdefault(name, collections.Counter()).update([word])
        check_sound(folder, killers, 10 * options.limit)
    print("\n| | changes | seen | harmless | survived |\n|---|---|---|---|---|")
    for name, count in [*counts.items(), ("all", sum(counts.values(), collections.Counter()))]:
        print(f"| {name} | {count.total()} | {count[SEEN]} | {count[LEFT]} | {count[HARM]} |")


if __name__ == "__main__":
    main()
