"""Metrics and alarms through boto3, against the endpoint in argv[1], whose clock can be moved."""

import datetime
import json
import sys
import urllib.error
import urllib.request

import boto3
from botocore.exceptions import ClientError

endpoint = sys.argv[1]
cloudwatch = boto3.client(
    "cloudwatch",
    endpoint_url=endpoint,
    region_name="eu-west-1",
    aws_access_key_id="123456789012",
    aws_secret_access_key="secret",
)


def control(method, path, **body):
    """Calls the control endpoint and returns its answer."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{endpoint}/_localaws/{path}", data=data, method=method)
    with urllib.request.urlopen(request) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def now():
    return datetime.datetime.fromisoformat(control("GET", "clock")["now"][:19]).replace(tzinfo=datetime.timezone.utc)


def fails(call, code, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        assert e.response["Error"]["Code"] == code, e.response
    else:
        raise AssertionError(code)


# More than 10 KB, which the SDK compresses.
dimensions = [{"Name": "QueueName", "Value": "q" * 200}]
start = now()
cloudwatch.put_metric_data(
    Namespace="N",
    MetricData=[{"MetricName": "m", "Dimensions": dimensions, "Value": float(n), "Unit": "Count", "Timestamp": start} for n in range(1, 101)],
)
cloudwatch.put_metric_data(
    Namespace="N", MetricData=[{"MetricName": "m2", "StatisticValues": {"SampleCount": 2, "Sum": 3, "Minimum": 1, "Maximum": 2}}]
)
window = {"StartTime": start - datetime.timedelta(hours=1), "EndTime": start + datetime.timedelta(hours=1)}
statistics = cloudwatch.get_metric_statistics(
    Namespace="N", MetricName="m", Dimensions=dimensions, Period=60, Statistics=["Sum", "SampleCount"], **window
)
(point,) = statistics["Datapoints"]
assert (point["Sum"], point["SampleCount"], point["Unit"]) == (5050, 100, "Count"), point
assert point["Timestamp"] == start.replace(second=0), point
percentile = cloudwatch.get_metric_statistics(
    Namespace="N", MetricName="m", Dimensions=dimensions, Period=60, ExtendedStatistics=["p99"], **window
)
assert percentile["Datapoints"][0]["ExtendedStatistics"] == {"p99": 99}, percentile

metric = {"Namespace": "N", "MetricName": "m", "Dimensions": dimensions}
query = {"Id": "a", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Average"}}
pages = cloudwatch.get_paginator("get_metric_data").paginate(MetricDataQueries=[query], **window)
results = [r for page in pages for r in page["MetricDataResults"]]
assert results[0]["Values"] == [50.5] and results[0]["StatusCode"] == "Complete", results
names = [m["MetricName"] for page in cloudwatch.get_paginator("list_metrics").paginate(Namespace="N") for m in page["Metrics"]]
assert names == ["m", "m2"], names

fails(cloudwatch.get_metric_data, "ValidationError", MetricDataQueries=[{"Id": "a", "Expression": "1"}], **window)
fails(cloudwatch.put_metric_data, "InvalidParameterValue", Namespace="AWS/SQS", MetricData=[{"MetricName": "m", "Value": 1}])
fails(cloudwatch.set_alarm_state, "ResourceNotFound", AlarmName="none", StateValue="OK", StateReason="x")
try:
    cloudwatch.set_alarm_state(AlarmName="none", StateValue="OK", StateReason="x")
except cloudwatch.exceptions.ResourceNotFound as e:
    assert e.response["ResponseMetadata"]["HTTPStatusCode"] == 404, e.response

cloudwatch.put_metric_alarm(
    AlarmName="a",
    Namespace="N",
    MetricName="m",
    Dimensions=dimensions,
    Statistic="Maximum",
    Period=60,
    EvaluationPeriods=1,
    Threshold=10,
    ComparisonOperator="GreaterThanThreshold",
    TreatMissingData="notBreaching",
)
cloudwatch.get_waiter("alarm_exists").wait(AlarmNames=["a"], WaiterConfig={"MaxAttempts": 1})


def state():
    (alarm,) = cloudwatch.describe_alarms(AlarmNames=["a"])["MetricAlarms"]
    return alarm["StateValue"]


assert state() == "INSUFFICIENT_DATA"
control("POST", "clock/advance", seconds=61)
assert state() == "ALARM"
control("POST", "clock/advance", seconds=3 * 60)
assert state() == "OK"
assert (now() - start).total_seconds() >= 240
cloudwatch.delete_alarms(AlarmNames=["a"])

control("POST", "faults", kind="throttle", service="monitoring", op="ListMetrics", times=1, name="t")
assert len(cloudwatch.list_metrics()["Metrics"]) == 2  # the SDK has tried again
assert control("GET", "faults/t")["hits"] == 1
operations = {s["name"]: s["operations"] for s in control("GET", "operations")["services"]}
assert "PutMetricData" in operations["monitoring"] and "SendMessage" in operations["sqs"], operations
try:
    control("POST", "faults", kind="throttle", tims=1)
except urllib.error.HTTPError as e:
    assert e.code == 400 and "tims" in json.load(e)["error"], e
else:
    raise AssertionError("a slip was taken")
control("POST", "reset")
assert cloudwatch.list_metrics()["Metrics"] == []
print("ok")
