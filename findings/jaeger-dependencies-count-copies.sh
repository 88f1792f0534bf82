#!/usr/bin/env bash
# Jaeger 1.76.0 (all-in-one, in memory): a span that is sent twice is shown once and counted twice.
#
# Guess before: of two spans with the same ids one is kept, or both are shown. Exporters try again after a time-out, so copies are
# usual, and what the page of a trace shows is what the dependency graph counts.
# Seen: equal copies are one span in the trace, without a warning about them; the graph counts each, so an edge that was used once has
# `callCount` 2. A third copy with another attribute is a second span in the trace ("duplicate span IDs"), and `callCount` is 3. So a
# retried export, or telling a trace once more into a store that still has it, is seen in the graph and not in the trace.
# (Arize Phoenix 20.26.1 keeps the first of them and drops the others, whatever they hold.)
#
# Output seen:
#     sent once                 spans 2, callCount 1
#     sent twice                spans 2, callCount 2
#     and once with a change    spans 3, callCount 3
#
# Needs Go 1.24 or newer, Python 3 and some minutes to build. Exits 1 if Jaeger behaves otherwise by now.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
go mod init finding 2>/dev/null
go get -tool github.com/jaegertracing/jaeger/cmd/all-in-one@v1.76.0 2>/dev/null
go build -o all-in-one github.com/jaegertracing/jaeger/cmd/all-in-one
mapfile -t port < <(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(7)]
print(*(s.getsockname()[1] for s in held), sep="\n")')
OTEL_TRACES_SAMPLER=always_off ./all-in-one \
    --admin.http.host-port="127.0.0.1:${port[0]}" --collector.grpc-server.host-port="127.0.0.1:${port[1]}" \
    --collector.http-server.host-port="127.0.0.1:${port[2]}" --collector.otlp.grpc.host-port="127.0.0.1:${port[3]}" \
    --collector.otlp.http.host-port="127.0.0.1:${port[4]}" --query.grpc-server.host-port="127.0.0.1:${port[5]}" \
    --query.http-server.host-port="127.0.0.1:${port[6]}" >log 2>&1 &
server=$!
python3 - "${port[4]}" "${port[6]}" <<'PY'
import json, sys, time, urllib.request

otlp, query = (f"http://127.0.0.1:{port}" for port in sys.argv[1:])
trace, now = "5b8efff798038103d269b633813fc60c", time.time_ns()

def answer(url, body=None):
    headers = {"content-type": "application/json"} if body else {}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode() if body else None, headers), timeout=10) as page:
        return json.load(page)

def until(what):
    """What `what` returns, once it is anything."""
    for _ in range(300):
        try:
            found = what()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit("Jaeger does not answer as expected: see its log")

def spans(service, span, parent, **attributes):
    made = {"traceId": trace, "spanId": span, "parentSpanId": parent, "name": service, "kind": 1,
            "startTimeUnixNano": str(now), "endTimeUnixNano": str(now + 1000),
            "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]}
    return {"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
            "scopeSpans": [{"scope": {"name": "finding"}, "spans": [made]}]}

def seen(counted):
    """Spans of the trace and calls of the edge, as soon as so many calls are counted."""
    def calls():
        edges = answer(f"{query}/api/dependencies?endTs={time.time_ns() // 1_000_000 + 60_000}&lookback=3600000")["data"]
        found = [edge["callCount"] for edge in edges if (edge["parent"], edge["child"]) == ("above", "below")]
        return found if found and found[0] >= counted else None
    found = until(calls)
    return len(answer(f"{query}/api/traces/{trace}")["data"][0]["spans"]), found[0]

until(lambda: answer(f"{query}/api/services"))
above, below = spans("above", "eee19b7ec3c1b174", ""), spans("below", "eee19b7ec3c1b175", "eee19b7ec3c1b174")
changed = spans("below", "eee19b7ec3c1b175", "eee19b7ec3c1b174", changed="yes")
results = []
for what, sent in (("sent once", [above, below]), ("sent twice", [above, below]), ("and once with a change", [changed])):
    answer(f"{otlp}/v1/traces", {"resourceSpans": sent})
    results.append(seen(len(results) + 1))
    print(f"{what:<25} spans {results[-1][0]}, callCount {results[-1][1]}")
sys.exit(results != [(2, 1), (2, 2), (3, 3)])
PY
