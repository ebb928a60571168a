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

ROOT = pathlib.Path(__file__).parent.parent
COPIED = ("barlow_jax", "benchmarks", "configs", "tests", "pyproject.toml", "train.py", "linear_eval.py")

_FAULTS = [  # of a file whose tests wait for reading threads
    "data/test_faults.py::test_unreadable_images_are_replaced_by_the_next",
    "data/test_faults.py::test_evaluation_masks_what_it_cannot_read",
]
TESTS = {  # module: the test files that stand for it, the cheapest first
    "loss": ["test_loss.py"],
    "optim": ["test_optim.py", "test_pretrain.py"],
    "metrics": ["test_metrics.py"],
    "augment": ["test_augment.py", "test_views.py"],
    "sharding": ["test_sharding.py", "test_views.py", "test_pretrain.py"],
    "pretrain": ["training/test_nonfinite.py", "test_pretrain.py"],
    "model": ["networks/test_resnet.py", "test_pretrain.py"],
    "ops.color": ["ops/test_ops.py", "test_augment.py"],
    "ops.image": ["ops/test_ops.py", "test_augment.py"],
    "networks.resnet": ["networks/test_resnet.py"],
    "training.microbatches": ["training/test_microbatches.py"],
    "training.nonfinite": ["training/test_nonfinite.py"],
    "training.loss_scale": ["training/test_nonfinite.py"],
    "evaluation.heads": ["evaluation/test_heads.py"],
    "evaluation.classify": ["evaluation/test_classify.py", "evaluation/test_classify_official.py"],
    "evaluation.svm": ["test_transfer.py"],
    "data.boxes": ["data/test_boxes.py", "data/test_pipeline.py"],
    "data.order": ["data/test_order.py"],
    "data.pixels": ["data/test_pixels.py"],
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
    "data.walk": ["data/test_walk.py", "data/test_sources.py"],
    "data.kinds": ["data/test_kinds.py"],
    "data.digits": ["data/test_digits.py"],
    "data.fingerprint": ["data/test_protocol.py", "data/test_sources.py"],
    "data.readers": ["data/test_pipeline.py", *_FAULTS],
    "data.voc": ["data/test_voc.py"],
    "run.checkpoint": ["run/test_checkpoint.py", "run/test_checkpoint_faults.py"],
    "run.manifest": ["run/test_checkpoint.py", "run/test_checkpoint_faults.py", "run/test_owners.py"],
    "weights.naming": ["weights/test_files.py"],
    "weights.files": ["weights/test_files.py"],
    "weights.file_arrays": ["weights/test_files.py", "weights/test_safetensors_reader.py"],
    "weights.finite": ["weights/test_finite.py"],
    "weights.peers": ["weights/test_peers.py", "weights/test_files.py"],
    "weights.pickle_machine": ["weights/test_pickle_machine.py", "weights/test_files.py"],
    "weights.pickle_objects": ["weights/test_pickle_machine.py", "weights/test_files.py"],
    "weights.pickle_reader": ["weights/test_pickle_machine.py", "weights/test_files.py"],
    "weights.pickle_writer": ["weights/test_files.py"],
    "weights.safetensors_reader": ["weights/test_safetensors_reader.py"],
    "weights.as_run": ["weights/test_as_run.py"],
    "export": ["test_export.py"],
}

