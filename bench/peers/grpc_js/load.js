// A closed loop on grpc-js. JSON in (argv), JSON out, as ../grpc_aio/load.py; each call has a deadline, as is usual.
//
//     node load.js '{"port": 50051, "path": ..., "connections": 10, "streams": 10, "seconds": 2, ...}'
"use strict";

const { performance } = require("node:perf_hooks");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");

const DEADLINE_MS = 20_000;
const OPTIONS = {
  "grpc.use_local_subchannel_pool": 1, // or all clients share one connection
  "grpc.enable_http_proxy": 0,
  "grpc.max_receive_message_length": -1,
};

const same = (bytes) => bytes;
const now = () => performance.now() / 1000;

async function main(asked) {
  const message = Buffer.from(asked.message, "hex");
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(asked.headers)) metadata.set(name, value);

  // Whether the call ended as it should.
  const call = (client) =>
    new Promise((resolve) => {
      const options = { deadline: Date.now() + DEADLINE_MS };
      client.makeUnaryRequest(asked.path, same, same, message, metadata, options, (error, answer) => {
        const status = error ? error.code : grpc.status.OK;
        resolve(status === asked.status && (error !== null || answer.length === asked.answer_bytes));
      });
    });

  const clients = Array.from(
    { length: asked.connections },
    () => new grpc.Client(`127.0.0.1:${asked.port}`, grpc.credentials.createInsecure(), OPTIONS),
  );
  await Promise.all(clients.map((client) => promisify(client.waitForReady).call(client, Date.now() + DEADLINE_MS)));

  let calls = 0;
  let failed = 0;
  let spent = 0;
  const began = now();
  const end = began + asked.seconds;

  async function loop(client) {
    for (let start = now(); start < end; start = now()) {
      if (!(await call(client))) failed += 1;
      calls += 1;
      spent += now() - start;
    }
  }

  await Promise.all(clients.flatMap((client) => Array.from({ length: asked.streams }, () => loop(client))));
  const seconds = now() - began;
  for (const client of clients) client.close();
  console.log(JSON.stringify({ calls, failed, seconds, mean: spent / calls }));
}

main(JSON.parse(process.argv[2]));
