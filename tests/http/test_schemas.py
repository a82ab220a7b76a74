"""The types of answers: they have the fields of the classes they show."""

from typing import get_type_hints

import attrs

from callbackkit import CallbackConfig, ManagerStats
from callbackkit.delivery.health import EndpointHealth
from callbackkit.http import schemas
from callbackkit.stores.base import Attempt


def test_shown_types_have_the_fields_of_what_they_show() -> None:
    assert get_type_hints(schemas.ConfigShown).keys() == CallbackConfig().shown().keys()
    figures = set(attrs.fields_dict(ManagerStats)) | {"buckets"}
    assert get_type_hints(schemas.StatsShown).keys() == figures
    assert get_type_hints(schemas.EndpointShown).keys() - {"session_id"} == set(
        attrs.fields_dict(EndpointHealth)
    )
    assert get_type_hints(schemas.AttemptShown).keys() == attrs.fields_dict(Attempt).keys()


def test_every_name_is_a_type() -> None:
    for name in schemas.__all__:
        assert isinstance(getattr(schemas, name), type), name
