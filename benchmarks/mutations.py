"""Small changes made to the code on purpose, one at a time: which of them do the tests not see?

    python benchmarks/mutations.py --known                             # those that were not seen once
    python benchmarks/mutations.py --modules=loss,optim --count=20     # drawn at random, 20 of each module

Changes an operator, a comparison, a constant, a dtype; leaves out a term, a keyword (a mask, a precision), an inner
call (a maximum, a clip, a stop_gradient). A change is made to a copy of the package in a temporary folder, and the test
files that stand for the module run there, up to the first failure. What survives is printed, to be read: harmless, or
a test is missing.
"""

import argparse
import ast
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
COPIED = ("barlow_jax", "configs", "tests", "pyproject.toml", "train.py", "linear_eval.py")

TESTS = {  # module: the test files that stand for it
    "loss": ["test_loss.py"],
    "optim": ["test_optim.py", "test_pretrain.py"],
    "metrics": ["test_metrics.py"],
    "augment": ["test_augment.py", "test_views.py"],
    "sharding": ["test_sharding.py", "test_pretrain.py"],
    "pretrain": ["test_pretrain.py", "training/test_nonfinite.py"],
    "model": ["networks/test_resnet.py", "test_pretrain.py"],
    "ops.color": ["ops/test_ops.py", "test_augment.py"],
    "ops.image": ["ops/test_ops.py", "test_augment.py"],
    "networks.resnet": ["networks/test_resnet.py"],
    "training.microbatches": ["training/test_microbatches.py"],
    "training.nonfinite": ["training/test_nonfinite.py"],
    "evaluation.heads": ["evaluation/test_heads.py"],
    "evaluation.classify": ["evaluation/test_classify.py", "evaluation/test_classify_official.py"],
    "data.boxes": ["data/test_boxes.py"],
}

KNOWN = [  # (module, text, what takes its place, the test that holds it), each of which passed all tests once
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
    (
        "loss",
        'stop_gradient(z).T, precision="highest"',
        "stop_gradient(z).T",
        "test_loss.py::test_products_are_asked_for_in_full",
    ),
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
            f"{which}, precision=_PRECISION",
            which,
            "ops/test_ops.py::test_the_crop_keeps_its_levels_on_accelerators",
        )
        for which in ("first, image, (1, 1)", "second, image, (1, 0)")
    ),
    *(
        (module, old, new, "test_precision.py")
        for module, old, new in (
            ("evaluation.heads", 'heads.kernel, precision="highest"', "heads.kernel"),
            ("pretrain", 'head["kernel"], precision="highest"', 'head["kernel"]'),
            ("model", '            precision="highest",', "           "),
            ("model", 'options["precision"] = resnet.precision_of(dtype)', "pass"),
            ("networks.convnet", ', "precision": precision_of(dtype)', ""),
            ("networks.resnet", "        precision=precision_of(dtype),\n", ""),
        )
    ),
    (
        "ops.image",
        "scale = divide(length, size)",
        "scale = length / size",
        "test_augment.py::test_eval_views_equal_resize_and_center_crop",
    ),
]

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


def drawn(modules, count, rng):
    """So many changes of each module: (module, line, old, new, the text of the module with it, test files)."""
    for module in modules:
        text = (ROOT / path_of(module)).read_text()
        edits = sorted(set(Edits(text).found))
        for first, last, new in sorted(rng.sample(edits, min(count, len(edits)))):
            encoded = text.encode()
            after = (encoded[:first] + new.encode() + encoded[last:]).decode()
            line, old = encoded[:first].count(b"\n") + 1, encoded[first:last].decode()
            yield module, line, old, new, after, TESTS[module]


def known(modules):
    for module, old, new, test in KNOWN:
        if module in modules:
            text = (ROOT / path_of(module)).read_text()
            if text.count(old) < 1:
                raise SystemExit(f"{path_of(module)} no longer holds {old!r}; mend KNOWN.")
            yield module, text[: text.index(old)].count("\n") + 1, old, new, text.replace(old, new, 1), [test]


def seen(folder, module, text, tests, limit):
    """Whether the tests fail, or do not end, with this text as the module."""
    changed = folder / path_of(module)
    before = changed.read_text()
    changed.write_text(text)
    tests = [f"tests/{name}" for name in tests]
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, timeout=limit)
        return ended.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        changed.write_text(before)


def one_line(text):
    return " ".join(text.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", default=",".join(TESTS), help=f"Of {', '.join(TESTS)}.")
    parser.add_argument("--count", type=int, default=10, help="Changes of each module.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--limit", type=float, default=300, help="Seconds for the tests of a change.")
    parser.add_argument("--minutes", type=float, default=1e9, help="No change is begun after so many.")
    parser.add_argument("--known", action="store_true", help="Those that no test saw once, instead of drawn ones.")
    options = parser.parse_args()
    modules, begin = options.modules.split(","), time.monotonic()
    unknown = sorted(set(modules) - set(TESTS))
    if unknown:
        parser.error(f"--modules has {', '.join(unknown)}; take some of {', '.join(TESTS)}.")
    changes = known(modules) if options.known else drawn(modules, options.count, random.Random(options.seed))
    tried, survived, sound = {}, {}, set()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        for module, line, old, new, text, tests in changes:
            if time.monotonic() - begin > 60 * options.minutes:
                break
            if tuple(tests) not in sound:  # tests that fail anyway would see everything
                if seen(folder, module, (ROOT / path_of(module)).read_text(), tests, options.limit):
                    raise SystemExit(f"{' '.join(tests)}: fail, or take over {options.limit:g} s, without any change.")
                sound.add(tuple(tests))
            killed = seen(folder, module, text, tests, options.limit)
            tried[module] = tried.get(module, 0) + 1
            survived[module] = survived.get(module, 0) + (not killed)
            word = "seen    " if killed else "SURVIVED"
            print(f"{word} {path_of(module)}:{line}  {one_line(old)}  ->  {one_line(new)}", flush=True)
    print("\n| module | changes | survived |\n|---|---|---|")
    for module, count in tried.items():
        print(f"| {module} | {count} | {survived[module]} |")
    print(f"| all | {sum(tried.values())} | {sum(survived.values())} |")


if __name__ == "__main__":
    main()
