"""The table of fields: every field with values of every wrong kind, and what the configs that come along hold."""

import copy
import math
from types import SimpleNamespace

import commands
import numpy as np
import pytest
from ml_collections import ConfigDict, config_dict

import barlow_jax
from barlow_jax import experiment, fields, knn, loss, model, objectives, optim, plan, probe, transfer
from barlow_jax.data import kinds, order, pipeline
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classify
from barlow_jax.fields import page, together
from barlow_jax.networks import resnet, vit
from barlow_jax.ops import image
from barlow_jax.results import curves, published
from barlow_jax.run import config_files, launch
from barlow_jax.training import microbatches

TABLES = {table.page: table for table in (fields.PRETRAINING, fields.LINEAR, fields.FROZEN, fields.VOC07)}
ARGUMENTS = {
    "tfds": ("imagenet2012", "imagenette", "cifar10", "voc/2007", "stl10"),
    "linear_tfds": ("imagenet2012", "cifar10"),
    "image_folder": ("128", "256", "512", "1024", "2048", "4096"),
    "semi_supervised": ("1", "10", "1_paper", "10_paper"),
    "paper": (*config_files.members("paper"), "table6:both@demo"),
    "transfer": ("places205", "inaturalist18", "places205_vissl", "inaturalist18_vissl"),
}
NAMES = sorted(f.stem for f in (commands.ROOT / "configs").glob("*.py") if f.stem != "__init__")
SHIPPED = [*NAMES, *(f"{name}:{argument}" for name, several in ARGUMENTS.items() for argument in several)]


def table_of(name):
    name = name.partition(":")[0]
    if name in ("frozen", "voc07"):
        return TABLES[name]
    return fields.PRETRAINING if name in commands.pretraining_configs() else fields.LINEAR


def with_images(name):
    """A config that comes along, its path given where it leaves that to people."""
    config = barlow_jax.config(name).unlock()
    config.data.path = config.data.path or ("" if config.data.kind in ("digits", "") else "somewhere")
    return config