KNOWN = [  # (module, text, what takes its place, the test that holds it): what no test looked at once
    ("sharding", "jax.random.fold_in(jax.random.key(seed), step)", "jax.random.key(seed)", "test_sharding.py"),
    ("augment", "_BOXES = 2", "_BOXES = 1", "test_augment.py::test_boxes_and_views_of_one_key_are_independent"),
    (
        "pretrain",
        "jnp.maximum(known.sum(), 1)",
        "known.size",
        "test_pretrain.py::test_the_probe_counts_labelled_rows_alone",
    ),
    (
        "networks.resnet",
        "x - jax.lax.stop_gradient(self.mean[...])",
        "(x - jax.lax.stop_gradient(self.mean[...])).astype(jnp.bfloat16)",
        "networks/test_resnet.py::test_statistics_of_bfloat16_are_those_of_its_values",
    ),
    (
        "networks.resnet",
        "x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((-3, -2))",
        "x.mean((-3, -2)).astype(jnp.promote_types(x.dtype, jnp.float32))",
        "networks/test_resnet.py::test_features_of_bfloat16_are_pooled_in_float32",
    ),
    (
        "networks.resnet",
        "jnp.maximum(square - jnp.square(mean), 0)",
        "square - jnp.square(mean)",
        "networks/test_resnet.py::test_a_variance_that_rounding_makes_negative_is_zero",
    ),
    (
        "evaluation.classify",
        "ks=(1,), mask=counted",
        "ks=(1,)",
        "evaluation/test_classify.py::test_rows_that_fill_up_the_last_batch_do_not_count_in_what_is_shown",
    ),
    *(
        (
            "evaluation.heads",
            "np.where(std <= 1e-6 * std.max(), 1, std)",
            new,
            "evaluation/test_heads.py::test_a_feature_that_is_constant_is_divided_by_one",
        )
        for new in ("np.where(std == 0, 1, std)", "np.where(std < 1e-6 * std.max(), 1, std)")
    ),
    (
        "data.boxes",
        "return 2 * xp.floor(",
        "return xp.floor(",
        "data/test_boxes.py::test_the_margin_holds_every_cell_that_a_filter_sees",
    ),
    ("loss", 'z, z.T, precision="highest"', "z, z.T", "test_loss.py::test_products_are_asked_for_in_full"),
    (
        "loss",
        'jnp.matmul(z1.T, z2, precision="highest")',
        "jnp.matmul(z1.T, z2)",
        "test_loss.py::test_products_are_asked_for_in_full",
    ),
    (
        "metrics",
        'features.T, precision="highest"',
        "features.T",
        "test_metrics.py::test_similarities_are_asked_for_in_full",
    ),
    *(
        (
            "ops.image",
            f"image, {which}, precision=_PRECISION",
            f"image, {which}",
            "ops/test_ops.py::test_the_crop_asks_for_products_in_full",
        )
        for which in ("first", "second")
    ),
    (
        "ops.image",
        "scale = divide(length, size)",
        "scale = length / size",
        "test_augment.py::test_eval_views_equal_resize_and_center_crop",
    ),
    *(
        (
            "sharding",
            old,
            new,
            "test_sharding.py::test_what_is_split_goes_along_the_longest_axis_that_the_devices_divide",
        )
        for old, new in (
            ("split=False", "split=True"),
            ("x.size < SPLIT_FROM", "x.size <= SPLIT_FROM"),
            ("max(reversed(axes)", "max((axes)"),
        )
    ),
    (
        "sharding",
        "jax.devices() if devices is None else devices",
        "jax.devices()",
        "test_sharding.py::test_a_mesh_is_of_the_devices_it_is_given",
    ),
    (
        "sharding",
        "-(-batch_size // mesh.size) * mesh.size",
        "batch_size // mesh.size * mesh.size",
        "test_sharding.py::test_batch_sizes_that_the_devices_do_not_divide",
    ),
    (
        "metrics",
        "jax.jit(local, out_shardings=NamedSharding(mesh, P()))",
        "jax.jit(local)",
        "test_metrics.py::test_every_process_is_told_the_whole_vote",
    ),
    (
        "metrics",
        "np.maximum.accumulate(precision[::-1])[::-1]",
        "np.maximum.accumulate(precision)",
        "test_metrics.py::test_average_precision",
    ),
    (
        "optim",
        "(norm_p > 0) & (norm_g > 0)",
        "(norm_p > 0) | (norm_g > 0)",
        "test_optim.py::test_a_norm_of_zero_leaves_the_gradient_as_it_is",
    ),
    (
        "optim",
        "old, new, is_leaf=lambda node: isinstance(node, _COUNTS)",
        "old, new",
        "test_optim.py::test_a_withheld_update_counts_for_the_schedules_alone",
    ),
    (
        "optim",
        "node._replace(count=step)",
        "node",
        "test_optim.py::test_a_state_that_goes_on_has_its_step_and_its_momentum",
    ),
    (
        "networks.resnet",
        "x.shape[-3:-1] != (2, 2)",
        "x.shape[3:-1] != (2, 2)",
        "networks/test_resnet.py::test_maps_of_2_by_2_go_round_the_slow_convolution",
    ),
    *(
        ("model", old, new, "networks/test_resnet.py::test_what_a_network_is_unless_told_otherwise")
        for old, new in (
            ("remat: bool = False", "remat: bool = True"),
            ("(8192, 8192, 8192)", "(8193, 8192, 8192)"),
            ("z.astype(jnp.promote_types(z.dtype, jnp.float32))", "z.astype(jnp.promote_types(z.dtype, jnp.bfloat16))"),
        )
    ),
    (
        "model",
        "jnp.zeros_like(norm.var[...]), norm.var[...]",
        "norm.mean[...], norm.var[...]",
        "networks/test_resnet.py::test_moments_at_the_start_are_those_of_the_running_statistics",
    ),
    (
        "pretrain",
        "z[:, 0, :8192], z[:, 1, :8192]",
        "z[:, 1, :8192], z[:, 1, :8192]",
        "test_pretrain.py::test_a_look_at_a_batch_is_the_correlation_of_its_two_views",
    ),
    ("augment", "0.406", "0.446", "test_augment.py::test_the_recipe_unless_told_otherwise_is_the_official_one"),
    (
        "augment",
        "with_hue=recipe.hue > 0",
        "with_hue=recipe.hue >= 0",
        "test_augment.py::test_operations_of_probability_zero_are_left_out",
    ),
    *(
        ("evaluation.svm", old, new, "test_transfer.py::test_fits_that_come_to_their_last_iteration_are_counted")
        for old, new in (
            ("classifier.n_iter_ < MAX_ITER", "classifier.n_iter_ <= MAX_ITER"),
            ("unfinished += not converged", "unfinished += converged"),
            ("sum(unfinished) + (not converged)", "sum(unfinished)"),
            ("MAX_ITER = 2000", "MAX_ITER = 2001"),
        )
    ),
    *(
        ("evaluation.svm", old, new, "test_transfer.py::test_a_class_with_too_few_images_is_one_sentence")
        for old, new in (
            ("(column > 0).sum(), (column < 0).sum()", "(column > 0).sum(), (column <= 0).sum()"),
            ("fewest < FOLDS", "fewest <= FOLDS"),
        )
    ),
    (
        "weights.pickle_machine",
        "size - stream.tell()",
        "size + stream.tell()",
        "weights/test_pickle_machine.py::test_a_stream_is_read_from_where_it_stands",
    ),
    (
        "weights.pickle_reader",
        "place + 8 + storages[key].size > size",
        "place + storages[key].size > size",
        "weights/test_pickle_machine.py::test_legacy_files_whose_counts_are_others",
    ),
    (
        "weights.pickle_writer",
        "None, -1, -1, 0)",
        "None, -1, -1, 1)",
        "test_export.py::test_the_file_of_detectron2_holds_plain_numpy_under_its_names",
    ),
    ("data.sources", "self.labels.max() < 0", "self.labels.max() <= 0", "data/test_sources.py::test_labelled"),
    (
        "data.sources",
        "os.path.commonpath(self.paths) if len(self.paths) > 1 else os.path.dirname(self.paths[0])",
        "os.path.commonpath(self.paths)",
        "data/test_protocol.py::test_a_listing_is_of_names_and_order_wherever_the_files_lie",
    ),
    (
        "data.walk",
        "len(found.left_out) > 10",
        "len(found.left_out) >= 10",
        "data/test_walk.py::test_other_files_are_no_warning",
    ),
    (
        "export",
        '"weight_decay_filter": True',
        '"weight_decay_filter": False',
        "test_export.py::test_the_official_full_checkpoint_goes_there_and_back",
    ),
]

