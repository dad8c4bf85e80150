"""An owner's policy that the small run of five sites just meets, in every respect."""

from __future__ import annotations

from secure_fed.client.policy import Policy

STRICT = Policy(
    site="site05",
    data_set="the small run's",
    epsilon=8,
    delta=1e-5,
    unit="record",
    max_records_per_unit=1,
    relation="add_or_remove_one",
    declared_n=200,
    max_rounds_a_day=100,
    max_parameters=10**9,
    max_clip=4.0,
    max_value_bits=20,
    min_corrupt=1,
    min_threshold=4,
    min_cohort=4,
    min_contributors=3,
    dp_only={},
    allowed_methods=("fin",),
    allowed_components=("any",),
    approved_plans=None,
    allow_graph=("complete",),
    allow_unverified_server_step=False,
    lifetime_claim=False,
    compliance=True,
)
