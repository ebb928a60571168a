"""Small changes that no test saw once, for mutations.py, and the test that holds each by now."""

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
        "networks.batch_norm",
        "x - jax.lax.stop_gradient(self.mean[...])",
        "(x - jax.lax.stop_gradient(self.mean[...])).astype(jnp.bfloat16)",
        "networks/test_batch_norm.py::test_statistics_of_bfloat16_are_those_of_its_values",
    ),
    (
        "networks.resnet",
        "x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((-3, -2))",
        "x.mean((-3, -2)).astype(jnp.promote_types(x.dtype, jnp.float32))",
        "networks/test_resnet.py::test_features_of_bfloat16_are_pooled_in_float32",
    ),
    (
        "networks.batch_norm",
        "jnp.maximum(square - jnp.square(mean), 0)",
        "square - jnp.square(mean)",
        "networks/test_batch_norm.py::test_a_variance_that_rounding_makes_negative_is_zero",
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
        "metrics.neighbours",
        'rows.T, precision="highest"',
        "rows.T",
        "metrics/test_neighbours.py::test_similarities_are_asked_for_in_full",
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
            ("networks.resnet", "self.precision = precision_of(dtype)", "self.precision = None"),
        )
    ),
    (
        "training.viewing",
        "bisect.bisect_right",
        "bisect.bisect_left",
        "test_experiment.py::test_a_ramp_is_a_function_of_the_step",
    ),
    (
        "objectives.__init__",
        "2 if other < first else 1",
        "1 if other < first else 1",
        "objectives/test_objectives.py::test_of_more_views_the_mean_over_pairs_or_all_at_once",
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
        "metrics.neighbours",
        "jax.jit(local, out_shardings=NamedSharding(mesh, P()))",
        "jax.jit(local)",
        "metrics/test_neighbours.py::test_every_process_is_told_the_whole_vote",
    ),
    (
        "metrics.accuracy",
        "np.maximum.accumulate(precision[::-1])[::-1]",
        "np.maximum.accumulate(precision)",
        "metrics/test_accuracy.py::test_average_precision",
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
        "data.paths",
        "os.path.commonpath([first, last]) if len(self) > 1 else os.path.dirname(first)",
        "os.path.commonpath([first, last])",
        "data/test_protocol.py::test_a_listing_is_of_names_and_order_wherever_the_files_lie",
    ),
    (
        "data.walk",
        "len(found.left_out) > 10",
        "len(found.left_out) >= 10",
        "data/test_walk.py::test_other_files_are_no_warning",
    ),
    (
        "weights.files",
        '"weight_decay_filter": True',
        '"weight_decay_filter": False',
        "test_export.py::test_the_official_full_checkpoint_goes_there_and_back",
    ),
]
