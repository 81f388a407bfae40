// Preloaded into the suite for its client leg. Its servers listen on every address; here only on 127.0.0.1, so that a
// gateway can have the same port on another one, and be found under the same URL.
const net = require("node:net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== "number" || typeof rest[0] === "string") return listen.call(this, port, ...rest);
  const ready = rest.at(-1);
  if (typeof ready === "function") this.once("listening", ready);
  // listen() with an address looks it up first; the suite asks for its port at once
  this._listen2("127.0.0.1", port, 4, 511);
  return this;
};