@pytest.mark.parametrize("name", SHIPPED)
def test_the_configs_that_come_along_pass_and_hold_the_fields_of_their_table(name):
    config, table = with_images(name), table_of(name)
    fields.check(config, table)
    flat = {}

    def walk(group, prefix=""):
        for key, value in group.items():
            walk(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else flat.update({prefix + key: value})

    walk(config)
    assert flat.keys() == table.fields.keys()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_what_a_config_gets_that_lacks_a_field_is_what_comes_along(table):
    config = barlow_jax.config(table.page).to_dict()
    for name, rule in table.fields.items():
        if rule.default is not fields.rules.REQUIRED:
            value = config
            for part in name.split("."):
                value = value[part]
            assert value == rule.default, name


def test_the_table_has_the_names_that_the_modules_have():
    def values(table, name):
        return {*table.fields[name].says.replace("'", "").split(", ")}

    for table, name, known in (
        (fields.PRETRAINING, "arch", {*model.BACKBONES} - {"pixels"}),  # a baseline, which nobody can train
        (fields.PRETRAINING, "stem", resnet.STEMS),
        (fields.PRETRAINING, "resnet.norm", resnet.NORMS),
        (fields.PRETRAINING, "vit.positions", vit.POSITIONS),
        (fields.PRETRAINING, "vit.pooling", vit.POOLINGS),
        (fields.PRETRAINING, "precision", experiment.PRECISIONS),
        (fields.PRETRAINING, "loss_form", loss.FORMS),
        (fields.PRETRAINING, "objective", objectives.OBJECTIVES),
        (fields.PRETRAINING, "optimizer.name", optim.OPTIMIZERS),
        (fields.PRETRAINING, "microbatch_statistics", microbatches.STATISTICS),
        (fields.PRETRAINING, "data.kind", kinds.KINDS),
        (fields.PRETRAINING, "data.last", order.LAST),
        (fields.PRETRAINING, "views.interpolation", image.KERNELS),
        (fields.LINEAR, "weights", classify.WEIGHTS),
        (fields.LINEAR, "interpolation", image.KERNELS),
        (fields.VOC07, "eval.fit", pipeline.FITS),
    ):
        assert values(table, name) == {*known}, name
    reading = {name: {*chosen.reads.values()} for name, chosen in objectives.OBJECTIVES.items()}
    assert {*fields.together.OF_FORMS} == {name for name, read in reading.items() if "loss_form" in read}
    assert {*published.READ_LAMBD} == {name for name, read in reading.items() if "lambd" in read}
    assert {name for read in reading.values() for name in read} <= fields.PRETRAINING.fields.keys()
    assert {term for chosen in objectives.OBJECTIVES.values() for term in chosen.terms} == {*curves.TERMS}
    assert fields.together.VITS == tuple(model.VITS)
    assert fields.together.CONVNEXTS == tuple(model.CONVNEXTS)
    assert {*kinds.NEED_PATH} == {*fields.together.NEED_PATH}
    for command, table in ((knn, fields.FROZEN), (probe, fields.FROZEN), (transfer, fields.VOC07)):
        assert {*command.FIELDS} <= table.fields.keys()
    assert {*together.OF_ONE_SIZE} == {*model.OF_ONE_SIZE} - {"pixels"}


def test_the_page_is_printed_from_the_table():
    """docs/fields.md; how to write it again stands in barlow_jax/fields/page.py."""
    assert (commands.ROOT / "docs" / "fields.md").read_text() == page.markdown()


INF, NAN = math.inf, math.nan
SCALARS = (0, -1, 1, 2, 0.5, -0.5, 1.5, 0.0, 1e30, -1e30, 1e-30, 10**12, -(10**12), 2**31, 2**32, 10**400)
SCALARS += (INF, -INF, NAN)
OTHERS = (True, False, None, "", "x", "a\nb", "a\0b", "/etc/passwd", "x" * 10**4, "\ud800", b"x", 1j, {}, {"a": 1})
OTHERS += (object(),)
TUPLES = (
    *((one,) for one in (*SCALARS, *OTHERS)),
    (),
    *((a, b) for a in (0, 1, -1, 0.5, NAN, INF, "x", None, 2.5) for b in (0, 1, -1, 0.25, NAN, INF, "x", None, 2.5)),
    (1, 2, 3),
    (0.1, 0.2, 0.3),
    (0.0, 0.0, 0.0),
    (3, 2, 1),
    (1,) * 5000,
    ((1, 2), 3),
    [],
    [1],
    [0.1, 0.2],
    {1, 2},
    np.float32(0.5),
    np.arange(3),
    np.zeros((2, 2)),
)


def changed(plain, name, value):
    """A nested dict with another value for one field."""
    plain = copy.deepcopy(plain)
    *groups, last = name.split(".")
    group = plain
    for part in groups:
        group = group[part]
    group[last] = value
    return plain


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_field_with_values_of_every_kind(table):
    """One sentence that names the field, or a value that the table says may stand; nothing else."""
    plain = with_images(table.page).to_dict()
    refused = 0
    for name, rule in table.fields.items():
        for value in (*SCALARS, *OTHERS, *TUPLES):
            try:
                fields.check(changed(plain, name, value), table)
            except UserError as error:
                refused += 1
                text = str(error)
                assert f"config.{name}" in text and "\n" not in text and text.endswith((".", "?")), text
                assert len(text) < 700, text
            else:
                if value is None and name in table.may_be_open:
                    continue
                assert not rule.fault(value), (name, value)
                assert_sensible(name, value)
    assert refused > 90 * len(table.fields)


def assert_sensible(name, value):
    """What has been let through: finite, of one type, no number below 0."""
    for one in value if isinstance(value, tuple | list) else (value,):
        assert isinstance(one, bool | int | float | str), (name, value)
        if isinstance(one, str):
            assert "\0" not in one and len(one) < 4096
        else:
            assert abs(one) <= 2**50 and (one >= 0 or name == "data.value_range"), (name, value)


SENSELESS = {
    "barlow_twins": """optimizer.learning_rate_weights=0 optimizer.learning_rate_biases=-1 optimizer.weight_decay=-1e-6
        optimizer.momentum=1 optimizer.momentum=-.1 optimizer.final=1.5 optimizer.warmup_start=1.5 scale_loss=0
        lambd=-.1 lambd=2 optimizer.eta=0 optimizer.eta=2 optimizer.eps=0 eval.batch_size=0
        eval.batch_size=-1 eval.knn_k=0
        eval.knn_temperature=0 eval.knn_bank=-1 data.kind='foldr' data.canvas=0 data.threads=-1 seed=2**32 seed=-1
        epochs=10**12 batch_size=1 batch_size=256. batch_size=True projector=(8,0) projector=(8,8.5) projector=512
        image_size=4 image_size=0 views.crop_scale=(.5,.1) views.crop_scale=(.1,.5,1.) views.crop_scale=(0.,1.)
        views.crop_scale=(.1,1.4) views.crop_ratio=(2.,1.) views.blur_sigma=(2.,.1) views.blur=(1.,) views.blur=.5
        views.hue=.6 views.rotation=181 views.mean=(.5,.5) views.std=(0.,.5,.5) views.flip=-.1 data.channels=2
        data.max_bad_fraction=1.1 data.path='' data.file_list='/a'*3000 warmup_epochs=1000 eval.crop=300
        eval.knn_k=60_000
        views.number=1 views.number=2.5 views.small=-1 views.small=65 views.small_size=4 views.small_scale=(.1,1.2)
        views.ramp_sizes=(16,) views.ramp_sizes=(32,16) views.ramp_epochs=(0,) views.ramp_epochs=(5,)
        microbatches=3 microbatches=2048 reference_world_size=0 data.canvas=200 wandb=1 wandb='no' log_every_steps=0
        keep_checkpoints=0 profile_steps=(5,) profile_steps=(4,3) max_skipped=0 arch='pixels' arch='convnet'
        optimizer='lars' data=None views={} seed={'a':1}""",
    "linear": """seeds=0 seeds=10**12 optimizer.learning_rate_classifier=0 optimizer.learning_rate_backbone=.1
        weights='finetune' weights=1 optimizer.schedule='steps' optimizer.milestones=(5,) optimizer.factor=0
        optimizer.factor=1.1 flip=2 crop_scale=(.5,1.5) crop_ratio=(0.,1.) eval.crop=300 eval.resize=3
        eval.every_epochs=0
        protocol='a\\nb' precision='float16' optimizer.nesterov=1 optimizer.momentum=1. data.threads=1e3""",
    "frozen": """k=() k=(1.5,) k=3 k=(0,) temperature=0 bank=-1 shots=(0,) shot_seeds=-1 learning_rates=(float('nan'),)
        learning_rates=() weight_decays=(-1.,) momentum=float('nan') epochs=0 held_out=0 held_out=1 passes=-1 seeds=0
        image_size=-1 standardize=None data.kind='voc'""",
    "voc07": """costs=() costs=(0.,) costs=(float('inf'),) costs=1. difficult='kept' eval.fit='stretch'
        data.kind='folder'
        data.path='' data.train='' data.val='' data.max_bad_fraction=-1 eval.crop=300""",
}


@pytest.mark.parametrize("page_name", TABLES)
def test_values_that_cannot_work_are_refused(page_name):
    plain = with_images(page_name).to_dict()
    for case in SENSELESS[page_name].split():
        name, _, value = case.partition("=")
        with pytest.raises(UserError) as refused:
            fields.check(changed(plain, name, eval(value)), TABLES[page_name])
        assert f"config.{name}" in str(refused.value) and "\n" not in str(refused.value), refused.value


@pytest.mark.parametrize(
    "page_name,change,sentence",
    [
        ("barlow_twins", {"remat": "blocks", "arch": "convnet", "image_size": 32}, "no residual blocks: take 'none'"),
        (
            "barlow_twins",
            {"arch": "vit_small", "vit.patch": 15},
            "config.vit.patch is 15 with config.image_size 224 and",
        ),
        ("barlow_twins", {"arch": "vit_small", "vit.patch": 1}, "more than 16,384 patches: take larger ones"),
        ("barlow_twins", {"arch": "vit_small", "eval.crop": 192}, "positions are for images of one size"),
        (
            "barlow_twins",
            {"arch": "vit_small", "stem": "cifar"},
            "a ViT has no stem: take 'imagenet', and config.vit.pat",
        ),
        (
            "demo",
            {"resnet.width": 0.5},
            "config.resnet.width is 0.5 with config.arch 'convnet'; this network is no ResN",
        ),
        ("cifar10", {"resnet.width": 0.3}, "config.resnet.width is 0.3 with .* take a multiple of 1/64"),
        (
            "barlow_twins",
            {"optimizer.backbone_start": 1000},
            "config.optimizer.backbone_start is 1000 with config.epochs 1000; the backbone would never move",
        ),
        ("cifar10", {"arch": "convnext_tiny"}, "a ConvNeXt has a stem of its own, for large images: take 'imagenet'"),
        (
            "barlow_twins",
            {"arch": "convnext_tiny", "image_size": 28},
            "config.image_size is 28 .* take 32 pixels or mo",
        ),
        (
            "barlow_twins",
            {"arch": "convnext_base", "eval.crop": 31},
            "config.eval.crop is 31 .* take 32 pixels or more",
        ),
        (
            "barlow_twins",
            {"arch": "convnext_tiny", "views.small": 2, "views.small_size": 24},
            "config.views.small_size is 24 .* take 32 pixels or more",
        ),
        (
            "barlow_twins",
            {"arch": "convnext_tiny", "views.ramp_sizes": (24, 160), "views.ramp_epochs": (2, 5)},
            "config.views.ramp_sizes is .* take 32 pixels or more",
        ),
        ("barlow_twins", {"data.last": "keep", "reference_world_size": 3}, "set config.data.last='wrap'"),
        ("barlow_twins", {"data.kind": "digits", "data.path": "x"}, "built in, so leave it empty"),
        ("barlow_twins", {"data.kind": "tfds"}, "config.data.name is empty with config.data.kind 'tfds'; name a data"),
        ("barlow_twins", {"data.kind": "npz", "data.file_list": "x"}, "config.data.file_list is 'x'.* leave it empty"),
        (
            "barlow_twins",
            {"objective": "nt_xent", "loss_form": "dual"},
            "objective has one form: take 'auto'",
        ),
        ("barlow_twins", {"predictor": (64, 32)}, "both end in the same width"),
        ("barlow_twins", {"predictor": (64, 32), "projector": ()}, "a predictor stands behind a projector"),
        ("barlow_twins", {"objective": "mixed_barlow_twins", "stop_gradient": True}, "its third view has neither"),
        (
            "barlow_twins",
            {"objective": "mixed_barlow_twins", "views.number": 3},
            "third view of two: take 2, or another",
        ),
        (
            "barlow_twins",
            {"objective": "mixed_barlow_twins", "views.small": 1},
            "third view of two: take 0, or another",
        ),
        ("barlow_twins", {"predictor": (64, 8192), "views.number": 4}, "knows no others: take 2, or leave it out"),
        ("barlow_twins", {"stop_gradient": True, "views.small": 6}, "knows no others: take 0, or leave it out"),
        (
            "barlow_twins",
            {"views.small": 6, "microbatches": 2, "microbatch_statistics": "batch"},
            "are of views of one size: take 'micro'",
        ),
        ("barlow_twins", {"views.small": 6, "views.small_size": 600}, "it must not be smaller than the crop"),
        ("demo", {"views.small": 2}, "config.arch is 'convnet' with config.views.small 2; .* take a resnet, or 0"),
        (
            "barlow_twins",
            {"views.ramp_sizes": (160, 192), "views.ramp_epochs": (5,)},
            "config.views.ramp_epochs is .5,. with config.views.ramp_sizes .160, 192.; each size has an epoch",
        ),
        ("barlow_twins", {"views.ramp_sizes": (64, 96), "views.ramp_epochs": (5, 5)}, "an epoch of its own"),
        ("barlow_twins", {"views.ramp_sizes": (64,), "views.ramp_epochs": (1000,)}, "would end on the ramp"),
        ("barlow_twins", {"views.ramp_sizes": (224,), "views.ramp_epochs": (5,)}, "rises to config.image_size"),
        ("demo", {"views.ramp_sizes": (16,), "views.ramp_epochs": (5,)}, r"images of one size: take a resnet, or \(\)"),
        ("linear", {"seed": 2**32 - 1, "seeds": 2}, "config.seed is 4294967295 with config.seeds 2; the last seed"),
        ("linear", {"optimizer.schedule": "steps", "optimizer.milestones": (3, 3)}, "rising and below config.epochs"),
        ("frozen", {"bank": 5, "k": (10, 20)}, "config.k is .10, 20. with config.bank 5"),
        ("frozen", {"seed": 2**32 - 2}, "config.seed is 4294967294 with config.shot_seeds 5"),
        ("frozen", {"eval.crop": 300, "eval.resize": 256}, "it must not be larger"),
    ],
)
def test_fields_that_do_not_go_together(page_name, change, sentence):
    plain = with_images(page_name).to_dict()
    for name, value in change.items():
        plain = changed(plain, name, value)
    with pytest.raises(UserError, match=sentence):
        fields.check(plain, table_of(page_name))


def test_a_config_from_before_a_whole_group_gets_it():
    config = with_images("barlow_twins")
    del config.vicreg, config.objective, config.predictor
    fields.check(config, fields.PRETRAINING)
    assert config.to_dict() == with_images("barlow_twins").to_dict()


def test_unknown_and_missing_fields_are_named():
    def refusal(change, needed=None):
        config = with_images("barlow_twins")
        change(config)
        with pytest.raises(UserError) as refused:
            fields.check(config, fields.PRETRAINING, needed)
        return str(refused.value)

    def without(config):
        del config.optimizer.eta

    missing = refusal(without)
    assert missing.startswith("config.optimizer.eta is missing; start from barlow_jax.config('barlow_twins')")
    assert refusal(lambda c: c.update(batchsize=8)) == "config.batchsize is no field; did you mean config.batch_size?"
    assert refusal(lambda c: c.update(eta=8)) == "config.eta is no field; did you mean config.optimizer.eta?"
    assert "config.qqq is no field; configs/barlow_twins.py has" in refusal(lambda c: c.update(qqq={"a": 8}))
    asked = refusal(lambda c: c.update(seed=config_dict.required_placeholder(int)))
    assert asked.startswith("config.seed has no value")


def test_a_config_from_before_a_field_was_there_means_what_it_meant():
    config = barlow_jax.config("demo").unlock()
    del config.profile_steps
    config.lock()
    experiment.check(config)
    assert config.profile_steps == () and config.is_locked


def test_a_command_on_frozen_features_needs_its_own_fields_only():
    config = with_images("frozen")
    del config.held_out, config.passes
    fields.check(config, fields.FROZEN, needed=knn.FIELDS)
    with pytest.raises(UserError, match="config.held_out is missing"):
        fields.check(config, fields.FROZEN, needed=probe.FIELDS)
    config.momentum = 2.0
    with pytest.raises(UserError, match="config.momentum is 2.0; it must be below 1"):
        fields.check(config, fields.FROZEN, needed=knn.FIELDS)


def test_more_steps_than_a_program_counts_are_refused():
    config = barlow_jax.config("demo").unlock()
    config.epochs = 10**6
    with pytest.raises(UserError, match="config.epochs is 1000000, which makes 10000000000 steps"):
        experiment.optimizer(config, 10**4)


@pytest.mark.parametrize(
    "flags,given,sentence",
    [
        (fields.EMBED, {"batch_size": 0}, "--batch_size is 0; it must be at least 1."),
        (fields.EMBED, {"batch_size": 10**9}, "--batch_size is 1000000000; it must be at most 1048576."),
        (fields.EMBED, {"threads": -1}, "--threads is -1; it must be at least 1, or 0 (one a core)."),
        (fields.EMBED, {"max_bad_fraction": NAN}, "--max_bad_fraction is nan; it must be a finite number."),
        (fields.EMBED, {"threshold": 1.5}, "--threshold is 1.5; it must be at most 1."),
        (fields.EXPLORE, {"clusters": -1}, "--clusters is -1; it must be at least 1, or 0 (none)."),
        (fields.EXPLORE, {"nearest": 0}, "--nearest is 0; it must be at least 1."),
        (fields.PLAN, {"memory": -1.0}, "--memory is -1.0; it must be at least 0.001, or 0.0 (the chip's usual)."),
        (fields.PLAN, {"memory": INF}, "--memory is inf; it must be a finite number, or 0.0 (the chip's usual)."),
        (fields.PLAN, {"images_per_core": 0.0}, "--images_per_core is 0.0; it must be at least 0.001."),
        (fields.PLAN, {"images": -5}, "--images is -5; it must be at least 1, or 0 "),
    ],
)
def test_flags_out_of_range_are_one_sentence(flags, given, sentence):
    usual = {
        "canvas": 0,
        "max_pixels": 0,
        "batch_size": 256,
        "threads": 0,
        "max_bad_fraction": 0.01,
        "threshold": 0.95,
        "most": 10,
        "clusters": 0,
        "outliers": 0,
        "nearest": 10,
        "label_next": 0,
        "images": 0,
        "memory": 0.0,
        "images_per_core": 900.0,
    }
    fields.check_flags(SimpleNamespace(**usual), flags)
    with pytest.raises(UserError) as refused:
        fields.check_flags(SimpleNamespace(**usual | given), flags)
    assert str(refused.value).startswith(sentence)


LINES = [
    ("demo", "--config.seed=99999999999999999999", "config.seed is 99999999999999999999; it must be at most"),
    ("demo", "--config.epochs=1000000000000", "config.epochs is 1000000000000; it must be at most 1000000"),
    ("demo", "--config.lambd=nan", "config.lambd is nan; it must be a finite number"),
    (
        "demo",
        "--config.views.crop_scale=(.1,.2,.3)",
        "config.views.crop_scale is .0.1, 0.2, 0.3.; it must have 2 values",
    ),
    ("demo", "--config.projector=(8,-8)", "config.projector is .8, -8.; each must be at least 1"),
    ("demo", "--config.projector=(8.5,8)", "config.projector"),
    ("demo", "--config.views.blur=('a','b')", "config.views.blur"),
    ("demo", "--config.data.threads=-1", "config.data.threads is -1; it must be at least 1, or 0 .one a core."),
    (
        "demo",
        "--config.data.kind=foldr",
        "config.data.kind is 'foldr'; it is one of folder, tfds, tar, parquet, npz",
    ),
    ("demo", "--config.data.path=x", "config.data.path is 'x' with config.data.kind 'digits'"),
    ("demo", "--config.eval.knn_k=0", "config.eval.knn_k is 0; it must be at least 1"),
    ("demo", "--config.warmup_epochs=100", "config.epochs is 100 with config.warmup_epochs 100"),
    ("demo", "--config.wandb=2", "config.wandb"),
    ("barlow_twins", "--config.data.name=x", "config.data.path is empty with config.data.kind 'folder'; point it to"),
    ("linear", "--config.seeds=1000000000000", "config.seeds is 1000000000000; it must be at most 10000"),
    ("linear", "--config.eval.crop=300", "config.eval.crop is 300 with config.eval.resize 256; the crop is cut out"),
    ("frozen", "--config.k=(1.5,)", "config.k"),
    ("frozen", "--config.learning_rates=(1e999,)", "config.learning_rates is .inf,.; each must be a finite number"),
    ("voc07", "--config.costs=(-1.,)", "config.costs"),
]


@pytest.mark.parametrize("name,word,sentence", LINES)
def test_a_line_of_a_command_is_refused_in_one_sentence(name, word, sentence):
    flag = launch.Flags()
    flag.config("")
    with pytest.raises(UserError, match=sentence) as refused:
        fields.check(flag.parsed(["command", f"--config={name}", word]).config, table_of(name))
    assert "\n" not in str(refused.value)


def test_a_plan_of_a_config_that_cannot_work_is_refused_before_anything():
    config = barlow_jax.config("barlow_twins").unlock()
    del config.profile_steps
    config.optimizer.momentum = 1.0
    wanted = SimpleNamespace(config=config, topology="", images=0, memory=0.0, images_per_core=900.0)
    with pytest.raises(UserError, match="config.optimizer.momentum is 1.0; it must be below 1"):
        plan.main(wanted)
