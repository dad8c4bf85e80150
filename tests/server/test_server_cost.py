"""Parameters and FLOPs of one record: a formula's count, python loops included, nothing kept from before."""

from __future__ import annotations

import numpy as np
import torch

from secure_fed.methods import build
from secure_fed.methods.base import Imputation
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.server.cost import cost_of


class Looping(ZeroFill):
    """Multiplies a feature by a square matrix, `turns` times in a python loop."""

    turns = 5

    def impute(self, model, batch, features, context=None):
        imputed = {}
        for name, value in features.items():
            weight, left = torch.eye(value.shape[1]), value
            for _ in range(self.turns if not batch.presence[name].all() else 0):
                left = left @ weight
            imputed[name] = Imputation(left)
        return imputed


def test_parameters_are_the_components(shape) -> None:
    found = cost_of(shape.federation.method, shape.model, shape.records)
    assert found.parameters == shape.model.component_sizes()
    assert sum(found.parameters.values()) == sum(p.numel() for p in shape.model.parameters())


def test_loops_of_a_method_are_counted_turn_by_turn(shape) -> None:
    config = shape.federation.config
    width = config.model.feature_width
    looping, zero = (cost_of(method(config.method), shape.model, shape.records) for method in (Looping, ZeroFill))
    assert looping.imputation == dict.fromkeys(("image", "text"), Looping.turns * 2 * width**2)
    assert zero.imputation == {"image": 0, "text": 0}
    assert looping.inference == zero.inference, "with everything present it does nothing"


def test_fins_imputation_is_its_translators_matrix_products(shape) -> None:
    found = cost_of(build(shape.federation.config.method), shape.model, shape.records)
    products = {
        name: sum(2 * p.numel() for p in shape.model.component_parameters(name) if p.dim() == 2)
        for name in ("translator.image_to_text", "translator.text_to_image")
    }
    assert products["translator.image_to_text"] > 0
    for lacking, needed in (("image", "translator.text_to_image"), ("text", "translator.image_to_text")):
        assert products[needed] <= found.imputation[lacking] <= sum(products.values())
    zero = cost_of(ZeroFill(shape.federation.config.method), shape.model, shape.records)
    assert found.inference == zero.inference, "a complete record has nothing translated"


def test_an_inference_has_the_heads_product_and_the_same_count_at_every_call(shape) -> None:
    method = ZeroFill(shape.federation.config.method)
    shape.model.prepare(shape.records.select([0]))
    first = cost_of(method, shape.model, shape.records)
    last = shape.records.select(np.arange(len(shape.records))[::-1].copy())
    assert first == cost_of(method, shape.model, last), "values that a cache holds are computed again"
    head = 2 * shape.model.fusion.weight.numel()
    image = 2 * sum(p.numel() for p in shape.model.component_parameters("encoder.image") if p.dim() == 2)
    assert first.inference >= head + image


def test_a_hold_out_without_a_complete_record_still_has_the_cost_of_one(shape) -> None:
    method = ZeroFill(shape.federation.config.method)
    lacking = shape.records.without({"text"})
    assert cost_of(method, shape.model, lacking).inference == cost_of(method, shape.model, shape.records).inference
