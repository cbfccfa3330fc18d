// The contract of avapd on grpc-js, as one would write it by hand: proto-loader, a map, a check of the key.
//
//     API_KEY=... node server.js CATALOG PROTO [WORKERS]
//
// CATALOG is a file that holds a serialized avap.CatalogResponse: what SyncCatalog of avapd answers, so that both serve
// the same bytes. PROTO is avap.proto. It listens on a free loopback port and prints it. With WORKERS so many processes
// share the port, by node:cluster; it is printed once all of them listen.
"use strict";

const cluster = require("node:cluster");
const crypto = require("node:crypto");
const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [catalogPath, protoPath, workers] = process.argv.slice(2);

const digest = (key) => crypto.hash("sha256", key, "buffer");

// Compares digests in constant time, as avapd does.
function authenticator(key) {
  const accepted = digest(key);
  return (handler) => (call, callback) => {
    const [given] = call.metadata.get("x-avap-auth");
    if (given !== undefined && crypto.timingSafeEqual(digest(given), accepted)) handler(call, callback);
    else callback({ code: grpc.status.UNAUTHENTICATED, details: "Invalid Credentials" });
  };
}

function serve(listening) {
  const definition = protoLoader.loadSync(protoPath, { keepCase: true, defaults: true });
  const { service } = grpc.loadPackageDefinition(definition).avap.DefinitionEngine;
  const catalog = service.SyncCatalog.responseDeserialize(fs.readFileSync(catalogPath));
  const commands = new Map(catalog.commands.map((command) => [command.name, command]));

  function getCommand({ request: { name } }, callback) {
    const command = commands.get(name);
    if (command) callback(null, command);
    else callback({ code: grpc.status.NOT_FOUND, details: `Command '${name}' not found` });
  }

  function syncCatalog(_call, callback) {
    callback(null, catalog);
  }

  const authenticated = authenticator(process.env.API_KEY);
  const server = new grpc.Server({ "grpc.max_receive_message_length": -1 });
  server.addService(service, { GetCommand: authenticated(getCommand), SyncCatalog: authenticated(syncCatalog) });
  server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    listening(port);
  });
}

function supervise(count) {
  let listening = 0;
  cluster.on("listening", (_worker, { port }) => {
    listening += 1;
    if (listening === count) console.log(port);
  });
  cluster.on("exit", () => process.exit(1));
  for (let i = 0; i < count; i++) cluster.fork();
}

if (cluster.isWorker) serve(() => {});
else if (workers) supervise(Number(workers));
else serve(console.log);
