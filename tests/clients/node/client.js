// grpc-js as a client program; ../program.py tells the language of its lines.
"use strict";

const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");

const [target, keepalive] = process.argv.slice(2);
const options = { "grpc.max_receive_message_length": -1, "grpc.enable_http_proxy": 0 };
if (Number(keepalive)) {
  options["grpc.keepalive_time_ms"] = Number(keepalive);
  options["grpc.keepalive_permit_without_calls"] = 1;
}
const client = new grpc.Client(target, grpc.credentials.createInsecure(), options);
const running = new Map();

const same = (bytes) => bytes;
const hex = (bytes) => (bytes.length ? bytes.toString("hex") : "-");
const bytes = (word) => (word === "-" ? Buffer.alloc(0) : Buffer.from(word, "hex"));
const tell = (...words) => process.stdout.write(words.join(" ") + "\n");

function start(kind, id, path, request, timeout, key) {
  const metadata = new grpc.Metadata();
  if (key !== "-") metadata.set("x-avap-auth", key);
  const options = timeout === "-" ? {} : { deadline: Date.now() + Number(timeout) };
  let call;
  if (kind === "unary") {
    call = client.makeUnaryRequest(path, same, same, bytes(request), metadata, options, (error, answer) => {
      if (!error) tell("message", id, hex(answer));
    });
  } else {
    call = client.makeServerStreamRequest(path, same, same, bytes(request), metadata, options);
    call.on("data", (answer) => tell("message", id, hex(answer)));
    call.on("error", () => {}); // its status follows
  }
  call.on("status", (status) => {
    running.delete(id);
    // After the callback of a unary call, which gives the message.
    setImmediate(tell, "end", id, status.code, hex(Buffer.from(status.details)));
  });
  running.set(id, call);
}

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [verb, id, ...words] = line.split(" ");
    if (verb === "cancel") running.get(id)?.cancel();
    else start(verb, id, ...words);
  })
  .on("close", () => process.exit(0));
