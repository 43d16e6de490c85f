// Node's own servers, HTTP/1.1 and HTTP/2, over the documents of the tests; POST /echo gives back what it was sent.
const [root, http, https, kept] = process.argv.slice(2);
const fs = require("fs"), zlib = require("zlib");

function answer(request, response) {
  const path = request.url.split("?")[0];
  if (path === "/echo") {
    response.writeHead(200, { "content-type": "application/octet-stream", "x-method": request.method });
    request.pipe(response);
    return;
  }
  if (path === "/busy") {
    response.writeHead(503, { "retry-after": "7" });
    response.end("busy");
    return;
  }
  if (path === "/moved") {
    response.writeHead(302, { location: "doc" });
    response.end();
    return;
  }
  const file = root + "/www" + path;
  if (!fs.existsSync(file) || fs.statSync(file).isDirectory()) {
    response.writeHead(404);
    response.end("not here");
    return;
  }
  const stream = fs.createReadStream(file);
  if (path === "/text.txt" && /gzip/.test(request.headers["accept-encoding"] || "")) {
    response.writeHead(200, { "content-encoding": "gzip" });
    stream.pipe(zlib.createGzip()).pipe(response);
    return;
  }
  response.writeHead(200, { "content-length": fs.statSync(file).size });
  if (request.method === "HEAD") response.end();
  else stream.pipe(response);
}

const plain = require("http").createServer({ keepAliveTimeout: Number(kept) }, answer);
const secure = require("http2").createSecureServer(
  { key: fs.readFileSync(root + "/key.pem"), cert: fs.readFileSync(root + "/cert.pem"), allowHTTP1: true }, answer);
secure.listen(Number(https), "127.0.0.1", () => plain.listen(Number(http), "127.0.0.1"));
