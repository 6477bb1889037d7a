"""Firestore's queries, as far as mtask needs them; none needs a composite index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.cloud.firestore_v1.types import (
    Cursor,
    RunAggregationQueryRequest,
    StructuredAggregationQuery,
    StructuredQuery,
    Value,
)

__all__ = ["Bounds", "sum_request"]

_FieldFilter = StructuredQuery.FieldFilter
_FieldReference = StructuredQuery.FieldReference
_Sum = StructuredAggregationQuery.Aggregation.Sum
_NAME = "__name__"


class Bounds(NamedTuple):
    """What a stream reads; see `Database.stream`."""

    parent: str
    collection: str
    first: str
    end: str
    only: str
    since: tuple[str, float] | None

    def query(self, after: tuple[str, Mapping[str, Any]] | None, limit: int) -> StructuredQuery:
        """So many documents behind the one with this name and these fields."""
        query = _from(self.collection)
        query.limit = limit
        orders = [_NAME]
        if self.only:
            query.where = _filter(self.only, _FieldFilter.Operator.EQUAL, Value(boolean_value=True))
        if self.since is not None:
            field, seconds = self.since
            least = Value(timestamp_value={"seconds": int(seconds)})
            query.where = _filter(field, _FieldFilter.Operator.GREATER_THAN_OR_EQUAL, least)
            orders = [field, _NAME]
        query.order_by = [
            StructuredQuery.Order(
                field=_FieldReference(field_path=each), direction=StructuredQuery.Direction.ASCENDING
            )
            for each in orders
        ]
        if after is not None:
            name, fields = after
            values = [Value.wrap(fields[each]) for each in orders[:-1]]
            query.start_at = Cursor(values=[*values, Value(reference_value=name)], before=False)
        elif self.first:
            query.start_at = Cursor(values=[self._reference(self.first)], before=True)
        if self.end:
            query.end_at = Cursor(values=[self._reference(self.end)], before=True)
        return query

    def _reference(self, name: str) -> Value:
        return Value(reference_value=f"{self.parent}/{self.collection}/{name}")


def sum_request(parent: str, collection: str, field: str, at: Any) -> RunAggregationQueryRequest:
    """Of the field over all documents of the collection that have it. `at`: the time of which that holds; None: now."""
    aggregation = StructuredAggregationQuery.Aggregation(
        sum=_Sum(field=_FieldReference(field_path=field)), alias="sum"
    )
    query = StructuredAggregationQuery(structured_query=_from(collection), aggregations=[aggregation])
    request = RunAggregationQueryRequest(parent=parent, structured_aggregation_query=query)
    if at is not None:
        request.read_time = at
    return request


def _from(collection: str) -> StructuredQuery:
    selector = StructuredQuery.CollectionSelector(collection_id=collection)
    return StructuredQuery(from_=[selector])


def _filter(field: str, operator: Any, value: Value) -> StructuredQuery.Filter:
    return StructuredQuery.Filter(
        field_filter=_FieldFilter(field=_FieldReference(field_path=field), op=operator, value=value)
    )
