// The JavaScript SDK as a client of the scenarios: a call a line on stdin, its answer on stdout.
// Arguments: ENDPOINT REGION ACCOUNT.
import * as cloudwatch from "@aws-sdk/client-cloudwatch";
import * as sqs from "@aws-sdk/client-sqs";
import * as sts from "@aws-sdk/client-sts";
import { createInterface } from "node:readline";

const [endpoint, region, account] = process.argv.slice(2);
const config = {
  endpoint, region, maxAttempts: 1,
  credentials: { accessKeyId: account, secretAccessKey: "secret" },
};
const services = {
  sqs: { commands: sqs, client: new sqs.SQSClient(config), base: "SQSServiceException" },
  sts: { commands: sts, client: new sts.STSClient(config), base: "STSServiceException" },
  cloudwatch: { commands: cloudwatch, client: new cloudwatch.CloudWatchClient(config), base: "CloudWatchServiceException" },
};

// decoded is what a scenario sends, with its binary values as bytes and its moments as such.
function decoded(value) {
  if (Array.isArray(value)) return value.map(decoded);
  if (value === null || typeof value !== "object") return value;
  if ("$bytes" in value) return new Uint8Array(Buffer.from(value.$bytes, "base64"));
  if ("$time" in value) return new Date(value.$time);
  return Object.fromEntries(Object.entries(value).map(([key, e]) => [key, decoded(e)]));
}

function encoded(key, value) {
  return value instanceof Uint8Array ? Buffer.from(value).toString("base64") : value;
}

async function answer({ service, op, in: input }) {
  const { commands, client, base } = services[service];
  try {
    const { $metadata, ...out } = await client.send(new commands[op + "Command"](decoded(input)));
    return { out };
  } catch (e) {
    if (!e.$metadata?.httpStatusCode) throw e;
    const type = e.constructor.name;
    return { error: { code: e.Code ?? e.name, message: e.message, type: type === base ? "" : type } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await answer(JSON.parse(line)), encoded));
}
