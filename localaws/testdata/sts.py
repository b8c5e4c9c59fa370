"""Drives the local STS, and SQS with its temporary credentials, with boto3; prints ok."""

import sys

import boto3
from botocore.exceptions import ClientError


def client(service: str, **credentials: str):
    return boto3.client(service, region_name="eu-west-1", endpoint_url=sys.argv[1], **credentials)


own = {"aws_access_key_id": "123456789012", "aws_secret_access_key": "secret"}
who = client("sts", **own).get_caller_identity()
assert who["Arn"] == "arn:aws:iam::123456789012:root", who
assert len(who["ResponseMetadata"]["RequestId"]) == 36, who

role = "arn:aws:iam::111122223333:role/worker"
assumed = client("sts", **own).assume_role(
    RoleArn=role,
    RoleSessionName="me",
    PolicyArns=[{"arn": "arn:aws:iam::aws:policy/ReadOnlyAccess"}],
    Tags=[{"Key": "a", "Value": "b"}, {"Key": "c", "Value": "d"}],
    TransitiveTagKeys=["a"],
)
given = assumed["Credentials"]
assert given["Expiration"].tzinfo is not None, given
temporary = {
    "aws_access_key_id": given["AccessKeyId"],
    "aws_secret_access_key": given["SecretAccessKey"],
    "aws_session_token": given["SessionToken"],
}
who = client("sts", **temporary).get_caller_identity()
assert who["Arn"] == "arn:aws:sts::111122223333:assumed-role/worker/me", who

url = client("sqs", **temporary).create_queue(QueueName="q")["QueueUrl"]
assert url.endswith("/111122223333/q"), url

try:
    client("sts", **own).assume_role(RoleArn="arn:aws:iam::111122223333:user/me", RoleSessionName="me")
    raise AssertionError("a user was assumed")
except ClientError as e:
    assert e.response["Error"]["Code"] == "ValidationError", e.response
    assert e.response["Error"]["Type"] == "Sender", e.response

print("ok")