NAMES = ["loss", "networks.resnet", "model", "optim", "pretrain", "training", "ops", "augment", "sharding", "data"]
NAMES += ["evaluation.classify", "evaluation.heads", "evaluation.svm", "metrics", "run", "weights", "export"]

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
    parser.add_argument("--compiled", help="A folder that keeps compiled programs for the next run.")
    parser.add_argument("--known", action="store_true", help="Those that no test saw once, instead of drawn ones.")
    options = parser.parse_args()
    options.modules = options.modules.split(",")
    unknown = [name for name in options.modules if not modules_of(name)]
    if unknown:
        parser.error(f"--modules has {', '.join(unknown)}; take rooms, or some of {', '.join(TESTS)}.")
    return options


def main():
    options, begin = arguments(), time.monotonic()
    changes = known(options.modules) if options.known else drawn(options.modules, options.count, options.seed)
    tried, survived, killers = {}, {}, set()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, folder / part)
        warm(folder, options.compiled or folder / "compiled")
        for name, module, line, old, new, text, tests in changes:
            if time.monotonic() - begin > 60 * options.minutes:
                break
            start = time.monotonic()
            failed = first_failure(folder, module, text, [f"tests/{test}" for test in tests], options.limit)
            killers |= {failed} - {None, "no end", "no test"}
            tried[name] = tried.get(name, 0) + 1
            survived[name] = survived.get(name, 0) + (failed is None)
            word = "SURVIVED" if failed is None else "seen    "
            what = f"{path_of(module)}:{line}  {one_line(old)}  ->  {one_line(new)}"
            print(f"{word} {time.monotonic() - start:3.0f} s {what}  [{failed}]", flush=True)
        check_sound(folder, killers, 10 * options.limit)
    print("\n| | changes | survived |\n|---|---|---|")
    for name, count in tried.items():
        print(f"| {name} | {count} | {survived[name]} |")
    print(f"| all | {sum(tried.values())} | {sum(survived.values())} |")


if __name__ == "__main__":
    main()
