"""boto3 as a client of the scenarios: a call a line on stdin, its answer on stdout.

Arguments: ENDPOINT REGION ACCOUNT. A call is {"service", "op", "in"}, an answer {"out"} or
{"error"}.
"""

import base64
import json
import sys

import boto3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, region, account = sys.argv[1:4]
clients = {
    service: boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=account,
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )
    for service in ("sqs", "sts", "cloudwatch")
}


def decoded(value):
    """What a scenario sends, with its binary values as bytes."""
    if isinstance(value, list):
        return [decoded(element) for element in value]
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"])
        if "$time" in value:
            return value["$time"]
        return {key: decoded(element) for key, element in value.items()}
    return value


def encoded(value):
    """Bytes and times, which JSON does not have."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def answer(call):
    client = clients[call["service"]]
    try:
        out = getattr(client, xform_name(call["op"]))(**decoded(call["in"]))
    except ClientError as e:
        error = e.response["Error"]
        kind = type(e).__name__
        return {
            "error": {
                "code": error["Code"],
                "message": error["Message"],
                "type": "" if kind == "ClientError" else kind,
            }
        }
    del out["ResponseMetadata"]
    return {"out": out}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line)), default=encoded), flush=True)
