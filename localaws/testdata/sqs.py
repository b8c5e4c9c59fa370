"""The life of a queue and its messages through boto3, against the endpoint in argv[1]."""

import sys

import boto3
from botocore.exceptions import ClientError

sqs = boto3.client(
    "sqs",
    endpoint_url=sys.argv[1],
    region_name="eu-west-1",
    aws_access_key_id="123456789012",
    aws_secret_access_key="secret",
)
url = sqs.create_queue(QueueName="q", Attributes={"VisibilityTimeout": "30"})["QueueUrl"]
assert url == f"{sys.argv[1]}/123456789012/q", url
assert sqs.get_queue_url(QueueName="q")["QueueUrl"] == url
assert "QueueUrls" not in sqs.list_queues(QueueNamePrefix="x")

attributes = {"a": {"DataType": "String", "StringValue": "v"}, "b": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}
sent = sqs.send_message(QueueUrl=url, MessageBody="gr\u00fc\u00dfe", MessageAttributes=attributes, DelaySeconds=0)
received = sqs.receive_message(
    QueueUrl=url, AttributeNames=["All"], MessageAttributeNames=["All"], WaitTimeSeconds=1, VisibilityTimeout=0
)["Messages"][0]
assert received["MessageId"] == sent["MessageId"]
assert received["MessageAttributes"] == attributes, received
assert received["MD5OfMessageAttributes"] == sent["MD5OfMessageAttributes"]

# An explicit zero is a zero: the message is still visible.
again = sqs.receive_message(QueueUrl=url, MessageSystemAttributeNames=["ApproximateReceiveCount"])["Messages"][0]
assert again["Attributes"] == {"ApproximateReceiveCount": "2"}
assert "Messages" not in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=0)
sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=again["ReceiptHandle"], VisibilityTimeout=0)
missing = sqs.change_message_visibility_batch(QueueUrl=url, Entries=[{"Id": "x", "ReceiptHandle": again["ReceiptHandle"]}])
assert missing["Failed"][0]["Code"] == "MissingParameter", missing
sqs.delete_message(QueueUrl=url, ReceiptHandle=received["ReceiptHandle"])
assert "Messages" not in sqs.receive_message(QueueUrl=url)

for call, code in (
    (lambda: sqs.get_queue_url(QueueName="none"), "AWS.SimpleQueueService.NonExistentQueue"),
    (lambda: sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=11), "InvalidParameterValue"),
    (lambda: sqs.send_message(QueueUrl=url, MessageBody="x", DelaySeconds=901), "InvalidParameterValue"),
):
    try:
        call()
    except ClientError as e:
        assert e.response["Error"]["Code"] == code, e.response
    else:
        raise AssertionError(code)
try:
    sqs.get_queue_url(QueueName="none")
except sqs.exceptions.QueueDoesNotExist:
    pass
sqs.delete_queue(QueueUrl=url)
print("ok")
