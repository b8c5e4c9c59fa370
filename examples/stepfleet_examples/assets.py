"""A few assets that depend on each other, with metadata and a check."""

from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetExecutionContext,
    Definitions,
    MaterializeResult,
    asset,
    asset_check,
    define_asset_job,
)

from stepfleet_examples.effects import effect

ROWS = 100


@asset
def orders(context: AssetExecutionContext) -> list[int]:
    """The amounts of some orders."""
    with effect(context):
        amounts = [(17 * i) % 23 for i in range(ROWS)]
        context.add_output_metadata({"rows": len(amounts)})
        return amounts


@asset
def paid_orders(context: AssetExecutionContext, orders: list[int]) -> list[int]:
    """Those that cost something."""
    with effect(context):
        paid = [amount for amount in orders if amount > 0]
        context.add_output_metadata({"rows": len(paid), "dropped": len(orders) - len(paid)})
        return paid


@asset
def revenue(context: AssetExecutionContext, paid_orders: list[int]) -> int:
    with effect(context):
        amount = sum(paid_orders)
        context.add_output_metadata({"revenue": amount})
        return amount


@asset(deps=[revenue, paid_orders])
def report_sent(context: AssetExecutionContext) -> MaterializeResult[Any]:
    """An asset without a value, only with metadata."""
    with effect(context):
        return MaterializeResult(metadata={"recipients": 3})


@asset_check(asset=paid_orders)
def all_paid(context: AssetCheckExecutionContext, paid_orders: list[int]) -> AssetCheckResult:
    """No order of amount 0 is left."""
    with effect(context):
        unpaid = sum(1 for amount in paid_orders if amount <= 0)
        return AssetCheckResult(passed=unpaid == 0, metadata={"unpaid": unpaid})


defs = Definitions(
    assets=[orders, paid_orders, revenue, report_sent],
    asset_checks=[all_paid],
    jobs=[define_asset_job("assets")],
)
